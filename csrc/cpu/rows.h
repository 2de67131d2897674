// Walking a chunk in rows, and the way of an operand into float32 lanes and back. Included once for
// each instruction set, after its simd_*.h.
#pragma once

#include "compact.h"
#include "ops.h"

namespace udp {
namespace UDP_ISA {
namespace {

// --- lanes ---------------------------------------------------------------------------------------

// How many lanes of a group of sixteen exist: all of them, or those before the end of a row.
struct Full {};
struct Part {
    int64_t n;
};

template <class T>
UDP_HD F load(const T* p, Full) {
    return load16(p);
}
template <class T>
UDP_HD F load(const T* p, Part part) {  // the missing lanes read zero
    T lanes[16] = {};
    memcpy(lanes, p, static_cast<size_t>(part.n) * sizeof(T));
    return load16(lanes);
}
template <class T>
UDP_HD void store(T* p, F a, Full, bool stream) {
    if (stream) {
        stream16(p, a);
    } else {
        store16(p, a);
    }
}
template <class T>
UDP_HD void store(T* p, F a, Part part, bool) {
    T lanes[16];
    store16(lanes, a);
    memcpy(p, lanes, static_cast<size_t>(part.n) * sizeof(T));
}

// Into the second cache, for a loop whose chain of instructions is too long for the processor to
// see the next lines in time by itself. The address need not exist.
UDP_HD void fetch(const void* p) {
#if !defined(_MSC_VER)
    __builtin_prefetch(p, 0, 2);
#elif defined(_M_X64)
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
#endif
}

struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};
// body(Yes or No): a choice made once a row instead of once an element.
template <class Body>
UDP_HD void choose(bool which, Body body) {
    if (which) {
        body(Yes{});
    } else {
        body(No{});
    }
}

// body(i, Full or Part) for the groups of sixteen in begin .. end.
template <class Body>
UDP_HD void for_lanes(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    if constexpr (kCompact) {  // the body once, not twice
        for (; i < end; i += 16) body(i, Part{end - i < 16 ? end - i : 16});
        return;
    }
    for (; i + 16 <= end; i += 16) body(i, Full{});
    if (i < end) body(i, Part{end - i});
}
template <class Body>
UDP_HD void for_lanes(int64_t n, Body body) {
    for_lanes(0, n, body);
}

// to[i] = value(i, Full or Part) for i in begin .. end. Two groups at a time: some types of the
// result are made of two sooner than of one twice.
template <class T>
UDP_HD void store32(T* p, F a, F b, bool stream) {
    store(p, a, Full{}, stream);
    store(p + 16, b, Full{}, stream);
}
template <class T, class Value>
UDP_HD void store_lanes(T* to, int64_t begin, int64_t end, bool stream, Value value) {
    int64_t i = begin;
    for (; !kCompact && i + 32 <= end; i += 32)
        store32(to + i, value(i, Full{}), value(i + 16, Full{}), stream);
    for_lanes(i, end,
              [=](int64_t j, auto lanes) { store(to + j, value(j, lanes), lanes, stream); });
}

UDP_HD double total(const Sums& sums) {
    double lanes[16];
    sums.store(lanes);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

// --- rows ----------------------------------------------------------------------------------------

struct Row {
    int64_t image, channel, pixel;
    int64_t outer,
        inner;  // elements: inner is the pixels of a planar row, the channels of the other
    bool interleaved;
    int64_t size() const { return outer * inner; }
};

template <class Body>
UDP_HD void for_rows(const Plan& plan, int64_t image, int64_t chunk, Body body) {
    const int64_t channel0 = chunk / plan.pixel_chunks() * plan.chunk_channels;
    const int64_t pixel0 = chunk % plan.pixel_chunks() * plan.chunk_pixels;
    const int64_t channels = channel0 + plan.chunk_channels < plan.shape.channels
                                 ? channel0 + plan.chunk_channels
                                 : plan.shape.channels;
    const int64_t pixels = pixel0 + plan.chunk_pixels < plan.shape.pixels
                               ? pixel0 + plan.chunk_pixels
                               : plan.shape.pixels;
    if (plan.interleaved) {
        const int64_t step = kRow / (channels - channel0);
        for (int64_t p = pixel0; p < pixels; p += step) {
            const int64_t n = p + step < pixels ? step : pixels - p;
            body(Row{image, channel0, p, n, channels - channel0, true});
        }
    } else {
        // Channels inside: a channels-last operand's cache lines serve all of them.
        for (int64_t p = pixel0; p < pixels; p += kRow) {
            const int64_t n = p + kRow < pixels ? kRow : pixels - p;
            for (int64_t c = channel0; c < channels; ++c) body(Row{image, c, p, 1, n, false});
        }
    }
}

// Where an operand keeps a row: outer runs of inner elements, strides in elements.
struct Place {
    char* data;
    int64_t outer, inner;
    bool dense(const Row& row) const {
        return (inner == 1 || row.inner == 1) && (row.outer == 1 || outer == row.inner);
    }
};

UDP_HD Place locate(const Operand& o, const Row& row) {
    const int64_t at = row.image * o.image + row.channel * o.channel + row.pixel * o.pixel;
    char* data = static_cast<char*>(o.data) + at * size_of(o.type);
    if (row.interleaved) return {data, o.pixel, o.channel};
    return {data, 0, o.pixel};
}

template <class T>
UDP_HD void gather(const Place& from, const Row& row, T* to) {
    const T* data = reinterpret_cast<const T*>(from.data);
    for (int64_t j = 0; j < row.inner; ++j) {
        for (int64_t i = 0; i < row.outer; ++i) {
            to[i * row.inner + j] = data[i * from.outer + j * from.inner];
        }
    }
}
template <class T>
UDP_HD void scatter(const T* from, const Row& row, const Place& to) {
    T* data = reinterpret_cast<T*>(to.data);
    for (int64_t j = 0; j < row.inner; ++j) {
        for (int64_t i = 0; i < row.outer; ++i) {
            data[i * to.outer + j * to.inner] = from[i * row.inner + j];
        }
    }
}

template <class T>
UDP_HD void convert(const T* from, float* to, int64_t n) {
    for_lanes(n,
              [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes, false); });
}
template <class T>
UDP_HD void convert(const float* from, T* to, int64_t n, bool stream) {
    store_lanes(to, 0, n, stream, [=](int64_t i, auto lanes) { return load(from + i, lanes); });
}

struct alignas(64) Buffer {
    float data[kRow];
};

template <class T>
UDP_HD const float* read_as(const Place& place, const Row& row, Buffer& buffer) {
    if (place.dense(row)) {
        convert(reinterpret_cast<const T*>(place.data), buffer.data, row.size());
    } else {
        T gathered[kRow];
        gather(place, row, gathered);
        convert(gathered, buffer.data, row.size());
    }
    return buffer.data;
}

// A row as float32: in place where it is that already, else converted or gathered into the buffer.
const float* read(const Operand& o, const Row& row, Buffer& buffer) {
    const Place place = locate(o, row);
    switch (o.type) {
        case DType::float32:
            if (place.dense(row)) return reinterpret_cast<const float*>(place.data);
            gather(place, row, buffer.data);
            return buffer.data;
        case DType::float16:
            return read_as<Float16>(place, row, buffer);
        case DType::bfloat16:
            return read_as<BFloat16>(place, row, buffer);
        case DType::uint8:
            return read_as<uint8_t>(place, row, buffer);
    }
    return nullptr;
}

UDP_HD bool aligned(const void* p) {
    return reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

// The other way: where a kernel writes a row, and what is left to do once it has.
struct Output {
    Place place;
    float* data;
    bool stream;  // the kernel's own stores to `data` may go past the caches
};

UDP_HD Output open(const Operand& o, const Row& row, Buffer& buffer, bool stream) {
    const Place place = locate(o, row);
    if (o.type == DType::float32 && place.dense(row)) {
        return {place, reinterpret_cast<float*>(place.data), stream && aligned(place.data)};
    }
    return {place, buffer.data, false};
}

template <class T>
UDP_HD void close_as(const Output& out, const Row& row, bool stream) {
    if (out.place.dense(row)) {
        T* to = reinterpret_cast<T*>(out.place.data);
        convert(out.data, to, row.size(), stream && aligned(to));
    } else {
        T converted[kRow];
        convert(out.data, converted, row.size(), false);
        scatter(converted, row, out.place);
    }
}

void close(const Operand& o, const Output& out, const Row& row, bool stream) {
    switch (o.type) {
        case DType::float32:
            if (!out.place.dense(row)) scatter(out.data, row, out.place);
            return;
        case DType::float16:
            return close_as<Float16>(out, row, stream);
        case DType::bfloat16:
            return close_as<BFloat16>(out, row, stream);
        case DType::uint8:
            return close_as<uint8_t>(out, row, stream);
    }
}

// The first n lanes, zeros after them.
UDP_HD F load_some(const float* p, int64_t n) {
    if (n >= 16) return load16(p);
    float values[16] = {};
    memcpy(values, p, static_cast<size_t>(n) * sizeof(float));
    return load16(values);
}
UDP_HD void store_some(float* p, const F& a, int64_t n, bool stream = false) {
    if (n >= 16) return store(p, a, Full{}, stream);
    float values[16];
    store16(values, a);
    memcpy(p, values, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
