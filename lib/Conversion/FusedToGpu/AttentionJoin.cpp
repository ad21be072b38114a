// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionJoin.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;

static constexpr int64_t kGroup = PersistentPlan::kGroup;
/// Of a head: the greatest exponent and the sum of weights.
static constexpr int64_t kSoftmaxBytes = 8;

AttentionJoin::AttentionJoin(DeviceBuilder &k, const PersistentPlan &plan, Value shared,
                             Value thread)
    : k(k), plan(plan), shared(shared), thread(thread), lane(k.bitAnd(thread, kWarp - 1)),
      warp(k.shr(thread, 5)), rank(k.rankInCluster()) {}

Value AttentionJoin::ownSets() {
  int64_t ranks = plan.schedule.clusterBlocks;
  return k.div(k.max(k.sub(k.constI32(plan.joinedSets() + ranks - 1), rank), k.constI32(0)), ranks);
}

Value AttentionJoin::partBytes() {
  return k.mul(ownSets(), plan.schedule.clusterBlocks *
                              (setColumns() * 4 + plan.joinedHeads() * kSoftmaxBytes));
}

Value AttentionJoin::attendedBytes() {
  return k.constI32(plan.attendedGroups() * exchange().groupBytes());
}

void AttentionJoin::initBarriers() {
  k.initBarrier(partsBarrier(), 1);
  k.expectBytes(partsBarrier(), partBytes());
  exchange().init(attendedBytes());
}

Value AttentionJoin::placeOf(Value from, Value set) {
  return k.add(k.mul(from, plan.ownSets(0)), k.div(set, plan.schedule.clusterBlocks));
}

void AttentionJoin::send(llvm::function_ref<Values(Value, Value)> outputs,
                         llvm::function_ref<std::pair<Value, Value>(Value, Value)> softmax) {
  int64_t ranks = plan.schedule.clusterBlocks, heads = plan.joinedHeads();
  k.loop(warp, k.constI32(plan.joinedSets()), plan.schedule.warps, [&](Value set) {
    Value place = placeOf(rank, set), target = k.rem(set, ranks);
    Value to = k.at(k.offset(shared, plan.parts.offset), place, setColumns() * 4);
    for (int64_t first = 0; first < setColumns(); first += kGroup) {
      Value column = k.add(k.shl(lane, 2), first);
      Values words;
      for (Value output : outputs(set, column))
        words.push_back(k.bitcast(output, k.i32()));
      k.sendToBlock(k.offset(to, k.shl(column, 2)), partsBarrier(), target, words);
    }
    k.ifThen(k.less(lane, k.constI32(heads)), [&] {
      auto [greatest, sum] = softmax(set, lane);
      Value at = k.at(k.offset(shared, plan.partMeta.offset), k.add(k.mul(place, heads), lane),
                      kSoftmaxBytes);
      k.sendToBlock(at, partsBarrier(), target,
                    {k.bitcast(greatest, k.i32()), k.bitcast(sum, k.i32())});
    });
  });
}

void AttentionJoin::finish(Value round) {
  int64_t ranks = plan.schedule.clusterBlocks, heads = plan.joinedHeads(), dim = plan.shape.dim,
          allHeads = plan.clusterHeads() * plan.shape.group();
  GroupExchange attended = exchange();
  Value place = k.at(k.offset(shared, plan.scratch.offset), warp, PersistentPlan::kGroupBytes);
  auto finishAll = [&] {
    k.waitOfCluster(partsBarrier(), k.bitAnd(round, 1));
    k.ifThen(k.equal(thread, k.constI32(0)), [&] { k.expectBytes(partsBarrier(), partBytes()); });
    k.loop(warp, ownSets(), plan.schedule.warps, [&](Value own) {
      Value set = k.add(k.mul(own, ranks), rank);
      for (int64_t first = 0; first < setColumns(); first += kGroup) {
        Value column = k.add(k.shl(lane, 2), first), head = k.div(column, dim);
        auto meta = [&](int64_t from) {
          Value at = k.add(k.mul(placeOf(k.constI32(from), set), heads), head);
          return k.lanes(k.load(k.vec(2, k.f32()),
                                k.at(k.offset(shared, plan.partMeta.offset), at, kSoftmaxBytes),
                                8));
        };
        Value greatest;
        for (int64_t from = 0; from < ranks; ++from) {
          Value one = meta(from)[0];
          greatest = greatest ? k.maxF(greatest, one) : one;
        }
        Values zero(5, k.number(0.0));
        Values sums = zero;
        for (int64_t from = 0; from < ranks; ++from) {
          Values softmax = meta(from);
          Value factor = k.exp2(k.subF(softmax[0], greatest));
          Value at = k.at(k.offset(shared, plan.parts.offset), placeOf(k.constI32(from), set),
                          setColumns() * 4);
          Values part = k.lanes(k.load(k.vec(4, k.f32()), k.offset(at, k.shl(column, 2)), 16));
          part.push_back(softmax[1]);
          for (auto [sum, one] : llvm::zip_equal(sums, part))
            sum = k.fma(one, factor, sum);
        }
        // Heads of the last set that do not exist are zeros.
        Value exists = k.less(k.add(k.mul(set, heads), head), k.constI32(allHeads));
        Values x;
        for (int64_t i = 0; i < 4; ++i) {
          Value output = k.widen(k.narrow(k.divF(sums[i], sums[4]), k.f16()));
          x.push_back(k.select(exists, output, k.number(0.0)));
        }
        Value group = k.add(k.mul(set, setColumns() / kGroup), first / kGroup);
        // Of the last set, groups that have no column are not sent.
        Value any = k.less(k.mul(group, kGroup), k.constI32(allHeads * dim));
        k.ifThen(any, [&] { attended.send(x, k.number(0.0), group, place, lane); });
      }
    });
  };
  k.ifThen(k.less(k.constI32(0), ownSets()), finishAll);
}

void AttentionJoin::receive(Value round) { exchange().receive(round, attendedBytes(), thread); }
