// The threads of a step: they live as long as the model and go through its phases together.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace cpu {

// A phase is a number of items that the threads claim one by one; it is over when all items are
// done, not when all threads have come. Each has a share of neighbours, so that it finds in its
// caches what it left there in the phase before, and who has done its own helps the others. So a
// thread that loses its core to another process leaves its share to the rest, which wait for it only
// where it holds an item, and at the end of a job. Who computes an item changes no result.
class Team {
 public:
  using Body = void (*)(void* argument, int thread);

  explicit Team(int n_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return n_threads_; }

  // Runs body on every thread that comes in time, the caller's being number 0. All of them must go
  // through the same phases.
  void run(Body body, void* argument);

 private:
  friend class Phases;

  void stop();
  void work(int thread);
  int claim(uint32_t phase, int n_items, int thread);
  void complete(uint32_t phase);
  void wait_for(uint32_t phase);
  void wait_for_change(std::atomic<uint32_t>& word, uint32_t seen);
  void wake_sleepers(std::atomic<uint32_t>& word);

  const int n_threads_;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  uint32_t first_phase_ = 0;
  std::atomic<bool> is_stopping_{false};
  // Apart in memory, so that waiting for one does not disturb writers of another.
  struct alignas(64) Share {
    std::atomic<uint64_t> claims{0};  // the newest phase of which one was claimed, and how many
  };
  std::vector<Share> shares_;  // of each thread
  alignas(64) std::atomic<int> n_done_{0};            // items of the phase
  alignas(64) std::atomic<uint32_t> n_completed_{0};  // phases, which is the number of the present one
  alignas(64) std::atomic<uint32_t> job_{0};          // odd while one is open
  alignas(64) std::atomic<uint32_t> n_inside_{0};     // threads in the job beside the caller's
  alignas(64) std::atomic<int> n_sleeping_{0};
  std::vector<std::thread> threads_;
};

// One thread's way through a job, phase by phase.
class Phases {
 public:
  Phases(Team& team, int thread) : team_(team), thread_(thread), phase_(team.first_phase_) {}

  // Does body(item) for every item, on all threads, and then last() on one. Returns when all that
  // is done.
  template <class Body, class Last>
  void run(int n_items, const Body& body, const Last& last) {
    if (n_items == 0) return;
    for (int item; (item = team_.claim(phase_, n_items, thread_)) >= 0;) {
      body(item);
      if (team_.n_done_.fetch_add(1, std::memory_order_acq_rel) == n_items - 1) {
        last();
        team_.complete(phase_);
      }
    }
    team_.wait_for(phase_++);
  }

 private:
  Team& team_;
  const int thread_;
  uint32_t phase_;
};

}  // namespace cpu
