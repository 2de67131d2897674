// Chunks of work over threads. What a chunk is never depends on the number of threads.
#pragma once

#include <cstdint>

namespace udp {

// body(context, item) once for each item in 0 .. items, on at most `threads` threads, the calling
// one among them. body must not throw. `grain` items at a time are claimed.
void parallel_for(int64_t items, int64_t grain, int threads, void (*body)(const void*, int64_t),
                  const void* context);

template <class Body>
void parallel_for(int64_t items, int64_t grain, int threads, const Body& body) {
    parallel_for(
        items, grain, threads,
        [](const void* context, int64_t item) { (*static_cast<const Body*>(context))(item); },
        &body);
}

// Whose threads these are, in words.
const char* threading_runtime();

}  // namespace udp
