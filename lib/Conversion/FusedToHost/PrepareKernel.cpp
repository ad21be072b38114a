// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The input of products of many tokens: the prologue of 8 tokens at a time into rows on the stack,
// which are then brought into the order of dialects/Fused/PreparedInput.h.

#include "ActiveTokens.h"

#include "dialects/Fused/PreparedInput.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Encoding;

static constexpr int64_t kTokenBlock = fused::PreparedShape::kTokenBlock;

/// Transposes as many vectors as each has lanes, a power of two.
static void transpose(KernelBuilder &k, MutableArrayRef<Value> rows) {
  auto lanes = static_cast<int64_t>(rows.size());
  for (int64_t step = 1; step < lanes; step *= 2)
    for (int64_t i = 0; i < lanes; ++i) {
      if (i & step)
        continue;
      SmallVector<int64_t> low, high;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        low.push_back(lane & step ? lanes + lane - step : lane);
        high.push_back(lane & step ? lanes + lane : lane + step);
      }
      Value first = rows[i], second = rows[i + step];
      rows[i] = k.shuffle(first, second, low);
      rows[i + step] = k.shuffle(first, second, high);
    }
}

FailureOr<int64_t> sluice::host::emitPrepare(KernelBuilder &k, fused::PrepareOp op,
                                             const KernelInterface &interface, Value begin,
                                             Value end) {
  fused::PreparedType type = op.getType();
  if (type.getImage())
    return op.emitOpError()
           << "makes an image of a GPU block's shared memory, which no host kernel "
              "reads";
  if (!llvm::all_equal(type.getEncodings()))
    return op.emitOpError() << "is for weights of different encodings, host kernels take one";
  const Encoding format = type.getEncodings().front().getValue();
  fused::PreparedShape shape = fused::PreparedShape::get(type);
  int64_t blocks = shape.blocks();

  PreparedInput rows = allocateInput(k, format, kTokenBlock, shape.columns, format.hasOffset(),
                                     /*hasBiases=*/false);
  Value result = interface.resultPointer(0);
  end = k.min(end, activeTokens(k, interface, op.getActive(), shape.tokens));

  // A pair of int16 or a float.
  const int64_t wordColumns = format.isInteger() ? 2 : 1,
                groupWords = formats::activationGroup / wordColumns,
                rowWords = shape.padded / wordColumns;
  VectorType words = k.vec(kTokenBlock, k.i32());
  Value source = format.isInteger() ? rows.x16 : rows.values;
  LogicalResult emitted = success();
  Value first = k.div(begin, kTokenBlock), last = k.div(k.add(end, kTokenBlock - 1), kTokenBlock);
  k.loop(first, last, 1, [&](Value block) {
    // The tokens of the block that are this thread's.
    Value firstToken = k.mul(block, kTokenBlock);
    Value low = k.max(k.sub(begin, firstToken), k.index(0));
    Value high = k.min(k.sub(end, firstToken), k.index(kTokenBlock));
    emitted = emitInput(k, {op, op.getInput(), op.getPrologue(), shape.columns}, interface, format,
                        rows, firstToken, low, high);
    if (failed(emitted))
      return;

    Value lane = k.laneNumbers(kTokenBlock);
    Value behind = k.splat(k.truncate(low, k.i32()), kTokenBlock);
    Value before = k.splat(k.truncate(high, k.i32()), kTokenBlock);
    Value mine = k.bitAnd(k.less(lane, before), k.less(k.sub(behind, 1), lane));
    k.loop(k.index(0), k.index(rowWords), kTokenBlock, [&](Value word) {
      SmallVector<Value> numbers;
      for (int64_t token = 0; token < kTokenBlock; ++token)
        numbers.push_back(
            k.load(words, k.offset(source, k.mul(k.add(word, token * rowWords), 4)), 32));
      transpose(k, numbers);
      Value piece = k.add(k.mul(k.div(word, groupWords), blocks), block);
      Value place = k.add(k.mul(piece, groupWords), k.rem(word, groupWords));
      Value destination = k.offset(k.offset(result, shape.numbers), k.mul(place, kTokenBlock * 4));
      for (auto [i, tokens] : llvm::enumerate(numbers))
        k.store(tokens, k.offset(destination, static_cast<int64_t>(i) * kTokenBlock * 4), 32, mine);
    });
    if (!format.isScaled())
      return;

    auto number = [&](Value array, Value token, int64_t perToken, Value place, Type element) {
      return k.load(element, k.at(array, k.add(k.mul(token, perToken), place), 4), 4);
    };
    k.loop(low, high, 1, [&](Value token) {
      Value inGroup = k.add(firstToken, token);
      k.loop(k.index(0), k.index(shape.groups()), 1, [&](Value group) {
        Value scale = number(rows.scales, token, shape.groups(), group, k.f32());
        Value place = k.add(k.mul(group, blocks * kTokenBlock), inGroup);
        k.store(scale, k.at(k.offset(result, shape.scales), place, 4), 4);
        if (!rows.inputSums)
          return;
        int64_t perGroup = shape.sumsPerGroup();
        k.loop(k.index(0), k.index(perGroup), 1, [&](Value inner) {
          Value block = k.add(k.mul(group, perGroup), inner);
          Value sum = number(rows.inputSums, token, shape.groups() * perGroup, block, k.i32());
          Value sumPlace = k.add(k.mul(block, blocks * kTokenBlock), inGroup);
          k.store(k.mulF(scale, k.toFloat(sum)), k.at(k.offset(result, shape.sums), sumPlace, 4),
                  4);
        });
      });
    });
  });
  if (failed(emitted))
    return failure();
  return shape.tokens;
}
