// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GroupExchange.h"

#include "FixedWords.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;

void GroupExchange::init(Value bytes) const {
  k.initBarrier(barrier(), 1);
  k.expectBytes(barrier(), bytes);
}

void GroupExchange::send(const DeviceBuilder::Values &x, Value square, Value group, Value place,
                         Value lane) const {
  int64_t ranks = plan.schedule.clusterBlocks;
  Value greatest;
  for (Value element : x) {
    Value magnitude = kernels::magnitudeBits(k, element);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  kernels::ActivationScale scale = kernels::activationScale(k, k.greatestOfWarp(greatest));
  DeviceBuilder::Values fixed;
  for (Value element : x)
    fixed.push_back(toFixedPoint(k, scale, element));
  // As InputPlan: 64 bytes for every 32 columns, high bytes first; of layout mma words 0 and 4, 1
  // and 5 and so on side by side, as a lane reads them.
  Value inBytes = order().records
                      ? k.shl(k.bitAnd(lane, 7), 2)
                      : k.add(k.shl(k.bitAnd(lane, 3), 3), k.shl(k.bitAnd(k.shr(lane, 2), 1), 2));
  Value inOrder = k.add(k.shl(k.shr(lane, 3), 6), inBytes);
  Value word = k.offset(place, inOrder);
  k.store(fixedPointBytes(k, fixed, /*high=*/true), word, 4);
  k.store(fixedPointBytes(k, fixed, /*high=*/false), k.offset(word, 32), 4);
  k.syncWarp();
  // Half a warp has all 16 pieces; the halves take ranks in turn.
  Value piece = k.shl(k.bitAnd(lane, 15), 4);
  DeviceBuilder::Values words = k.lanes(k.load(k.vec(4, k.i32()), k.offset(place, piece), 16));
  // Before another group's bytes come to the same place; and whoever receives these may use the
  // place otherwise, although only some lanes send to it.
  k.syncWarp();
  k.loop(k.shr(lane, 4), k.constI32(ranks), 2, [&](Value peer) {
    k.sendToBlock(k.offset(operands(group), piece), barrier(), peer, words);
  });
  k.ifThen(k.less(lane, k.constI32(ranks)), [&] {
    k.sendToBlock(metaAt(group, 0), barrier(), lane,
                  {k.bitcast(scale.scale, k.i32()), k.bitcast(square, k.i32())});
  });
  if (order().sums())
    sendSums(fixed, scale.scale, group, lane);
}

void GroupExchange::sendSums(const DeviceBuilder::Values &fixed, Value scale, Value group,
                             Value lane) const {
  int64_t columns = order().sumColumns, lanes = columns / 4;
  Value sum;
  for (Value q : fixed)
    sum = sum ? k.add(sum, q) : q;
  for (int64_t distance = 1; distance < lanes; distance *= 2)
    sum = k.add(sum, k.shuffleXor(sum, distance));
  Value word = k.bitcast(k.mulF(k.toFloat(sum), scale), k.i32());
  // The lanes that have a sum take ranks in turn.
  Value to = k.offset(metaAt(group, PersistentPlan::kStepBytes), k.shl(k.div(lane, lanes), 2));
  k.loop(k.rem(lane, lanes), k.constI32(plan.schedule.clusterBlocks), lanes,
         [&](Value peer) { k.sendToBlock(to, barrier(), peer, {word}); });
}

void GroupExchange::sendToken(Value rank, Value thread) const {
  int64_t ranks = plan.schedule.clusterBlocks;
  // Those of input, projections and inner values follow each other.
  int64_t number = index == PersistentPlan::Input         ? 0
                   : index == PersistentPlan::Projections ? 1
                                                          : 2;
  Value tokens =
      k.offset(shared, plan.tokens.offset + number * ranks * PersistentPlan::kTokenBytes);
  k.ifThen(k.less(thread, k.constI32(ranks)), [&] {
    k.sendToBlock(k.at(tokens, rank, PersistentPlan::kTokenBytes), barrier(), thread,
                  {k.constI32(0), k.constI32(0)});
  });
}

void GroupExchange::receive(Value round, Value bytes, Value thread) const {
  k.waitOfCluster(barrier(), k.bitAnd(round, 1));
  k.ifThen(k.equal(thread, k.constI32(0)), [&] { k.expectBytes(barrier(), bytes); });
}
