// What the emulated code asks of the emulator: threads, warps, memory, matrices. Definitions in
// .cpp files of these names, which are compiled without the instrumentation that it gets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vector_types.h"

namespace udp::emulator {

// Where in the source a collective operation is: taken as a default argument of it.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// ---- threads.cpp

// `const`: within one emulated thread these never change.
__attribute__((const)) unsigned lane_index();
__attribute__((const)) void* dynamic_shared();

enum class Tally { sync, count, all, any };
int block_barrier(Tally tally, int predicate, const char* operation, Site site);

// A warp's collective: returns once every running lane of `mask` has called it with the same mask
// and the same `finish`. The last to come calls finish with every lane's operand (null: not taking
// part).
using Finish = void (*)(void* const* operands, unsigned mask);
void warp_collective(unsigned mask, void* operand, Finish finish, const char* operation, Site site);

void require_whole_warp(unsigned lanes, const char* operation);

void warp_barrier(unsigned mask, Site site);
unsigned active_mask(Site site);
// The value that lane `source` of the warp passed.
uint64_t shuffle(unsigned mask, uint64_t value, int source, const char* operation, Site site);
unsigned ballot(unsigned mask, bool predicate, const char* operation, Site site);
unsigned match_any(unsigned mask, uint64_t value, Site site);

// A point at which a schedule may turn to another thread, for loops that wait for one.
void maybe_yield();

struct Launch {
    const void* kernel;
    dim3 grid, block;
    size_t dynamic_shared_bytes;
    void (*call)(void* arguments);  // the kernel, once
    void* arguments;
    size_t argument_bytes;
};

// Ends the launch with a report. The first report of a launch is the one that counts.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- memory.cpp

enum Access : unsigned {
    kLoad = 0,
    kStore = 1,
    kAtomic = 2,
    kReadOnly = 4,
    kMatrix = 8,
    kExact = 16
};

// Checks, records and counts an access by the running thread (nothing happens outside a launch).
// kExact: the width is the instruction's, so it must be aligned to it.
void access(const void* address, unsigned bytes, unsigned kind, const void* where);

void copy_async(void* shared, const void* global, int bytes, int source_bytes, const void* where);
void copy_async_commit();
void copy_async_wait(int pending);

void add_allocation(const void* base, size_t bytes, const char* name, bool writable, bool written);
void remove_allocation(const void* base);
void mark_written(const void* base, size_t bytes);  // by the host

// ---- matrices.cpp: what the lanes of a warp do together, as each lane's operand and its Finish

struct MatrixRow {
    const void* row;
    uint32_t matrices[4];
};
template <int kMatrices, bool kTransposed>
void load_matrices(void* const* operands, unsigned lanes);

struct MatrixProduct {
    float d[4];
    uint32_t a[4], b[2];
};
// The sum of the 16 products is formed in double and rounded once with d; a tensor core keeps fewer
// bits and truncates, so the device's last places differ.
template <class Half>
void multiply_matrices(void* const* operands, unsigned lanes);

}  // namespace udp::emulator

#define UDP_EMULATOR_WHERE __builtin_extract_return_addr(__builtin_return_address(0))
