// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Threads that execute a step together. A decode step is hundreds of launches of a few
// microseconds, so threads wait at a barrier of their own between two launches instead of being
// started anew.

#ifndef SLUICE_RUNTIME_DEVICE_THREADPOOL_H
#define SLUICE_RUNTIME_DEVICE_THREADPOOL_H

#include <atomic>
#include <cstdint>
#include <memory>
#include <sched.h>
#include <thread>
#include <type_traits>
#include <vector>

namespace sluice::runtime {

/// CPUs that this process may use: its affinity mask and its control group's quota.
int availableCpus();

/// A fixed set of threads, the one that calls run() among them. Waiting threads spin for a moment
/// and then sleep: a step follows a step within microseconds, a prompt at a terminal does not. A
/// thread that waits for one on its own CPU sleeps at once: spinning would only keep it away.
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

  /// Inside of run(), with the body's own argument: returns when all threads have called it. What
  /// they wrote before is visible to all after.
  void barrier(int thread) {
    if (count == 1)
      return;
    places[thread].cpu.store(sched_getcpu(), std::memory_order_relaxed);
    uint32_t before = generation.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(count)) {
      arrived.store(0, std::memory_order_relaxed);
      generation.store(before + 1, std::memory_order_release);
      generation.notify_all();
    } else {
      waitWhile(generation, before, launchSpins, thread);
    }
  }

private:
  using Body = void (*)(void *context, int thread);
  void runErased(Body body, void *context);
  void work(int thread);
  /// Spins for up to `spins` pauses, then sleeps.
  void waitWhile(const std::atomic<uint32_t> &value, uint32_t old, int spins, int thread) const;
  bool sharesCpu(int thread) const;
  void stop();

  const int count;
  // In pauses. A thread that was woken needs some 20 us to run: the others must wait longer than
  // that, or else they would sleep in turn and wake each other for ever.
  int launchSpins, stepSpins;
  /// Where a thread was seen last.
  struct alignas(64) Place {
    std::atomic<int> cpu{-1};
  };
  std::unique_ptr<Place[]> places;
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
