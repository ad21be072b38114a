// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ResidualExchange.h"

#include "Opaque.h"

#include "sluice/Formats/FixedSum.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;

ResidualExchange::ResidualExchange(DeviceBuilder &k, const PersistentPlan &plan,
                                   const Pointers &pointers, Value thread)
    : k(k), plan(plan), pointers(pointers), thread(thread), lane(k.bitAnd(thread, kWarp - 1)),
      warp(k.shr(thread, 5)), rank(k.rankInCluster()) {}

/// Bytes of all groups of an input and of the tokens of ranks that have none.
static int64_t inputBytes(const PersistentPlan &plan) {
  int64_t bytes = plan.widthGroups() * (PersistentPlan::kGroupBytes +
                                        plan.inputOrder(PersistentPlan::Input).metaBytes());
  for (int64_t rank = 0; rank < plan.schedule.clusterBlocks; ++rank)
    if (plan.inputGroups(rank).size() == 0)
      bytes += PersistentPlan::kTokenBytes;
  return bytes;
}

void ResidualExchange::initBarrier() { exchange().init(k.constI32(inputBytes(plan))); }

void ResidualExchange::forGroups(llvm::function_ref<void(Value, Value, Value)> body) {
  PartOf own(k, plan.widthGroups(), plan.schedule.clusterBlocks, rank);
  k.loop(k.add(own.begin, warp), own.end, plan.schedule.warps, [&](Value group) {
    Value row = k.add(k.mul(group, PersistentPlan::kGroup), k.shl(lane, 2));
    body(group, k.sub(group, own.begin), row);
  });
}

Value ResidualExchange::exists(Value row) {
  return plan.shape.width % PersistentPlan::kGroup ? k.less(row, k.constI32(plan.shape.width))
                                                   : Value();
}

Value ResidualExchange::statePlace(int64_t part, Value local) {
  int64_t groups = llvm::divideCeil(plan.widthGroups(), plan.schedule.clusterBlocks);
  Value at =
      k.offset(pointers.shared, plan.state.offset + part * groups * PersistentPlan::kGroup * 4);
  return k.offset(k.at(at, local, PersistentPlan::kGroup * 4), k.shl(lane, 4));
}

DeviceBuilder::Values ResidualExchange::loadState(int64_t part, Value local) {
  return k.lanes(k.load(k.vec(4, k.f32()), statePlace(part, local), 16));
}

void ResidualExchange::storeState(int64_t part, Value local, const DeviceBuilder::Values &x) {
  k.store(k.vectorOf(x), statePlace(part, local), 16);
}

DeviceBuilder::Values ResidualExchange::loadRows(Value array, Value row) {
  auto load = [&] {
    return k.lanes(k.load(k.vec(4, k.f32()), k.offset(array, k.shl(row, 2)), 16));
  };
  Value there = exists(row);
  if (!there)
    return load();
  return k.ifElseYield(there, load, [&] { return DeviceBuilder::Values(4, k.number(0.0)); });
}

void ResidualExchange::start() {
  DeviceBuilder::Values zeros(4, k.number(0.0));
  forGroups([&](Value, Value local, Value row) {
    storeState(0, local, loadRows(pointers.embedding, row));
    storeState(1, local, zeros);
    storeState(2, local, zeros);
  });
}

DeviceBuilder::Values ResidualExchange::readWords(Value array, Value row, Value additions) {
  Value at = k.offset(pointers.sums, k.shl(k.toI64(k.add(k.mul(array, words()), row)), 3));
  Value wanted = k.toI64(additions);
  DeviceBuilder::Values none(4, k.integer(k.i64(), 0));
  DeviceBuilder::Values found = k.whileLoop(none, [&](ValueRange) {
    DeviceBuilder::Values loaded;
    Value differ;
    for (int64_t i = 0; i < 4; ++i) {
      loaded.push_back(k.loadRelaxed(k.offset(at, i * 8)));
      Value differs = k.bitXor(loaded.back(), wanted);
      differ = differ ? k.bitOr(differ, differs) : differs;
    }
    constexpr int64_t counter = (int64_t(1) << formats::fixedSumCountBits) - 1;
    Value again = k.less(k.integer(k.i64(), 0), k.bitAnd(differ, counter));
    return std::pair(again, loaded);
  });
  DeviceBuilder::Values values;
  for (Value word : found) {
    Value sum = k.sar(k.sub(word, wanted), formats::fixedSumCountBits);
    values.push_back(k.mulF(arith::SIToFPOp::create(k.b, k.loc, k.f32(), sum),
                            k.number(std::ldexp(1.0, -formats::fixedSumFraction))));
  }
  return values;
}

void ResidualExchange::read(int64_t kind, Value layer, Value gains, Value sends) {
  bool mlp = kind == PersistentPlan::MlpSums;
  Value array = mlp ? mlpArray(layer) : k.constI32(kind);
  // Additions since the kernel's start: none for the MLP before the first layer's.
  Value additions = mlp ? k.mul(k.shr(k.add(layer, 2), 1), plan.mlpAdditions())
                        : k.mul(k.add(layer, 1), plan.attentionAdditions());
  Value place =
      k.at(k.offset(pointers.shared, plan.scratch.offset), warp, PersistentPlan::kGroupBytes);
  forGroups([&](Value group, Value local, Value row) {
    // What does not depend on the sums is loaded while they are waited for.
    DeviceBuilder::Values gain, start;
    if (gains)
      gain = loadRows(gains, row);
    if (!mlp)
      start = loadRows(pointers.embedding, row);
    auto wait = [&] { return readWords(array, row, additions); };
    Value there = exists(row);
    DeviceBuilder::Values sums =
        there ? k.ifElseYield(there, wait, [&] { return DeviceBuilder::Values(4, k.number(0.0)); })
              : wait();
    DeviceBuilder::Values stream, others = loadState(mlp ? 0 : 1, local);
    if (mlp) {
      for (auto [sum, other] : llvm::zip_equal(sums, loadState(2, local)))
        stream.push_back(k.addF(sum, other));
      storeState(2, local, sums);
    } else {
      for (auto [x, sum] : llvm::zip_equal(start, sums))
        stream.push_back(k.addF(x, sum));
    }
    storeState(mlp ? 1 : 0, local, stream);
    if (!gains)
      return;
    auto send = [&] {
      DeviceBuilder::Values x;
      Value square;
      for (auto [one, other, factor] : llvm::zip_equal(stream, others, gain)) {
        Value value = k.addF(one, other);
        square = square ? k.fma(value, value, square) : k.mulF(value, value);
        x.push_back(k.mulF(value, factor));
      }
      exchange().send(x, k.sumOfWarp(square), group, place, lane);
    };
    if (sends)
      k.ifThen(sends, send);
    else
      send();
  });
  if (!gains || plan.widthGroups() >= plan.schedule.clusterBlocks)
    return;
  PartOf own(k, plan.widthGroups(), plan.schedule.clusterBlocks, rank);
  Value none = k.equal(own.begin, own.end);
  k.ifThen(sends ? k.bitAnd(none, sends) : none, [&] { exchange().sendToken(rank, thread); });
}

void ResidualExchange::addAttention(Value row, Value value) {
  add(k.constI32(PersistentPlan::AttentionSums), row, value,
      plan.attentionAdditions() * plan.shape.layers);
}

void ResidualExchange::addMlp(Value layer, Value row, Value value) {
  add(mlpArray(layer), row, value, plan.mlpAdditions() * llvm::divideCeil(plan.shape.layers, 2));
}

void ResidualExchange::add(Value array, Value row, Value value, int64_t additions) {
  float limit = formats::fixedSumLimit(additions);
  Value fits = k.lessF(k.absF(value), k.number(limit));
  Value scaled = k.mulF(k.select(fits, value, k.number(0.0)),
                        k.number(std::ldexp(1.0, formats::fixedSumFraction)));
  Value rounded = LLVM::RoundEvenOp::create(k.b, k.loc, scaled);
  Value term = arith::FPToSIOp::create(k.b, k.loc, k.i64(), rounded);
  k.ifElse(
      fits, [] {},
      [&] {
        // Whoever has read all sums, and then fences, sees it.
        k.storeRelaxed(k.constI32(1), pointers.poison);
        k.fenceDevice(LLVM::AtomicOrdering::release);
      });
  Value at = k.offset(pointers.sums, k.shl(k.toI64(k.add(k.mul(array, words()), row)), 3));
  k.addRelaxed(at, k.add(k.shl(term, formats::fixedSumCountBits), 1));
}

void ResidualExchange::receive(Value round) {
  exchange().receive(round, k.constI32(inputBytes(plan)), thread);
}

Value ResidualExchange::normFactor(double epsilon) {
  // In the order of the groups, few at a time: what a wide model's groups have would be loaded at
  // once, and spill.
  constexpr int64_t atOnce = 8;
  int64_t whole = plan.widthGroups() / atOnce * atOnce;
  auto add = [&](Value sum, Value first, int64_t count) {
    for (int64_t group = 0; group < count; ++group)
      sum = k.addF(sum, exchange().square(k.add(first, group)));
    return sum;
  };
  Value sum = k.number(0.0);
  if (whole > atOnce)
    sum = k.loop(k.constI32(0), opaqueCopy(k, k.constI32(whole)), atOnce, {sum},
                 [&](Value first, ValueRange carried) {
                   return DeviceBuilder::Values{add(carried[0], first, atOnce)};
                 })[0];
  else
    whole = 0;
  sum = add(sum, k.constI32(whole), plan.widthGroups() - whole);
  Value mean = k.mulF(sum, k.number(1.0 / static_cast<double>(plan.shape.width)));
  return k.divF(k.number(1.0), k.sqrt(k.addF(mean, k.number(epsilon))));
}

void ResidualExchange::store(Value result) {
  k.fenceDevice(LLVM::AtomicOrdering::acquire);
  Value fine = k.equal(k.loadRelaxed(pointers.poison), k.integer(k.i64(), 0));
  Value nan = k.number(std::numeric_limits<double>::quiet_NaN());
  forGroups([&](Value, Value local, Value row) {
    DeviceBuilder::Values x;
    for (auto [first, mlp] : llvm::zip_equal(loadState(0, local), loadState(1, local)))
      x.push_back(k.select(fine, k.addF(first, mlp), nan));
    auto write = [&] { k.store(k.vectorOf(x), k.offset(result, k.shl(row, 2)), 16); };
    if (Value there = exists(row))
      k.ifThen(there, write);
    else
      write();
  });
}
