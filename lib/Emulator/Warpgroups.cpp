// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Asynchronous products of warpgroups (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions"). On the device their operands may be read, and their sums written, at any time
// between their start and a wait. Here both happen in the wait: shared memory that has been given
// to others by then is a race, and the sums are not there before.

#include "Machine.h"

#include "sluice/Target/ThreadRegisters.h"

#include "sluice-support/Float16.h"

#include <bit>
#include <cstring>

using namespace sluice::emulator;

void Machine::startProducts(Thread &thread, uint32_t location, const ptx::WarpgroupProducts &shape,
                            const uint32_t *operands, uint32_t *sums) {
  Block &block = *thread.block;
  uint32_t number = thread.index / Warpgroup::threads, own = thread.index % Warpgroup::threads;
  if (number >= block.warpgroups.size())
    return fail(thread, location, "multiplies in a warpgroup of less than four warps");
  Warpgroup &warpgroup = block.warpgroups[number];
  if (warpgroup.arrived && warpgroup.location != location)
    return fail(thread, location,
                "divergent products: other threads of the warpgroup wait at " +
                    where(warpgroup.location));
  if (warpgroup.arrived == 0) {
    warpgroup.location = location;
    ProductGroup &group = warpgroup.groups.emplace_back();
    group.serial = ++warpgroup.serial;
    group.location = location;
    group.shape = shape;
    group.operands.resize(Warpgroup::threads * shape.operands());
    group.sums.resize(Warpgroup::threads * shape.sums());
  }
  ProductGroup &group = warpgroup.groups.back();
  std::copy_n(operands, shape.operands(), group.operands.begin() + own * shape.operands());
  operands += shape.operands();
  uint64_t descriptor = uint64_t(operands[1]) << 32 | operands[0];
  // The descriptor has the address without its upper bits. Here, where shared memory begins
  // anywhere, sums of addresses may carry into the bits above the field, which are not used.
  uint64_t mask = ptx::kDescriptorAddress, field = mask >> 4;
  auto base = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(block.shared));
  auto offset = static_cast<uint32_t>((((descriptor & field) << 4) - base) & mask);
  if ((descriptor & ~uint64_t(0xffff)) != ptx::kOperandDescriptor)
    return fail(thread, location, "multiplies by an operand that is not in the 128-byte swizzle");
  if (((descriptor & field) << 4) % 1024 + 32 * shape.products > 128)
    return fail(thread, location,
                "multiplies by an operand at byte " + sluice::emulator::number(offset) +
                    " of shared memory, which is no multiple of 1024 plus "
                    "columns of a row");
  uint32_t addend = 0;
  if (shape.accumulates && operands[2]) {
    addend = operands[3];
    for (uint32_t i = 0; i < shape.sums(); ++i)
      if (operands[3 + i] != addend)
        addend = 0;
    if (!addend || addend > thread.startedProducts)
      return fail(thread, location, "adds products to numbers that are not sums of products");
  }
  if (warpgroup.arrived == 0) {
    group.offset = offset;
    group.addend = addend;
  } else if (group.offset != offset || group.addend != addend) {
    return fail(thread, location,
                "multiplies by other operands than other threads of the warpgroup");
  }
  thread.startedProducts = group.serial;
  std::fill_n(sums, shape.sums(), group.serial);
  if (++warpgroup.arrived < Warpgroup::threads) {
    warpgroup.waiting.push_back(&thread);
    suspend(thread, WaitKind::Warpgroup, location, &warpgroup);
    return;
  }
  warpgroup.arrived = 0;
  idlePolls = 0;
  for (Thread *other : warpgroup.waiting)
    makeReady(*other);
  warpgroup.waiting.clear();
  // More than can be under way, or be taken late.
  constexpr size_t mostGroups = 16;
  if (warpgroup.groups.size() > mostGroups)
    warpgroup.groups.pop_front();
}

void Machine::computeProducts(Thread &thread, Warpgroup &warpgroup, ProductGroup &group) {
  const ptx::WarpgroupProducts &shape = group.shape;
  auto columns = static_cast<uint32_t>(shape.columns), sums = static_cast<uint32_t>(shape.sums());
  const ProductGroup *addend = nullptr;
  if (group.addend) {
    for (const ProductGroup &other : warpgroup.groups)
      if (other.serial == group.addend)
        addend = &other;
    if (!addend || addend->sums.size() != group.sums.size() ||
        addend->shape.kind != group.shape.kind)
      return fail(thread, group.location, "adds products to sums of other products");
  }
  std::byte *shared = thread.block->shared;
  auto bytes = static_cast<uint32_t>(32 * shape.products);
  uint32_t inRow = (reinterpret_cast<uintptr_t>(shared) + group.offset) % 128;
  for (uint32_t row = 0; row < columns; ++row) {
    // Chunks of 16 bytes are swizzled within the row.
    for (uint32_t byte = 0; byte < bytes; byte += 16) {
      uint32_t chunk = ((inRow + byte) / 16) ^ (row % 8);
      if (!checkShared(thread, group.location,
                       shared + group.offset - inRow + row * 128 + chunk * 16, 16, InShared))
        return;
    }
  }
  auto swizzled = [&](uint32_t row, uint32_t byte) {
    uint32_t at = inRow + byte;
    return shared + group.offset - inRow + row * 128 + ((at / 16 ^ row % 8) * 16) + at % 16;
  };
  constexpr uint32_t rows = 64;
  auto multiply = [&](auto zero, uint32_t perProduct, auto element, auto ofByte) {
    using Number = decltype(zero);
    uint32_t depth = perProduct * shape.products, perWord = perProduct / 8;
    std::vector<Number> a(rows * depth), b(columns * depth);
    for (uint32_t own = 0; own < Warpgroup::threads; ++own) {
      const uint32_t *words = group.operands.data() + own * shape.operands();
      uint32_t row = own / warpSize * 16 + own % warpSize / 4, column = own % 4 * perWord;
      for (uint32_t n = 0; n < shape.operands(); ++n)
        for (uint32_t i = 0; i < perWord; ++i)
          a[(row + n % 2 * 8) * depth + n / 4 * perProduct + n / 2 % 2 * perProduct / 2 + column +
            i] = element(words[n], i);
    }
    uint32_t elementBytes = 4 / perWord;
    for (uint32_t row = 0; row < columns; ++row)
      for (uint32_t i = 0; i < depth; ++i)
        b[row * depth + i] = ofByte(swizzled(row, i * elementBytes));
    for (uint32_t own = 0; own < Warpgroup::threads; ++own)
      for (uint32_t i = 0; i < sums; ++i) {
        uint32_t row = own / warpSize * 16 + own % warpSize / 4 + i / 2 % 2 * 8,
                 column = i / 4 * 8 + own % 4 * 2 + i % 2;
        const Number *x = a.data() + row * depth, *y = b.data() + column * depth;
        uint32_t &to = group.sums[own * sums + i];
        uint32_t old = addend ? addend->sums[own * sums + i] : 0;
        if constexpr (std::is_integral_v<Number>) {
          uint32_t sum = old;
          for (uint32_t n = 0; n < depth; ++n)
            sum += uint32_t(int32_t(x[n]) * int32_t(y[n]));
          to = sum;
        } else {
          // Products are exact; the device keeps at least float's bits of the sum.
          double sum = std::bit_cast<float>(old);
          for (uint32_t n = 0; n < depth; ++n)
            sum += double(x[n]) * double(y[n]);
          to = std::bit_cast<uint32_t>(float(sum));
        }
      }
  };
  auto half = [](const std::byte *at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return bits;
  };
  using Kind = ptx::WarpgroupProducts::Kind;
  switch (shape.kind) {
  case Kind::S8:
    multiply(
        int8_t(0), 32, [](uint32_t r, uint32_t i) { return int8_t(r >> 8 * i); },
        [](const std::byte *at) { return int8_t(*at); });
    break;
  case Kind::F16:
    multiply(
        float(0), 16, [](uint32_t r, uint32_t i) { return support::f16ToFloat(r >> 16 * i); },
        [&](const std::byte *at) { return support::f16ToFloat(half(at)); });
    break;
  case Kind::BF16:
    multiply(
        float(0), 16, [](uint32_t r, uint32_t i) { return support::bf16ToFloat(r >> 16 * i); },
        [&](const std::byte *at) { return support::bf16ToFloat(half(at)); });
    break;
  }
  group.computed = true;
}

void Machine::waitForProducts(Thread &thread, uint32_t location, uint32_t pending) {
  uint32_t number = thread.index / Warpgroup::threads;
  if (number >= thread.block->warpgroups.size() || thread.startedProducts <= pending)
    return;
  thread.endedProducts = std::max(thread.endedProducts, thread.startedProducts - pending);
  Warpgroup &warpgroup = thread.block->warpgroups[number];
  for (ProductGroup &group : warpgroup.groups)
    if (group.serial <= thread.endedProducts && !group.computed) {
      computeProducts(thread, warpgroup, group);
      if (failed())
        return;
    }
}

void Machine::takeSums(Thread &thread, uint32_t location, uint32_t count, uint32_t *sums) {
  uint32_t number = thread.index / Warpgroup::threads, own = thread.index % Warpgroup::threads;
  if (number < thread.block->warpgroups.size())
    for (const ProductGroup &group : thread.block->warpgroups[number].groups) {
      if (group.serial != sums[0] || uint32_t(group.shape.sums()) != count ||
          std::any_of(sums, sums + count, [&](uint32_t sum) { return sum != group.serial; }))
        continue;
      if (group.serial > thread.endedProducts)
        return fail(thread, location,
                    "takes sums of products that it has not waited for (" + where(group.location) +
                        ")");
      std::copy_n(group.sums.begin() + own * count, count, sums);
      return;
    }
  fail(thread, location, "takes sums that are not those of products");
}

void Machine::setRegisters(Thread &thread, uint32_t location, uint32_t count, bool more) {
  using sluice::emulator::number;
  Block &block = *thread.block;
  if (thread.index / Warpgroup::threads >= block.warpgroups.size())
    return fail(thread, location, "changes the registers of less than four warps");
  Warpgroup &warpgroup = block.warpgroups[thread.index / Warpgroup::threads];
  if (count < ptx::fewestRegisters || count > ptx::mostRegisters || count % ptx::registerStep)
    return fail(thread, location,
                number(count) + " registers a thread: expected a multiple of " +
                    number(ptx::registerStep) + " from " + number(ptx::fewestRegisters) + " to " +
                    number(ptx::mostRegisters));
  if (more ? count < warpgroup.registers : count > warpgroup.registers)
    return fail(thread, location,
                std::string(more ? "increases" : "decreases") + " registers from " +
                    number(warpgroup.registers) + " to " + number(count));
  if (warpgroup.arrived && warpgroup.location != location)
    return fail(thread, location,
                "divergent change of registers: other threads of the warpgroup wait at " +
                    where(warpgroup.location));
  warpgroup.location = location;
  if (++warpgroup.arrived < Warpgroup::threads) {
    warpgroup.waiting.push_back(&thread);
    suspend(thread, WaitKind::Warpgroup, location, &warpgroup);
    return;
  }
  // The last thread gets them for all.
  while (more && count - warpgroup.registers > block.spareRegisters) {
    block.wantRegisters.push_back(&thread);
    suspend(thread, WaitKind::Registers, location, &warpgroup, count - warpgroup.registers);
    if (failed())
      return;
  }
  block.spareRegisters += warpgroup.registers - count;
  warpgroup.registers = count;
  warpgroup.arrived = 0;
  idlePolls = 0;
  for (std::vector<Thread *> *waiting : {&block.wantRegisters, &warpgroup.waiting}) {
    for (Thread *other : *waiting)
      makeReady(*other);
    waiting->clear();
  }
}
