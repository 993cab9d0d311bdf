// The threads of a step: they live as long as the model and meet at one barrier per phase.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

namespace cpu {

// A phase is a number of items that the threads claim one by one, so that a thread which loses its
// core to another process leaves its share to the rest. Who computes an item changes no result.
class Team {
 public:
  using Body = void (*)(void* argument, int thread);

  explicit Team(int n_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return n_threads_; }

  // Runs body on every thread, the caller's being number 0; it must end with a barrier.
  void run(Body body, void* argument);

  // The next item of this phase; at or beyond the number of items there is none left.
  int claim() { return __atomic_fetch_add(&next_item_, 1, __ATOMIC_RELAXED); }

  // Ends a phase: waits for all threads.
  void barrier();

  // The same in two parts: true for the last thread to arrive, which may work alone before it
  // releases the others. For any other thread, returns once it was released.
  bool arrive_last();
  void release();

 private:
  void stop();
  void work(int thread);
  void wait_for_change(std::atomic<unsigned>& word, unsigned seen);
  void change(std::atomic<unsigned>& word);

  const int n_threads_;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  bool is_stopping_ = false;
  // Apart in memory, so that waiting for one does not disturb writers of another.
  alignas(64) int next_item_ = 0;
  alignas(64) std::atomic<int> n_arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  alignas(64) std::atomic<unsigned> job_{0};
  alignas(64) std::atomic<int> n_sleeping_{0};
  std::vector<std::thread> threads_;
};

}  // namespace cpu
