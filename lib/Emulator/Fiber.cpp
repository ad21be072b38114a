// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Fiber.h"

#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SLUICE_ASAN 1
#include <sanitizer/asan_interface.h>
#endif
#endif

using namespace sluice::emulator;

#if !defined(__x86_64__)
#error "the emulator switches stacks by x86-64 code"
#endif

// Saves what a callee must preserve, swaps stacks, returns into the other one.
asm(R"(
.text
.p2align 4
.type sluice_emu_switch, @function
.hidden sluice_emu_switch
.globl sluice_emu_switch
sluice_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
.size sluice_emu_switch, .-sluice_emu_switch
)");

extern "C" void sluice_emu_switch(void **from, void *to);

static constexpr size_t stacksASlab = 64;

StackPool::~StackPool() {
  for (void *slab : slabs)
    munmap(slab, stacksASlab * stackBytes);
}

std::byte *StackPool::take() {
  if (unused.empty()) {
    void *slab = mmap(nullptr, stacksASlab * stackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED)
      return nullptr;
    // A huge page would waste memory: most stacks use one or two small ones.
    madvise(slab, stacksASlab * stackBytes, MADV_NOHUGEPAGE);
    slabs.push_back(slab);
    for (size_t i = 0; i < stacksASlab; ++i)
      unused.push_back(static_cast<std::byte *>(slab) + i * stackBytes);
  }
  std::byte *stack = unused.back();
  unused.pop_back();
  return stack;
}

Fiber sluice::emulator::makeFiber(std::byte *stack, unsigned index, void (*entry)()) {
  auto *top = reinterpret_cast<void **>(stack + StackPool::stackBytes - index % 16 * 256);
  // The entry finds the stack as after a call: 8 bytes past a multiple of 16.
  *--top = nullptr;
  *--top = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; ++i)
    *--top = nullptr;
  return {top};
}

void sluice::emulator::switchFiber(Fiber &from, const Fiber &to, std::byte *stack, size_t bytes) {
#ifdef SLUICE_ASAN
  void *fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack, bytes);
  sluice_emu_switch(&from.stackPointer, to.stackPointer);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  sluice_emu_switch(&from.stackPointer, to.stackPointer);
#endif
}

void sluice::emulator::leaveFiber(const Fiber &to, std::byte *stack, size_t bytes) {
#ifdef SLUICE_ASAN
  // Nothing returns through the frames of this stack, so nothing would clear their red zones before
  // another fiber gets the stack.
  __asan_handle_no_return();
  // Null: this fiber does not come back.
  __sanitizer_start_switch_fiber(nullptr, stack, bytes);
#endif
  Fiber left;
  sluice_emu_switch(&left.stackPointer, to.stackPointer);
  __builtin_unreachable();
}

void sluice::emulator::arrivedOnFiber(const void **previousStack, size_t *previousBytes) {
#ifdef SLUICE_ASAN
  __sanitizer_finish_switch_fiber(nullptr, previousStack, previousBytes);
#else
  *previousStack = nullptr;
  *previousBytes = 0;
#endif
}
