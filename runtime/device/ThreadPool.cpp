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
    : count(threads), places(new Place[static_cast<size_t>(threads)]) {
  // Pauses of 20 to 60 ns: some 100 us between launches, and between steps what it takes to choose
  // a token and print it. With more threads than CPUs somebody always waits for a CPU.
  bool enough = threads <= availableCpus();
  launchSpins = enough ? 2500 : 30;
  stepSpins = enough ? 8000 : 30;
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

bool ThreadPool::sharesCpu(int thread) const {
  int cpu = places[thread].cpu.load(std::memory_order_relaxed);
  for (int other = 0; other < count; ++other)
    if (other != thread && places[other].cpu.load(std::memory_order_relaxed) == cpu)
      return true;
  return false;
}

void ThreadPool::waitWhile(const std::atomic<uint32_t> &value, uint32_t old, int spins,
                           int thread) const {
  // Looked at only when the wait is not a short one.
  constexpr int first = 30;
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old)
      return;
    if (i == first && sharesCpu(thread))
      break;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old)
    value.wait(old, std::memory_order_acquire);
}

void ThreadPool::work(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    places[thread].cpu.store(sched_getcpu(), std::memory_order_relaxed);
    waitWhile(jobs, seen, stepSpins, thread);
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
  places[0].cpu.store(sched_getcpu(), std::memory_order_relaxed);
  for (uint32_t left; (left = running.load(std::memory_order_acquire)) != 0;)
    waitWhile(running, left, launchSpins, 0);
}
