// Memory straight from the operating system: zeroed, and given page by page as it is first touched,
// so that a large KV pool costs nothing before it is used.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace cpu {

class Pages {
 public:
  static constexpr size_t kLargePage = size_t(2) << 20;

  Pages() = default;

  explicit Pages(size_t n_bytes) : n_bytes_(n_bytes + kLargePage) {  // with room to align
    void* memory = mmap(nullptr, n_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = memory;
    // Weights and cache are read in long runs: large pages spare the walks between small ones.
    madvise(memory_, n_bytes_, MADV_HUGEPAGE);
  }

  Pages(Pages&& other) noexcept { swap(other); }
  Pages& operator=(Pages&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Pages() {
    if (memory_) munmap(memory_, n_bytes_);
  }

  template <class T>
  T* as() const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<T*>((address + kLargePage - 1) / kLargePage * kLargePage);
  }

 private:
  void swap(Pages& other) {
    std::swap(memory_, other.memory_);
    std::swap(n_bytes_, other.n_bytes_);
  }

  void* memory_ = nullptr;
  size_t n_bytes_ = 0;
};

}  // namespace cpu
