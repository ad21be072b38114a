// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The products of 16 packed rows with the input: a lane is a row, so nothing is ever added across
// lanes.

#include "LaneElements.h"
#include "Products.h"

#include "sluice/Formats/Activations.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Encoding;

/// The group that an accumulation block of a product lies in: `number` counts the blocks of
/// activation group `activationGroup`.
static Value groupOfBlock(KernelBuilder &k, const Encoding &format, Value activationGroup,
                          int64_t number) {
  if (format.group == Encoding::channel)
    return k.index(0);
  if (format.group >= 128)
    return k.div(activationGroup, format.group / 128);
  return k.add(k.mul(activationGroup, 128 / format.group), number);
}

namespace {
/// Emits integer products. A vector of 32 words (two columns of 16 rows) is one register with
/// AVX-512, two with AVX2.
class IntegerProducts {
public:
  IntegerProducts(KernelBuilder &k, const formats::PackedShape &shape, const PreparedInput &input,
                  Value tile, int64_t accumulators)
      : k(k), shape(shape), format(shape.format()), input(input), tile(tile), elements(k, format),
        chains(std::max<int64_t>(1, std::min({accumulators, registers() / input.tokens,
                                              input.accumulationColumns / kMinChain}))) {}

  SmallVector<Value> emit();

private:
  /// Columns of an accumulation block that make a sum of their own worth its addition at the end.
  static constexpr int64_t kMinChain = 16;

  /// How many sums stay in registers.
  int64_t registers() const { return k.isa == Isa::Avx2 ? 4 : 16; }
  int64_t parts() const { return elements.parts(); }
  int64_t partLanes() const { return elements.partLanes(); }

  /// What a group of the 16 rows is multiplied by, and so on. `number` is its number in the 128
  /// columns of `activationGroup`.
  kernels::GroupNumbers groupNumbers(Value activationGroup, Value group, int64_t number);

  /// Sums of the `columns` columns of accumulation block `number` of a group, for each token 16
  /// lanes of i32.
  SmallVector<Value> blockSums(Value group, int64_t number, int64_t columns);
  /// The entry of accumulation block `number` in an array that has one for each.
  Value blockEntry(Value array, Value group, int64_t number, int64_t token) {
    Value place = k.add(k.mul(k.add(group, token * input.groups()), input.sumsPerGroup()), number);
    return k.load(k.i32(), k.offset(array, k.mul(place, 4)), 4);
  }
  /// Adds the products of two columns: `weights` are their words, `pair` two words of the input.
  Value multiplyAdd(Value sum, Value weights, Value pair);
  /// The contribution of an activation group, added to `sums`: of its `count` columns, which are
  /// padded to a multiple of 32.
  SmallVector<Value> addGroup(Value group, int64_t count, ValueRange sums);

  KernelBuilder &k;
  const formats::PackedShape &shape;
  const Encoding format;
  const PreparedInput &input;
  Value tile;
  IntegerElements elements;
  int64_t chains;
};
} // namespace

kernels::GroupNumbers IntegerProducts::groupNumbers(Value activationGroup, Value group,
                                                    int64_t number) {
  Value super = k.div(activationGroup, Encoding::superColumns / formats::activationGroup);
  return loadGroupNumbers(k, shape, tile, group, super, number % 2 != 0,
                          /*prefetchedTiles=*/1);
}

Value IntegerProducts::multiplyAdd(Value sum, Value weights, Value pair) {
  VectorType words = k.vec(2 * partLanes(), k.i16());
  Value pairs = k.bitcast(k.splat(pair, partLanes()), words);
  if (k.isa == Isa::Avx512Vnni)
    return k.intrinsic("llvm.x86.avx512.vpdpwssd.512", sum.getType(), {sum, weights, pairs});
  StringRef multiply =
      k.isa == Isa::Avx512 ? "llvm.x86.avx512.pmaddw.d.512" : "llvm.x86.avx2.pmadd.wd";
  return k.add(sum, k.intrinsic(multiply, sum.getType(), {weights, pairs}));
}

SmallVector<Value> IntegerProducts::blockSums(Value group, int64_t number, int64_t columns) {
  int64_t tokens = input.tokens;
  VectorType sumType = k.vec(partLanes(), k.i32());
  // Indexed by (token, chain, part).
  SmallVector<Value> sums(tokens * chains * parts(), k.integer(sumType, 0));
  if (input.biases)
    for (int64_t token = 0; token < tokens; ++token) {
      Value bias = k.splat(blockEntry(input.biases, group, number, token), partLanes());
      std::fill_n(sums.begin() + token * chains * parts(), parts(), bias);
    }
  Value first = k.add(k.mul(group, 128), number * input.accumulationColumns);
  elements.moveTo(k.offset(tile, k.mul(first, elements.bytesOfColumns(1))));
  Value x16 = k.offset(input.x16, k.mul(first, 2));
  for (int64_t start = 0; start < columns; start += elements.columnsOfLoad())
    for (int64_t part = 0; part < parts(); ++part)
      for (int64_t column = start; column < start + elements.columnsOfLoad(); column += 2) {
        Value weights = elements.operand(column / 2, part);
        for (int64_t token = 0; token < tokens; ++token) {
          int64_t chain = column / 2 % chains;
          Value pair = k.load(k.i32(), k.offset(x16, (token * input.padded + column) * 2), 4);
          Value &sum = sums[(token * chains + chain) * parts() + part];
          sum = multiplyAdd(sum, weights, pair);
        }
      }
  SmallVector<Value> results;
  for (int64_t token = 0; token < tokens; ++token) {
    SmallVector<Value, 2> halves;
    for (int64_t part = 0; part < parts(); ++part) {
      Value total = sums[token * chains * parts() + part];
      for (int64_t chain = 1; chain < std::min(chains, columns / 2); ++chain)
        total = k.add(total, sums[(token * chains + chain) * parts() + part]);
      halves.push_back(total);
    }
    results.push_back(parts() == 1 ? halves[0] : k.concat(halves[0], halves[1]));
  }
  return results;
}

SmallVector<Value> IntegerProducts::addGroup(Value group, int64_t count, ValueRange sums) {
  int64_t columns = llvm::alignTo(count, 32);
  int64_t width = input.sumsPerGroup() == 1 ? columns : input.accumulationColumns;
  SmallVector<Value> results(sums);
  prefetchElements(k, shape, tile, k.mul(group, elements.bytesOfColumns(128)),
                   elements.bytesOfColumns(columns), /*tiles=*/1, /*locality=*/3);
  // Padding has accumulation blocks of 16 columns of its own, but neither scales nor biases.
  for (int64_t start = 0, number = 0; start < count; start += width, ++number) {
    SmallVector<Value> integers = blockSums(group, number, std::min(width, columns - start));
    Value weightGroup = groupOfBlock(k, format, group, number);
    auto [scale, offset, zero] = groupNumbers(group, weightGroup, number);
    for (auto [token, integer] : llvm::enumerate(integers)) {
      Value inputSum;
      if (input.inputSums)
        inputSum = blockEntry(input.inputSums, group, number, token);
      if (zero)
        integer = k.sub(integer, k.mul(zero, k.splat(inputSum, kLanes)));
      Value place = k.add(group, int64_t(token) * input.groups());
      Value activationScale = k.load(k.f32(), k.offset(input.scales, k.mul(place, 4)), 4);
      results[token] = k.fma(k.toFloat(integer), k.mulF(scale, k.splat(activationScale, kLanes)),
                             results[token]);
      if (offset) {
        Value scaledSum = k.mulF(activationScale, k.toFloat(inputSum));
        results[token] = k.fma(offset, k.splat(scaledSum, kLanes), results[token]);
      }
    }
  }
  return results;
}

SmallVector<Value> IntegerProducts::emit() {
  int64_t full = input.columns / 128, rest = input.columns % 128;
  SmallVector<Value> sums(input.tokens, k.number(k.vec(kLanes, k.f32()), 0.0));
  if (full)
    sums = k.loop(k.index(0), k.index(full), 1, sums,
                  [&](Value index, ValueRange carried) { return addGroup(index, 128, carried); });
  if (rest)
    sums = addGroup(k.index(full), rest, sums);
  return sums;
}

/// Emits products with float weights, `chains` independent sums per token. 32 columns are
/// unrolled.
static SmallVector<Value> emitFloatProducts(KernelBuilder &k, const formats::PackedShape &shape,
                                            const PreparedInput &input, Value tile,
                                            int64_t accumulators) {
  constexpr int64_t unrolled = 32;
  int64_t columnBytes = floatColumnBytes(shape.format());
  int64_t chains = floatChains(k.isa, accumulators, input.tokens);
  SmallVector<Value> zeros(input.tokens * chains, k.number(k.vec(kLanes, k.f32()), 0.0));
  auto body = [&](Value first, ValueRange carried) {
    SmallVector<Value> sums(carried);
    Value elements = k.offset(tile, k.mul(first, columnBytes));
    Value x = k.offset(input.values, k.mul(first, 4));
    for (int64_t column = 0; column < unrolled; ++column) {
      if (column * columnBytes % kLineBytes == 0)
        k.prefetch(k.outside(elements, k.index(column * columnBytes + kPrefetchBytes)),
                   /*locality=*/3);
      Value weights =
          loadFloatElements(k, shape.format(), k.offset(elements, column * columnBytes));
      for (int64_t token = 0; token < input.tokens; ++token) {
        Value factor = k.load(k.f32(), k.offset(x, (token * input.padded + column) * 4), 4);
        Value &sum = sums[token * chains + column % chains];
        sum = k.fma(weights, k.splat(factor, kLanes), sum);
      }
    }
    return sums;
  };
  SmallVector<Value> sums = k.loop(k.index(0), k.index(input.padded), unrolled, zeros, body);
  SmallVector<Value> results;
  for (int64_t token = 0; token < input.tokens; ++token) {
    Value total = sums[token * chains];
    for (int64_t chain = 1; chain < chains; ++chain)
      total = k.addF(total, sums[token * chains + chain]);
    results.push_back(total);
  }
  return results;
}

/// Emits products with E4M3 weights: sums of an accumulation block, in independent chains, then the
/// block's scales.
static SmallVector<Value> emitScaledProducts(KernelBuilder &k, const formats::PackedShape &shape,
                                             const PreparedInput &input, Value tile,
                                             int64_t accumulators) {
  const Encoding &format = shape.format();
  VectorType floats = k.vec(kLanes, k.f32());
  int64_t chains = floatChains(k.isa, accumulators, input.tokens);
  auto blockSums = [&](Value first, int64_t columns) {
    SmallVector<Value> sums(input.tokens * chains, k.number(floats, 0.0));
    Value elements = k.offset(tile, k.mul(first, kLanes));
    Value x = k.offset(input.values, k.mul(first, 4));
    for (int64_t column = 0; column < columns; ++column) {
      if (column * kLanes % kLineBytes == 0)
        k.prefetch(k.outside(elements, k.index(column * kLanes + kPrefetchBytes)),
                   /*locality=*/3);
      Value weights = loadFloatElements(k, format, k.offset(elements, column * kLanes));
      for (int64_t token = 0; token < input.tokens; ++token) {
        Value factor = k.load(k.f32(), k.offset(x, (token * input.padded + column) * 4), 4);
        Value &sum = sums[token * chains + column % chains];
        sum = k.fma(weights, k.splat(factor, kLanes), sum);
      }
    }
    SmallVector<Value> results;
    for (int64_t token = 0; token < input.tokens; ++token) {
      Value total = sums[token * chains];
      for (int64_t chain = 1; chain < std::min(chains, columns); ++chain)
        total = k.addF(total, sums[token * chains + chain]);
      results.push_back(total);
    }
    return results;
  };
  auto addGroup = [&](Value group, int64_t count, ValueRange sums) {
    int64_t columns = llvm::alignTo(count, 32);
    int64_t width = input.sumsPerGroup() == 1 ? columns : input.accumulationColumns;
    SmallVector<Value> results(sums);
    for (int64_t start = 0, number = 0; start < count; start += width, ++number) {
      Value first = k.add(k.mul(group, formats::activationGroup), start);
      SmallVector<Value> blocks = blockSums(first, std::min(width, columns - start));
      Value scale =
          loadGroupNumbers(k, shape, tile, groupOfBlock(k, format, group, number),
                           /*super=*/group, /*isOdd=*/number % 2 != 0, /*prefetchedTiles=*/1)
              .scale;
      for (auto [token, block] : llvm::enumerate(blocks)) {
        Value place = k.add(group, int64_t(token) * input.groups());
        Value activationScale = k.load(k.f32(), k.offset(input.scales, k.mul(place, 4)), 4);
        results[token] =
            k.fma(block, k.mulF(scale, k.splat(activationScale, kLanes)), results[token]);
      }
    }
    return results;
  };
  int64_t full = input.columns / 128, rest = input.columns % 128;
  SmallVector<Value> sums(input.tokens, k.number(floats, 0.0));
  if (full)
    sums = k.loop(k.index(0), k.index(full), 1, sums,
                  [&](Value index, ValueRange carried) { return addGroup(index, 128, carried); });
  if (rest)
    sums = addGroup(k.index(full), rest, sums);
  return sums;
}

SmallVector<Value> sluice::host::emitTileProducts(KernelBuilder &k,
                                                  const formats::PackedShape &shape,
                                                  const PreparedInput &input, Value tile,
                                                  int64_t accumulators) {
  if (shape.format().isInteger())
    return IntegerProducts(k, shape, input, tile, accumulators).emit();
  if (shape.format().isScaled())
    return emitScaledProducts(k, shape, input, tile, accumulators);
  return emitFloatProducts(k, shape, input, tile, accumulators);
}
