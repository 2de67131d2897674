// Global and shared memory: bounds, what was written, who may see it, and what it costs.
//
// The checked build compiles the .cu with g++'s -fsanitize=thread but links, in place of that
// sanitizer's library, the hooks at the end of this file: every load and store of the emulated code
// that is not provably private comes here first. Without it (the build for AddressSanitizer) only
// the accesses through wrappers do, and are merely counted.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "banks.h"
#include "state.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(base, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(base, bytes)
#endif

extern "C" {
// Every other thread-local variable is a kernel's static shared memory (see cuda_emulator.h).
thread_local char udp_emulator_anchor;
}

namespace udp::emulator {
namespace {

#ifdef UDP_EMULATOR_CHECKED
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

// ---- who did what to a byte, and when: 0 for never

// epoch : 32 | the thread's own clock : 20 | thread : 10 | read through the read-only path | atomic
using Stamp = uint64_t;
constexpr Stamp kByAtomic = 1, kByReadOnly = 2;

uint32_t epoch_of(Stamp s) {
    return static_cast<uint32_t>(s >> 32);
}
int thread_of(Stamp s) {
    return static_cast<int>(s >> 2 & 1023u);
}
uint32_t clock_of(Stamp s) {
    return static_cast<uint32_t>(s >> 12 & 0xfffffu);
}

Stamp stamp(const Thread& thread, unsigned kind) {
    return static_cast<Stamp>(state.epoch) << 32 |
           static_cast<Stamp>(thread.clock[thread.lane] & 0xfffffu) << 12 |
           static_cast<Stamp>(thread.id) << 2 | ((kind & kReadOnly) != 0 ? kByReadOnly : 0) |
           ((kind & kAtomic) != 0 ? kByAtomic : 0);
}

// Whether what left this stamp happened before what `thread` does now.
bool ordered(Stamp s, const Thread& thread, bool shared) {
    const uint32_t epoch = epoch_of(s);
    if (epoch < (shared ? state.block_epoch : state.launch_epoch)) return true;
    // Blocks are ordered only by atomics (with __threadfence, which a CPU cannot miss): the last of
    // them to come may read what the others left. Here one atomic by the reader's block is enough.
    if (epoch < state.block_epoch) return state.ordered_with_other_blocks;
    if (epoch < state.epoch) return true;  // a block barrier lies between
    const int other = thread_of(s);
    if (other == thread.id) return true;
    return other / kWarp == thread.warp && clock_of(s) <= thread.clock[other % kWarp];
}

// The last write of a byte and its last readers; two different ones, so that a writer that is one
// of them meets the other.
struct Cell {
    Stamp write, read, older_read;
    bool operator==(const Cell& other) const {
        return write == other.write && read == other.read && older_read == other.older_read;
    }
};

// The cells of a stretch of memory. Most accesses are wide, so sixteen bytes share one cell until
// an access tells them apart: then each quarter, and of a quarter each byte, has one of its own.
class History {
  public:
    History(uintptr_t base, size_t bytes)
        : first_(base / kWidest),
          nodes_(static_cast<Node*>(
              calloc((base + bytes + kWidest - 1) / kWidest - base / kWidest, sizeof(Node)))) {}

    // change(Cell&, address, bytes) for each part of [a, a + bytes) that has one history.
    template <class Change>
    void visit(uintptr_t a, size_t bytes, const Change& change) {
        for (uintptr_t start = a / kWidest * kWidest; start < a + bytes; start += kWidest)
            visit(nodes_.get()[start / kWidest - first_], start, kWidest, a, a + bytes, change);
    }

  private:
    static constexpr size_t kWidest = 16;
    struct Node {
        Cell cell;
        Node* quarters;  // null: all bytes have this cell
    };
    struct Free {
        void operator()(void* p) const { free(p); }
    };

    template <class Change>
    void visit(Node& node, uintptr_t start, size_t bytes, uintptr_t a, uintptr_t end,
               const Change& change) {
        if (node.quarters == nullptr) {
            if (a <= start && start + bytes <= end) return change(node.cell, start, bytes);
            split(node);
        }
        const size_t quarter = bytes / 4;
        for (int i = 0; i < 4; ++i, start += quarter)
            if (a < start + quarter && start < end)
                visit(node.quarters[i], start, quarter, a, end, change);
        merge(node);
    }
    void split(Node& node) {
        if (unused_.empty()) {
            pool_.emplace_back();
            unused_.push_back(pool_.back().data());
        }
        node.quarters = unused_.back();
        unused_.pop_back();
        std::fill(node.quarters, node.quarters + 4, Node{node.cell, nullptr});
    }
    void merge(Node& node) {
        for (int i = 0; i < 4; ++i)
            if (node.quarters[i].quarters != nullptr ||
                !(node.quarters[i].cell == node.quarters[0].cell))
                return;
        node.cell = node.quarters[0].cell;
        unused_.push_back(node.quarters);
        node.quarters = nullptr;
    }

    uintptr_t first_;
    std::unique_ptr<Node[], Free> nodes_;
    std::deque<std::array<Node, 4>> pool_;
    std::vector<Node*> unused_;
};

struct Region {
    uintptr_t base;
    size_t bytes;
    std::string name;
    bool shared, writable, written;
    std::unique_ptr<History> history;
    std::vector<uint16_t> in_flight;  // of each word 1 + the thread whose cp.async is under way

    uintptr_t end() const { return base + bytes; }
    // cp.async copies whole words to multiples of them.
    size_t word(uintptr_t address) const { return address / 4 - base / 4; }
};

using Regions = std::vector<std::unique_ptr<Region>>;
Regions regions;  // by address, disjoint
Region* recent = nullptr;
Region* dynamic = nullptr;
char* dynamic_buffer = nullptr;
constexpr size_t kDynamicBytes = 100 * 1024, kMargin = 4096;
uintptr_t anchor = 0;  // for which thread's variables there are regions
size_t copies_under_way = 0;

Region* add_region(uintptr_t base, size_t bytes, std::string name, bool shared, bool writable,
                   bool written) {
    auto region = std::make_unique<Region>();
    *region = {base, bytes, std::move(name), shared, writable, written, nullptr, {}};
    if (kChecked) region->history = std::make_unique<History>(base, bytes);
    const auto place =
        std::lower_bound(regions.begin(), regions.end(), base,
                         [](const std::unique_ptr<Region>& r, uintptr_t b) { return r->base < b; });
    return regions.insert(place, std::move(region))->get();
}

Region* find(uintptr_t address) {
    if (recent != nullptr && address - recent->base < recent->bytes) return recent;
    const auto after =
        std::upper_bound(regions.begin(), regions.end(), address,
                         [](uintptr_t a, const std::unique_ptr<Region>& r) { return a < r->base; });
    if (after == regions.begin()) return nullptr;
    Region* region = std::prev(after)->get();
    return address < region->end() ? recent = region : nullptr;
}

// ---- this shared object: its symbols and its bounds

struct Image {
    std::vector<char> file;
    uintptr_t base = 0, low = ~uintptr_t{0}, high = 0;
    const Elf64_Sym* symbols = nullptr;
    size_t symbol_count = 0;
    const char* names = nullptr;

    Image() {
        Dl_info info;
        if (dladdr(reinterpret_cast<void*>(&state), &info) == 0) return;
        base = reinterpret_cast<uintptr_t>(info.dli_fbase);
        FILE* f = fopen(info.dli_fname, "rb");
        if (f == nullptr) return;
        char buffer[65536];
        for (size_t n; (n = fread(buffer, 1, sizeof buffer, f)) > 0;)
            file.insert(file.end(), buffer, buffer + n);
        fclose(f);
        const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file.data());
        const auto* programs = reinterpret_cast<const Elf64_Phdr*>(file.data() + header->e_phoff);
        for (int i = 0; i < header->e_phnum; ++i)
            if (programs[i].p_type == PT_LOAD) {
                low = std::min<uintptr_t>(low, base + programs[i].p_vaddr);
                high = std::max<uintptr_t>(high, base + programs[i].p_vaddr + programs[i].p_memsz);
            }
        const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file.data() + header->e_shoff);
        for (int i = 0; i < header->e_shnum; ++i)
            if (sections[i].sh_type == SHT_SYMTAB) {
                symbols = reinterpret_cast<const Elf64_Sym*>(file.data() + sections[i].sh_offset);
                symbol_count = sections[i].sh_size / sizeof(Elf64_Sym);
                names = file.data() + sections[sections[i].sh_link].sh_offset;
            }
    }
};
Image& image() {
    static Image it;
    return it;
}

std::string demangled(const char* name) {
    int status = 0;
    char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    std::string result = status == 0 ? text : name;
    free(text);
    return result;
}

void find_static_shared() {
    const uintptr_t here = reinterpret_cast<uintptr_t>(&udp_emulator_anchor);
    if (!kChecked || anchor == here) return;
    anchor = here;
    const Image& im = image();
    const auto thread_local_variable = [&](size_t i) {
        return ELF64_ST_TYPE(im.symbols[i].st_info) == STT_TLS && im.symbols[i].st_size != 0;
    };
    uintptr_t base = 0;
    for (size_t i = 0; i < im.symbol_count; ++i)
        if (thread_local_variable(i) &&
            strcmp(im.names + im.symbols[i].st_name, "udp_emulator_anchor") == 0)
            base = here - im.symbols[i].st_value;
    for (size_t i = 0; i < im.symbol_count; ++i) {
        const char* name = im.names + im.symbols[i].st_name;
        if (!thread_local_variable(i) || strcmp(name, "udp_emulator_anchor") == 0 ||
            strstr(name, "udp_gap_") != nullptr)
            continue;
        std::string text = demangled(name);
        const size_t scope = text.rfind("::");
        if (scope != std::string::npos) text = text.substr(scope + 2);
        text = text.substr(0, text.find('.'));  // a local of an extern "C" function: name.number
        add_region(base + im.symbols[i].st_value, im.symbols[i].st_size, "__shared__ " + text, true,
                   true, false);
    }
}

// ---- words for a report; the driver turns @0x... into file and line

std::string place(const void* where) {
    char text[32];
    snprintf(text, sizeof text, "@0x%lx",
             static_cast<unsigned long>(reinterpret_cast<uintptr_t>(where) - image().base - 1));
    return text;
}

const char* verb(unsigned kind) {
    if ((kind & kAtomic) != 0) return "atomic";
    if ((kind & kMatrix) != 0) return "ldmatrix row";
    return (kind & kStore) != 0 ? "store" : "load";
}

std::string what(unsigned kind, unsigned bytes, const void* where) {
    return std::string(verb(kind)) + " of " + std::to_string(bytes) + " byte" +
           (bytes == 1 ? "" : "s") + " " + place(where);
}

[[noreturn]] void out_of_bounds(uintptr_t address, unsigned bytes, unsigned kind,
                                const void* where) {
    // The nearest region, before or behind.
    const Region* nearest = nullptr;
    uintptr_t distance = 0;
    for (const auto& r : regions) {
        const uintptr_t d = address < r->base    ? r->base - address
                            : address < r->end() ? 0
                                                 : address - r->end() + 1;
        if (nearest == nullptr || d < distance) nearest = r.get(), distance = d;
    }
    if (nearest == nullptr)
        fault("out of bounds: %s: no memory was registered", what(kind, bytes, where).c_str());
    const char* side = address < nearest->base ? "before the start of" : "from the start of";
    const uintptr_t offset =
        address < nearest->base ? nearest->base - address : address - nearest->base;
    fault("out of bounds: %s touches byte %lu %s %s, which has %zu bytes",
          what(kind, bytes, where).c_str(), static_cast<unsigned long>(offset), side,
          nearest->name.c_str(), nearest->bytes);
}

[[noreturn]] void race(const Region& region, size_t offset, const char* earlier, Stamp s,
                       unsigned kind, unsigned bytes, const void* where) {
    if (epoch_of(s) < state.block_epoch)
        fault("race: %s at byte %zu of %s: another block's thread %d %s it in this launch",
              what(kind, bytes, where).c_str(), offset, region.name.c_str(), thread_of(s), earlier);
    fault("race: %s at byte %zu of %s: thread %d of the block %s it and no barrier lies between",
          what(kind, bytes, where).c_str(), offset, region.name.c_str(), thread_of(s), earlier);
}

// ---- requests: what the lanes of a warp ask for in one instruction

struct Request {
    const void* where;  // tells accesses apart, no more
    uint32_t time;      // how often this thread has been there since the last block barrier
    bool shared, store;
    uint8_t bytes;
    uintptr_t address;
};
std::vector<Request> requests[kMaxThreads / kWarp];
std::vector<std::pair<const void*, uint32_t>> visits[kMaxThreads];

void note_request(const Thread& thread, const Request& request) {
    auto& seen = visits[thread.id];
    auto it = seen.begin();
    while (it != seen.end() && it->first != request.where) ++it;
    if (it == seen.end()) it = seen.insert(it, {request.where, 0});
    requests[thread.warp].push_back(request);
    requests[thread.warp].back().time = it->second++;
}

size_t distinct(std::vector<uintptr_t>& v) {
    std::sort(v.begin(), v.end());
    return static_cast<size_t>(std::unique(v.begin(), v.end()) - v.begin());
}

// 8-byte accesses take at least one wavefront a half warp, 16-byte accesses one a quarter.
void count_shared(const Request* first, const Request* last) {
    const int lanes_at_once = first->bytes <= 4 ? 32 : first->bytes <= 8 ? 16 : 8;
    for (const Request* r = first; r < last; r += lanes_at_once) {
        Banks banks;
        for (const Request* q = r; q < std::min(last, r + lanes_at_once); ++q)
            for (uintptr_t word = q->address / 4; word <= (q->address + q->bytes - 1) / 4; ++word)
                banks.add(word);
        state.counters->shared_wavefronts += banks.wavefronts();
        state.counters->shared_conflicts += banks.wavefronts() - 1;
    }
}

void count_requests() {
    for (auto& warp : requests) {
        std::stable_sort(warp.begin(), warp.end(), [](const Request& a, const Request& b) {
            return a.where != b.where ? a.where < b.where : a.time < b.time;
        });
        for (size_t i = 0, j; i < warp.size(); i = j) {
            for (j = i; j < warp.size() && warp[j].where == warp[i].where &&
                        warp[j].time == warp[i].time && warp[j].shared == warp[i].shared;)
                ++j;
            if (warp[i].shared) {
                count_shared(&warp[i], &warp[i] + (j - i));
                continue;
            }
            std::vector<uintptr_t> sectors;
            for (size_t k = i; k < j; ++k)
                for (uintptr_t s = warp[k].address / 32;
                     s <= (warp[k].address + warp[k].bytes - 1) / 32; ++s)
                    sectors.push_back(s);
            (warp[i].store ? state.counters->store_requests : state.counters->load_requests) += 1;
            (warp[i].store ? state.counters->store_sectors : state.counters->load_sectors) +=
                distinct(sectors);
        }
        warp.clear();
    }
    for (auto& seen : visits) seen.clear();
}

void fill_poison(uintptr_t base, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        reinterpret_cast<unsigned char*>(base)[i] =
            static_cast<unsigned char>(state.poison >> (8 * ((base + i) % 2)));
}

void land(Thread& thread, const std::vector<Copy>& group) {
    for (size_t n = 0; n < group.size(); ++n) {
        const Copy& copy = group[thread.reads_late ? group.size() - 1 - n : n];
        if (kChecked) {
            const uintptr_t a = reinterpret_cast<uintptr_t>(copy.shared);
            Region* region = find(a);
            const auto bytes = static_cast<size_t>(copy.bytes);
            std::fill_n(&region->in_flight[region->word(a)], bytes / 4, uint16_t{0});
            region->history->visit(a, bytes, [&](Cell& cell, uintptr_t, size_t) {
                cell.write = stamp(thread, kStore);
            });
        }
        memcpy(copy.shared, copy.data, static_cast<size_t>(copy.bytes));
        if (thread.reads_late)
            memcpy(copy.shared, copy.global, static_cast<size_t>(copy.source_bytes));
        --copies_under_way;
    }
}

// Of an access of `bytes`: what becomes of those `count`, from `at` on, whose history is `cell`.
void note_access(Cell& cell, const Region& region, size_t at, size_t count, unsigned kind,
                 unsigned bytes, const void* where) {
    const Thread& thread = *state.running;
    Counters& counters = *state.counters;
    const bool store = (kind & kStore) != 0, atomic = (kind & kAtomic) != 0;
    if ((!store || atomic) && (region.shared ? epoch_of(cell.write) < state.block_epoch
                                             : !region.written && cell.write == 0))
        fault("uninitialised: %s at byte %zu of %s, which was never written",
              what(kind, bytes, where).c_str(), at, region.name.c_str());
    if (!(atomic && (cell.write & kByAtomic) != 0) && !ordered(cell.write, thread, region.shared))
        race(region, at, "wrote", cell.write, kind, bytes, where);
    if (!store) {
        if ((kind & kReadOnly) != 0 && epoch_of(cell.write) >= state.launch_epoch)
            fault("%s through the read-only path at byte %zu of %s, which this launch wrote",
                  what(kind, bytes, where).c_str(), at, region.name.c_str());
        if (epoch_of(cell.read) < state.launch_epoch) {
            cell.read = cell.older_read = 0;
            if (!region.shared) counters.unique_load_bytes += count;
        }
        if (epoch_of(cell.read) != state.epoch || thread_of(cell.read) != thread.id)
            cell.older_read = cell.read;
        cell.read = stamp(thread, kind) | (cell.read & kByReadOnly);
        return;
    }
    if (!ordered(cell.read, thread, region.shared))
        race(region, at, "read", cell.read, kind, bytes, where);
    if (!ordered(cell.older_read, thread, region.shared))
        race(region, at, "read", cell.older_read, kind, bytes, where);
    if ((cell.read & kByReadOnly) != 0 && epoch_of(cell.read) >= state.launch_epoch)
        fault("%s at byte %zu of %s, which this launch read through the read-only path",
              what(kind, bytes, where).c_str(), at, region.name.c_str());
    if (!region.shared && epoch_of(cell.write) < state.launch_epoch)
        counters.unique_store_bytes += count;
    cell.write = stamp(thread, kind);
}

constexpr uint64_t kMostSteps = 20'000'000;

}  // namespace

// ---- accesses

void access(const void* address, unsigned bytes, unsigned kind, const void* where) {
    if (state.running == nullptr || state.finishing) return;
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    Thread& thread = *state.running;
    if (thread.fiber.holds(a)) return;  // its own local variables
    if (++state.steps > kMostSteps)
        fault("no thread of the block waited or returned in %llu accesses: an endless loop?",
              static_cast<unsigned long long>(kMostSteps));
    if (state.preempts && state.steps_to_yield-- == 0) {
        state.steps_to_yield = static_cast<uint32_t>(state.random() % 64);
        yield();
    }
    Region* const region = find(a);
    if (region == nullptr) {
        if (!kChecked || a - reinterpret_cast<uintptr_t>(state.arguments) < state.argument_bytes ||
            (a >= image().low && a < image().high))  // constants, __device__ variables
            return;
        out_of_bounds(a, bytes, kind, where);
    }
    const bool store = (kind & kStore) != 0, atomic = (kind & kAtomic) != 0;
    Counters& counters = *state.counters;
    const size_t offset = a - region->base;
    if ((kind & kExact) != 0 && a % bytes != 0)
        fault("misaligned: %s at byte %zu of %s, at an address that is %lu modulo %u",
              what(kind, bytes, where).c_str(), offset, region->name.c_str(),
              static_cast<unsigned long>(a % bytes), bytes);
    if (kChecked) {
        if (offset + bytes > region->bytes) out_of_bounds(region->end(), bytes, kind, where);
        if (store && !region->writable)
            fault("%s at byte %zu of %s, which is an input", what(kind, bytes, where).c_str(),
                  offset, region->name.c_str());
        if ((kind & kMatrix) != 0 && !region->shared)
            fault("%s: %s is not shared memory", what(kind, bytes, where).c_str(),
                  region->name.c_str());
        if (atomic && !region->shared) state.ordered_with_other_blocks = true;
        if (copies_under_way != 0 && !region->in_flight.empty())
            for (uintptr_t i = region->word(a); i <= region->word(a + bytes - 1); ++i)
                if (region->in_flight[i] != 0)
                    fault("%s at byte %zu of %s: thread %d's cp.async there was not waited for",
                          what(kind, bytes, where).c_str(),
                          std::max(a, (i + region->base / 4) * 4) - region->base,
                          region->name.c_str(), region->in_flight[i] - 1);
        region->history->visit(a, bytes, [&](Cell& cell, uintptr_t at, size_t count) {
            note_access(cell, *region, at - region->base, count, kind, bytes, where);
        });
    }
    if (atomic) ++counters.atomics;
    if (region->shared) {
        (store ? counters.shared_store_bytes : counters.shared_load_bytes) += bytes;
    } else {
        (store ? counters.store_bytes : counters.load_bytes) += bytes;
        if (bytes == 16) (store ? counters.wide_store_bytes : counters.wide_load_bytes) += bytes;
    }
    if (state.count_requests && !atomic && (kind & kMatrix) == 0)
        // A copy's read and its write, of which the former may be missing, are two places.
        note_request(thread, {static_cast<const char*>(where) + (store ? 1 : 0), 0, region->shared,
                              store, static_cast<uint8_t>(bytes), a});
}

void copy_async(void* shared, const void* global, int bytes, int source_bytes, const void* where) {
    Thread& thread = *state.running;
    const auto copy = [&] {
        return "cp.async of " + std::to_string(bytes) + " bytes " + place(where);
    };
    if (source_bytes < 0 || source_bytes > bytes)
        fault("%s: %d source bytes", copy().c_str(), source_bytes);
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) %
            static_cast<unsigned>(bytes) !=
        0)
        fault("%s: an address is not a multiple of %d", copy().c_str(), bytes);
    if (source_bytes > 0) access(global, static_cast<unsigned>(source_bytes), kLoad, where);
    access(shared, static_cast<unsigned>(bytes), kStore | kExact, where);
    if (kChecked) {
        Region* to = find(reinterpret_cast<uintptr_t>(shared));
        if (to == nullptr || !to->shared)
            fault("%s: the destination is not shared memory", copy().c_str());
        to->in_flight.resize(to->word(to->end() + 3));
        std::fill_n(&to->in_flight[to->word(reinterpret_cast<uintptr_t>(shared))], bytes / 4,
                    static_cast<uint16_t>(thread.id + 1));
    }
    state.counters->cp_async_bytes += static_cast<uint64_t>(source_bytes);
    ++copies_under_way;
    thread.open_copies.push_back({shared, global, bytes, source_bytes, {}});
    memcpy(thread.open_copies.back().data, global, static_cast<size_t>(source_bytes));
    fill_poison(reinterpret_cast<uintptr_t>(shared), static_cast<size_t>(bytes));
}

void copy_async_commit() {
    Thread& thread = *state.running;
    thread.copy_groups.push_back(std::move(thread.open_copies));
    thread.open_copies.clear();
}

void copy_async_wait(int pending) {
    Thread& thread = *state.running;
    while (thread.copy_groups.size() > static_cast<size_t>(pending)) {
        land(thread, thread.copy_groups.front());
        thread.copy_groups.pop_front();
    }
}

// ---- allocations

void add_allocation(const void* address, size_t bytes, const char* name, bool writable,
                    bool written) {
    uintptr_t base = reinterpret_cast<uintptr_t>(address), end = base + bytes;
    if (bytes == 0) return;
    // Two arguments may be views of one array: their union is one region.
    std::string text = name;
    for (auto it = regions.begin(); it != regions.end();) {
        Region& other = **it;
        if (other.base < end && base < other.end()) {
            base = std::min(base, other.base);
            end = std::max(end, other.end());
            text = other.name + " and " + text;
            writable = writable || other.writable;
            written = written || other.written;
            it = regions.erase(it);
        } else {
            ++it;
        }
    }
    recent = nullptr;
    add_region(base, end - base, text, false, writable, written);
}

void remove_allocation(const void* address) {
    recent = nullptr;
    regions.erase(std::remove_if(regions.begin(), regions.end(),
                                 [&](const std::unique_ptr<Region>& r) {
                                     return !r->shared &&
                                            r->base == reinterpret_cast<uintptr_t>(address);
                                 }),
                  regions.end());
}

void mark_written(const void* address, size_t bytes) {
    Region* region = find(reinterpret_cast<uintptr_t>(address));
    if (!kChecked || region == nullptr) return;
    const uintptr_t a = reinterpret_cast<uintptr_t>(address);
    region->history->visit(
        a, std::min(bytes, region->end() - a),
        [](Cell& cell, uintptr_t, size_t) { cell.write = static_cast<Stamp>(state.epoch) << 32; });
}

// ---- called by threads.cpp

void begin_memory() {
    const bool moved = anchor != reinterpret_cast<uintptr_t>(&udp_emulator_anchor);
    recent = nullptr;
    regions.erase(std::remove_if(regions.begin(), regions.end(),
                                 [&](const std::unique_ptr<Region>& r) {
                                     return !r->shared || (moved && r.get() != dynamic);
                                 }),
                  regions.end());
    if (dynamic_buffer == nullptr) {
        dynamic_buffer = static_cast<char*>(aligned_alloc(1024, kDynamicBytes + 2 * kMargin));
        dynamic = add_region(reinterpret_cast<uintptr_t>(dynamic_buffer) + kMargin, kDynamicBytes,
                             "dynamic shared memory", true, true, false);
    }
    find_static_shared();
}

void* dynamic_shared_base() {
    return dynamic_buffer + kMargin;
}

void begin_block_memory(size_t dynamic_shared_bytes) {
    if (dynamic == nullptr) begin_memory();
    dynamic->bytes = dynamic_shared_bytes;
    dynamic->in_flight.clear();
    ASAN_UNPOISON_MEMORY_REGION(dynamic_buffer, kDynamicBytes + 2 * kMargin);
    for (const auto& region : regions)
        if (region->shared) fill_poison(region->base, region->bytes);
    ASAN_POISON_MEMORY_REGION(dynamic_buffer, kMargin);
    ASAN_POISON_MEMORY_REGION(dynamic_buffer + kMargin + dynamic_shared_bytes,
                              kDynamicBytes + kMargin - dynamic_shared_bytes);
}

void end_epoch_memory() {
    count_requests();
}

void end_block_memory() {
    count_requests();
    if (copies_under_way == 0) return;
    copies_under_way = 0;
    for (const auto& region : regions)
        std::fill(region->in_flight.begin(), region->in_flight.end(), uint16_t{0});
}

// "scale<float>" of "void scale<float>(float*, int)".
std::string kernel_name(const void* kernel) {
    const Image& im = image();
    std::string name = "?";
    for (size_t i = 0; i < im.symbol_count; ++i)
        if (ELF64_ST_TYPE(im.symbols[i].st_info) == STT_FUNC &&
            im.base + im.symbols[i].st_value == reinterpret_cast<uintptr_t>(kernel))
            name = demangled(im.names + im.symbols[i].st_name);
    if (name.back() == ')') {
        int depth = 0;
        size_t i = name.size();
        do {
            --i;
            depth += name[i] == ')' ? 1 : name[i] == '(' ? -1 : 0;
        } while (depth > 0 && i > 0);
        name.resize(i);
    }
    return name.rfind("void ", 0) == 0 ? name.substr(5) : name;
}

}  // namespace udp::emulator

// ---- what -fsanitize=thread calls

#ifdef UDP_EMULATOR_CHECKED
using udp::emulator::access;
using udp::emulator::kExact;
using udp::emulator::kLoad;
using udp::emulator::kStore;
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define UDP_HOOK(name, bytes, kind)                 \
    void __tsan_##name(void* p) {                   \
        access(p, bytes, kind, UDP_EMULATOR_WHERE); \
    }
#define UDP_HOOKS(bytes)                                    \
    UDP_HOOK(read##bytes, bytes, kLoad | kExact)            \
    UDP_HOOK(write##bytes, bytes, kStore | kExact)          \
    UDP_HOOK(unaligned_read##bytes, bytes, kLoad)           \
    UDP_HOOK(unaligned_write##bytes, bytes, kStore)         \
    UDP_HOOK(volatile_read##bytes, bytes, kLoad | kExact)   \
    UDP_HOOK(volatile_write##bytes, bytes, kStore | kExact) \
    UDP_HOOK(unaligned_volatile_read##bytes, bytes, kLoad)  \
    UDP_HOOK(unaligned_volatile_write##bytes, bytes, kStore)
UDP_HOOKS(1)
UDP_HOOKS(2)
UDP_HOOKS(4)
UDP_HOOKS(8)
UDP_HOOKS(16)
void __tsan_read_range(void* p, unsigned long bytes) {
    access(p, static_cast<unsigned>(bytes), kLoad, UDP_EMULATOR_WHERE);
}
void __tsan_write_range(void* p, unsigned long bytes) {
    access(p, static_cast<unsigned>(bytes), kStore, UDP_EMULATOR_WHERE);
}
void __tsan_vptr_update(void*, void*) {}
// Host code only: guards of local statics.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
}
#endif
