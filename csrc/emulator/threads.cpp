// Threads, blocks and what they wait for.
#include <cstdarg>
#include <cstdio>
#include <map>

#include "cuda_emulator.h"
#include "state.h"

// The writable side of cuda_emulator.h's built-in variables.
extern "C" {
uint3 udp_emulator_threadIdx, udp_emulator_blockIdx;
dim3 udp_emulator_blockDim, udp_emulator_gridDim;
}

namespace udp::emulator {

State state;

uint64_t State::random() {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;  // frames with red zones
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// Threads that may run, as bits at their place in a queue; the schedule is the queue's order and
// where it is entered.
class Ready {
  public:
    // Seeds 0 and 1: first and last thread first. Odd seeds: a random order kept for the whole
    // block, so that some threads always lag. Even seeds: any thread at any time, and at any
    // access.
    void begin(int threads) {
        count_ = threads;
        for (uint64_t& word : words_) word = 0;
        for (int i = 0; i < threads; ++i) place_[i] = state.seed == 1 ? threads - 1 - i : i;
        if (state.seed >= 2)
            for (int i = threads - 1; i > 0; --i)
                std::swap(place_[i], place_[state.random() % static_cast<unsigned>(i + 1)]);
        for (int i = 0; i < threads; ++i) thread_[place_[i]] = i;
    }
    void add(int thread) { words_[place_[thread] / 64] |= uint64_t{1} << place_[thread] % 64; }
    // -1: none. After a yield the next in the queue comes first: the thread may wait for it.
    int take(int yielded) {
        int place = yielded < 0 ? 0 : (place_[yielded] + 1) % count_;
        if (state.seed >= 2 && state.seed % 2 == 0)
            place = static_cast<int>(state.random() % static_cast<unsigned>(count_));
        const uint64_t after = words_[place / 64] & ~uint64_t{0} << place % 64;
        if (after != 0) return take(place / 64, after);
        const int words = (count_ + 63) / 64;
        for (int i = 1; i <= words; ++i) {
            const int word = (place / 64 + i) % words;
            if (words_[word] != 0) return take(word, words_[word]);
        }
        return -1;
    }

  private:
    int take(int word, uint64_t bits) {
        const int bit = __builtin_ctzll(bits);
        words_[word] &= ~(uint64_t{1} << bit);
        return thread_[64 * word + bit];
    }
    int count_ = 0;
    uint64_t words_[kMaxThreads / 64] = {};
    int place_[kMaxThreads], thread_[kMaxThreads];
};

Ready ready;
Fiber scheduler;
std::vector<std::unique_ptr<Thread>> pool;
std::vector<std::unique_ptr<Counters>> launches;
const Launch* launching = nullptr;
cudaError_t error = cudaSuccess;
int barrier_result = 0;
// Of each warp the lanes that wait at a collective, and those that come to none: they have returned
// from the kernel, or lie beyond the block's end.
struct Warp {
    unsigned waiting, gone;
} warps[kMaxThreads / kWarp];
std::map<const void*, int> allowed_dynamic_shared;

std::string triple(uint3 v) {
    char text[64];
    snprintf(text, sizeof text, "(%u,%u,%u)", v.x, v.y, v.z);
    return text;
}

const char* file_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash != nullptr ? slash + 1 : path;
}

std::string at(const char* operation, Site site) {
    return std::string(operation) + " at " + file_name(site.file) + ":" + std::to_string(site.line);
}

// "0-31, 64": thread numbers within the block.
std::string ranges(const std::vector<int>& numbers) {
    std::string text;
    for (size_t i = 0; i < numbers.size();) {
        size_t j = i;
        while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
        if (!text.empty()) text += ", ";
        text += std::to_string(numbers[i]);
        if (j > i) text += "-" + std::to_string(numbers[j]);
        i = j + 1;
    }
    return text;
}

// Who waits where, one line a place.
std::string waiting() {
    std::map<std::string, std::vector<int>> places;
    for (const Thread* thread : state.threads) {
        std::string place = "returned from the kernel";
        if (thread->waits != Waits::for_ever) {
            place = "wait in " + at(thread->operation, thread->site);
            if (thread->waits == Waits::at_warp_collective) {
                char mask[32];
                snprintf(mask, sizeof mask, ", mask 0x%08x", thread->mask);
                place += mask;
            }
        }
        places[place].push_back(thread->id);
    }
    std::string text;
    for (const auto& [place, threads] : places)
        text += "\n  threads " + ranges(threads) + " " + place;
    return text;
}

void leave_for_scheduler() {
    Fiber::change(state.running->fiber, scheduler);
}

void wait(Waits waits, const char* operation, Site site) {
    Thread& thread = *state.running;
    thread.waits = waits;
    thread.operation = operation;
    thread.site = site;
    state.steps = 0;
    leave_for_scheduler();
}

void release(Thread& thread) {
    thread.waits = Waits::no;
    warps[thread.warp].waiting &= ~(1u << thread.lane);
    ready.add(thread.id);
}

// Threads of the warp by lane; null beyond the block's end.
Thread* lane_of(int warp, int lane) {
    const size_t id = static_cast<size_t>(kWarp * warp + lane);
    return id < state.threads.size() ? state.threads[id] : nullptr;
}

// Finishes the collective that `mask`'s lanes wait at, if nobody is missing.
void try_finish(int warp, unsigned mask) {
    if ((mask & ~warps[warp].waiting & ~warps[warp].gone) != 0)
        return;  // mostly: some are yet to come
    const Thread* first = nullptr;
    const Thread* returned = nullptr;
    void* operands[kWarp] = {};
    unsigned lanes = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
        Thread* thread = lane_of(warp, lane);
        if ((mask >> lane & 1u) == 0 || thread == nullptr) continue;
        if (thread->waits == Waits::for_ever) {
            returned = thread;
            continue;
        }
        if (thread->mask != mask) return;  // it may come here yet
        if (first == nullptr) first = thread;
        if (thread->finish != first->finish)
            fault("the lanes of a mask are at different warp operations:%s", waiting().c_str());
        operands[lane] = thread->operand;
        lanes |= 1u << lane;
    }
    // CUDA lets a mask name threads that have returned before. But a thread that returns a moment
    // later is the same code on another day.
    if (returned != nullptr && first != nullptr)
        fault(
            "%s: mask 0x%08x names lane %d, which has returned from the kernel without coming "
            "there",
            at(first->operation, first->site).c_str(), mask, returned->lane);
    if (first == nullptr) return;
    ++state.counters->warp_collectives;
    state.finishing = true;
    first->finish(operands, lanes);
    state.finishing = false;
    for (int lane = 0; lane < kWarp; ++lane)
        if ((lanes >> lane & 1u) != 0) release(*lane_of(warp, lane));
}

void thread_main() {
    Fiber::entered();
    launching->call(launching->arguments);
    Thread& thread = *state.running;
    thread.waits = Waits::for_ever;
    warps[thread.warp].gone |= 1u << thread.lane;
    state.steps = 0;
    // It may have been the one that others no longer need to wait for.
    for (int lane = 0; lane < kWarp; ++lane) {
        const Thread* other = lane_of(thread.warp, lane);
        if (other != nullptr && other->waits == Waits::at_warp_collective &&
            (other->mask >> thread.lane & 1u) != 0)
            try_finish(thread.warp, other->mask);
    }
    leave_for_scheduler();
}

// All threads wait: if they do so at one barrier, or some for the lanes beside them, lets them go
// on.
bool release_waiting() {
    const Thread* at_barrier = nullptr;
    bool same_barrier = true;
    for (const Thread* thread : state.threads) {
        if (thread->waits == Waits::at_block_barrier && at_barrier == nullptr) at_barrier = thread;
        same_barrier = same_barrier && at_barrier != nullptr &&
                       thread->waits == Waits::at_block_barrier &&
                       thread->operation == at_barrier->operation &&
                       thread->site.line == at_barrier->site.line &&
                       strcmp(thread->site.file, at_barrier->site.file) == 0;
    }
    if (same_barrier) {
        int count = 0;
        for (const Thread* thread : state.threads) count += thread->predicate != 0;
        barrier_result = count;
        ++state.counters->block_barriers;
        ++state.epoch;
        end_epoch_memory();
        for (Thread* thread : state.threads) {
            std::fill(thread->clock, thread->clock + kWarp, 0u);
            thread->clock[thread->lane] = 1;
            release(*thread);
        }
        return true;
    }
    // __activemask: the lanes of a warp that came to the same place.
    for (Thread* thread : state.threads) {
        if (thread->waits != Waits::at_active_mask) continue;
        for (int pass = 0; pass < 2; ++pass) {
            for (int lane = 0; lane < kWarp; ++lane) {
                Thread* other = lane_of(thread->warp, lane);
                if (other == nullptr || other->site.line != thread->site.line ||
                    other->site.file != thread->site.file)
                    continue;
                if (pass == 0 && other->waits == Waits::at_active_mask) thread->mask |= 1u << lane;
                if (pass == 1 && (thread->mask >> lane & 1u) != 0) {
                    other->mask = thread->mask;
                    release(*other);
                }
            }
        }
        return true;
    }
    bool barrier = false;
    for (const Thread* thread : state.threads)
        barrier = barrier || thread->waits == Waits::at_block_barrier;
    state.report = "kernel " + state.counters->kernel + ", block " + triple(state.block) + ": " +
                   (barrier ? "divergent barrier: not every thread of the block reaches it"
                            : "deadlock: no thread can go on") +
                   ":" + waiting();
    return false;
}

void set_running(Thread* thread) {
    state.running = thread;
    if (thread != nullptr) udp_emulator_threadIdx = thread->index;
}

void run_block(const Launch& launch) {
    state.block_epoch = ++state.epoch;
    state.ordered_with_other_blocks = state.finishing = false;
    udp_emulator_blockIdx = state.block;
    begin_block_memory(launch.dynamic_shared_bytes);
    const int threads = static_cast<int>(state.threads.size());
    ready.begin(threads);
    std::fill(std::begin(warps), std::end(warps), Warp{0, ~0u});
    for (Thread* thread : state.threads) {
        std::fill(thread->clock, thread->clock + kWarp, 0u);
        thread->clock[thread->lane] = 1;
        thread->open_copies.clear();
        thread->copy_groups.clear();
        thread->reads_late = state.seed != 0 && (state.random() & 1u) != 0;
        warps[thread->warp].gone &= ~(1u << thread->lane);
        thread->fiber.start(thread_main);
        release(*thread);
    }
    int yielded = -1;
    for (int live = threads; live > 0 && state.report.empty();) {
        const int next = ready.take(yielded);
        yielded = -1;
        if (next < 0) {
            release_waiting();
            continue;
        }
        set_running(state.threads[static_cast<size_t>(next)]);
        Fiber::change(scheduler, state.running->fiber);
        if (state.running->waits == Waits::no) {
            ready.add(next);
            yielded = next;
        }
        if (state.running->waits == Waits::for_ever) --live;
        set_running(nullptr);
    }
    end_block_memory();
}

cudaError_t set_error(cudaError_t e) {
    return error = e;
}

}  // namespace

void yield() {
    leave_for_scheduler();
}

void maybe_yield() {
    if (state.running == nullptr) return;
    if (state.preempts || state.random() % 4 == 0) yield();
}

void fault(const char* format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (state.running == nullptr) {
        fprintf(stderr, "udp emulator: outside a kernel: %s\n", text);
        abort();
    }
    if (state.report.empty())
        state.report = "kernel " + state.counters->kernel + ", block " + triple(state.block) +
                       ", thread " + triple(state.running->index) + ": " + text;
    leave_for_scheduler();  // for good
    __builtin_unreachable();
}

unsigned lane_index() {
    return static_cast<unsigned>(state.running->lane);
}
void* dynamic_shared() {
    return dynamic_shared_base();
}

int block_barrier(Tally tally, int predicate, const char* operation, Site site) {
    state.running->predicate = predicate;
    wait(Waits::at_block_barrier, operation, site);
    if (tally == Tally::all) return barrier_result == static_cast<int>(state.threads.size());
    if (tally == Tally::any) return barrier_result != 0;
    return barrier_result;
}

void warp_collective(unsigned mask, void* operand, Finish finish, const char* operation,
                     Site site) {
    Thread& thread = *state.running;
    thread.mask = mask;
    thread.finish = finish;
    thread.operand = operand;
    if ((mask >> thread.lane & 1u) == 0)
        fault("%s: lane %d is not in its own mask 0x%08x", at(operation, site).c_str(), thread.lane,
              mask);
    thread.waits = Waits::at_warp_collective;
    warps[thread.warp].waiting |= 1u << thread.lane;
    thread.operation = operation;
    thread.site = site;
    try_finish(thread.warp, mask);
    wait(thread.waits, operation, site);
}

void require_whole_warp(unsigned lanes, const char* operation) {
    if (lanes != 0xffffffffu)
        fault("%s needs the whole warp, only lanes 0x%08x are there", operation, lanes);
}

void warp_barrier(unsigned mask, Site site) {
    // Everyone learns what the others know, and starts a new time.
    warp_collective(
        mask, state.running,
        [](void* const* operands, unsigned) {
            uint32_t known[kWarp] = {};
            for (int lane = 0; lane < kWarp; ++lane)
                if (operands[lane] != nullptr)
                    for (int l = 0; l < kWarp; ++l)
                        known[l] =
                            std::max(known[l], static_cast<Thread*>(operands[lane])->clock[l]);
            for (int lane = 0; lane < kWarp; ++lane) {
                if (operands[lane] == nullptr) continue;
                Thread& thread = *static_cast<Thread*>(operands[lane]);
                std::copy(known, known + kWarp, thread.clock);
                ++thread.clock[lane];
            }
        },
        "__syncwarp", site);
}

unsigned active_mask(Site site) {
    state.running->mask = 0;
    wait(Waits::at_active_mask, "__activemask", site);
    return state.running->mask;
}

uint64_t shuffle(unsigned mask, uint64_t value, int source, const char* operation, Site site) {
    struct Operand {
        uint64_t value, result;
        int source;
        const char* operation;
        Site site;
    } operand{value, 0, source, operation, site};
    warp_collective(
        mask, &operand,
        [](void* const* operands, unsigned lanes) {
            for (int lane = 0; lane < kWarp; ++lane) {
                if (operands[lane] == nullptr) continue;
                Operand& o = *static_cast<Operand*>(operands[lane]);
                if (operands[o.source] == nullptr)
                    fault(
                        "%s: lane %d reads lane %d, which is not in the mask or has returned "
                        "(lanes taking part: 0x%08x)",
                        at(o.operation, o.site).c_str(), lane, o.source, lanes);
                o.result = static_cast<Operand*>(operands[o.source])->value;
            }
        },
        operation, site);
    return operand.result;
}

unsigned ballot(unsigned mask, bool predicate, const char* operation, Site site) {
    struct Operand {
        bool predicate;
        unsigned result;
    } operand{predicate, 0};
    warp_collective(
        mask, &operand,
        [](void* const* operands, unsigned) {
            unsigned votes = 0;
            for (int lane = 0; lane < kWarp; ++lane)
                if (operands[lane] != nullptr && static_cast<Operand*>(operands[lane])->predicate)
                    votes |= 1u << lane;
            for (int lane = 0; lane < kWarp; ++lane)
                if (operands[lane] != nullptr)
                    static_cast<Operand*>(operands[lane])->result = votes;
        },
        operation, site);
    return operand.result;
}

unsigned match_any(unsigned mask, uint64_t value, Site site) {
    struct Operand {
        uint64_t value;
        unsigned result;
    } operand{value, 0};
    warp_collective(
        mask, &operand,
        [](void* const* operands, unsigned) {
            for (int lane = 0; lane < kWarp; ++lane)
                for (int other = 0; other < kWarp; ++other)
                    if (operands[lane] != nullptr && operands[other] != nullptr &&
                        static_cast<Operand*>(operands[lane])->value ==
                            static_cast<Operand*>(operands[other])->value)
                        static_cast<Operand*>(operands[lane])->result |= 1u << other;
        },
        "__match_any_sync", site);
    return operand.result;
}

cudaError_t launch(const Launch& launch) {
    if (state.running != nullptr) fault("a kernel launches a kernel");
    const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
    const auto allowed = allowed_dynamic_shared.find(launch.kernel);
    const size_t shared_limit = static_cast<size_t>(allowed == allowed_dynamic_shared.end()
                                                        ? kSharedBytes
                                                        : std::max(kSharedBytes, allowed->second));
    if (threads == 0 || threads > kMaxThreads || launch.block.z > 64 || launch.grid.x == 0 ||
        launch.grid.x > 0x7fffffffu || launch.grid.y == 0 || launch.grid.y > 65535 ||
        launch.grid.z == 0 || launch.grid.z > 65535)
        return set_error(cudaErrorInvalidConfiguration);
    if (launch.dynamic_shared_bytes > shared_limit) return set_error(cudaErrorInvalidValue);
    if (!state.report.empty()) return set_error(cudaErrorLaunchFailure);  // sticky, as on a device

    launches.push_back(std::make_unique<Counters>());
    state.counters = launches.back().get();
    *state.counters = Counters{};
    state.counters->kernel = kernel_name(launch.kernel);
    state.counters->grid = launch.grid;
    state.counters->block = launch.block;
    state.counters->dynamic_shared_bytes = launch.dynamic_shared_bytes;
    udp_emulator_blockDim = launch.block;
    udp_emulator_gridDim = launch.grid;
    launching = &launch;
    state.arguments = launch.arguments;
    state.argument_bytes = launch.argument_bytes;
    state.launch_epoch = state.epoch + 1;

    while (pool.size() < threads) pool.push_back(std::make_unique<Thread>(kStackBytes));
    state.threads.clear();
    for (unsigned i = 0; i < threads; ++i) {
        Thread* thread = pool[i].get();
        thread->id = static_cast<int>(i);
        thread->lane = thread->id % kWarp;
        thread->warp = thread->id / kWarp;
        thread->index = {i % launch.block.x, i / launch.block.x % launch.block.y,
                         i / launch.block.x / launch.block.y};
        state.threads.push_back(thread);
    }

    const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    std::vector<uint64_t> order(state.seed >= 2 ? blocks : 0);
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
    for (uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[state.random() % i]);
    for (uint64_t i = 0; i < blocks && state.report.empty(); ++i) {
        const uint64_t b = state.seed == 0 ? i : state.seed == 1 ? blocks - 1 - i : order[i];
        state.block = {static_cast<unsigned>(b % launch.grid.x),
                       static_cast<unsigned>(b / launch.grid.x % launch.grid.y),
                       static_cast<unsigned>(b / launch.grid.x / launch.grid.y)};
        run_block(launch);
    }
    ++state.epoch;
    launching = nullptr;
    return state.report.empty() ? cudaSuccess : set_error(cudaErrorLaunchFailure);
}

cudaError_t last_error(bool clear) {
    const cudaError_t e = error;
    if (clear && e != cudaErrorLaunchFailure) error = cudaSuccess;
    return e;
}

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
    if (bytes < 0 || bytes > kOptInSharedBytes) return set_error(cudaErrorInvalidValue);
    allowed_dynamic_shared[kernel] = bytes;
    return cudaSuccess;
}

cudaError_t check_occupancy_query(const void* kernel, int threads, size_t dynamic_shared_bytes) {
    const auto allowed = allowed_dynamic_shared.find(kernel);
    const int limit = allowed == allowed_dynamic_shared.end()
                          ? kSharedBytes
                          : std::max(kSharedBytes, allowed->second);
    if (threads < 1 || threads > kMaxThreads || dynamic_shared_bytes > static_cast<size_t>(limit))
        return set_error(cudaErrorInvalidValue);
    return cudaSuccess;
}

}  // namespace udp::emulator

using udp::emulator::state;

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorLaunchFailure:
            return "cudaErrorLaunchFailure";
    }
    return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorLaunchFailure:
            return "unspecified launch failure";
    }
    return "unrecognized error code";
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return cudaErrorInvalidDevice;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = udp::emulator::kMaxThreads;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = udp::emulator::kSharedBytes;
            break;
        case cudaDevAttrWarpSize:
            *value = 32;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = udp::emulator::kMultiprocessors;
            break;
        case cudaDevAttrL2CacheSize:
            *value = 4 << 20;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = 1536;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = 8;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 6;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = 100 * 1024;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = udp::emulator::kOptInSharedBytes;
            break;
        default:
            return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device != 0) return cudaErrorInvalidDevice;
    *properties = {"udp_fast emulator",
                   8,
                   6,
                   udp::emulator::kMultiprocessors,
                   1536,
                   32,
                   udp::emulator::kOptInSharedBytes};
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
    *address = bytes == 0 ? nullptr : aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (bytes != 0 && *address == nullptr) return cudaErrorMemoryAllocation;
    udp::emulator::add_allocation(*address, bytes, "cudaMalloc", true, false);
    return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
    udp::emulator::remove_allocation(address);
    free(address);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    memmove(to, from, bytes);
    udp::emulator::mark_written(to, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    memset(to, value, bytes);
    udp::emulator::mark_written(to, bytes);
    return cudaSuccess;
}

// ---- what a test driver calls, through the C ABI

#define UDP_EXPORT extern "C" __attribute__((visibility("default")))

// Forgets everything and takes up the schedule of `seed`; count_requests also counts sectors and
// bank conflicts, which costs time.
UDP_EXPORT void udp_emulator_begin(uint64_t seed, int count_requests) {
    state.seed = state.random_state = seed;
    state.count_requests = count_requests != 0;
    state.preempts = seed >= 2 && seed % 2 == 0;
    state.report.clear();
    // A NaN in every format, and another one for every seed.
    state.poison = static_cast<uint16_t>(0x7fc1u + seed % 63);
    udp::emulator::launches.clear();
    udp::emulator::error = cudaSuccess;
    udp::emulator::begin_memory();
}

UDP_EXPORT void udp_emulator_allocation(const void* base, size_t bytes, const char* name,
                                        int writable, int written) {
    udp::emulator::add_allocation(base, bytes, name, writable != 0, written != 0);
}

// The first fault, or "".
UDP_EXPORT const char* udp_emulator_report() {
    return state.report.c_str();
}

// The launches since begin, as a JSON list of objects.
UDP_EXPORT const char* udp_emulator_counters() {
    static std::string json;
    json = "[";
    for (const auto& launch : udp::emulator::launches) {
        const udp::emulator::Counters& c = *launch;
        if (json.size() > 1) json += ", ";
        json += "{\"kernel\": \"" + c.kernel + "\"";
        const auto size = [](const char* name, dim3 d) {
            return std::string(", \"") + name + "\": [" + std::to_string(d.x) + ", " +
                   std::to_string(d.y) + ", " + std::to_string(d.z) + "]";
        };
        json += size("grid", c.grid) + size("block", c.block);
#define UDP_COUNTER(name) json += ", \"" #name "\": " + std::to_string(c.name);
        UDP_COUNTER(dynamic_shared_bytes)
        UDP_COUNTER(load_bytes)
        UDP_COUNTER(store_bytes)
        UDP_COUNTER(unique_load_bytes)
        UDP_COUNTER(unique_store_bytes)
        UDP_COUNTER(wide_load_bytes)
        UDP_COUNTER(wide_store_bytes)
        UDP_COUNTER(load_requests)
        UDP_COUNTER(load_sectors)
        UDP_COUNTER(store_requests)
        UDP_COUNTER(store_sectors)
        UDP_COUNTER(shared_load_bytes)
        UDP_COUNTER(shared_store_bytes)
        UDP_COUNTER(shared_wavefronts)
        UDP_COUNTER(shared_conflicts)
        UDP_COUNTER(ldmatrix)
        UDP_COUNTER(ldmatrix_conflicts)
        UDP_COUNTER(mma)
        UDP_COUNTER(cp_async_bytes)
        UDP_COUNTER(atomics)
        UDP_COUNTER(block_barriers)
        UDP_COUNTER(warp_collectives)
#undef UDP_COUNTER
        json += "}";
    }
    json += "]";
    return json.c_str();
}
