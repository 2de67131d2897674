// A stack of its own to run a function on, and the switch between two such stacks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace udp::emulator {

class Fiber {
  public:
    Fiber() = default;                   // stands for the stack that the program runs on
    explicit Fiber(size_t stack_bytes);  // with an inaccessible page below its stack
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next switch to this fiber calls entry(), which must never return, on an empty stack.
    void start(void (*entry)());
    // Leaves the running fiber `from` for `to`; returns when something switches back to `from`.
    static void change(Fiber& from, Fiber& to);
    // To be called first thing in entry().
    static void entered();

    bool holds(uintptr_t address) const { return address - low_ < bytes_; }

  private:
    uintptr_t low_ = 0;
    size_t bytes_ = 0;
    void* mapping_ = nullptr;
    size_t mapping_bytes_ = 0;
    void* stack_pointer_ = nullptr;
    void* context_ = nullptr;     // ucontext_t, where there is no switch in assembly
    void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace udp::emulator
