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

void sleep_while(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

Team::Team(int n_threads) : n_threads_(n_threads), shares_(n_threads) {
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
  job_.fetch_add(2);
  wake_sleepers(job_);
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(Body body, void* argument) {
  body_ = body;
  argument_ = argument;
  first_phase_ = n_completed_.load(std::memory_order_relaxed);
  job_.fetch_add(1);
  wake_sleepers(job_);
  body(argument, 0);
  // Who is late stays out; who is inside still reads what the caller may take away after this.
  job_.fetch_add(1);
  while (const uint32_t n_inside = n_inside_.load()) wait_for_change(n_inside_, n_inside);
}

void Team::work(int thread) {
  for (uint32_t last_job = 0;;) {
    const uint32_t job = job_.load();
    if (is_stopping_) return;
    if (job % 2 == 0 || job == last_job) {
      wait_for_change(job_, job);
      continue;
    }
    n_inside_.fetch_add(1);
    // Both are sequentially consistent: either the caller sees this thread or it the end.
    if (job_.load() == job) body_(argument_, thread);
    last_job = job;
    n_inside_.fetch_sub(1);
    wake_sleepers(n_inside_);
  }
}

// An item of the thread's own share or else of another's, or -1 where none is left. The phase goes with
// the count in one word, so that a thread which comes late cannot take an item of another phase: all
// of its own were claimed then, so that its word for each share that has any is full or newer.
int Team::claim(uint32_t phase, int n_items, int thread) {
  for (int i = 0; i < n_threads_; ++i) {
    const int64_t owner = (thread + i) % n_threads_;
    const int first = int(n_items * owner / n_threads_), end = int(n_items * (owner + 1) / n_threads_);
    if (first == end) continue;
    std::atomic<uint64_t>& claims = shares_[owner].claims;
    for (uint64_t seen = claims.load(std::memory_order_acquire);;) {
      const int32_t age = int32_t(phase - uint32_t(seen >> 32));
      const uint32_t n_claimed = age == 0 ? uint32_t(seen) : 0;
      if (age < 0 || n_claimed >= uint32_t(end - first)) break;
      const uint64_t next = uint64_t(phase) << 32 | (n_claimed + 1);
      if (claims.compare_exchange_weak(seen, next, std::memory_order_acq_rel)) return first + int(n_claimed);
    }
  }
  return -1;
}

// By the thread that has done the last item; nobody else can claim or do one meanwhile.
void Team::complete(uint32_t phase) {
  n_done_.store(0, std::memory_order_relaxed);
  n_completed_.store(phase + 1);
  wake_sleepers(n_completed_);
}

void Team::wait_for(uint32_t phase) {
  // Numbers wrap around: what is ahead by less than half of them is later.
  for (uint32_t now; int32_t((now = n_completed_.load(std::memory_order_acquire)) - phase) <= 0;)
    wait_for_change(n_completed_, now);
}

void Team::wait_for_change(std::atomic<uint32_t>& word, uint32_t seen) {
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

// After a change of word. Both that and this load, the sleeper's count and its look at the word are
// sequentially consistent: one sees the other.
void Team::wake_sleepers(std::atomic<uint32_t>& word) {
  if (n_sleeping_.load() != 0) wake_all(word);
}

}  // namespace cpu
