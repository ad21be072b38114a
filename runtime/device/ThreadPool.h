// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Threads that execute a step together. A decode step is hundreds of launches of a few
// microseconds, so threads meet at a barrier of their own between two launches instead of being
// started anew.

#ifndef SLUICE_RUNTIME_DEVICE_THREADPOOL_H
#define SLUICE_RUNTIME_DEVICE_THREADPOOL_H

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace sluice::runtime {

/// CPUs that this process may use: its affinity mask and its control group's quota.
int availableCpus();

/// A fixed set of threads, the one that calls run() among them. Waiting threads spin for a moment
/// and then sleep: a step follows a step within microseconds, a prompt at a terminal does not.
class ThreadPool {
public:
  /// `threads` is at least 1. Throws Error if the system does not give that many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int size() const { return count; }

  /// Calls body(thread) on every thread, thread 0 being the caller; returns when all have ended.
  /// `body` must not throw.
  template <typename F> void run(F &&body) {
    runErased([](void *context,
                 int thread) { (*static_cast<std::remove_reference_t<F> *>(context))(thread); },
              &body);
  }

  /// Inside of run(): returns when all threads have called it. What they wrote before is visible
  /// to all after.
  void barrier() {
    if (count == 1)
      return;
    uint32_t before = generation.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(count)) {
      arrived.store(0, std::memory_order_relaxed);
      generation.store(before + 1, std::memory_order_release);
      generation.notify_all();
    } else {
      waitWhile(generation, before, betweenLaunches);
    }
  }

private:
  using Body = void (*)(void *context, int thread);
  void runErased(Body body, void *context);
  void work(int thread);
  /// How long a thread spins before it sleeps, in pauses. It adapts: shorter when that was in vain,
  /// since the thread that is waited for may need this very CPU, longer when it was not.
  struct Patience {
    const int most;
    std::atomic<int> spins;
    explicit Patience(int most) : most(most), spins(most) {}
  };
  static void waitWhile(const std::atomic<uint32_t> &value, uint32_t old, Patience &patience);
  void stop();

  const int count;
  // Apart, because what happens between two steps says nothing about what happens within one.
  alignas(64) Patience betweenLaunches;
  alignas(64) Patience betweenSteps;
  // Each on a cache line of its own: all threads poll `generation` while others count arrivals.
  alignas(64) std::atomic<uint32_t> arrived{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  /// Counts run()s; workers wait for it to change.
  alignas(64) std::atomic<uint32_t> jobs{0};
  alignas(64) std::atomic<uint32_t> running{0};
  Body job = nullptr;
  void *jobContext = nullptr;
  std::vector<std::thread> workers;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_THREADPOOL_H
