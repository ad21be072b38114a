// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionPrologue.h"

#include "../FusedKernels/RegionEvaluator.h"

#include "llvm/ADT/SetVector.h"

#include <array>
#include <cmath>
#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::CacheEncoding;
using formats::CacheShape;
using formats::cacheTile;

namespace sluice::host {
/// A place of the prologue: one head of a token, padded with zeros.
class Head {
public:
  using Builder = KernelBuilder;
  static constexpr llvm::StringLiteral kRegion = "a prologue";

  /// Head `number` of token `token`: `dim` elements, `padded` with the padding.
  Head(KernelBuilder &k, AttentionPrologue &prologue, Value token, Value number, int64_t padded)
      : k(k), prologue(prologue), interface(prologue.interface), token(token), number(number),
        dim(prologue.keys.dim), padded(padded) {}

  /// Zeros instead of what is not the head's in lanes of register `i`.
  Value clearPadding(size_t i, Value x) {
    Value lanes = mask(static_cast<int64_t>(i) * kLanes);
    return lanes ? k.select(lanes, x, k.number(x.getType(), 0.0)) : x;
  }

  // The place (see RegionEvaluator.h).
  KernelBuilder &k;
  FailureOr<kernels::Values> load(Value value);
  kernels::Values rotateHead(model::HadamardOp rotation, const kernels::Values &x);
  FailureOr<kernels::Values> turnHead(model::RotaryOp rotary, const kernels::Values &x);
  Value sumOfSquares(const kernels::Values &x);

private:
  /// Registers that have in the place of element e of a head what `x` has in that of source(e).
  kernels::Values gather(const kernels::Values &x, llvm::function_ref<int64_t(int64_t)> source);
  /// The lanes from element `d` on that are the head's; null if all are.
  Value mask(int64_t d) {
    if (d + kLanes <= dim)
      return Value();
    return k.firstLanes(kLanes, k.index(std::max<int64_t>(dim - d, 0)));
  }

  AttentionPrologue &prologue;
  const KernelInterface &interface;
  Value token, number;
  int64_t dim, padded;
};
} // namespace sluice::host

LogicalResult AttentionPrologue::plan() {
  for (auto [symbol, layout, shape] :
       {std::tuple(keysSymbol, quantized::CacheLayout::LanesKeys, &keys),
        {valuesSymbol, quantized::CacheLayout::LanesValues, &values}}) {
    quantized::CacheType type = interface.cacheType(symbol);
    if (type.getLayout() != layout)
      return op->emitOpError() << "reads cache " << symbol << " as " << stringifyCacheLayout(layout)
                               << ", but it is " << type;
    if (type.getElement().isF32())
      return op->emitOpError() << "reads cache " << symbol
                               << ": host kernels have no caches of f32";
    *shape = model::cacheShape(type, pages);
  }
  return success();
}

Value AttentionPrologue::query() {
  return region.empty() ? queryOperand
                        : cast<fused::YieldOp>(region.front().getTerminator()).getValues().front();
}

Value AttentionPrologue::position(Value token) {
  // The runtime checks positions; a wrong one must not reach memory outside the cache.
  Value position = k.load(k.i32(), k.offset(interface.pointer(positions), k.mul(token, 4)), 4);
  position = k.max(k.min(position, k.integer(k.i32(), keys.positions - 1)), k.integer(k.i32(), 0));
  return k.extend(position, k.i64());
}

std::pair<kernels::HeadTiles, kernels::HeadTiles> AttentionPrologue::tilesOf(Value token,
                                                                             Value head) {
  Value sequence = kernels::sequenceOf(k, interface, keys.sequences, sequences, token);
  return {kernels::HeadTiles(k, interface, keys, keysSymbol, pages, sequence, head),
          kernels::HeadTiles(k, interface, values, valuesSymbol, pages, sequence, head)};
}

LogicalResult AttentionPrologue::append(Value token, Value head, Value position,
                                        const kernels::HeadTiles &keyTiles,
                                        const kernels::HeadTiles &valueTiles) {
  for (auto append : region.getOps<model::CacheAppendOp>()) {
    bool isKey = append.getCacheAttr() == keysSymbol;
    if (!isKey && append.getCacheAttr() != valuesSymbol)
      return append.emitOpError()
             << "in a prologue appends to a cache that attention does not read";
    const CacheShape &shape = isKey ? keys : values;
    if (failed(evaluate(append.getInput(), token, head, shape.paddedDim())))
      return failure();
    store(shape, isKey ? keyTiles : valueTiles, position);
  }
  return success();
}

//===----------------------------------------------------------------------===//
// Heads
//===----------------------------------------------------------------------===//

FailureOr<kernels::Values> Head::load(Value value) {
  Value pointer = interface.pointer(prologue.sourceOf(value));
  auto type = dyn_cast<RankedTensorType>(value.getType());
  // A vector is for all heads.
  bool isVector = type && type.getRank() == 1;
  if (!pointer || !kernels::isFloatTensor(value) || (isVector && type.getDimSize(0) != dim))
    return prologue.op->emitOpError() << "prologue reads a value of type " << value.getType()
                                      << " in a way that cannot be converted to host code";
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  Value base = pointer;
  if (!isVector)
    base = k.at(pointer, k.add(k.mul(token, type.getDimSize(1)), k.mul(number, dim)), bytes);
  kernels::Values x;
  for (int64_t d = 0; d < padded; d += kLanes)
    x.push_back(k.loadFloats(kLanes, element, k.offset(base, d * bytes), bytes, mask(d)));
  return x;
}

kernels::Values Head::rotateHead(model::HadamardOp rotation, const kernels::Values &head) {
  VectorType words = k.vec(kLanes, k.i32());
  kernels::Values x = head;
  for (int64_t distance = 1; distance < rotation.getBlock(); distance *= 2) {
    kernels::Values next;
    for (auto [i, own] : llvm::enumerate(x)) {
      if (distance < kLanes) {
        SmallVector<int64_t> partners;
        for (int64_t lane = 0; lane < kLanes; ++lane)
          partners.push_back(lane ^ distance);
        Value other = k.shuffle(own, own, partners);
        Value bit = k.bitAnd(k.laneNumbers(kLanes), k.integer(words, distance));
        next.push_back(
            k.select(k.less(k.integer(words, 0), bit), k.subF(other, own), k.addF(own, other)));
        continue;
      }
      int64_t step = distance / kLanes;
      next.push_back(i & step ? k.subF(x[i ^ step], own) : k.addF(own, x[i ^ step]));
    }
    x = std::move(next);
  }
  for (Value &element : x)
    element = k.mulF(
        element, k.constantLike(element, 1 / std::sqrt(static_cast<double>(rotation.getBlock()))));
  return x;
}

kernels::Values Head::gather(const kernels::Values &x,
                             llvm::function_ref<int64_t(int64_t)> source) {
  kernels::Values result;
  for (int64_t first = 0; first < padded; first += kLanes) {
    // What is behind the head comes from anywhere.
    std::array<int64_t, kLanes> from;
    for (int64_t lane = 0; lane < kLanes; ++lane)
      from[lane] = first + lane < dim ? source(first + lane) : from[lane - 1];
    if (first >= dim) {
      result.push_back(x[first / kLanes]);
      continue;
    }
    Value gathered = x[from[0] / kLanes];
    SmallVector<int64_t> order;
    for (int64_t lane = 0; lane < kLanes; ++lane)
      order.push_back(from[lane] % kLanes);
    // From one register after the other.
    llvm::SmallSetVector<int64_t, 4> registers;
    for (int64_t element : from)
      registers.insert(element / kLanes);
    if (registers.size() > 1 || !llvm::equal(order, llvm::seq<int64_t>(0, kLanes)))
      gathered = k.shuffle(gathered, gathered, order);
    for (int64_t number : registers.getArrayRef().drop_front()) {
      SmallVector<int64_t> lanes;
      for (int64_t lane = 0; lane < kLanes; ++lane)
        lanes.push_back(from[lane] / kLanes == number ? kLanes + order[lane] : lane);
      gathered = k.shuffle(gathered, x[number], lanes);
    }
    result.push_back(gathered);
  }
  return result;
}

FailureOr<kernels::Values> Head::turnHead(model::RotaryOp rotary, const kernels::Values &x) {
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  model::RotaryPairs pairs(rotary);
  int64_t half = pairs.half();
  Value position = k.load(k.i32(), k.at(interface.pointer(rotary.getPositions()), token, 4), 4);
  position = k.toIndex(k.clampIndex(position, rotary.getTable().getType().getDimSize(0)));
  // Cosines, then sines, of all pairs.
  Value entry = k.at(interface.pointer(rotary.getTable()), position, dim * 4);
  auto ofElements = [&](int64_t begin) {
    kernels::Values all;
    for (int64_t pair = 0; pair < half; pair += kLanes) {
      Value lanes = pair + kLanes <= half ? Value() : k.firstLanes(kLanes, k.index(half - pair));
      all.push_back(k.loadFloats(kLanes, k.f32(), k.offset(entry, (begin + pair) * 4), 4, lanes));
    }
    // gather() counts on a register for each of a head.
    all.resize(x.size(), all.back());
    return gather(all, [&](int64_t element) { return pairs.pairOf(element); });
  };
  kernels::Values cosines = ofElements(0), sines = ofElements(half), result = x;
  kernels::Values others = gather(x, [&](int64_t element) { return pairs.partnerOf(element); });
  for (int64_t begin = 0; begin < dim; begin += kLanes) {
    auto i = static_cast<size_t>(begin / kLanes);
    auto isFirst = [&](int64_t element) { return pairs.isFirst(element); };
    auto elements = llvm::seq(begin, std::min<int64_t>(begin + kLanes, dim));
    if (llvm::all_of(elements, isFirst)) {
      result[i] = model::turned(k, x[i], others[i], cosines[i], sines[i]).first;
    } else if (llvm::none_of(elements, isFirst)) {
      result[i] = model::turned(k, others[i], x[i], cosines[i], sines[i]).second;
    } else {
      SmallVector<int64_t> own, swapped;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        bool first = begin + lane < dim && isFirst(begin + lane);
        own.push_back(first ? lane : kLanes + lane);
        swapped.push_back(first ? kLanes + lane : lane);
      }
      auto [first, second] =
          model::turned(k, k.shuffle(x[i], others[i], own), k.shuffle(x[i], others[i], swapped),
                        cosines[i], sines[i]);
      result[i] = k.shuffle(first, second, own);
    }
  }
  return result;
}

Value Head::sumOfSquares(const kernels::Values &x) {
  Value sum;
  for (auto [i, element] : llvm::enumerate(x)) {
    Value mine = clearPadding(i, element);
    sum = sum ? k.fma(mine, mine, sum) : k.mulF(mine, mine);
  }
  return k.sumLanes(sum);
}

LogicalResult AttentionPrologue::evaluate(Value value, Value token, Value number, int64_t padded) {
  Head place(k, *this, token, number, padded);
  kernels::NormFactors none;
  FailureOr<kernels::Values> x =
      kernels::RegionEvaluator<Head>(place, interface, none).evaluate(value);
  if (failed(x))
    return failure();
  for (auto [i, element] : llvm::enumerate(*x))
    k.store(place.clearPadding(i, k.widen(element)),
            k.offset(row, static_cast<int64_t>(i) * kLanes * 4), 64);
  return success();
}

Value AttentionPrologue::greatestMagnitude(int64_t begin, int64_t end) {
  // Magnitudes compare as integers, infinity and NaN above all numbers.
  Value greatest;
  for (int64_t d = begin; d < end; d += kLanes) {
    Value x = k.load(f32s, k.offset(row, d * 4), 64);
    Value magnitude = k.bitcast(math::AbsFOp::create(k.b, k.loc, x), i32s);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  return k.reduce(greatest, [&](Value x, Value y) { return k.max(x, y); });
}

Value AttentionPrologue::greatestWithSign(int64_t begin, int64_t end, bool negated) {
  Value greatest = k.integer(i32s, 0);
  for (int64_t d = begin; d < end; d += kLanes) {
    Value x = k.load(f32s, k.offset(row, d * 4), 64);
    greatest = k.max(greatest, k.bitcast(negated ? k.negF(x) : x, i32s));
  }
  return k.reduce(greatest, [&](Value x, Value y) { return k.max(x, y); });
}

void AttentionPrologue::store(const CacheShape &shape, const kernels::HeadTiles &tiles,
                              Value position) {
  CacheEncoding encoding = shape.encoding;
  int64_t padded = shape.paddedDim();
  Value inTile = k.rem(position, cacheTile);
  Value base = tiles.at(k, k.div(position, cacheTile));
  formats::CacheArithmetic<Value> arithmetic = kernels::cacheArithmetic(k);
  auto placeOf = [&](Value d) {
    return k.offset(base, formats::cacheCodeByte<Value>(arithmetic, shape, inTile, d));
  };
  auto element = [&](Value d) { return k.load(k.f32(), k.at(row, d, 4), 4); };
  if (!encoding.isInteger()) {
    Type type =
        encoding.element == CacheEncoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    k.loop(k.index(0), k.index(padded), 1, [&](Value d) {
      if (encoding.element == CacheEncoding::Element::E4M3)
        k.store(k.encodeE4M3(element(d)), placeOf(d), 1);
      else
        k.store(k.bitcast(k.narrow(element(d), type), k.i16()), placeOf(d), 2);
    });
    return;
  }
  int64_t groupElements =
      encoding.group == CacheEncoding::head ? padded : encoding.groupElements(shape.dim);
  for (int64_t g = 0; g < shape.groups(); ++g) {
    int64_t begin = g * groupElements, end = std::min(begin + groupElements, padded);
    Value greatest, isNegative;
    if (encoding.hasSignedScale()) {
      Value positive = greatestWithSign(begin, end, false);
      Value negative = greatestWithSign(begin, end, true);
      greatest = k.max(positive, negative);
      isNegative = k.less(negative, positive);
    } else {
      greatest = greatestMagnitude(begin, end);
    }
    Value m = k.divF(k.bitcast(greatest, k.f32()), k.number(k.f32(), -encoding.codeMin()));
    Value scale = k.narrow(k.maxF(m, k.number(k.f32(), formats::cacheScaleFloor)), k.f16());
    // Neither infinity nor NaN, nor what f16 cannot hold.
    Value bits = arith::ExtUIOp::create(k.b, k.loc, k.i32(), k.bitcast(scale, k.i16()));
    Value finite =
        arith::AndIOp::create(k.b, k.loc, k.less(greatest, k.integer(k.i32(), 0x7F800000)),
                              k.less(bits, k.integer(k.i32(), 0x7C00)));
    if (isNegative)
      scale = k.select(isNegative, k.negF(scale), scale);
    Value nan = k.number(k.f16(), std::numeric_limits<double>::quiet_NaN());
    k.store(k.select(finite, scale, nan),
            k.offset(base, k.add(k.mul(inTile, 2), formats::cacheScaleByte(shape, g))), 2);
    Value inverse = k.divF(k.number(k.f32(), 1.0), k.widen(scale));
    auto codeOf = [&](Value d) {
      Value x = k.select(finite, element(d), k.number(k.f32(), 0.0));
      Value code = k.roundToInt(k.mulF(x, inverse));
      Value limit = k.integer(k.i32(), encoding.codeMax());
      return k.max(k.min(code, limit), k.integer(k.i32(), encoding.codeMin()));
    };
    if (encoding.bits() == 8) {
      k.loop(k.index(begin), k.index(end), 1,
             [&](Value d) { k.store(k.truncate(codeOf(d), k.i8()), placeOf(d), 1); });
      continue;
    }
    // Both nibbles of a byte belong to this position and to one group.
    int64_t distance = formats::cacheNibbleDistance(shape);
    k.loop(k.index(begin), k.index(end), 2 * distance, [&](Value first) {
      k.loop(k.index(0), k.index(distance), 1, [&](Value i) {
        Value d = k.add(first, i);
        Value low = arith::AndIOp::create(k.b, k.loc, codeOf(d), k.integer(k.i32(), 15));
        Value high = k.shl(codeOf(k.add(d, distance)), 4);
        Value both = arith::OrIOp::create(k.b, k.loc, low, high);
        k.store(k.truncate(both, k.i8()), placeOf(d), 1);
      });
    });
  }
}
