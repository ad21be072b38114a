// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Stacks that one OS thread switches between, for x86-64 (System V ABI).

#ifndef SLUICE_LIB_EMULATOR_FIBER_H
#define SLUICE_LIB_EMULATOR_FIBER_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::emulator {

/// Stacks of one size, reused.
class StackPool {
public:
  static constexpr size_t stackBytes = 64 * 1024;
  ~StackPool();
  /// The lowest address of a stack; null if the system has no memory left.
  std::byte *take();
  void give(std::byte *stack) { unused.push_back(stack); }

private:
  std::vector<std::byte *> unused;
  std::vector<void *> slabs;
};

/// A suspended stack: where it is resumed.
struct Fiber {
  void *stackPointer = nullptr;
};

/// Makes a fiber that calls `entry`, which must not return. Fibers of different `index` do not
/// compete for the same lines of the processor's caches.
Fiber makeFiber(std::byte *stack, unsigned index, void (*entry)());

/// Resumes `to`; returns when something switches to `from`. `stack` is the lowest address of
/// `to`'s stack, for the address sanitizer.
void switchFiber(Fiber &from, const Fiber &to, std::byte *stack, size_t bytes);

/// The same for good: the fiber that calls it ends.
[[noreturn]] void leaveFiber(const Fiber &to, std::byte *stack, size_t bytes);

/// The first thing to call on a new fiber, for the address sanitizer. Gives the stack of the fiber
/// that switched to it; null and 0 without the sanitizer.
void arrivedOnFiber(const void **previousStack, size_t *previousBytes);

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_FIBER_H
