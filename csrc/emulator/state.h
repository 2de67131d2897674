// The emulator's own state: shared by its .cpp files, unknown to the emulated code.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace udp::emulator {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

// A cp.async on its way. Its data land in wait; until then the destination holds the poison.
struct Copy {
    void* shared;
    const void* global;
    int bytes, source_bytes;
    unsigned char data[16];
};

enum class Waits : uint8_t { no, at_block_barrier, at_warp_collective, at_active_mask, for_ever };

struct Thread {
    Fiber fiber;
    uint3 index;
    int id, lane, warp;

    Waits waits;  // for_ever: it has returned from the kernel
    const char* operation;
    Site site;
    unsigned mask;  // of the collective it waits at
    Finish finish;
    void* operand;
    int predicate;

    // What this thread knows of its warp's lanes: it sees what lane l did up to l's time clock[l].
    uint32_t clock[kWarp];
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> copy_groups;
    bool reads_late;  // of cp.async: the source is read in wait, not at once

    explicit Thread(size_t stack_bytes) : fiber(stack_bytes) {}
};

// Per launch. "Requests" are whole warp instructions: lanes that execute the same instruction for
// the same time are taken together.
struct Counters {
    std::string kernel;
    dim3 grid, block;
    uint64_t dynamic_shared_bytes = 0;
    uint64_t load_bytes = 0, store_bytes = 0;                // global, asked for by the threads
    uint64_t unique_load_bytes = 0, unique_store_bytes = 0;  // each byte once
    uint64_t wide_load_bytes = 0, wide_store_bytes = 0;      // of these by 16-byte instructions
    uint64_t load_requests = 0, load_sectors = 0;            // 32-byte sectors
    uint64_t store_requests = 0, store_sectors = 0;
    uint64_t shared_load_bytes = 0, shared_store_bytes = 0;
    uint64_t shared_wavefronts = 0,
             shared_conflicts = 0;  // conflicts: wavefronts beyond the fewest
    uint64_t ldmatrix = 0, ldmatrix_conflicts = 0, mma = 0;
    uint64_t cp_async_bytes = 0, atomics = 0;
    uint64_t block_barriers = 0, warp_collectives = 0;
};

struct State {
    // the schedule
    uint64_t seed = 0;
    bool count_requests = false;
    bool preempts = false;
    uint32_t steps_to_yield = 0;
    uint64_t steps = 0;  // accesses since any thread last waited, to notice endless loops

    // the launch
    Thread* running = nullptr;  // null: host code
    bool finishing = false;     // in a collective's Finish, which reads all lanes' operands
    uint3 block = {};
    std::vector<Thread*> threads;  // of the running block
    uint16_t poison = 0x7fff;
    const void* arguments = nullptr;
    size_t argument_bytes = 0;
    Counters* counters = nullptr;
    std::string report;

    // Time, for the detection of races: an epoch ends at every block barrier and with every block.
    uint32_t epoch = 1, block_epoch = 1, launch_epoch = 1;
    bool ordered_with_other_blocks = false;  // by an atomic: see memory.cpp

    uint64_t random();  // splitmix64
    uint64_t random_state = 0;
};
extern State state;

void yield();

// memory.cpp, called by threads.cpp
void begin_memory();
void begin_block_memory(size_t dynamic_shared_bytes);
void end_block_memory();
void end_epoch_memory();  // at a block barrier
std::string kernel_name(const void* kernel);
void* dynamic_shared_base();

}  // namespace udp::emulator
