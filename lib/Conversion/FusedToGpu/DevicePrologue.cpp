// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FixedWords.h"
#include "Kernels.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

/// Rounds whose inputs stay in registers from a norm's sum to its use; more are read again.
static constexpr int64_t kKeptRounds = 4;

Prologue::Prologue(Kernel &kernel, Operation *op, Region &region, Value source,
                   const fused::InputPlan &plan, Value thread, int64_t threads)
    : k(kernel.k), kernel(kernel), op(op), region(region), source(source), plan(plan),
      thread(thread), threads(threads), padded(plan.padded) {}

Value Prologue::vectorIndex(int64_t n) { return k.add(thread, n * threads); }

Value Prologue::vectorExists(int64_t n, int64_t width) {
  int64_t vectors = width / kVector;
  return (n + 1) * threads <= vectors ? Value() : k.less(vectorIndex(n), k.constI32(vectors));
}

Value Prologue::columnExists(int64_t n, int64_t number) {
  return k.less(k.add(k.mul(vectorIndex(n), kVector), number), k.constI32(plan.columns));
}

DeviceBuilder::Values Prologue::loadVector(Value pointer, RankedTensorType type, Value row,
                                           int64_t n, bool fresh) {
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  auto vectorPointer = [&] {
    Value place = k.mul(vectorIndex(n), kVector * bytes);
    if (row && type.getRank() == 2)
      place = k.add(place, k.mul(row, type.getDimSize(1) * bytes));
    return k.offset(pointer, place);
  };
  if (plan.columns % kVector) {
    // Rows are not aligned, and the last vector is not full: one element at a time.
    Value from = vectorPointer();
    Value zero = arith::ConstantOp::create(k.b, k.loc, k.b.getFloatAttr(element, 0.0));
    Values elements;
    for (int64_t e = 0; e < kVector; ++e) {
      auto load = [&] {
        Value at = k.offset(from, e * bytes);
        return Values{fresh ? k.loadFresh(element, at, bytes) : k.load(element, at, bytes)};
      };
      elements.push_back(
          k.ifElseYield(columnExists(n, e), load, [&] { return Values{zero}; }).front());
    }
    return elements;
  }
  auto loadWords = [&] {
    Value from = vectorPointer();
    Values words;
    for (int64_t part = 0; part < kVector * bytes / 16; ++part) {
      Type words4 = k.vec(4, k.i32());
      Value at = k.offset(from, part * 16);
      words.push_back(fresh ? k.loadFresh(words4, at, 16) : k.load(words4, at, 16));
    }
    return words;
  };
  Values words;
  if (Value exists = vectorExists(n, plan.columns))
    words = k.ifElseYield(exists, loadWords, [&] {
      auto zeros = DenseElementsAttr::get(k.vec(4, k.i32()), APInt(32, 0));
      return Values(kVector * bytes / 16, arith::ConstantOp::create(k.b, k.loc, zeros));
    });
  else
    words = loadWords();
  Values elements;
  for (Value four : words)
    for (Value word : k.lanes(four)) {
      if (bytes == 4)
        elements.push_back(k.bitcast(word, element));
      else
        llvm::append_range(elements, k.lanes(k.bitcast(word, k.vec(2, element))));
    }
  return elements;
}

FailureOr<PreparedInput> Prologue::preload() {
  PreparedInput input{plan, kernel.at(plan.fragments), kernel.at(plan.scales),
                      kernel.at(plan.inputSums), kernel.at(plan.zeros)};
  if (input.zerosAt)
    k.ifThen(k.less(thread, k.constI32(plan.zeros.bytes / 16)), [&] {
      auto zeros = DenseElementsAttr::get(k.vec(4, k.i32()), APInt(32, 0));
      k.store(arith::ConstantOp::create(k.b, k.loc, zeros),
              k.offset(input.zerosAt, k.shl(thread, 4)), 16);
    });
  if (plan.warpSums.bytes)
    scratch = kernel.at(plan.warpSums);
  if (region.empty())
    return input;
  if (rounds() > kKeptRounds)
    return input;
  for (Operation &inner : region.front())
    for (Value operand : inner.getOperands()) {
      auto type = dyn_cast<RankedTensorType>(operand.getType());
      if (!kernel.interface.pointer(operand) || !isConstant(operand) ||
          !kernels::isFloatTensor(operand) || type.getRank() != 1 ||
          type.getDimSize(0) != input.columns)
        continue;
      for (int64_t n = 0; n < rounds(); ++n)
        if (!constants.contains({operand, n}))
          constants[{operand, n}] = loadVector(kernel.interface.pointer(operand), type, Value(), n,
                                               /*fresh=*/false);
    }
  return input;
}

LogicalResult Prologue::emit(PreparedInput &input) {
  LogicalResult result = success();
  if (input.tokens == 1) {
    result = emitRow(input, k.constI32(0));
  } else {
    k.loop(k.constI32(0), k.constI32(input.tokens), k.constI32(1), [&](Value row) {
      if (succeeded(result))
        result = emitRow(input, row);
    });
  }
  k.barrier(1, threads);
  return result;
}

LogicalResult Prologue::emitRow(PreparedInput &input, Value row) {
  currentRow = row;
  loaded.clear();
  sumNumber = 0;
  if (failed(kernels::evaluateNorms(*this, kernel.interface, region, factors)))
    return failure();
  Value result = source;
  if (!region.empty()) {
    result = cast<fused::YieldOp>(region.front().getTerminator()).getValues().front();
  } else if (rounds() <= 8) {
    // All loads are on their way before the first result is needed.
    for (current = 0; current < rounds(); ++current)
      if (failed(load(result)))
        return failure();
  }
  SmallVector<Values> all;
  for (current = 0; current < rounds(); ++current) {
    FailureOr<Values> x = kernels::evaluateInRow(*this, kernel.interface, factors, result);
    if (failed(x))
      return failure();
    if (image && image->records)
      all.push_back(*x);
    else
      emitVector(input, row, current, *x);
  }
  if (!all.empty())
    emitRowOfImage(all);
  return success();
}

void Prologue::emitVector(PreparedInput &input, Value row, int64_t n, const Values &x) {
  if (input.format.isScaled())
    emitScaled(input, row, n, x);
  else
    emitRounded(input, row, n, x);
}

LogicalResult Prologue::emitToImage(const fused::PreparedImage &prepared, Value base, Value token,
                                    Value isActive) {
  image = &prepared;
  imageBase = base;
  imageToken = token;
  PreparedInput input{plan, {}, {}, {}, {}};
  LogicalResult result = success();
  k.ifElse(
      isActive, [&] { result = emitRow(input, token); },
      [&] {
        for (int64_t n = 0; n < rounds(); ++n)
          emitVector(input, token, n, Values(kVector, k.number(0.0)));
      });
  return result;
}

FailureOr<Value> Prologue::sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate) {
  Value sum;
  for (current = 0; current < rounds(); ++current) {
    FailureOr<Value> next = accumulate(sum);
    if (failed(next))
      return failure();
    sum = *next;
    if (rounds() > kKeptRounds)
      loaded.clear();
  }
  sum = k.sumOfWarp(sum);
  // Each of a row's sums has a place of its own, so that one barrier is enough.
  Value place = k.offset(scratch, sumNumber++ * fused::rowSumStride(threads / kWarp));
  Value lane = k.bitAnd(thread, kWarp - 1), warp = k.shr(thread, 5);
  k.ifThen(k.equal(lane, k.constI32(0)), [&] { k.store(sum, k.offset(place, k.shl(warp, 2)), 4); });
  k.barrier(1, threads);
  Value total;
  auto add = [&](Value part) { total = total ? k.addF(total, part) : part; };
  int64_t warps = threads / kWarp, part = 0;
  for (; part + 4 <= warps; part += 4)
    for (Value one : k.lanes(k.load(k.vec(4, k.f32()), k.offset(place, part * 4), 16)))
      add(one);
  for (; part < warps; ++part)
    add(k.load(k.f32(), k.offset(place, part * 4), 4));
  if (plan.tokens > 1)
    k.barrier(1, threads); // the next row's sums come to the same place
  return total;
}

Value Prologue::clearMissing(size_t number, Value x) {
  Value exists =
      plan.columns % kVector ? columnExists(current, number) : vectorExists(current, plan.columns);
  return exists ? k.select(exists, x, k.number(0.0)) : x;
}

FailureOr<DeviceBuilder::Values> Prologue::elsewhere(const Values &columns,
                                                     llvm::function_ref<FailureOr<Values>()> body) {
  Values numbers = llvm::map_to_vector(columns, [&](Value column) -> Value {
    return arith::FPToSIOp::create(k.b, k.loc, k.i32(), column);
  });
  std::swap(others, numbers);
  FailureOr<Values> result = body();
  std::swap(others, numbers);
  return result;
}

DeviceBuilder::Values Prologue::loadOthers(Value pointer, RankedTensorType type, bool fresh) {
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  if (currentRow && type.getRank() == 2)
    pointer = k.offset(pointer, k.mul(currentRow, type.getDimSize(1) * bytes));
  return llvm::map_to_vector(others, [&](Value column) -> Value {
    Value at = k.offset(pointer, k.mul(column, bytes));
    return fresh ? k.loadFresh(element, at, bytes) : k.load(element, at, bytes);
  });
}

FailureOr<DeviceBuilder::Values> Prologue::load(Value value) {
  bool isElsewhere = !others.empty();
  if (auto found = constants.find({value, current}); found != constants.end() && !isElsewhere)
    return found->second;
  if (auto found = loaded.find({value, current}); found != loaded.end() && !isElsewhere)
    return found->second;
  bool isArgument = isa<BlockArgument>(value) && value.getParentRegion() == &region;
  Value pointer = kernel.interface.pointer(isArgument ? source : value);
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!kernels::isFloatTensor(value) || type.getShape().back() != plan.columns)
    return op->emitOpError() << "prologue reads a value of type " << value.getType()
                             << " in a way that cannot be converted to GPU code";
  if (isElsewhere)
    return loadOthers(pointer, type, !isConstant(value));
  Values elements = loadVector(pointer, type, currentRow, current, !isConstant(value));
  return loaded[{value, current}] = elements;
}

void Prologue::emitScaled(PreparedInput &input, Value row, int64_t n, const Values &x) {
  Value greatest;
  for (Value element : x) {
    Value magnitude = kernels::magnitudeBits(k, element);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  // 16 threads have a group of 128.
  for (int64_t distance = 1; distance < formats::activationGroup / kVector; distance *= 2)
    greatest = k.max(greatest, k.shuffleXor(greatest, distance));
  kernels::ActivationScale rounding = kernels::activationScale(k, greatest);
  auto [usable, inverse, scale] = rounding;
  // The nibbles of int4 weights are multiplied where they lie, at the top of a byte.
  if (!image && !input.diagonal && input.format.element == formats::Encoding::Element::I4)
    scale = k.mulF(scale, k.number(1.0 / 16));
  if (!input.isInteger()) {
    Values scaled;
    for (Value element : x)
      scaled.push_back(k.mulF(k.select(usable, element, k.number(0.0)), inverse));
    if (image)
      return emitHalvesOfImage(n, scaled, k.f16(), scale);
    return emitHalves(input, row, n, scaled, k.mulF(scale, k.number(DeviceBuilder::e4m3Divisor)));
  }

  Values fixed;
  for (Value element : x)
    fixed.push_back(toFixedPoint(k, rounding, element));
  auto bytes = [&](bool high, int64_t first) {
    return fixedPointBytes(k, ArrayRef(fixed).slice(first, 4), high);
  };
  constexpr bool low = false, high = true;
  if (image)
    return emitFixedOfImage(
        n, fixed, scale, [&](int64_t first) { return bytes(high, first); },
        [&](int64_t first) { return bytes(low, first); });
  if (input.diagonal)
    return emitDiagonal(
        input, row, n, fixed, scale, [&](int64_t first) { return bytes(high, first); },
        [&](int64_t first) { return bytes(low, first); });
  Value sum;
  if (input.inputSumsAt) {
    for (Value q : fixed)
      sum = sum ? k.add(sum, q) : q;
    for (int64_t distance = 1; distance < input.accumulationColumns / kVector; distance *= 2)
      sum = k.add(sum, k.shuffleXor(sum, distance));
  }
  auto storeAll = [&] {
    Value vector = vectorIndex(n);
    // Columns 8 * vector on: fragment vector / 4, lane column % 16 / 4, half column % 32 / 16.
    Value place =
        k.add(k.mul(k.shr(vector, 2), input.fragmentBytes()),
              k.add(k.shl(k.bitAnd(vector, 1), 4), k.shl(k.bitAnd(k.shr(vector, 1), 1), 2)));
    if (input.tokens > 1)
      place = k.add(place, k.mul(row, 64));
    Value to = k.offset(input.fragmentsAt, place);
    k.store(bytes(high, 0), to, 4);
    k.store(bytes(high, 4), k.offset(to, 8), 4);
    k.store(bytes(low, 0), k.offset(to, 32), 4);
    k.store(bytes(low, 4), k.offset(to, 40), 4);
    storeFirst(input, row, vector, formats::activationGroup, scale, input.scalesAt);
    if (sum)
      storeFirst(input, row, vector, input.accumulationColumns, sum, input.inputSumsAt);
  };
  if (Value exists = vectorExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}

void Prologue::storeFirst(PreparedInput &input, Value row, Value vector, int64_t columns,
                          Value value, Value array) {
  int64_t vectors = columns / kVector;
  k.ifThen(k.equal(k.bitAnd(vector, vectors - 1), k.constI32(0)), [&] {
    Value index = k.div(vector, vectors);
    if (input.tokens > 1)
      index = k.add(index, k.mul(row, padded / columns));
    k.store(value, k.offset(array, k.shl(index, 2)), 4);
  });
}

void Prologue::emitHalves(PreparedInput &input, Value row, int64_t n, const Values &x,
                          Value scale) {
  auto storeAll = [&] {
    Value vector = vectorIndex(n);
    // Columns 8 * vector on: fragment vector / 2, lanes column % 16 / 4, whose columns follow each
    // other.
    Value place =
        k.add(k.mul(k.shr(vector, 1), input.fragmentBytes()), k.shl(k.bitAnd(vector, 1), 4));
    if (input.tokens > 1)
      place = k.add(place, k.mul(row, 32));
    Values words;
    for (int64_t e = 0; e < kVector; e += 2)
      words.push_back(k.packPair(x[e], x[e + 1], k.f16()));
    k.store(k.vectorOf(words), k.offset(input.fragmentsAt, place), 16);
    storeFirst(input, row, vector, formats::activationGroup, scale, input.scalesAt);
  };
  if (Value exists = vectorExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}

void Prologue::emitDiagonal(PreparedInput &input, Value row, int64_t n, const Values &fixed,
                            Value scale, llvm::function_ref<Value(int64_t)> highBytes,
                            llvm::function_ref<Value(int64_t)> lowBytes) {
  Value sum;
  if (input.hasSums) {
    for (Value q : fixed)
      sum = sum ? k.add(sum, q) : q;
    for (int64_t distance = 1; distance < input.sumColumns / kVector; distance *= 2)
      sum = k.add(sum, k.shuffleXor(sum, distance));
  }
  auto storeAll = [&] {
    // Columns 8 * vector on: a quarter of a sub-block of 32, of which 4 are in a group, 8 in a
    // record.
    Value vector = vectorIndex(n), quarter = k.bitAnd(vector, 3), subBlock = k.shr(vector, 2);
    Value place = k.add(k.shl(subBlock, 6), k.shl(quarter, 3));
    if (input.tokens > 1)
      place = k.add(place, k.mul(row, input.padded * 2));
    Value to = k.offset(input.fragmentsAt, place);
    k.store(k.vectorOf({highBytes(0), highBytes(4)}), to, 8);
    k.store(k.vectorOf({lowBytes(0), lowBytes(4)}), k.offset(to, 32), 8);
    Value group = k.bitAnd(k.shr(subBlock, 2), 1);
    Value entry = k.add(k.shl(k.shr(subBlock, 3), 2), k.bitAnd(subBlock, 3));
    if (input.tokens > 1)
      entry = k.add(entry, k.mul(row, input.padded / 64));
    Value units = k.offset(input.scalesAt, k.mul(entry, input.unitFloats() * 4));
    k.ifThen(k.equal(quarter, k.constI32(0)), [&] {
      bool first = input.stepFactors[0] != 1, second = input.stepFactors[1] != 1;
      Value step = scale;
      if (first || second)
        step = k.mulF(scale, k.select(k.equal(group, k.constI32(0)), k.number(input.stepFactors[0]),
                                      k.number(input.stepFactors[1])));
      k.store(step, k.offset(units, k.shl(group, 2)), 4);
    });
    if (sum) {
      int64_t perGroup = input.sumsPerGroup();
      Value number = k.mul(group, perGroup);
      if (perGroup == 2)
        number = k.add(number, k.shr(quarter, 1));
      k.ifThen(k.equal(k.bitAnd(quarter, 4 / perGroup - 1), k.constI32(0)), [&] {
        k.store(k.mulF(k.toFloat(sum), scale), k.offset(units, k.add(k.shl(number, 2), 8)), 4);
      });
    }
  };
  if (Value exists = vectorExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}

void Prologue::emitRounded(PreparedInput &input, Value row, int64_t n, const Values &x) {
  Type element =
      input.format.element == formats::Encoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
  if (image)
    return emitHalvesOfImage(n, x, element, Value());
  auto storeAll = [&] {
    Value vector = vectorIndex(n);
    // Columns 8 * vector on: fragment vector / 2, lane column % 8 / 2, half column % 16 / 8.
    Value place =
        k.add(k.mul(k.shr(vector, 1), input.fragmentBytes()), k.shl(k.bitAnd(vector, 1), 2));
    if (input.tokens > 1)
      place = k.add(place, k.mul(row, 32));
    Value to = k.offset(input.fragmentsAt, place);
    for (int64_t e = 0; e < kVector; e += 2)
      k.store(k.packPair(x[e], x[e + 1], element), k.offset(to, e / 2 * 8), 4);
  };
  if (Value exists = vectorExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}

//===----------------------------------------------------------------------===//
// Images (fused::PreparedImage)
//===----------------------------------------------------------------------===//

Value Prologue::imageChunk(Value piece, Value chunk) {
  Value row = k.bitAnd(imageToken, 7);
  Value place = k.add(k.mul(k.shr(imageToken, 3), image->blockBytes()), k.shl(row, 7));
  place = k.add(place, k.shl(k.bitXor(chunk, row), 4));
  return k.offset(imageBase, k.add(place, k.mul(piece, image->pieceBytes())));
}

void Prologue::storeFirstOfImage(Value vector, int64_t columns, Value value, int64_t section) {
  int64_t vectors = columns / kVector;
  k.ifThen(k.equal(k.bitAnd(vector, vectors - 1), k.constI32(0)), [&] {
    Value index = k.add(k.mul(k.div(vector, vectors), image->paddedTokens), imageToken);
    k.store(value, k.offset(k.offset(imageBase, section), k.shl(index, 2)), 4);
  });
}

void Prologue::emitFixedOfImage(int64_t n, const Values &fixed, Value scale,
                                llvm::function_ref<Value(int64_t)> highBytes,
                                llvm::function_ref<Value(int64_t)> lowBytes) {
  Value sum;
  if (image->sumColumns) {
    for (Value q : fixed)
      sum = sum ? k.add(sum, q) : q;
    for (int64_t distance = 1; distance < image->sumColumns / kVector; distance *= 2)
      sum = k.add(sum, k.shuffleXor(sum, distance));
  }
  auto storeAll = [&] {
    Value vector = vectorIndex(n);
    Value to = k.offset(imageChunk(k.shr(vector, 4), k.bitAnd(k.shr(vector, 1), 7)),
                        k.shl(k.bitAnd(vector, 1), 3));
    k.store(k.vectorOf({highBytes(0), highBytes(4)}), to, 8);
    k.store(k.vectorOf({lowBytes(0), lowBytes(4)}), k.offset(to, image->blockBytes() / 2), 8);
    storeFirstOfImage(vector, formats::activationGroup, scale, image->scales);
    if (sum)
      storeFirstOfImage(vector, image->sumColumns, sum, image->sums);
  };
  if (Value exists = vectorExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}

void Prologue::emitRowOfImage(ArrayRef<Values> x) {
  Value greatest;
  for (const Values &vector : x)
    for (Value element : vector) {
      Value magnitude = kernels::magnitudeBits(k, element);
      greatest = greatest ? k.max(greatest, magnitude) : magnitude;
    }
  greatest = k.greatestOfWarp(greatest);
  Value place = k.offset(scratch, sumNumber++ * fused::rowSumStride(threads / kWarp));
  Value lane = k.bitAnd(thread, kWarp - 1), warp = k.shr(thread, 5);
  k.ifThen(k.equal(lane, k.constI32(0)),
           [&] { k.store(greatest, k.offset(place, k.shl(warp, 2)), 4); });
  k.barrier(1, threads);
  for (int64_t part = 0; part < threads / kWarp; ++part)
    greatest = k.max(greatest, k.load(k.i32(), k.offset(place, part * 4), 4));
  auto [usable, inverse, scale] = kernels::activationScale(k, greatest);
  for (auto [n, vector] : llvm::enumerate(x)) {
    Values scaled;
    for (Value element : vector)
      scaled.push_back(k.mulF(k.select(usable, element, k.number(0.0)), inverse));
    emitHalvesOfImage(n, scaled, k.f16(), Value());
  }
  k.ifThen(k.equal(thread, k.constI32(0)), [&] {
    k.store(scale, k.offset(k.offset(imageBase, image->scales), k.shl(imageToken, 2)), 4);
  });
}

void Prologue::emitHalvesOfImage(int64_t n, const Values &x, Type element, Value scale) {
  auto storeAll = [&] {
    Value vector = vectorIndex(n), piece = k.shr(vector, 3), chunk = k.bitAnd(vector, 7);
    Values words;
    for (int64_t e = 0; e < kVector; e += 2)
      words.push_back(k.packPair(x[e], x[e + 1], element));
    if (image->records) {
      // Four pairs of sub-block vector / 4, each a word of a chunk of its own.
      Value subBlock = k.bitAnd(k.shr(vector, 2), 3);
      Value first = k.shl(k.bitAnd(vector, 3), 2), group = k.shr(vector, 4);
      for (int64_t n = 0; n < 4; ++n) {
        Value q = k.add(first, n);
        Value to = imageChunk(k.add(k.shl(group, 1), k.shr(q, 3)), k.bitAnd(q, 7));
        k.store(words[n], k.offset(to, k.shl(subBlock, 2)), 4);
      }
      return;
    }
    if (!scale)
      return k.store(k.vectorOf(words), imageChunk(piece, chunk), 16);
    // Words of even number, and those of odd number, of two vectors are neighbours.
    for (int64_t odd : {0, 1}) {
      Value to = imageChunk(piece, k.add(k.bitAnd(chunk, 6), odd));
      k.store(k.vectorOf({words[odd], words[odd + 2]}), k.offset(to, k.shl(k.bitAnd(vector, 1), 3)),
              8);
    }
    storeFirstOfImage(vector, formats::activationGroup, scale, image->scales);
  };
  if (Value exists = vectorExists(n, padded))
    k.ifThen(exists, storeAll);
  else
    storeAll();
}
