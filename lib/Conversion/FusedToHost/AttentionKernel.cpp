// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of all query heads of one key/value head, a block of 64 positions at a time: scores,
// softmax, weighted sums. Each key and value is read once for all of them.
//
// Lanes are 16 positions of keys, or 16 elements of values (CacheLayout.h), so that nothing is
// added across lanes. Integer keys and values are multiplied as 16-bit words, two at a time, by
// queries and softmax weights that are such words; sums are exact.

#include "Products.h"

#include "sluice/Formats/Activations.h"
#include "sluice/Formats/CacheLayout.h"

#include <cmath>
#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::cacheBlock;
using formats::CacheEncoding;
using formats::CacheShape;
using formats::cacheTile;

/// Bytes between what is read and what is asked for.
static constexpr int64_t kAhead = 4096;
static constexpr int64_t kLine = 64;

namespace {
class AttentionKernel {
public:
  using Values = SmallVector<Value>;

  AttentionKernel(KernelBuilder &k, fused::AttentionOp op, const KernelInterface &interface)
      : k(k), op(op), interface(interface), f32s(k.vec(kLanes, k.f32())),
        i32s(k.vec(kLanes, k.i32())) {}

  LogicalResult plan();
  LogicalResult emit(Value begin, Value end);
  int64_t items() const { return tokens * heads; }

private:
  /// Query heads whose sums stay in registers together.
  int64_t queryTile() const { return std::min<int64_t>(group, k.isa == Isa::Avx2 ? 4 : 8); }
  Value at(Value base, Value index, int64_t bytes) { return k.offset(base, k.mul(index, bytes)); }
  Value splat(Value scalar) { return k.splat(scalar, kLanes); }
  Value zeros() { return k.number(f32s, 0.0); }

  /// Writes a head of `value`, float32 and padded with zeros to `padded`, to `row`.
  LogicalResult evaluate(Value value, Value number, int64_t valueHeads, int64_t padded);
  void hadamard(int64_t block, int64_t padded);
  /// The greatest magnitude of elements [begin, end) of `row` (multiples of 16) as bits.
  Value greatestMagnitude(int64_t begin, int64_t end);
  /// Rounds `row` and stores it as the step's key or value.
  void store(const CacheShape &shape, Value headBase);
  void prepareQuery(Value query);

  /// Elements of a float cache as float32: 16 of them.
  Value loadElements(const CacheShape &shape, Value place);
  /// Words of 32 bytes of an integer cache: with 8 bits those of one operand, with 4 of two.
  Values loadWords(const CacheShape &shape, Value place);
  /// Which of 16 positions from `lane` of the block that begins at `first` are attended to.
  Value attended(Value first, Value lane);
  void scoresOf(Value tileBase, Value tile);
  void readScales(Value tileBase, Value tile, Value first);
  void softmax(Value query);
  void addIntegers(Value tilesBase, Value firstTile, Value tileCount, int64_t firstQuery,
                   int64_t queries);
  void addFloats(Value tilesBase, Value begin, Value end, int64_t firstQuery, int64_t queries);
  void finish();

  KernelBuilder &k;
  fused::AttentionOp op;
  const KernelInterface &interface;
  VectorType f32s, i32s;
  CacheShape keys, values;
  bool appends = false;
  int64_t tokens = 0, dim = 0, heads = 0, group = 0;
  Value token, head, last;
  Value oldest; ///< the first position of the window, if there is one
  /// Stack memory. Queries: [group][padded] int16 and [group] factors from integers to exponents,
  /// or [group][padded] float32. Float32: row [padded]; exponents [group][64]; of values outputs
  /// [group][padded], scales [groups][64], bounds of their logarithms [64]; reference points, sums
  /// of weights, what older outputs and this block's are multiplied by [group]. Weights: [groups]
  /// [group][64] int16, or exponents' place.
  Value queries, factors, row, exponents, outputs, scales, bounds, weights, references, sums, keeps,
      units;
};
} // namespace

LogicalResult AttentionKernel::plan() {
  quantized::CacheType keyType = interface.cacheType(op.getKeysAttr());
  quantized::CacheType valueType = interface.cacheType(op.getValuesAttr());
  keys = keyType.getShapeInfo();
  values = valueType.getShapeInfo();
  for (auto [symbol, type, layout] :
       {std::tuple(op.getKeysAttr(), keyType, quantized::CacheLayout::LanesKeys),
        {op.getValuesAttr(), valueType, quantized::CacheLayout::LanesValues}}) {
    if (type.getLayout() != layout)
      return op.emitOpError() << "reads cache " << symbol << " as " << stringifyCacheLayout(layout)
                              << ", but it is " << type;
    if (type.getElement().isF32())
      return op.emitOpError() << "reads cache " << symbol << ": host kernels have no caches of f32";
  }
  appends = !op.getPrologue().empty();
  dim = keys.dim;
  heads = keys.heads;
  tokens = op.getTokens();
  group = op.getQuery().getType().getDimSize(1) / dim / heads;
  if (appends && keys.sequences != tokens)
    return op.emitOpError() << "appends " << tokens << " rows to caches of " << keys.sequences
                            << " sequences";
  return success();
}

//===----------------------------------------------------------------------===//
// Prologue
//===----------------------------------------------------------------------===//

LogicalResult AttentionKernel::evaluate(Value value, Value number, int64_t valueHeads,
                                        int64_t padded) {
  auto type = cast<RankedTensorType>(value.getType());
  Value source = value;
  if (auto argument = dyn_cast<BlockArgument>(value);
      argument && argument.getParentRegion() == &op.getPrologue())
    source = argument.getArgNumber() ? op.getAppended()[argument.getArgNumber() - 1]
                                     : Value(op.getQuery());
  if (source != value || value == op.getQuery()) {
    Type element = type.getElementType();
    int64_t bytes = bytesOf(element);
    Value first = k.add(k.mul(token, type.getDimSize(1)), k.mul(number, dim));
    Value base = at(interface.pointer(source), first, bytes);
    for (int64_t d = 0; d < padded; d += kLanes) {
      Value mask = d + kLanes <= dim ? Value()
                                     : k.firstLanes(kLanes, k.index(std::max<int64_t>(dim - d, 0)));
      Value x = k.widen(k.loadFloats(kLanes, element, k.offset(base, d * bytes), bytes, mask));
      k.store(x, k.offset(row, d * 4), 64);
    }
    return success();
  }
  Operation *inner = value.getDefiningOp();
  if (!inner || !isa<model::HadamardOp, arith::TruncFOp>(inner))
    return op.emitOpError() << "has a prologue whose "
                            << (inner ? inner->getName().getStringRef() : "value from outside")
                            << " cannot be converted to host code";
  if (failed(evaluate(inner->getOperand(0), number, valueHeads, padded)))
    return failure();
  if (auto rotation = dyn_cast<model::HadamardOp>(inner)) {
    hadamard(rotation.getBlock(), padded);
    return success();
  }
  for (int64_t d = 0; d < padded; d += kLanes) {
    Value place = k.offset(row, d * 4);
    k.store(k.widen(k.narrow(k.load(f32s, place, 64), type.getElementType())), place, 64);
  }
  return success();
}

void AttentionKernel::hadamard(int64_t block, int64_t padded) {
  Values x;
  for (int64_t d = 0; d < padded; d += kLanes)
    x.push_back(k.load(f32s, k.offset(row, d * 4), 64));
  for (int64_t distance = 1; distance < block; distance *= 2) {
    Values next;
    for (auto [i, own] : llvm::enumerate(x)) {
      if (distance < kLanes) {
        SmallVector<int64_t> partners;
        for (int64_t lane = 0; lane < kLanes; ++lane)
          partners.push_back(lane ^ distance);
        Value other = k.shuffle(own, own, partners);
        Value bit =
            arith::AndIOp::create(k.b, k.loc, k.laneNumbers(kLanes), k.integer(i32s, distance));
        next.push_back(
            k.select(k.less(k.integer(i32s, 0), bit), k.subF(other, own), k.addF(own, other)));
        continue;
      }
      int64_t step = distance / kLanes;
      next.push_back(i & step ? k.subF(x[i ^ step], own) : k.addF(own, x[i ^ step]));
    }
    x = std::move(next);
  }
  Value norm = k.number(f32s, 1 / std::sqrt(static_cast<double>(block)));
  for (auto [i, value] : llvm::enumerate(x))
    k.store(k.mulF(value, norm), k.offset(row, static_cast<int64_t>(i) * kLanes * 4), 64);
}

Value AttentionKernel::greatestMagnitude(int64_t begin, int64_t end) {
  // Magnitudes compare as integers, infinity and NaN above all numbers.
  Value greatest;
  for (int64_t d = begin; d < end; d += kLanes) {
    Value x = k.load(f32s, k.offset(row, d * 4), 64);
    Value magnitude = k.bitcast(math::AbsFOp::create(k.b, k.loc, x), i32s);
    greatest = greatest ? k.max(greatest, magnitude) : magnitude;
  }
  return k.reduce(greatest, [&](Value x, Value y) { return k.max(x, y); });
}

void AttentionKernel::store(const CacheShape &shape, Value headBase) {
  CacheEncoding encoding = shape.encoding;
  int64_t padded = shape.paddedDim();
  Value position = k.rem(last, cacheTile);
  Value base = at(headBase, k.div(last, cacheTile), shape.tileBytes());
  formats::CacheArithmetic<Value> arithmetic = {[&](Value x, Value y) { return k.add(x, y); },
                                                [&](Value x, int64_t y) { return k.mul(x, y); },
                                                [&](Value x, int64_t y) { return k.div(x, y); },
                                                [&](Value x, int64_t y) { return k.rem(x, y); }};
  auto placeOf = [&](Value d) {
    return k.offset(base, formats::cacheCodeByte<Value>(arithmetic, shape, position, d));
  };
  auto element = [&](Value d) { return k.load(k.f32(), at(row, d, 4), 4); };
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
      encoding.group == CacheEncoding::head ? padded : encoding.groupElements(dim);
  for (int64_t g = 0; g < shape.groups(); ++g) {
    int64_t begin = g * groupElements, end = std::min(begin + groupElements, padded);
    Value greatest = greatestMagnitude(begin, end);
    Value m = k.divF(k.bitcast(greatest, k.f32()), k.number(k.f32(), encoding.codeMax()));
    Value scale = k.narrow(k.maxF(m, k.number(k.f32(), formats::cacheScaleFloor)), k.f16());
    // Neither infinity nor NaN, nor what f16 cannot hold.
    Value bits = arith::ExtUIOp::create(k.b, k.loc, k.i32(), k.bitcast(scale, k.i16()));
    Value finite =
        arith::AndIOp::create(k.b, k.loc, k.less(greatest, k.integer(k.i32(), 0x7F800000)),
                              k.less(bits, k.integer(k.i32(), 0x7C00)));
    Value nan = k.number(k.f16(), std::numeric_limits<double>::quiet_NaN());
    k.store(k.select(finite, scale, nan),
            k.offset(base, k.add(k.mul(position, 2), formats::cacheScaleByte(shape, g))), 2);
    Value inverse = k.divF(k.number(k.f32(), 1.0), k.widen(scale));
    auto codeOf = [&](Value d) {
      Value x = k.select(finite, element(d), k.number(k.f32(), 0.0));
      Value code = k.roundToInt(k.mulF(x, inverse));
      Value limit = k.integer(k.i32(), encoding.codeMax());
      return k.max(k.min(code, limit), k.integer(k.i32(), -encoding.codeMax()));
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

void AttentionKernel::prepareQuery(Value query) {
  double scale = op.getScale().convertToDouble() * 1.44269504088896341;
  int64_t padded = keys.paddedDim();
  CacheEncoding encoding = keys.encoding;
  Value to = at(queries, query, padded * (encoding.isInteger() ? 2 : 4));
  if (!encoding.isInteger()) {
    Type element =
        encoding.element == CacheEncoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    for (int64_t d = 0; d < padded; d += kLanes) {
      Value x = k.load(f32s, k.offset(row, d * 4), 64);
      Value rounded = k.widen(k.narrow(x, element));
      if (encoding.element == CacheEncoding::Element::BF16) // a sum of two
        rounded = k.addF(rounded, k.widen(k.narrow(k.subF(x, rounded), element)));
      k.store(rounded, k.offset(to, d * 4), 4);
    }
    k.store(k.number(k.f32(), scale), at(factors, query, 4), 4);
    return;
  }
  Value bits = greatestMagnitude(0, padded);
  Value finite = k.less(bits, k.integer(k.i32(), 0x7F800000));
  Value m = k.bitcast(bits, k.f32());
  Value usable = arith::AndIOp::create(k.b, k.loc, finite,
                                       k.lessF(k.number(k.f32(), formats::activationFloor), m));
  Value limit = k.number(k.f32(), formats::activationLimit), one = k.number(k.f32(), 1.0);
  Value inverse = k.select(usable, k.divF(limit, k.select(usable, m, one)), k.number(k.f32(), 0.0));
  Value step = k.select(finite, k.divF(m, limit),
                        k.number(k.f32(), std::numeric_limits<double>::quiet_NaN()));
  k.store(k.mulF(step, k.number(k.f32(), scale)), at(factors, query, 4), 4);
  for (int64_t d = 0; d < padded; d += kLanes) {
    Value x = k.load(f32s, k.offset(row, d * 4), 64);
    x = k.select(splat(usable), x, zeros());
    Value rounded = k.roundToInt(k.mulF(x, splat(inverse)));
    k.store(k.truncate(rounded, k.i16()), k.offset(to, d * 2), 2);
  }
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

Value AttentionKernel::loadElements(const CacheShape &shape, Value place) {
  switch (shape.encoding.element) {
  case CacheEncoding::Element::E4M3:
    return k.decodeE4M3(k.load(k.vec(kLanes, k.i8()), place, 16));
  case CacheEncoding::Element::BF16:
    return k.loadFloats(kLanes, k.b.getBF16Type(), place, 32);
  default:
    return k.loadFloats(kLanes, k.f16(), place, 32);
  }
}

SmallVector<Value> AttentionKernel::loadWords(const CacheShape &shape, Value place) {
  Value stored = k.extend(k.load(k.vec(2 * kLanes, k.i8()), place, 32), k.i16());
  if (shape.encoding.bits() == 8)
    return {stored};
  return {k.sar(k.shl(stored, 12), 12), k.sar(stored, 4)};
}

/// Exponents of 2 of the 32 positions of a tile, number `tile` (0 or 1) of the block.
void AttentionKernel::scoresOf(Value tileBase, Value tile) {
  CacheEncoding encoding = keys.encoding;
  int64_t padded = keys.paddedDim(), halfBytes = keys.tileCodeBytes() / 2;
  k.loop(k.index(0), k.index(2), 1, [&](Value half) {
    Value base = at(tileBase, half, halfBytes);
    Value firstLane = k.add(k.mul(tile, cacheTile), k.mul(half, int64_t(kLanes)));
    for (int64_t begin = 0; begin < group; begin += queryTile()) {
      int64_t count = std::min(queryTile(), group - begin);
      SmallVector<Value> scores;
      auto prefetch = [&](Value place, int64_t bytes) {
        for (int64_t byte = 0; begin == 0 && byte < bytes; byte += kLine)
          k.prefetch(k.outside(place, k.index(kAhead + byte)), /*locality=*/3);
      };
      if (!encoding.isInteger()) {
        int64_t bytes = encoding.bits() / 8, unroll = 4;
        SmallVector<Value> start(count, zeros());
        scores =
            k.loop(k.index(0), k.index(padded), unroll, start, [&](Value d, ValueRange carried) {
              SmallVector<Value> next(carried);
              Value place = at(base, d, kLanes * bytes);
              prefetch(place, unroll * kLanes * bytes);
              for (int64_t i = 0; i < unroll; ++i) {
                Value x = loadElements(keys, k.offset(place, i * kLanes * bytes));
                for (int64_t q = 0; q < count; ++q) {
                  Value from = k.offset(queries, ((begin + q) * padded + i) * 4);
                  Value y = k.load(k.f32(), at(from, d, 4), 4);
                  next[q] = k.fma(x, splat(y), next[q]);
                }
              }
              return next;
            });
      } else {
        int64_t perLoad = encoding.bits() == 8 ? 2 : 4, unroll = 16;
        int64_t groupElements =
            encoding.group == CacheEncoding::head ? padded : encoding.groupElements(dim);
        scores.assign(count, zeros());
        for (int64_t g = 0; g < keys.groups(); ++g) {
          int64_t first = g * groupElements, last = std::min(first + groupElements, padded);
          SmallVector<Value> start(count, k.integer(i32s, 0));
          SmallVector<Value> products = k.loop(
              k.index(first), k.index(last), unroll, start, [&](Value d, ValueRange carried) {
                SmallVector<Value> next(carried);
                Value place = k.offset(base, k.mul(k.div(d, perLoad), 32));
                prefetch(place, unroll / perLoad * 32);
                for (int64_t i = 0; i < unroll; i += perLoad)
                  for (auto [part, words] :
                       llvm::enumerate(loadWords(keys, k.offset(place, i / perLoad * 32))))
                    for (int64_t q = 0; q < count; ++q) {
                      Value from =
                          k.offset(queries, ((begin + q) * padded + i + 2 * int64_t(part)) * 2);
                      Value pair = k.load(k.i32(), at(from, d, 2), 4);
                      next[q] = k.multiplyAddPairs(next[q], words, pair);
                    }
                return next;
              });
          Value place =
              k.offset(tileBase, k.add(k.mul(half, kLanes * 2), formats::cacheScaleByte(keys, g)));
          Value scale = k.widen(k.load(k.vec(kLanes, k.f16()), place, 32));
          for (int64_t q = 0; q < count; ++q)
            scores[q] = k.fma(k.toFloat(products[q]), scale, scores[q]);
        }
      }
      for (int64_t q = 0; q < count; ++q) {
        Value factor = k.load(k.f32(), k.offset(factors, (begin + q) * 4), 4);
        Value to = at(k.offset(exponents, (begin + q) * cacheBlock * 4), firstLane, 4);
        k.store(k.mulF(scores[q], splat(factor)), to, 64);
      }
    }
  });
}

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

Value AttentionKernel::attended(Value first, Value lane) {
  Value number = k.add(first, lane);
  auto before = [&](Value position) {
    return k.firstLanes(kLanes, k.max(k.sub(position, number), k.index(0)));
  };
  Value exist = before(k.add(last, 1));
  if (!op.getWindow())
    return exist;
  Value ones = k.firstLanes(kLanes, k.index(kLanes));
  return arith::AndIOp::create(k.b, k.loc, exist,
                               arith::XOrIOp::create(k.b, k.loc, before(oldest), ones));
}

/// Scales of a tile's values, 0 for positions that are not attended to, and bounds of their
/// logarithms.
void AttentionKernel::readScales(Value tileBase, Value tile, Value first) {
  for (int64_t half = 0; half < 2; ++half) {
    Value lane = k.add(k.mul(tile, cacheTile), half * int64_t(kLanes));
    Value mask = attended(first, lane);
    Value greatest;
    for (int64_t g = 0; g < values.groups(); ++g) {
      int64_t place = formats::cacheScaleByte(values, g) + half * kLanes * 2;
      Value scale = k.widen(k.load(k.vec(kLanes, k.f16()), k.offset(tileBase, place), 32));
      scale = k.select(mask, scale, zeros());
      k.store(scale, at(k.offset(scales, g * cacheBlock * 4), lane, 4), 64);
      greatest = greatest ? k.maxF(greatest, scale) : scale;
    }
    Value bound = k.fma(k.toFloat(k.bitcast(greatest, i32s)), k.number(f32s, 0x1p-23),
                        k.number(f32s, formats::cacheScaleExponentOffset));
    k.store(bound, at(bounds, lane, 4), 64);
  }
}

void AttentionKernel::softmax(Value query) {
  bool integers = values.encoding.isInteger();
  Value from = at(exponents, query, cacheBlock * 4);
  Value greatest = k.number(f32s, -1e29);
  Values t;
  for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
    t.push_back(k.load(f32s, k.offset(from, lane * 4), 64));
    Value reach = t.back();
    if (integers)
      reach = k.addF(reach, k.load(f32s, k.offset(bounds, lane * 4), 64));
    greatest = k.maxF(reach, greatest);
  }
  Value own = k.reduce(greatest, [&](Value x, Value y) { return k.maxF(x, y); });
  Value state = k.mul(query, 4);
  Value before = k.load(k.f32(), k.offset(references, state), 4);
  Value reference = k.maxF(own, before);
  k.store(reference, k.offset(references, state), 4);
  Value keep = k.exp2(k.subF(before, reference));
  Value unit = integers ? k.exp2(k.subF(own, reference)) : Value();
  if (!integers)
    own = reference;
  Value sum = zeros();
  for (auto [i, exponent] : llvm::enumerate(t)) {
    int64_t lane = static_cast<int64_t>(i) * kLanes;
    Value p = k.exp2(k.subF(exponent, splat(own)));
    Value added = p;
    if (!integers) {
      bool bf16 = values.encoding.element == CacheEncoding::Element::BF16;
      Type element = bf16 ? Type(k.b.getBF16Type()) : k.f16();
      Value rounded = k.widen(k.narrow(p, element));
      if (bf16) // a sum of two
        rounded = k.addF(rounded, k.widen(k.narrow(k.subF(p, rounded), element)));
      k.store(rounded, k.offset(from, lane * 4), 64);
    }
    for (int64_t g = 0; integers && g < values.groups(); ++g) {
      Value scale = k.load(f32s, k.offset(scales, (g * cacheBlock + lane) * 4), 64);
      // A scale that is not a number must not be lost in an integer.
      added = k.fma(scale, zeros(), added);
      // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
      Value fixed = k.bitcast(k.fma(p, scale, k.number(f32s, 12582912.0)), i32s);
      Value to = at(k.offset(weights, (g * group * cacheBlock + lane) * 2), query, cacheBlock * 2);
      k.store(k.truncate(fixed, k.i16()), to, 32);
    }
    sum = k.addF(sum, added);
  }
  Value place = k.offset(sums, state), total = k.sumLanes(sum);
  Value older = k.mulF(k.load(k.f32(), place, 4), keep);
  k.store(integers ? k.fma(total, unit, older) : k.addF(older, total), place, 4);
  k.store(keep, k.offset(keeps, state), 4);
  if (integers)
    k.store(unit, k.offset(units, state), 4);
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

void AttentionKernel::addIntegers(Value tilesBase, Value firstTile, Value tileCount,
                                  int64_t firstQuery, int64_t count) {
  int64_t padded = values.paddedDim(), bits = values.encoding.bits();
  int64_t perLoad = bits == 8 ? 1 : 2; // blocks of 16 elements that a load has
  int64_t blocks = padded / kLanes;
  // Loads at a time: all of one group of scales.
  int64_t groupElements =
      values.encoding.group == CacheEncoding::head ? padded : values.encoding.groupElements(dim);
  int64_t together =
      bits == 8 && count <= 4 && k.isa != Isa::Avx2 && groupElements >= 32 && blocks % 2 == 0 ? 2
                                                                                              : 1;
  int64_t pairBytes = 2 * padded * bits / 8, sumsPerQuery = together * perLoad;
  for (int64_t block = 0; block < blocks; block += sumsPerQuery) {
    int64_t g = block * kLanes / groupElements;
    if (g >= values.groups())
      continue; // elements that only pad
    SmallVector<Value> start(count * sumsPerQuery, k.integer(i32s, 0));
    SmallVector<Value> integers =
        k.loop(firstTile, tileCount, 1, start, [&](Value tile, ValueRange outer) {
          Value base = k.offset(at(tilesBase, tile, values.tileBytes()), block / perLoad * 32);
          Value weightBase = k.offset(at(weights, tile, cacheTile * 2),
                                      ((g * group + firstQuery) * cacheBlock) * 2);
          constexpr int64_t unroll = 4;
          return k.loop(
              k.index(0), k.index(cacheTile / 2), unroll, outer,
              [&](Value pair, ValueRange carried) {
                SmallVector<Value> next(carried);
                for (int64_t u = 0; u < unroll; ++u) {
                  Value place = k.offset(at(base, pair, pairBytes), u * pairBytes);
                  if (firstQuery == 0)
                    k.prefetch(k.outside(place, k.index(kAhead)), /*locality=*/3);
                  SmallVector<Value> words;
                  for (int64_t load = 0; load < together; ++load)
                    llvm::append_range(words, loadWords(values, k.offset(place, load * 32)));
                  for (int64_t q = 0; q < count; ++q) {
                    Value from = k.offset(at(weightBase, pair, 4), q * cacheBlock * 2 + u * 4);
                    Value two = k.load(k.i32(), from, 4);
                    for (auto [i, word] : llvm::enumerate(words)) {
                      Value &sum = next[q * sumsPerQuery + static_cast<int64_t>(i)];
                      sum = k.multiplyAddPairs(sum, word, two);
                    }
                  }
                }
                return next;
              });
        });
    for (int64_t q = 0; q < count; ++q) {
      Value keep = splat(k.load(k.f32(), k.offset(keeps, (firstQuery + q) * 4), 4));
      Value unit = splat(k.load(k.f32(), k.offset(units, (firstQuery + q) * 4), 4));
      for (int64_t i = 0; i < sumsPerQuery; ++i) {
        Value place = k.offset(outputs, ((firstQuery + q) * padded + (block + i) * kLanes) * 4);
        Value older = k.mulF(k.load(f32s, place, 64), keep);
        k.store(k.fma(k.toFloat(integers[q * sumsPerQuery + i]), unit, older), place, 64);
      }
    }
  }
}

void AttentionKernel::addFloats(Value tilesBase, Value begin, Value end, int64_t firstQuery,
                                int64_t count) {
  int64_t padded = values.paddedDim(), bytes = values.encoding.bits() / 8;
  int64_t blocks = padded / kLanes;
  int64_t registers = k.isa == Isa::Avx2 ? 4 : 16;
  int64_t together = std::max<int64_t>(1, registers / count);
  for (int64_t block = 0; block < blocks; block += together) {
    int64_t n = std::min(together, blocks - block);
    auto slot = [&](int64_t q, int64_t i) {
      return k.offset(outputs, ((firstQuery + q) * padded + (block + i) * kLanes) * 4);
    };
    SmallVector<Value> start;
    for (int64_t q = 0; q < count; ++q) {
      Value keep = splat(k.load(k.f32(), k.offset(keeps, (firstQuery + q) * 4), 4));
      for (int64_t i = 0; i < n; ++i)
        start.push_back(k.mulF(k.load(f32s, slot(q, i), 64), keep));
    }
    // Other positions are not read: whatever is there, it may be NaN.
    SmallVector<Value> after = k.loop(begin, end, 1, start, [&](Value number, ValueRange carried) {
      // `number` counts positions; tiles follow each other with scales between them.
      Value tile = at(tilesBase, k.div(number, cacheTile), values.tileBytes());
      Value place =
          k.offset(at(tile, k.rem(number, cacheTile), padded * bytes), block * kLanes * bytes);
      SmallVector<Value> next(carried), elements;
      for (int64_t i = 0; i < n; ++i) {
        Value from = k.offset(place, i * kLanes * bytes);
        if (firstQuery == 0 && i * kLanes * bytes % kLine == 0)
          k.prefetch(k.outside(from, k.index(kAhead)), /*locality=*/3);
        elements.push_back(loadElements(values, from));
      }
      for (int64_t q = 0; q < count; ++q) {
        Value weight = k.load(
            k.f32(), at(k.offset(exponents, (firstQuery + q) * cacheBlock * 4), number, 4), 4);
        for (int64_t i = 0; i < n; ++i)
          next[q * n + i] = k.fma(elements[i], splat(weight), next[q * n + i]);
      }
      return next;
    });
    for (int64_t q = 0; q < count; ++q)
      for (int64_t i = 0; i < n; ++i)
        k.store(after[q * n + i], slot(q, i), 64);
  }
}

//===----------------------------------------------------------------------===//
// The kernel
//===----------------------------------------------------------------------===//

void AttentionKernel::finish() {
  int64_t padded = values.paddedDim(), width = heads * group * dim;
  k.loop(k.index(0), k.index(group), 1, [&](Value query) {
    Value sum = splat(k.load(k.f32(), at(sums, query, 4), 4));
    Value first = k.add(k.mul(token, width), k.mul(k.add(k.mul(head, group), query), dim));
    Value to = at(interface.resultPointer(0), first, 2), from = at(outputs, query, padded * 4);
    for (int64_t d = 0; d < dim; d += kLanes) {
      Value mask = d + kLanes <= dim ? Value() : k.firstLanes(kLanes, k.index(dim - d));
      Value y = k.divF(k.load(f32s, k.offset(from, d * 4), 64), sum);
      k.store(k.narrow(y, k.f16()), k.offset(to, d * 2), 2, mask);
    }
  });
}

LogicalResult AttentionKernel::emit(Value begin, Value end) {
  int64_t keyPadded = keys.paddedDim(), valuePadded = values.paddedDim();
  queries = k.scratch(group * keyPadded * (keys.encoding.isInteger() ? 2 : 4));
  factors = k.scratch(group * 4);
  row = k.scratch(std::max(keyPadded, valuePadded) * 4);
  exponents = k.scratch(group * cacheBlock * 4);
  outputs = k.scratch(group * valuePadded * 4);
  for (Value *array : {&references, &sums, &keeps, &units})
    *array = k.scratch(group * 4);
  if (values.encoding.isInteger()) {
    scales = k.scratch(values.groups() * cacheBlock * 4);
    bounds = k.scratch(cacheBlock * 4);
    weights = k.scratch(values.groups() * group * cacheBlock * 2);
  }
  LogicalResult result = success();
  k.loop(begin, end, 1, [&](Value item) {
    token = k.div(item, heads);
    head = k.rem(item, heads);
    // The runtime checks positions; a wrong one must not reach memory outside the cache.
    Value position =
        k.load(k.i32(), k.offset(interface.pointer(op.getPositions()), k.mul(token, 4)), 4);
    position =
        k.max(k.min(position, k.integer(k.i32(), keys.positions - 1)), k.integer(k.i32(), 0));
    last = k.extend(position, k.i64());
    Value firstBlock = k.index(0);
    if (std::optional<uint64_t> window = op.getWindow()) {
      oldest = k.max(k.sub(last, static_cast<int64_t>(*window) - 1), k.index(0));
      firstBlock = k.sub(oldest, k.rem(oldest, cacheBlock));
    }
    Value number = keys.sequences == 1 ? head : item;
    Value keyBase = at(interface.cachePointer(op.getKeysAttr()), number, keys.headBytes());
    Value valueBase = at(interface.cachePointer(op.getValuesAttr()), number, values.headBytes());

    Value query = op.getQuery();
    if (appends) {
      Block &prologue = op.getPrologue().front();
      query = cast<fused::YieldOp>(prologue.getTerminator()).getValues().front();
      for (auto append : prologue.getOps<model::CacheAppendOp>()) {
        bool isKey = append.getCacheAttr() == op.getKeysAttr();
        if (!isKey && append.getCacheAttr() != op.getValuesAttr())
          result = append.emitOpError()
                   << "in a prologue appends to a cache that attention does not read";
        const CacheShape &shape = isKey ? keys : values;
        if (failed(result) || failed(evaluate(append.getInput(), head, heads, shape.paddedDim()))) {
          result = failure();
          return;
        }
        store(shape, isKey ? keyBase : valueBase);
      }
    }
    k.loop(k.index(0), k.index(group), 1, [&](Value q) {
      if (failed(result) ||
          failed(evaluate(query, k.add(k.mul(head, group), q), heads * group, keyPadded))) {
        result = failure();
        return;
      }
      prepareQuery(q);
      k.store(k.number(k.f32(), -1e30), at(references, q, 4), 4);
      k.store(k.number(k.f32(), 0.0), at(sums, q, 4), 4);
      for (int64_t d = 0; d < valuePadded; d += kLanes)
        k.store(zeros(), k.offset(at(outputs, q, valuePadded * 4), d * 4), 64);
    });
    if (failed(result))
      return;

    Value lowest = k.number(f32s, -std::numeric_limits<double>::infinity());
    k.loop(firstBlock, k.add(last, 1), cacheBlock, [&](Value first) {
      Value firstTile = k.div(first, cacheTile);
      Value count = k.min(k.sub(k.add(last, 1), first), k.index(cacheBlock));
      Value tiles = k.div(k.add(count, cacheTile - 1), cacheTile);
      Value keyTiles = at(keyBase, firstTile, keys.tileBytes());
      Value valueTiles = at(valueBase, firstTile, values.tileBytes());
      Value behind = oldest ? k.max(k.sub(oldest, first), k.index(0)) : k.index(0);
      Value firstOfTiles = oldest ? k.div(behind, cacheTile) : behind;
      k.loop(firstOfTiles, tiles, 1, [&](Value tile) {
        scoresOf(at(keyTiles, tile, keys.tileBytes()), tile);
        if (values.encoding.isInteger())
          readScales(at(valueTiles, tile, values.tileBytes()), tile, first);
      });
      // The block's positions that are not attended to, if there are any.
      Value isPartial = k.less(count, k.index(cacheBlock));
      if (oldest)
        isPartial = arith::OrIOp::create(k.b, k.loc, isPartial, k.less(first, oldest));
      k.ifElse(
          isPartial,
          [&] {
            for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
              Value mask = attended(first, k.index(lane));
              k.loop(k.index(0), k.index(group), 1, [&](Value q) {
                Value place = k.offset(at(exponents, q, cacheBlock * 4), lane * 4);
                k.store(k.select(mask, k.load(f32s, place, 64), lowest), place, 64);
              });
              if (!values.encoding.isInteger())
                continue;
              Value place = k.offset(bounds, lane * 4);
              k.store(k.select(mask, k.load(f32s, place, 64), zeros()), place, 64);
              for (int64_t g = 0; g < values.groups(); ++g) {
                place = k.offset(scales, (g * cacheBlock + lane) * 4);
                k.store(k.select(mask, k.load(f32s, place, 64), zeros()), place, 64);
              }
            }
          },
          [] {});
      k.loop(k.index(0), k.index(group), 1, [&](Value q) { softmax(q); });
      for (int64_t q = 0; q < group; q += queryTile()) {
        int64_t n = std::min(queryTile(), group - q);
        if (values.encoding.isInteger())
          addIntegers(valueTiles, firstOfTiles, tiles, q, n);
        else
          addFloats(valueTiles, behind, count, q, n);
      }
    });
    finish();
  });
  return result;
}

FailureOr<int64_t> sluice::host::emitAttention(KernelBuilder &k, fused::AttentionOp op,
                                               const KernelInterface &interface, Value begin,
                                               Value end) {
  AttentionKernel kernel(k, op, interface);
  if (failed(kernel.plan()) || failed(kernel.emit(begin, end)))
    return failure();
  return kernel.items();
}
