// Matrix instructions. (Compiled here and not with each kernel, whose every access is followed.)
#include <cstring>

#include "banks.h"
#include "half_types.h"
#include "state.h"

namespace udp::emulator {

// Lane 8 * m + i has the address of row i of matrix m. Of each matrix every lane gets a pair of
// neighbours in a row or, transposed, in a column.
template <int kMatrices, bool kTransposed>
void load_matrices(void* const* operands, unsigned lanes) {
    require_whole_warp(lanes, "ldmatrix");
    for (int m = 0; m < kMatrices; ++m) {
        Banks banks;
        uint16_t matrix[8][8];
        for (int i = 0; i < 8; ++i) {
            const void* row = static_cast<const MatrixRow*>(operands[8 * m + i])->row;
            memcpy(matrix[i], row, sizeof matrix[i]);
            for (uintptr_t k = 0; k < 4; ++k) banks.add(reinterpret_cast<uintptr_t>(row) / 4 + k);
        }
        state.counters->ldmatrix_conflicts += banks.wavefronts() - 1;
        for (int lane = 0; lane < kWarp; ++lane) {
            const int i = lane / 4, j = 2 * (lane % 4);
            const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
            const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
            static_cast<MatrixRow*>(operands[lane])->matrices[m] = low | high << 16;
        }
    }
    ++state.counters->ldmatrix;
}
template void load_matrices<1, false>(void* const*, unsigned);
template void load_matrices<2, false>(void* const*, unsigned);
template void load_matrices<4, false>(void* const*, unsigned);
template void load_matrices<1, true>(void* const*, unsigned);
template void load_matrices<2, true>(void* const*, unsigned);
template void load_matrices<4, true>(void* const*, unsigned);

// Lane 4 * g + t has of a rows g and g + 8, of b column g, of d rows g and g + 8.
template <class Half>
void multiply_matrices(void* const* operands, unsigned lanes) {
    require_whole_warp(lanes, "mma_m16n8k16");
    ++state.counters->mma;
    const auto half = [](uint32_t word, int which) {
        return static_cast<double>(
            float(Half::from_bits(static_cast<unsigned short>(word >> (16 * which)))));
    };
    double a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const MatrixProduct& o = *static_cast<const MatrixProduct*>(operands[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int k = 0; k < 2; ++k) {
            for (int r = 0; r < 4; ++r) {
                a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + k] = half(o.a[r], k);
                d[g + 8 * (r / 2)][2 * t + r % 2] = static_cast<double>(o.d[r]);
            }
            for (int r = 0; r < 2; ++r) b[2 * t + 8 * r + k][g] = half(o.b[r], k);
        }
    }
    // Along k one after the other, but all columns at once.
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < kWarp; ++lane) {
        MatrixProduct& o = *static_cast<MatrixProduct*>(operands[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; ++r) o.d[r] = static_cast<float>(d[g + 8 * (r / 2)][2 * t + r % 2]);
    }
}
template void multiply_matrices<__half>(void* const*, unsigned);
template void multiply_matrices<__nv_bfloat16>(void* const*, unsigned);

}  // namespace udp::emulator
