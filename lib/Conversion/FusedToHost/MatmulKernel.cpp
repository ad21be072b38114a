// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Products of many tokens. A work item has a few tiles of 16 rows. 128 columns of them at a time
// are decoded to what is multiplied, into a panel that stays in the first cache; then come all
// tokens, a few at a time, whose sums are registers. Sums of the same columns are the same numbers
// as those of fused.matvec, added in the same order.

#include "ActiveTokens.h"

#include "dialects/Fused/PreparedInput.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Encoding;

namespace {
class MatmulKernel {
public:
  MatmulKernel(KernelBuilder &k, fused::MatmulOp op, const KernelInterface &interface,
               const formats::PackedShape &shape, ArrayRef<PackedSegment> segments)
      : k(k), op(op), interface(interface), shape(shape), format(shape.format()),
        segments(segments), input(fused::PreparedShape::get(op.getInput().getType())),
        chains(format.isInteger()
                   ? 1
                   : floatChains(k.isa,
                                 cast<fused::HostScheduleAttr>(*op.getSchedule()).getAccumulators(),
                                 /*tokens=*/1)) {}

  LogicalResult emit(Value begin, Value end);
  int64_t items() const { return llvm::divideCeil(shape.tiles(), tiles()); }

private:
  static constexpr int64_t kBlock = fused::PreparedShape::kTokenBlock;
  static constexpr int64_t kGroup = formats::activationGroup;
  static constexpr int64_t kVectorBytes = 64;

  /// Tiles whose products share a load of the input.
  int64_t tiles() const { return k.isa == Isa::Avx2 ? 1 : 2; }
  /// Tokens whose sums are registers at a time: as many as have room beside what a group's blocks
  /// or a block's chains are added to.
  int64_t tokens() const {
    bool hasTotals = format.isScaled() && (!format.isInteger() || blocksPerGroup() > 1);
    return k.isa == Isa::Avx2 || hasTotals ? kBlock / 2 : kBlock;
  }
  /// Columns that are multiplied by one word of the input and one vector of the panel.
  int64_t wordColumns() const { return format.isInteger() ? 2 : 1; }
  /// Columns of an accumulation block; of an activation group where sums have no scale.
  int64_t blockColumns() const {
    return format.isScaled() ? std::min(input.accumulationColumns, kGroup) : kGroup;
  }
  int64_t blocksPerGroup() const { return kGroup / blockColumns(); }
  /// Sums that are kept for each token and tile from one activation group to the next.
  int64_t heldSums() const { return format.isScaled() ? 1 : chains; }

  /// The columns of an activation group: `all` if the row is a multiple of it.
  Value columnsOf(Value group, int64_t all) {
    return all % kGroup == 0 ? k.index(kGroup)
                             : k.min(k.index(kGroup), k.sub(k.index(all), k.mul(group, kGroup)));
  }
  Value vectorAt(Value array, Value number) { return k.at(array, number, kVectorBytes); }
  VectorType floats() { return k.vec(kLanes, k.f32()); }

  void decode(Value group, ArrayRef<Value> tilePointers);
  void decodeColumns(Value group, Value chunk, Value tile, int64_t number);
  /// The place of a held sum.
  Value held(Value token, int64_t tile, Value chain) {
    Value number = k.add(k.mul(token, tiles()), tile);
    return vectorAt(sums, k.add(k.mul(number, heldSums()), chain));
  }
  /// Adds the products of activation group `group` for tokens [token, token + tokens()).
  void multiply(Value group, Value token);
  /// The sums (token, tile) of a block that are multiplied by its scales.
  kernels::Values integerSums(Value firstWord, Value endWord);
  kernels::Values scaledSums(Value firstWord, Value endWord);
  void addFloats(Value token, Value firstWord, Value endWord);
  /// Multiplies words [first, end), each `step`th, of the tokens at `x`. `carried` are sums of
  /// (token, tile).
  kernels::Values products(Value first, Value end, int64_t step, int64_t unroll,
                           ValueRange carried);
  /// Totals (token, tile) plus a block's sums times its scales.
  kernels::Values scale(Value group, Value token, Value block, ValueRange blockSums,
                        ValueRange totals);
  /// Carries the held sums (token, tile) of `chain` through `body`.
  void updateHeld(Value token, Value chain,
                  llvm::function_ref<kernels::Values(ValueRange totals)> body);
  void finish(Value item, Value tokenCount);

  KernelBuilder &k;
  fused::MatmulOp op;
  const KernelInterface &interface;
  const formats::PackedShape &shape;
  const Encoding format;
  ArrayRef<PackedSegment> segments;
  const fused::PreparedShape input;
  const int64_t chains;

  Value prepared;
  /// Stack memory. Vectors of 64 bytes: words [word][tile], scales and offsets [block][tile], sums
  /// [token][tile][heldSums()].
  Value panel, scales, offsets, sums;
  /// The numbers of the current tokens in the current group.
  Value x;
  LogicalResult result = success();
};
} // namespace

void MatmulKernel::decodeColumns(Value group, Value chunk, Value tile, int64_t number) {
  Value first = k.add(k.mul(group, kGroup), k.mul(chunk, kLanes));
  auto place = [&](int64_t word) {
    Value vector = k.add(k.mul(chunk, kLanes / wordColumns()), word);
    return vectorAt(panel, k.add(k.mul(vector, tiles()), number));
  };
  if (!format.isInteger()) {
    int64_t bytes = floatColumnBytes(format);
    Value start = k.mul(first, bytes), elements = k.offset(tile, start);
    prefetchElements(k, shape, tile, start, kLanes * bytes, tiles(), /*locality=*/2);
    for (int64_t column = 0; column < kLanes; ++column)
      k.store(loadFloatElements(k, format, k.offset(elements, column * bytes)), place(column),
              kVectorBytes);
    return;
  }
  IntegerElements elements(k, format);
  Value start = k.mul(first, elements.bytesOfColumns(1));
  prefetchElements(k, shape, tile, start, elements.bytesOfColumns(kLanes), tiles(),
                   /*locality=*/2);
  elements.moveTo(k.offset(tile, start));
  VectorType words = k.vec(2 * kLanes, k.i16());
  Value zeros;
  if (format.hasZeroPoint()) {
    Value weightGroup = format.group == Encoding::channel ? k.index(0) : k.div(first, format.group);
    Value zero = loadGroupNumbers(k, shape, tile, weightGroup, /*super=*/k.index(0),
                                  /*isOdd=*/std::nullopt, /*prefetchedTiles=*/tiles())
                     .zero;
    zeros = k.bitcast(k.bitOr(k.bitAnd(zero, 0xFFFF), k.shl(zero, 16)), words);
  }
  for (int64_t pair = 0; pair < kLanes / 2; ++pair) {
    Value q = elements.operand(pair, 0);
    for (int64_t part = 1; part < elements.parts(); ++part)
      q = k.concat(q, elements.operand(pair, part));
    if (isBiased(format, pair))
      q = k.add(q, format.qMin());
    if (zeros)
      q = k.sub(q, zeros);
    k.store(q, place(pair), kVectorBytes);
  }
}

void MatmulKernel::decode(Value group, ArrayRef<Value> tilePointers) {
  Value columns = columnsOf(group, input.padded);
  k.loop(k.index(0), k.div(columns, kLanes), 1, [&](Value chunk) {
    for (auto [number, tile] : llvm::enumerate(tilePointers))
      decodeColumns(group, chunk, tile, number);
  });
  if (!format.isScaled())
    return;
  Value count = columnsOf(group, input.columns);
  Value blocks = k.div(k.add(count, blockColumns() - 1), blockColumns());
  k.loop(k.index(0), blocks, 1, [&](Value block) {
    Value first = k.add(k.mul(group, kGroup), k.mul(block, blockColumns()));
    Value weightGroup = format.group == Encoding::channel ? k.index(0) : k.div(first, format.group);
    Value super = k.div(first, Encoding::superColumns);
    for (auto [number, tile] : llvm::enumerate(tilePointers)) {
      kernels::GroupNumbers numbers = loadGroupNumbers(
          k, shape, tile, weightGroup, super, /*isOdd=*/std::nullopt, /*prefetchedTiles=*/tiles());
      Value place = k.add(k.mul(block, tiles()), number);
      k.store(numbers.scale, vectorAt(scales, place), kVectorBytes);
      if (numbers.offset)
        k.store(numbers.offset, vectorAt(offsets, place), kVectorBytes);
    }
  });
}

kernels::Values MatmulKernel::products(Value first, Value end, int64_t step, int64_t unroll,
                                       ValueRange carried) {
  VectorType vector = format.isInteger() ? k.vec(2 * kLanes, k.i16()) : floats();
  Type word = format.isInteger() ? k.i32() : k.f32();
  return k.loop(first, end, step * unroll, carried, [&](Value start, ValueRange inner) {
    kernels::Values totals(inner);
    for (int64_t i = 0; i < unroll; ++i) {
      Value number = k.add(start, i * step);
      SmallVector<Value> weights;
      for (int64_t tile = 0; tile < tiles(); ++tile)
        weights.push_back(
            k.load(vector, vectorAt(panel, k.add(k.mul(number, tiles()), tile)), kVectorBytes));
      Value factors = k.at(x, number, kBlock * 4);
      for (int64_t token = 0; token < tokens(); ++token) {
        Value factor = k.load(word, k.offset(factors, token * 4), 4);
        for (int64_t tile = 0; tile < tiles(); ++tile) {
          Value &total = totals[token * tiles() + tile];
          total = format.isInteger() ? k.multiplyAddPairs(total, weights[tile], factor)
                                     : k.fma(weights[tile], k.splat(factor, kLanes), total);
        }
      }
    }
    return totals;
  });
}

kernels::Values MatmulKernel::scale(Value group, Value token, Value block, ValueRange blockSums,
                                    ValueRange totals) {
  Value tokensOfGroup = k.index(input.blocks() * kBlock);
  auto number = [&](int64_t section, Value row, int64_t i) {
    Value place = k.add(k.add(k.mul(row, tokensOfGroup), token), i);
    return k.splat(k.load(k.f32(), k.at(k.offset(prepared, section), place, 4), 4), kLanes);
  };
  kernels::Values results(totals);
  for (int64_t tile = 0; tile < tiles(); ++tile) {
    Value place = k.add(k.mul(block, tiles()), tile);
    Value weightScale = k.load(floats(), vectorAt(scales, place), kVectorBytes), offset;
    if (format.hasOffset())
      offset = k.load(floats(), vectorAt(offsets, place), kVectorBytes);
    for (int64_t i = 0; i < tokens(); ++i) {
      Value blockSum = blockSums[i * tiles() + tile];
      if (format.isInteger())
        blockSum = k.toFloat(blockSum);
      Value &total = results[i * tiles() + tile];
      total = k.fma(blockSum, k.mulF(weightScale, number(input.scales, group, i)), total);
      if (offset)
        total = k.fma(
            offset, number(input.sums, k.add(k.mul(group, input.sumsPerGroup()), block), i), total);
    }
  }
  return results;
}

kernels::Values MatmulKernel::integerSums(Value firstWord, Value endWord) {
  kernels::Values zeros(tokens() * tiles(), k.integer(k.vec(kLanes, k.i32()), 0));
  return products(firstWord, endWord, 1, /*unroll=*/8, zeros);
}

kernels::Values MatmulKernel::scaledSums(Value firstWord, Value endWord) {
  kernels::Values zeros(tokens() * tiles(), k.number(floats(), 0.0)), totals;
  for (int64_t chain = 0; chain < std::min(chains, blockColumns()); ++chain) {
    kernels::Values chainSums =
        products(k.add(firstWord, chain), endWord, chains, /*unroll=*/1, zeros);
    if (totals.empty())
      totals = chainSums;
    else
      for (auto [total, sum] : llvm::zip_equal(totals, chainSums))
        total = k.addF(total, sum);
  }
  return totals;
}

void MatmulKernel::updateHeld(Value token, Value chain,
                              llvm::function_ref<kernels::Values(ValueRange)> body) {
  kernels::Values places, totals;
  for (int64_t i = 0; i < tokens(); ++i)
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      places.push_back(held(k.add(token, i), tile, chain));
      totals.push_back(k.load(floats(), places.back(), kVectorBytes));
    }
  for (auto [place, total] : llvm::zip_equal(places, body(totals)))
    k.store(total, place, kVectorBytes);
}

void MatmulKernel::addFloats(Value token, Value firstWord, Value endWord) {
  k.loop(k.index(0), k.index(chains), 1, [&](Value chain) {
    updateHeld(token, chain, [&](ValueRange totals) {
      return products(k.add(firstWord, chain), endWord, chains, /*unroll=*/1, totals);
    });
  });
}

void MatmulKernel::multiply(Value group, Value token) {
  int64_t pieceBytes = kGroup / wordColumns() * kBlock * 4;
  Value piece = k.add(k.mul(group, input.blocks()), k.div(token, kBlock));
  x = k.offset(k.at(k.offset(prepared, input.numbers), piece, pieceBytes),
               k.mul(k.rem(token, kBlock), 4));
  Value columns = columnsOf(group, input.padded);
  Value words = k.div(columns, wordColumns());
  if (!format.isScaled())
    return addFloats(token, k.index(0), words);
  auto addBlock = [&](Value block, ValueRange totals) {
    int64_t blockWords = blockColumns() / wordColumns();
    Value first = k.mul(block, blockWords);
    Value end = blocksPerGroup() == 1 ? words : k.min(words, k.add(first, blockWords));
    return scale(group, token, block,
                 format.isInteger() ? integerSums(first, end) : scaledSums(first, end), totals);
  };
  updateHeld(token, k.index(0), [&](ValueRange totals) {
    if (blocksPerGroup() == 1)
      return addBlock(k.index(0), totals);
    Value blocks =
        k.div(k.add(columnsOf(group, input.columns), blockColumns() - 1), blockColumns());
    return k.loop(k.index(0), blocks, 1, totals, addBlock);
  });
}

void MatmulKernel::finish(Value item, Value tokenCount) {
  k.loop(k.index(0), k.index(tiles()), 1, [&](Value number) {
    Value tile = k.add(k.mul(item, tiles()), number);
    k.ifThen(k.less(tile, k.index(shape.tiles())), [&] {
      kernels::emitForSegment(k, segments, tile, [&](size_t segment, Value inSegment) {
        k.loop(k.index(0), tokenCount, 1, [&](Value token) {
          Value first = k.mul(k.add(k.mul(token, tiles()), number), heldSums());
          Value total = k.load(floats(), vectorAt(sums, first), kVectorBytes);
          for (int64_t chain = 1; chain < heldSums(); ++chain)
            total =
                k.addF(total, k.load(floats(), vectorAt(sums, k.add(first, chain)), kVectorBytes));
          if (succeeded(result))
            result = emitEpilogue(k, op, interface, segments[segment], inSegment, total, token);
        });
      });
    });
  });
}

LogicalResult MatmulKernel::emit(Value begin, Value end) {
  prepared = interface.pointer(op.getInput());
  Value count = activeTokens(k, interface, op.getActive(), input.tokens);
  int64_t allTokens = input.blocks() * kBlock;
  panel = k.scratch(kGroup / wordColumns() * tiles() * kVectorBytes);
  sums = k.scratch(allTokens * tiles() * heldSums() * kVectorBytes);
  if (format.isScaled())
    scales = k.scratch(blocksPerGroup() * tiles() * kVectorBytes);
  if (format.hasOffset())
    offsets = k.scratch(blocksPerGroup() * tiles() * kVectorBytes);

  Value weights = interface.pointer(op.getWeights().front());
  k.loop(begin, end, 1, [&](Value item) {
    SmallVector<Value> tilePointers;
    for (int64_t number = 0; number < tiles(); ++number) {
      // Behind the last tile the last one is multiplied once more.
      Value tile = k.min(k.add(k.mul(item, tiles()), number), k.index(shape.tiles() - 1));
      tilePointers.push_back(k.offset(weights, k.mul(tile, shape.tileBytes())));
    }
    Value rounded = k.mul(k.div(k.add(count, tokens() - 1), tokens()), tokens());
    k.loop(k.index(0), k.mul(rounded, tiles() * heldSums()), 1, [&](Value number) {
      k.store(k.number(floats(), 0.0), vectorAt(sums, number), kVectorBytes);
    });
    k.loop(k.index(0), k.index(input.groups()), 1, [&](Value group) {
      decode(group, tilePointers);
      k.loop(k.index(0), count, tokens(), [&](Value token) { multiply(group, token); });
    });
    finish(item, count);
  });
  return result;
}

FailureOr<int64_t> sluice::host::emitMatmul(KernelBuilder &k, fused::MatmulOp op,
                                            const KernelInterface &interface, Value begin,
                                            Value end) {
  FailureOr<PackedProduct> product = PackedProduct::get(op);
  if (failed(product))
    return failure();
  fused::PreparedType type = op.getInput().getType();
  if (type.getImage() || !llvm::all_equal(type.getEncodings()) ||
      type.getEncodings().front().getValue() != product->shape.format())
    return op.emitOpError() << "reads an input prepared as " << type
                            << ", expected one for its weight's encoding on a host";
  MatmulKernel kernel(k, op, interface, product->shape, product->segments);
  if (failed(kernel.emit(begin, end)))
    return failure();
  return kernel.items();
}
