// torch already keeps a pool of OpenMP threads in this process. A second pool would fight it for
// the processors (OpenMP threads spin for a while after their work), so where an OpenMP runtime is
// loaded we hand it our work through GOMP_parallel, the entry that g++ compiles `#pragma omp
// parallel` to and that LLVM's and Intel's runtimes offer too. Found at run time: nothing to link,
// any torch will do. Elsewhere (macOS, Windows, no OpenMP) a small pool of our own serves.
#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace udp {
namespace {

struct Work {
    int64_t items, grain;
    void (*body)(const void*, int64_t);
    const void* context;
    std::atomic<int64_t> next{0};
};

// Each thread runs this until no item is left.
void run(void* argument) {
    Work& work = *static_cast<Work*>(argument);
    for (;;) {
        const int64_t begin = work.next.fetch_add(work.grain, std::memory_order_relaxed);
        if (begin >= work.items) return;
        const int64_t end = begin + work.grain < work.items ? begin + work.grain : work.items;
        for (int64_t i = begin; i < end; ++i) work.body(work.context, i);
    }
}

// --- borrowed threads ----------------------------------------------------------------------------

using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

#if defined(__linux__)
struct Found {
    GompParallel parallel = nullptr;
    bool torch = false;
};

int inspect(dl_phdr_info* info, size_t, void* argument) {
    Found& found = *static_cast<Found*>(argument);
    const char* name = strrchr(info->dlpi_name, '/');
    name = name == nullptr ? info->dlpi_name : name + 1;
    const bool openmp = strncmp(name, "libgomp", 7) == 0 || strncmp(name, "libiomp", 7) == 0 ||
                        strncmp(name, "libomp", 6) == 0;
    // Other packages bring copies of their own: torch's is the one whose threads are at hand.
    const bool torch = strstr(info->dlpi_name, "torch") != nullptr;
    if (!openmp || found.torch || (found.parallel != nullptr && !torch)) return 0;
    void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return 0;
    void* symbol = dlsym(library, "GOMP_parallel");
    if (symbol != nullptr) {
        found.parallel = reinterpret_cast<GompParallel>(symbol);
        found.torch = torch;
    }
    return 0;  // the handle is kept, so that the library stays
}

GompParallel find_openmp() {
    Found found;
    dl_iterate_phdr(inspect, &found);
    return found.parallel;
}
#else
GompParallel find_openmp() {
    return nullptr;
}
#endif

GompParallel openmp() {
    static const GompParallel found = find_openmp();
    return found;
}

// --- our own threads -----------------------------------------------------------------------------

class Pool {
  public:
    // Runs `work` on the calling thread and up to threads - 1 others; returns when all is done.
    void run_on(Work& work, int threads) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return run(&work);  // the pool is busy with another caller's work
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (; workers_ < threads - 1; ++workers_) {
                std::thread([this, id = workers_] { serve(id); }).detach();
            }
            work_ = &work;
            wanted_ = threads - 1;
            running_ = wanted_;
            ++generation_;
        }
        wake_.notify_all();
        run(&work);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

  private:
    void serve(int id) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (id >= wanted_) continue;
            Work* work = work_;
            lock.unlock();
            run(work);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    Work* work_ = nullptr;
    int workers_ = 0, wanted_ = 0, running_ = 0;
    uint64_t generation_ = 0;
};

// Never destroyed: its threads wait on it until the process ends. A forked child has none of them,
// so it takes a new pool; the old one is left as it is, perhaps locked.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
#if !defined(_WIN32)
    static pid_t owner = 0;
    static const int at_fork = [] {
        pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
        return 0;
    }();
    static_cast<void>(at_fork);
#else
    static int owner = 0;
    const auto getpid = [] { return 1; };
#endif
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void parallel_for(int64_t items, int64_t grain, int threads, void (*body)(const void*, int64_t),
                  const void* context) {
    Work work{items, grain, body, context};
    const int64_t claims = (items + grain - 1) / grain;
    if (claims < threads) threads = static_cast<int>(claims);
    if (threads <= 1) return run(&work);
    if (openmp() != nullptr) return openmp()(run, &work, static_cast<unsigned>(threads), 0);
    pool().run_on(work, threads);
}

const char* threading_runtime() {
    return openmp() != nullptr ? "torch's OpenMP threads" : "own threads";
}

}  // namespace udp
