// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/ThreadPool.h"

#include "sluice-runtime/Error.h"

#include <algorithm>
#include <fstream>
#include <sched.h>
#include <string>
#include <system_error>

using namespace sluice::runtime;

static void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// In pauses, of 20 to 60 ns: about what the last arrivals at a barrier differ by; 100 us; and what
// it takes to choose a token and print it.
static constexpr int fewestSpins = 30, launchSpins = 2000, stepSpins = 8000;

int sluice::runtime::availableCpus() {
  int cpus = 0;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    cpus = CPU_COUNT(&set);
  if (cpus < 1)
    cpus = std::max(1u, std::thread::hardware_concurrency());
  // "200000 100000": microseconds of CPU time in each period; or "max 100000".
  std::ifstream quota("/sys/fs/cgroup/cpu.max");
  std::string limit;
  long long period = 0;
  if (quota >> limit >> period && period > 0 && limit != "max" && limit.size() < 18 &&
      limit.find_first_not_of("0123456789") == limit.npos) {
    long long whole = (std::stoll(limit) + period - 1) / period;
    cpus = static_cast<int>(std::clamp<long long>(whole, 1, cpus));
  }
  return cpus;
}

ThreadPool::ThreadPool(int threads)
    : count(threads), betweenLaunches(threads <= availableCpus() ? launchSpins : fewestSpins),
      betweenSteps(threads <= availableCpus() ? stepSpins : fewestSpins) {
  try {
    workers.reserve(count - 1);
    for (int i = 1; i < count; ++i)
      workers.emplace_back([this, i] { work(i); });
  } catch (const std::system_error &e) {
    int started = static_cast<int>(workers.size()) + 1;
    stop();
    throw Error("cannot start " + std::to_string(threads) + " threads, only " +
                std::to_string(started) + ": " + e.code().message());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  job = nullptr;
  jobs.fetch_add(1, std::memory_order_release);
  jobs.notify_all();
  for (std::thread &worker : workers)
    worker.join();
  workers.clear();
}

void ThreadPool::waitWhile(const std::atomic<uint32_t> &value, uint32_t old, Patience &patience) {
  int limit = patience.spins.load(std::memory_order_relaxed);
  for (int i = 0; i < limit; ++i) {
    if (value.load(std::memory_order_acquire) != old) {
      if (limit < patience.most)
        patience.spins.store(std::min(limit + limit / 64 + 1, patience.most),
                             std::memory_order_relaxed);
      return;
    }
    relax();
  }
  patience.spins.store(std::max(limit / 2, fewestSpins), std::memory_order_relaxed);
  while (value.load(std::memory_order_acquire) == old)
    value.wait(old, std::memory_order_acquire);
}

void ThreadPool::work(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    waitWhile(jobs, seen, betweenSteps);
    if (!job)
      return;
    job(jobContext, thread);
    if (running.fetch_sub(1, std::memory_order_acq_rel) == 1)
      running.notify_one();
  }
}

void ThreadPool::runErased(Body body, void *context) {
  if (count == 1) {
    body(context, 0);
    return;
  }
  job = body;
  jobContext = context;
  running.store(static_cast<uint32_t>(count - 1), std::memory_order_relaxed);
  jobs.fetch_add(1, std::memory_order_release);
  jobs.notify_all();
  body(context, 0);
  for (uint32_t left; (left = running.load(std::memory_order_acquire)) != 0;)
    waitWhile(running, left, betweenLaunches);
}
