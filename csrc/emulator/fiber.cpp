#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#define UDP_UCONTEXT 1  // slow: swapcontext makes a system call
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// udp_fiber_switch(void** save, void* load): pushes the registers that a call preserves, stores the
// stack pointer in *save, takes `load` for it and pops.
#ifndef UDP_UCONTEXT
extern "C" void udp_fiber_switch(void** save, void* load);
#endif
#if defined(__x86_64__)
constexpr int kSaved = 6;
asm(R"(
.text
.type udp_fiber_switch, @function
.hidden udp_fiber_switch
.globl udp_fiber_switch
udp_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size udp_fiber_switch, . - udp_fiber_switch
)");
#elif defined(__aarch64__)
constexpr int kSaved = 20;
asm(R"(
.text
.type udp_fiber_switch, %function
.hidden udp_fiber_switch
.globl udp_fiber_switch
udp_fiber_switch:
    sub sp, sp, #160
    stp x29, x30, [sp, #0]
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x29, x30, [sp, #0]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size udp_fiber_switch, . - udp_fiber_switch
)");
#endif

namespace udp::emulator {
namespace {
// Whom the last change left, and its stack, for AddressSanitizer, which learns the bounds of the
// program's own stack only here.
Fiber* left = nullptr;
}  // namespace

Fiber::Fiber(size_t stack_bytes) : bytes_(stack_bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapping_bytes_ = stack_bytes + page;
    mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED || mprotect(mapping_, page, PROT_NONE) != 0) {
        perror("udp emulator: no memory for the stack of an emulated thread");
        abort();
    }
    low_ = reinterpret_cast<uintptr_t>(mapping_) + page;
#ifdef UDP_UCONTEXT
    context_ = new ucontext_t;
#endif
}

Fiber::~Fiber() {
    if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
#ifdef UDP_UCONTEXT
    delete static_cast<ucontext_t*>(context_);
#endif
}

void Fiber::start(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
    // Frames that a reported fault abandoned left their red zones here.
    __asan_unpoison_memory_region(reinterpret_cast<void*>(low_), bytes_);
    fake_stack_ = nullptr;
#endif
#ifdef UDP_UCONTEXT
    ucontext_t* context = static_cast<ucontext_t*>(context_);
    getcontext(context);
    context->uc_stack.ss_sp = reinterpret_cast<void*>(low_);
    context->uc_stack.ss_size = bytes_;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
#elif defined(__x86_64__)
    // As after a call: the return address, here none, at 8 modulo 16.
    void** top = reinterpret_cast<void**>((low_ + bytes_) & ~uintptr_t{15});
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSaved; ++i) *--top = nullptr;
    stack_pointer_ = top;
#else
    void** top = reinterpret_cast<void**>((low_ + bytes_) & ~uintptr_t{15}) - kSaved;
    for (int i = 0; i < kSaved; ++i) top[i] = nullptr;
    top[1] = reinterpret_cast<void*>(entry);  // x30
    stack_pointer_ = top;
#endif
}

void Fiber::change(Fiber& from, Fiber& to) {
    left = &from;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack_, reinterpret_cast<void*>(to.low_), to.bytes_);
#endif
#ifdef UDP_UCONTEXT
    if (from.context_ == nullptr) from.context_ = new ucontext_t;
    swapcontext(static_cast<ucontext_t*>(from.context_), static_cast<ucontext_t*>(to.context_));
#else
    udp_fiber_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
    const void* low = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &low, &bytes);
    if (left->mapping_ == nullptr) {
        left->low_ = reinterpret_cast<uintptr_t>(low);
        left->bytes_ = bytes;
    }
#endif
}

}  // namespace udp::emulator
