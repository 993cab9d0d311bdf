// Memory straight from the operating system, zeroed.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <new>
#include <thread>
#include <utility>
#include <vector>

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

  // Has every page given now: one by one, as steps come to them, they would cost those steps more
  // than what they compute. Where the system is too old for that it does so after all.
  void fill(int n_threads) const {
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE
    std::vector<std::thread> threads;
    std::atomic<bool> is_short{false};
    for (int64_t i = 0; i < n_threads; ++i)
      threads.emplace_back([&, i] {
        const size_t n_pages = (n_bytes_ - kLargePage) / kLargePage, first = n_pages * i / n_threads;
        const size_t n_bytes = (n_pages * (i + 1) / n_threads - first) * kLargePage;
        if (madvise(as<char>() + first * kLargePage, n_bytes, kPopulateWrite) && errno != EINVAL) is_short = true;
      });
    for (std::thread& thread : threads) thread.join();
    if (is_short) throw std::bad_alloc();
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
