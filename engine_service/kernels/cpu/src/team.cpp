#include "team.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace cpu {
namespace {

// A phase takes some microseconds, so a waiter first looks again at once. When its neighbour has
// lost its core, looking only takes time from whoever has it: then yield, and at last sleep.
constexpr int kSpins = 600;
constexpr int kYields = 40;

void sleep_while(std::atomic<unsigned>& word, unsigned seen) {
  syscall(SYS_futex, reinterpret_cast<unsigned*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake_all(std::atomic<unsigned>& word) {
  syscall(SYS_futex, reinterpret_cast<unsigned*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

Team::Team(int n_threads) : n_threads_(n_threads) {
  try {
    for (int thread = 1; thread < n_threads_; ++thread) threads_.emplace_back(&Team::work, this, thread);
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  is_stopping_ = true;
  change(job_);
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(Body body, void* argument) {
  body_ = body;
  argument_ = argument;
  next_item_ = 0;
  if (n_threads_ > 1) change(job_);
  body(argument, 0);
}

void Team::barrier() {
  if (arrive_last()) release();
}

bool Team::arrive_last() {
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (n_arrived_.fetch_add(1, std::memory_order_acq_rel) == n_threads_ - 1) return true;
  wait_for_change(phase_, phase);
  return false;
}

void Team::release() {
  __atomic_store_n(&next_item_, 0, __ATOMIC_RELAXED);
  n_arrived_.store(0, std::memory_order_relaxed);
  change(phase_);
}

void Team::work(int thread) {
  for (unsigned seen = 0;; ++seen) {
    wait_for_change(job_, seen);
    if (is_stopping_) return;
    body_(argument_, thread);
  }
}

void Team::wait_for_change(std::atomic<unsigned>& word, unsigned seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    _mm_pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    sched_yield();
  }
  n_sleeping_.fetch_add(1);
  while (word.load() == seen) sleep_while(word, seen);
  n_sleeping_.fetch_sub(1);
}

void Team::change(std::atomic<unsigned>& word) {
  word.fetch_add(1);
  // Both this load and the sleeper's count are sequentially consistent: one sees the other.
  if (n_sleeping_.load() != 0) wake_all(word);
}

}  // namespace cpu
