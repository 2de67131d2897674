// The kernels' own memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pages.h"

namespace udp {

// Memory that is kept from one call for the next. Fresh memory has its pages yet to find, and
// allocators give back what is large or lies on top, so that finding them would be done at each
// call. No mutex: one that another thread holds would stay locked in a forked child.
class Block {
  public:
    static constexpr size_t kMost = size_t{16} << 20;  // floats; what is larger is not kept

    explicit Block(size_t floats) : memory_(floats > kMost ? nullptr : spare().exchange(nullptr)) {
        if (memory_ != nullptr && memory_->size() < floats) {
            delete memory_;
            memory_ = nullptr;
        }
        if (memory_ == nullptr) memory_ = new Memory(floats);
    }
    ~Block() {
        Memory* other = memory_;
        if (memory_->size() <= kMost) {
            other = spare().exchange(memory_);
            // Two that were in use at once: the larger stays.
            if (other != nullptr && other->size() > memory_->size())
                other = spare().exchange(other);
        }
        delete other;
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    float* data() const { return memory_->data(); }

  private:
    class Memory {
      public:
        explicit Memory(size_t floats) : floats_(new float[floats + 16]), size_(floats) {
            if (floats > kMost) {
                prefer_large_pages(floats_.get(), static_cast<int64_t>(floats * sizeof(float)));
            }
        }
        // From a cache line's begin on: operands of whole vectors then never straddle one.
        float* data() const {
            const uintptr_t address = reinterpret_cast<uintptr_t>(floats_.get());
            return floats_.get() + (64 - address % 64) % 64 / sizeof(float);
        }
        size_t size() const { return size_; }

      private:
        std::unique_ptr<float[]> floats_;  // left as it comes, as a vector would not
        size_t size_;
    };

    static std::atomic<Memory*>& spare() {
        static std::atomic<Memory*> one{nullptr};
        return one;
    }

    Memory* memory_;
};

// Equal parts of it, one for each item that runs at once: which thread takes an item is left open,
// so each takes a free part with it.
class Slots {
  public:
    Slots(float* memory, int64_t floats, int64_t count)
        : memory_(memory), floats_(floats), taken_(static_cast<size_t>(count)) {
        for (std::atomic_flag& flag : taken_) flag.clear();
    }
    template <class Body>
    void with_one(const Body& body) {
        size_t slot = 0;
        while (taken_[slot].test_and_set(std::memory_order_acquire)) {
            slot = (slot + 1) % taken_.size();
        }
        body(memory_ + static_cast<int64_t>(slot) * floats_);
        taken_[slot].clear(std::memory_order_release);
    }

  private:
    float* memory_;
    int64_t floats_;
    std::vector<std::atomic_flag> taken_;
};

}  // namespace udp
