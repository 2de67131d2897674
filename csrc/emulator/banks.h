// The banks of shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace udp::emulator {

// The words that some lanes want at once. A bank serves one 4-byte word at a time; lanes that want
// the same word share it.
class Banks {
  public:
    void add(uintptr_t word) {
        uintptr_t* bank = words_[word % 32];
        size_t& count = counts_[word % 32];
        if (std::find(bank, bank + count, word) == bank + count) bank[count++] = word;
    }
    size_t wavefronts() const {
        return std::max<size_t>(1, *std::max_element(counts_, counts_ + 32));
    }

  private:
    uintptr_t words_[32][32];  // a bank gets no more than one word a lane
    size_t counts_[32] = {};
};

}  // namespace udp::emulator
