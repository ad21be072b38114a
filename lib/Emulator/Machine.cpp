// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Machine.h"

#include "llvm/ADT/StringExtras.h"

#include <sys/mman.h>

using namespace sluice::emulator;

std::string sluice::emulator::number(uint64_t value) { return std::to_string(value); }

std::string sluice::emulator::laneMask(uint32_t lanes) {
  return "0x" + llvm::utohexstr(lanes, /*LowerCase=*/true, /*Width=*/8);
}

Machine::Machine(const Options &options, std::vector<std::string> &locations)
    : options(options), locations(locations), state(options.seed * 0x9E3779B97F4A7C15u + 1) {}

Machine::~Machine() {
  for (std::byte *shared : allShared)
    munmap(shared, sharedLimit + 4096);
}

/// xorshift64 (Marsaglia 2003).
uint64_t Machine::random() {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state >> 16;
}

std::string Machine::where(uint32_t location) const {
  return location < locations.size() ? locations[location] : "an unknown place";
}

std::string Machine::describe(const Thread &thread) const {
  const LaunchState &launch = *thread.block->launch;
  std::string text = "kernel '" + launch.kernel->name + "' (launch " + number(launch.index);
  if (!launch.launch->label.empty())
    text += " \"" + launch.launch->label + "\"";
  return text + "), block " + number(thread.block->index) + ", thread " + number(thread.index);
}

std::string Machine::actorName(const Cluster &cluster, uint32_t actor) const {
  if (actor >= cluster.threads)
    return "a bulk copy";
  uint32_t threads = cluster.launch->launch->block;
  std::string text = "thread " + number(actor % threads);
  if (cluster.blocks.size() > 1)
    text += " of block " + number(cluster.blocks[actor / threads]->index);
  return text;
}

void Machine::fail(const Thread &thread, uint32_t location, const std::string &what) {
  if (message.empty())
    message = describe(thread) + ": " + where(location) + ": " + what;
}

void Machine::leave() {
  leaveFiber(scheduler, static_cast<std::byte *>(const_cast<void *>(schedulerStack)),
             schedulerStackBytes);
}
