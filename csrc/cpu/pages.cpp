#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace udp {

#if defined(__linux__) && defined(MADV_HUGEPAGE)
void prefer_large_pages(void* data, int64_t bytes) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (address + page - 1) / page * page;
    const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / page * page;
    // A wish: a kernel without large pages refuses it, and nothing is lost.
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}
#else
void prefer_large_pages(void*, int64_t) {}
#endif

}  // namespace udp
