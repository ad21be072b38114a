// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The choice of a token by a cluster of blocks that divide a row's logits among them, by the
// rule in SamplingWords.h.
//
// Top-k, top-p and the draw are one question: with the tokens in order of their logits, where does
// a running sum of weights reach a target? A token is a 64-bit key, its logit's order and its id,
// so that no two are equal. The answer is found by halving an interval of keys, 8 bits at a time:
// the weights of the tokens in it are added up in 256 bins, the blocks' bins are added through the
// cluster's shared memory, and the bin where the sum reaches the target is the next interval. Sums
// are of integers, so that all blocks find the same.

#include "Kernels.h"

#include "sluice-runtime/SamplingWords.h"

#include "llvm/Support/MathExtras.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

static constexpr int64_t kBins = fused::SamplePlan::kBins, kBinBits = 8;
static_assert(kBins == 1 << kBinBits);
/// A weight's halves are added apart: shared memory adds 32 bits at once, and loops for 64.
static constexpr int64_t kHalfBits = sampling::kWeightBits / 2, kLargestHalf = (1 << kHalfBits) - 1;
static constexpr double kLog2E = 1.44269504088896341;

namespace {
class SampleKernel : fused::SamplePlan {
public:
  using Values = DeviceBuilder::Values;

  SampleKernel(Kernel &kernel, fused::SampleOp op, const fused::SamplePlan &plan)
      : fused::SamplePlan(plan), kernel(kernel), k(kernel.k), op(op),
        idBits(std::max<int64_t>(1, llvm::Log2_64_Ceil(vocabulary))) {}

  void emit();

private:
  // Numbers of 64 bits.
  Value wide(int64_t value) { return k.integer(k.i64(), value); }
  Value wide(Value x) { return k.extendUnsigned(x, k.i64()); }
  Value maxKey(Value x, Value y) { return LLVM::UMaxOp::create(k.b, k.loc, x, y); }
  Value below(Value x, Value y) {
    return arith::CmpIOp::create(k.b, k.loc, arith::CmpIPredicate::ult, x, y);
  }
  Value shiftLeft(Value x, Value by) { return arith::ShLIOp::create(k.b, k.loc, x, by); }
  Value shiftRight(Value x, Value by) { return arith::ShRUIOp::create(k.b, k.loc, x, by); }
  /// shfl.sync of both halves.
  Value shuffle(Value x, int64_t distance, NVVM::ShflKind kind);
  /// The largest of a warp.
  Value warpMax(Value x);

  // The cluster.
  /// The address in block `rank` of the cluster that corresponds to `place` in this one.
  Value peer(Value place, Value rank);
  /// All threads of the cluster arrive and wait; of the block, if it is the only one.
  void clusterBarrier();

  Value word(int64_t index) { return k.load(k.i32(), k.offset(words, 4 * index), 4); }
  /// Smaller for smaller numbers, 32 bits, equal for both zeros; and as the upper part of a key.
  Value orderOf(Value logit);
  Value keyOf(Value order) { return k.shl(wide(order), idBits); }
  Value keyOf(Value logit, Value id);
  int64_t orderOf(float logit) const;
  /// Emits `body` for each token of this thread.
  Values forTokens(ValueRange carried,
                   llvm::function_ref<Values(Value id, Value logit, ValueRange carried)> body);

  Value largestKey();
  /// The weight of a token; `kind` 0 counts tokens.
  Value weightOf(Value logit, Value kind, Value sharpness);
  Value targetOf(Value kind, Value total);
  /// The key of the token where the sum of the weights of keys from `top` down reaches its target;
  /// those below `cut` count for nothing.
  Value find(Value cut, Value top, Value kind, Value sharpness);
  Value draw(Value top);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::SampleOp op;
  int64_t idBits; ///< of a key
  Value thread, lane, rank, first, count, logits, words, stageAt;
  Value binsAt, mergedAt, countsAt, warpKeysAt, blockKeysAt, foundAt;
  Value greatest; ///< logit
};
} // namespace

Value SampleKernel::shuffle(Value x, int64_t distance, NVVM::ShflKind kind) {
  // Lanes up to which (up: down to which) a lane is read.
  Value clamp = k.constI32(kind == NVVM::ShflKind::up ? 0 : kWarp - 1);
  auto half = [&](Value part) {
    return NVVM::ShflOp::create(k.b, k.loc, k.i32(), k.constI32(-1), part, k.constI32(distance),
                                clamp, kind, UnitAttr())
        .getResult();
  };
  if (x.getType() == k.i32())
    return half(x);
  Value low = half(k.truncate(x, k.i32())), high = half(k.truncate(k.shr(x, 32), k.i32()));
  return k.bitOr(wide(low), k.shl(wide(high), 32));
}

Value SampleKernel::warpMax(Value x) {
  for (int64_t distance = kWarp / 2; distance; distance /= 2)
    x = maxKey(x, shuffle(x, distance, NVVM::ShflKind::bfly));
  return x;
}

Value SampleKernel::peer(Value place, Value rank) {
  return splits == 1 ? place : k.ofBlock(place, rank);
}

void SampleKernel::clusterBarrier() {
  if (splits == 1)
    return k.barrier();
  k.clusterArrive();
  k.clusterWait();
}

Value SampleKernel::orderOf(Value logit) {
  // Adding zero makes one of two zeros.
  Value bits = k.bitcast(k.addF(logit, k.number(0.0)), k.i32());
  Value sign = arith::ShRSIOp::create(k.b, k.loc, bits, k.constI32(31));
  return k.bitXor(bits, k.bitOr(sign, k.constI32(std::numeric_limits<int32_t>::min())));
}

int64_t SampleKernel::orderOf(float logit) const {
  uint32_t bits = llvm::bit_cast<uint32_t>(logit);
  return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

Value SampleKernel::keyOf(Value logit, Value id) {
  Value key = k.bitOr(keyOf(orderOf(logit)), wide(k.sub(k.constI32((1 << idBits) - 1), id)));
  Value isNaN = k.less(k.constI32(0x7F800000), k.bitAnd(k.bitcast(logit, k.i32()), 0x7FFFFFFF));
  return k.select(isNaN, wide(-1), key);
}

DeviceBuilder::Values SampleKernel::forTokens(
    ValueRange carried,
    llvm::function_ref<Values(Value id, Value logit, ValueRange carried)> body) {
  return k.loop(thread, count, k.constI32(threads), carried, [&](Value i, ValueRange values) {
    Value id = k.add(first, i);
    Value logit = staged ? k.load(k.f32(), k.offset(stageAt, k.shl(i, 2)), 4)
                         : k.loadFresh(k.f32(), k.offset(logits, k.shl(id, 2)), 4);
    return body(id, logit, values);
  });
}

Value SampleKernel::largestKey() {
  if (staged)
    k.loop(thread, count, k.constI32(threads), [&](Value i) {
      Value from = k.offset(logits, k.shl(k.add(first, i), 2));
      k.store(k.loadFresh(k.f32(), from, 4), k.offset(stageAt, k.shl(i, 2)), 4);
    });
  Value largest = forTokens({wide(0)}, [&](Value id, Value logit, ValueRange carried) {
    return Values{maxKey(carried[0], keyOf(logit, id))};
  })[0];
  auto largestOf = [&](Value array, int64_t entries) {
    Value all;
    for (int64_t i = 0; i < entries; ++i) {
      Value one = k.load(k.i64(), k.offset(array, 8 * i), 8);
      all = all ? maxKey(all, one) : one;
    }
    return all;
  };
  largest = warpMax(largest);
  k.ifThen(k.equal(lane, k.constI32(0)),
           [&] { k.store(largest, k.offset(warpKeysAt, k.shl(k.shr(thread, 5), 3)), 8); });
  k.barrier();
  largest = largestOf(warpKeysAt, threads / kWarp);
  if (splits == 1)
    return largest;
  k.clusterWait(); // the others run
  k.ifThen(k.less(thread, k.constI32(splits)),
           [&] { k.store(largest, peer(k.offset(blockKeysAt, k.shl(rank, 3)), thread), 8); });
  clusterBarrier();
  return largestOf(blockKeysAt, splits);
}

Value SampleKernel::weightOf(Value logit, Value kind, Value sharpness) {
  Value share = k.exp2(k.mulF(k.subF(logit, greatest), sharpness));
  Value scaled = k.mulF(share, k.number(int64_t(1) << sampling::kWeightBits));
  Value weight = arith::FPToUIOp::create(k.b, k.loc, k.i32(), k.addF(scaled, k.number(0.5)));
  weight = k.min(weight, k.constI32((1 << sampling::kWeightBits) - 1));
  return k.select(k.equal(kind, k.constI32(0)), k.constI32(1), weight);
}

Value SampleKernel::targetOf(Value kind, Value total) {
  Value topK = wide(word(1));
  Type f64 = k.b.getF64Type();
  Value topP = arith::ExtFOp::create(k.b, k.loc, f64, k.bitcast(word(2), k.f32()));
  Value part = k.mulF(topP, arith::UIToFPOp::create(k.b, k.loc, f64, total));
  Value up = LLVM::FCeilOp::create(k.b, k.loc, part);
  Value byP = maxKey(arith::FPToUIOp::create(k.b, k.loc, k.i64(), up), wide(1));
  Value point = k.bitOr(wide(word(4)), k.shl(wide(word(5)), 32));
  Type i128 = k.b.getIntegerType(128);
  Value product = k.mul(k.extendUnsigned(point, i128), k.extendUnsigned(total, i128));
  Value byPoint = k.add(k.truncate(k.shr(product, 64), k.i64()), 1);
  Value target = k.select(k.equal(kind, k.constI32(0)), topK,
                          k.select(k.equal(kind, k.constI32(1)), byP, byPoint));
  return LLVM::UMinOp::create(k.b, k.loc, target, total);
}

Value SampleKernel::find(Value cut, Value top, Value kind, Value sharpness) {
  auto inside = [&](Value key, Value low, Value width) {
    return k.equal(shiftRight(k.sub(key, low), wide(width)), wide(0));
  };
  auto binOf = [&](Value set, Value bin) { return k.offset(set, k.mul(bin, kBinWords * 4)); };
  // Adds what the tokens of the interval of 2^width keys from `low` on weigh.
  auto fillBins = [&](Value set, Value low, Value width, Value shift) {
    k.loop(thread, k.constI32(kBins * kBinWords), k.constI32(threads),
           [&](Value i) { k.store(k.constI32(0), k.offset(set, k.shl(i, 2)), 4); });
    k.barrier();
    forTokens({}, [&](Value id, Value logit, ValueRange) {
      Value key = keyOf(logit, id), weight = weightOf(logit, kind, sharpness);
      k.ifThen(k.bitAnd(inside(key, low, width), k.less(k.constI32(0), weight)), [&] {
        Value place = binOf(set, k.truncate(shiftRight(k.sub(key, low), wide(shift)), k.i32()));
        Value parts[] = {k.bitAnd(weight, kLargestHalf), k.shr(weight, kHalfBits), k.constI32(1)};
        for (auto [part, value] : llvm::enumerate(parts))
          LLVM::AtomicRMWOp::create(k.b, k.loc, LLVM::AtomicBinOp::add, k.offset(place, 4 * part),
                                    value, LLVM::AtomicOrdering::monotonic);
      });
      return Values();
    });
  };
  auto mergeBins = [&](Value set) {
    k.ifThen(k.less(thread, k.constI32(kBins)), [&] {
      Value sums[kBinWords] = {wide(0), wide(0), wide(0)};
      for (int64_t other = 0; other < splits; ++other) {
        Value place = peer(binOf(set, thread), k.constI32(other));
        for (auto [part, sum] : llvm::enumerate(sums))
          sum = k.add(sum, wide(k.load(k.i32(), k.offset(place, 4 * part), 4)));
      }
      k.store(k.add(sums[0], k.shl(sums[1], kHalfBits)), k.offset(mergedAt, k.shl(thread, 3)), 8);
      k.store(k.truncate(sums[2], k.i32()), k.offset(countsAt, k.shl(thread, 2)), 4);
    });
    k.barrier();
  };
  // {bin, target within it, its number of tokens}; every warp finds the same. `targetIn` is 0 where
  // only the total gives it.
  auto findBin = [&](Value targetIn) {
    constexpr int64_t each = kBins / kWarp;
    Value highest = k.sub(k.constI32(kBins - 1), k.mul(lane, each));
    Values sums;
    Value ofLane = wide(0);
    for (int64_t i = 0; i < each; ++i) {
      sums.push_back(k.load(k.i64(), k.offset(mergedAt, k.shl(k.sub(highest, i), 3)), 8));
      ofLane = k.add(ofLane, sums.back());
    }
    Value until = ofLane;
    for (int64_t distance = 1; distance < kWarp; distance *= 2) {
      Value lower = shuffle(until, distance, NVVM::ShflKind::up);
      until = k.add(until, k.select(k.less(lane, k.constI32(distance)), wide(0), lower));
    }
    Value total = warpMax(until);
    Value target = k.select(k.equal(targetIn, wide(0)), targetOf(kind, total), targetIn);
    Value before = k.sub(until, ofLane), bin = k.constI32(0), rest = wide(0),
          tokens = k.constI32(0);
    for (int64_t i = 0; i < each; ++i) {
      Value after = k.add(before, sums[i]);
      Value hit = k.bitAnd(below(before, target), below(k.sub(target, 1), after));
      Value mine = k.sub(highest, i);
      bin = k.select(hit, mine, bin);
      rest = k.select(hit, k.sub(target, before), rest);
      Value ofBin = k.load(k.i32(), k.offset(countsAt, k.shl(mine, 2)), 4);
      tokens = k.select(hit, ofBin, tokens);
      before = after;
    }
    return Values{warpMax(bin), warpMax(rest), warpMax(tokens)};
  };

  Value span = k.sub(top, cut);
  Value zeros =
      LLVM::CountLeadingZerosOp::create(k.b, k.loc, k.i64(), span, /*isZeroPoison=*/false);
  Value firstWidth = k.sub(k.constI32(64), k.truncate(zeros, k.i32()));
  // Carried: the interval, what is left of the target, and which set of bins is next.
  Values interval = k.whileLoop({cut, firstWidth, wide(0), k.constI32(0)}, [&](ValueRange carried) {
    Value low = carried[0], width = carried[1], target = carried[2], number = carried[3];
    Value shift = k.max(k.sub(width, kBinBits), k.constI32(0));
    Value set = k.offset(binsAt, k.mul(number, kBins * kBinWords * 4));
    fillBins(set, low, width, shift);
    clusterBarrier();
    mergeBins(set);
    Values bin = findBin(target);
    Value again = k.bitAnd(k.less(k.constI32(0), shift), k.less(k.constI32(1), bin[2]));
    Value next = k.add(low, shiftLeft(wide(bin[0]), wide(shift)));
    return std::pair(again, Values{next, shift, bin[1], k.bitXor(number, 1)});
  });
  // One token is left.
  forTokens({}, [&](Value id, Value logit, ValueRange) {
    Value key = keyOf(logit, id), weight = weightOf(logit, kind, sharpness);
    k.ifThen(k.bitAnd(inside(key, interval[0], interval[1]), k.less(k.constI32(0), weight)), [&] {
      for (int64_t other = 0; other < splits; ++other)
        k.store(key, peer(foundAt, k.constI32(other)), 8);
    });
    return Values();
  });
  clusterBarrier();
  return k.load(k.i64(), foundAt, 8);
}

Value SampleKernel::draw(Value top) {
  greatest = k.bitcast(
      [&] {
        // The order's inverse.
        Value order = k.truncate(k.shr(top, idBits), k.i32());
        Value sign = arith::ShRSIOp::create(k.b, k.loc, order, k.constI32(31));
        Value mask = k.bitOr(k.bitXor(sign, -1), k.constI32(std::numeric_limits<int32_t>::min()));
        return k.bitXor(order, mask);
      }(),
      k.f32());
  Value topK = word(1), topP = k.bitcast(word(2), k.f32());
  Value logMinP = k.bitcast(word(3), k.f32()), sharpness = k.bitcast(word(0), k.f32());
  Value lowest = wide(orderOf(std::numeric_limits<float>::lowest()) << idBits);
  // Top-k, top-p, and the draw.
  return k.loop(
      k.constI32(0), k.constI32(3), k.constI32(1), {lowest}, [&](Value kind, ValueRange carried) {
        Value isK = k.equal(kind, k.constI32(0)), isP = k.equal(kind, k.constI32(1));
        Value keeps = k.select(
            isK, k.bitAnd(k.less(k.constI32(0), topK), k.less(topK, k.constI32(vocabulary))),
            k.lessF(topP, k.number(1.0)));
        Value wanted = k.bitOr(k.less(k.constI32(1), kind), keeps);
        Value cut = k.ifElseYield(
            wanted,
            [&] {
              return Values{
                  find(carried[0], top, kind, k.select(isP, k.number(kLog2E), sharpness))};
            },
            [&] { return Values{carried[0]}; })[0];
        Value least = keyOf(orderOf(k.addF(greatest, logMinP)));
        return Values{k.select(isP, maxKey(cut, least), cut)};
      })[0];
}

void SampleKernel::emit() {
  binsAt = kernel.at(bins);
  mergedAt = kernel.at(merged);
  countsAt = kernel.at(mergedCounts);
  warpKeysAt = kernel.at(warpKeys);
  blockKeysAt = kernel.at(blockKeys);
  foundAt = kernel.at(found);
  stageAt = kernel.at(stage);
  thread = k.thread();
  lane = k.bitAnd(thread, kWarp - 1);
  Value block = k.block();
  rank = splits == 1 ? k.constI32(0) : k.rem(block, splits);
  Value row = splits == 1 ? block : k.div(block, splits);
  first = k.mul(rank, share);
  count = k.min(k.constI32(share), k.max(k.sub(k.constI32(vocabulary), first), k.constI32(0)));
  logits = k.offset(kernel.interface.pointer(op.getLogits()), k.mul(row, vocabulary * 4));
  words = k.offset(kernel.interface.pointer(op.getOptions()), k.mul(row, sampling::kWords * 4));
  if (splits > 1)
    k.clusterArrive();
  k.launchDependents();
  k.waitForPredecessor();

  Value top = largestKey();
  Value usable =
      k.bitAnd(below(top, wide(orderOf(std::numeric_limits<float>::infinity()) << idBits)),
               below(wide((orderOf(std::numeric_limits<float>::lowest()) << idBits) - 1), top));
  Value draws = k.bitAnd(usable, k.lessF(k.number(0.0), k.bitcast(word(0), k.f32())));
  Value chosen =
      k.ifElseYield(draws, [&] { return Values{draw(top)}; }, [&] { return Values{top}; })[0];
  k.ifThen(k.bitAnd(k.equal(thread, k.constI32(0)), k.equal(rank, k.constI32(0))), [&] {
    Value mask = k.constI32((1 << idBits) - 1);
    Value id = k.sub(mask, k.bitAnd(k.truncate(chosen, k.i32()), mask));
    k.store(k.select(usable, id, k.constI32(-1)),
            k.offset(kernel.interface.resultPointer(0), k.shl(row, 2)), 4);
  });
}

LogicalResult device::emitSample(Kernel &kernel, fused::SampleOp op) {
  FailureOr<fused::SamplePlan> plan = fused::SamplePlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  SampleKernel(kernel, op, *plan).emit();
  return success();
}
