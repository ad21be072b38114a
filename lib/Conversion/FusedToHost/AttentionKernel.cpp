// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of all query heads of one key/value head, a block of 64 positions at a time: scores,
// softmax, weighted sums. Each key and value is read once for all of them.
//
// Lanes are 16 positions of keys, or 16 elements of values (CacheLayout.h), so that nothing is
// added across lanes. Integer keys and values are multiplied as 16-bit words, two at a time, by
// queries and softmax weights that are such words; sums are exact.

#include "ActiveTokens.h"
#include "AttentionPrologue.h"

#include "dialects/Model/Semantics.h"
#include "sluice/Formats/Activations.h"
#include "sluice/Formats/CacheLayout.h"

#include <array>
#include <cmath>
#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::cacheBlock;
using formats::CacheEncoding;
using formats::CacheShape;
using formats::cacheTile;

static constexpr int64_t kLine = 64;
/// Queries whose softmax is computed together.
static constexpr int64_t kSoftmaxQueries = 4;

namespace {
class AttentionKernel {
public:
  using Values = SmallVector<Value>;

  AttentionKernel(KernelBuilder &k, fused::AttentionOp op, const KernelInterface &interface)
      : k(k), op(op), interface(interface), prologue(k, op, interface),
        f32s(k.vec(kLanes, k.f32())), i32s(k.vec(kLanes, k.i32())) {}

  LogicalResult plan();
  LogicalResult emit(Value begin, Value end);
  int64_t items() const { return tokens * heads; }

private:
  /// Query heads whose sums stay in registers together.
  int64_t queryTile() const { return std::min<int64_t>(group, k.isa == Isa::Avx2 ? 4 : 8); }
  Value at(Value base, Value index, int64_t bytes) { return k.offset(base, k.mul(index, bytes)); }
  Value splat(Value scalar) { return k.splat(scalar, kLanes); }
  /// A score as an exponent of 2, after the soft cap.
  Value capped(Value exponent);
  Value zeros() { return k.number(f32s, 0.0); }

  void prepareQuery(Value query);

  /// Asks for what lies a block after `bytes` bytes at `place`. A block of values is read in
  /// several passes, so that nearer ones would be needed too soon.
  void prefetchNext(const CacheShape &shape, Value place, int64_t bytes) {
    int64_t ahead = cacheBlock / cacheTile * shape.tileBytes();
    for (int64_t byte = 0; byte < bytes; byte += kLine)
      k.prefetch(k.outside(place, k.index(ahead + byte)), /*locality=*/3);
  }
  /// `count` registers of a float cache as float32, those of E4M3 divided by 256: 16 positions of
  /// neighbouring elements of keys, or 16 neighbouring elements of values each. They begin at
  /// number `first`, counted from `base`; of E4M3 it is even and so is `count`, or `count` is 1.
  Values loadElements(const CacheShape &shape, Value base, int64_t first, int64_t count);
  /// The operands in `lanes` lanes of a line of an integer cache, 2 or 4.
  Values loadWords(const CacheShape &shape, Value place, int64_t lanes);
  /// Into how many sums the terms of each of `sums` sums go in turn, so that the multiply-adds that
  /// wait for each other do not set the pace.
  int64_t chains(int64_t sums, bool integers) const;
  /// Which of 16 positions from `lane` of the block that begins at `first` are attended to.
  Value attended(Value first, Value lane);
  void scoresOf(Value tileBase, Value tile);
  void readScales(Value tileBase, Value tile, Value first);
  void softmax(int64_t firstQuery, int64_t count);
  void addIntegers(Value tilesBase, Value firstTile, Value tileCount, int64_t firstQuery,
                   int64_t queries);
  void addFloats(Value tilesBase, Value begin, Value end, int64_t firstQuery, int64_t queries);
  void finish();

  KernelBuilder &k;
  fused::AttentionOp op;
  const KernelInterface &interface;
  AttentionPrologue prologue;
  VectorType f32s, i32s;
  CacheShape keys, values;
  bool appends = false;
  int64_t tokens = 0, dim = 0, heads = 0, group = 0;
  Value token, head, last;
  Value oldest; ///< the first position of the window, if there is one
  /// Stack memory. Queries: [group][padded] int16 and [group] factors from integers to exponents,
  /// or [group][padded] float32. Float32: exponents [group][64]; of values outputs
  /// [group][padded], scales [groups][64], bounds of their logarithms and NaN or 0 [64]; reference
  /// points, sums of weights, what older outputs and this block's are multiplied by [group].
  /// Weights: [groups] [group][64] int16, or exponents' place.
  Value queries, factors, exponents, outputs, scales, bounds, poisons, weights, references, sums,
      keeps, units;
};
} // namespace

LogicalResult AttentionKernel::plan() {
  if (failed(prologue.plan()))
    return failure();
  keys = prologue.keys;
  values = prologue.values;
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
// Queries
//===----------------------------------------------------------------------===//

void AttentionKernel::prepareQuery(Value query) {
  double scale = op.getScale().convertToDouble() * 1.44269504088896341;
  int64_t padded = keys.paddedDim();
  CacheEncoding encoding = keys.encoding;
  Value to = at(queries, query, padded * (encoding.isInteger() ? 2 : 4));
  if (!encoding.isInteger()) {
    Type element =
        encoding.element == CacheEncoding::Element::BF16 ? Type(k.b.getBF16Type()) : k.f16();
    for (int64_t d = 0; d < padded; d += kLanes) {
      Value x = k.load(f32s, k.offset(prologue.row, d * 4), 64);
      Value rounded = k.widen(k.narrow(x, element));
      if (encoding.element == CacheEncoding::Element::BF16) // a sum of two
        rounded = k.addF(rounded, k.widen(k.narrow(k.subF(x, rounded), element)));
      k.store(rounded, k.offset(to, d * 4), 4);
    }
    double divisor =
        encoding.element == CacheEncoding::Element::E4M3 ? KernelBuilder::e4m3Divisor : 1;
    k.store(k.number(k.f32(), scale * divisor), at(factors, query, 4), 4);
    return;
  }
  Value bits = prologue.greatestMagnitude(0, padded);
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
    Value x = k.load(f32s, k.offset(prologue.row, d * 4), 64);
    x = k.select(splat(usable), x, zeros());
    Value rounded = k.roundToInt(k.mulF(x, splat(inverse)));
    k.store(k.truncate(rounded, k.i16()), k.offset(to, d * 2), 2);
  }
}

//===----------------------------------------------------------------------===//
// Scores
//===----------------------------------------------------------------------===//

SmallVector<Value> AttentionKernel::loadElements(const CacheShape &shape, Value base, int64_t first,
                                                 int64_t count) {
  Values result;
  if (shape.encoding.element != CacheEncoding::Element::E4M3) {
    bool bf16 = shape.encoding.element == CacheEncoding::Element::BF16;
    for (int64_t i = first; i < first + count; ++i)
      result.push_back(k.loadFloats(kLanes, bf16 ? Type(k.b.getBF16Type()) : k.f16(),
                                    k.offset(base, i * kLanes * 2), 32));
    return result;
  }
  // 16 words are the codes of two registers. 32 are taken apart together.
  for (int64_t i = first / 2 * 2; i < first + count;) {
    int64_t pairs = i + 4 <= first + count ? 2 : 1;
    Value words = k.load(k.vec(pairs * kLanes, k.i16()), k.offset(base, i * kLanes), 32);
    std::array<Value, 2> halves;
    for (bool high : {false, true})
      if (count > 1 || first % 2 == high)
        halves[high] = k.decodeE4M3Words(words, high);
    for (int64_t pair = 0; pair < pairs; ++pair)
      for (Value half : halves)
        if (half)
          result.push_back(k.widen(k.slice(half, pair * kLanes, kLanes)));
    i += 2 * pairs;
  }
  return result;
}

SmallVector<Value> AttentionKernel::loadWords(const CacheShape &shape, Value place, int64_t lanes) {
  int64_t bits = shape.encoding.bits();
  Value words = k.load(k.vec(2 * lanes, k.i16()), place, 4 * lanes);
  Values result;
  for (int64_t shift = 16 - bits; shift > 0; shift -= bits)
    result.push_back(k.sar(k.shl(words, shift), 16 - bits));
  result.push_back(k.sar(words, 16 - bits));
  return result;
}

int64_t AttentionKernel::chains(int64_t sums, bool integers) const {
  // Where products and sums are two instructions, only the fast one is in the chain.
  if (integers && k.isa != Isa::Avx512Vnni)
    return 1;
  int64_t registers = k.isa == Isa::Avx2 ? 4 : 16;
  return std::clamp<int64_t>(llvm::bit_floor<uint64_t>(registers / sums), 1, 4);
}

/// Exponents of 2 of the 32 positions of a tile, number `tile` (0 or 1) of the block.
void AttentionKernel::scoresOf(Value tileBase, Value tile) {
  CacheEncoding encoding = keys.encoding;
  int64_t padded = keys.paddedDim(), halfBytes = keys.tileCodeBytes() / 2;
  // Vectors of 16 positions that are computed together, so that they share the query's loads.
  int64_t halves = k.isa == Isa::Avx2 ? 1 : 2;
  k.loop(k.index(0), k.index(2), halves, [&](Value half) {
    Value base = at(tileBase, half, halfBytes);
    for (int64_t begin = 0; begin < group; begin += queryTile()) {
      int64_t count = std::min(queryTile(), group - begin), sums = count * halves;
      int64_t parts = chains(sums, encoding.isInteger());
      auto prefetch = [&](Value place, int64_t bytes) {
        for (int64_t h = 0; begin == 0 && h < halves; ++h)
          prefetchNext(keys, k.offset(place, h * halfBytes), bytes);
      };
      // Of the sums, those of one chain lie together, in them those of a query.
      auto addChains = [&](Values all) {
        Values total(all.begin(), all.begin() + sums);
        for (int64_t i = sums; i < sums * parts; ++i)
          total[i % sums] = encoding.isInteger() ? k.add(total[i % sums], all[i])
                                                 : k.addF(total[i % sums], all[i]);
        return total;
      };
      Values scores(sums, zeros());
      if (!encoding.isInteger()) {
        int64_t bytes = encoding.bits() / 8, unroll = 4;
        SmallVector<Value> start(sums * parts, zeros());
        scores = addChains(
            k.loop(k.index(0), k.index(padded), unroll, start, [&](Value d, ValueRange carried) {
              Values next(carried);
              Value place = at(base, d, kLanes * bytes);
              prefetch(place, unroll * kLanes * bytes);
              SmallVector<Values> x;
              for (int64_t h = 0; h < halves; ++h)
                x.push_back(loadElements(keys, k.offset(place, h * halfBytes), 0, unroll));
              for (int64_t i = 0; i < unroll; ++i)
                for (int64_t q = 0; q < count; ++q) {
                  Value from = k.offset(queries, ((begin + q) * padded + i) * 4);
                  Value y = splat(k.load(k.f32(), at(from, d, 4), 4));
                  for (int64_t h = 0; h < halves; ++h) {
                    Value &sum = next[i % parts * sums + q * halves + h];
                    sum = k.fma(x[h][i], y, sum);
                  }
                }
              return next;
            }));
      } else {
        int64_t lineElements = 32 / encoding.bits(), unroll = 16;
        int64_t groupElements =
            encoding.group == CacheEncoding::head ? padded : encoding.groupElements(dim);
        for (int64_t g = 0; g < keys.groups(); ++g) {
          int64_t first = g * groupElements, last = std::min(first + groupElements, padded);
          SmallVector<Value> start(sums * parts, k.integer(i32s, 0));
          Values products = addChains(k.loop(
              k.index(first), k.index(last), unroll, start, [&](Value d, ValueRange carried) {
                Values next(carried);
                Value place = k.offset(base, k.mul(k.div(d, lineElements), kLine));
                prefetch(place, unroll / lineElements * kLine);
                for (int64_t line = 0; line < unroll / lineElements; ++line) {
                  SmallVector<Values> words;
                  for (int64_t h = 0; h < halves; ++h)
                    words.push_back(
                        loadWords(keys, k.offset(place, line * kLine + h * halfBytes), kLanes));
                  for (int64_t i = 0; i < lineElements / 2; ++i)
                    for (int64_t q = 0; q < count; ++q) {
                      int64_t element = line * lineElements + 2 * i;
                      Value from = k.offset(queries, ((begin + q) * padded + element) * 2);
                      Value pair = k.load(k.i32(), at(from, d, 2), 4);
                      for (int64_t h = 0; h < halves; ++h) {
                        Value &sum = next[element / 2 % parts * sums + q * halves + h];
                        sum = k.multiplyAddPairs(sum, words[h][i], pair);
                      }
                    }
                }
                return next;
              }));
          Value place =
              k.offset(tileBase, k.add(k.mul(half, kLanes * 2), formats::cacheScaleByte(keys, g)));
          if (begin == 0)
            prefetchNext(keys, place, halves * kLanes * 2);
          for (int64_t h = 0; h < halves; ++h) {
            Value scale =
                k.widen(k.load(k.vec(kLanes, k.f16()), k.offset(place, h * kLanes * 2), 32));
            for (int64_t q = 0; q < count; ++q) {
              Value &score = scores[q * halves + h];
              score = k.fma(k.toFloat(products[q * halves + h]), scale, score);
            }
          }
        }
      }
      Value lane = k.add(k.mul(tile, cacheTile), k.mul(half, int64_t(kLanes)));
      for (int64_t q = 0; q < count; ++q) {
        Value factor = splat(k.load(k.f32(), k.offset(factors, (begin + q) * 4), 4));
        Value to = at(k.offset(exponents, (begin + q) * cacheBlock * 4), lane, 4);
        for (int64_t h = 0; h < halves; ++h)
          k.store(capped(k.mulF(scores[q * halves + h], factor)), k.offset(to, h * kLanes * 4), 64);
      }
    }
  });
}

Value AttentionKernel::capped(Value exponent) {
  std::optional<APFloat> cap = op.getSoftCap();
  return cap ? model::softCapped(k, exponent, cap->convertToDouble() * 1.44269504088896341)
             : exponent;
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

/// Scales of a tile's values, 0 for positions that are not attended to, bounds of their logarithms,
/// and what must not be lost in an integer: NaN of positions with a scale that is not a number.
void AttentionKernel::readScales(Value tileBase, Value tile, Value first) {
  for (int64_t half = 0; half < 2; ++half) {
    Value lane = k.add(k.mul(tile, cacheTile), half * int64_t(kLanes));
    Value mask = attended(first, lane);
    Value greatest, poison = zeros();
    for (int64_t g = 0; g < values.groups(); ++g) {
      int64_t place = formats::cacheScaleByte(values, g) + half * kLanes * 2;
      if (half == 0)
        prefetchNext(values, k.offset(tileBase, place), cacheTile * 2);
      Value scale = k.widen(k.load(k.vec(kLanes, k.f16()), k.offset(tileBase, place), 32));
      scale = k.select(mask, scale, zeros());
      k.store(scale, at(k.offset(scales, g * cacheBlock * 4), lane, 4), 64);
      Value magnitude = values.encoding.hasSignedScale() ? k.absF(scale) : scale;
      greatest = greatest ? k.maxF(greatest, magnitude) : magnitude;
      poison = k.fma(scale, zeros(), poison);
    }
    k.store(poison, at(poisons, lane, 4), 64);
    Value bound = k.fma(k.toFloat(k.bitcast(greatest, i32s)), k.number(f32s, 0x1p-23),
                        k.number(f32s, formats::cacheScaleExponentOffset));
    k.store(bound, at(bounds, lane, 4), 64);
  }
}

/// Queries are computed together, because each is a chain of instructions that wait for each other;
/// what there is one of a query is a lane.
void AttentionKernel::softmax(int64_t firstQuery, int64_t count) {
  bool integers = values.encoding.isInteger();
  VectorType lanes = k.vec(count, k.f32());
  auto gather = [&](ArrayRef<Value> scalars) -> Value {
    return vector::FromElementsOp::create(k.b, k.loc, lanes, scalars);
  };
  auto exponent = [&](int64_t q, int64_t lane) {
    return k.offset(exponents, ((firstQuery + q) * cacheBlock + lane) * 4);
  };
  auto state = [&](Value array) { return k.offset(array, firstQuery * 4); };
  Values own;
  for (int64_t q = 0; q < count; ++q) {
    Value greatest = k.number(f32s, -1e29);
    for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
      Value reach = k.load(f32s, exponent(q, lane), 64);
      if (integers)
        reach = k.addF(reach, k.load(f32s, k.offset(bounds, lane * 4), 64));
      greatest = k.maxF(reach, greatest);
    }
    own.push_back(k.reduce(greatest, [&](Value x, Value y) { return k.maxF(x, y); }));
  }
  Value reach = gather(own), before = k.load(lanes, state(references), 4);
  Value reference = k.maxF(reach, before);
  k.store(reference, state(references), 4);
  Value keep = k.exp2(k.subF(before, reference));
  k.store(keep, state(keeps), 4);
  Value unit;
  if (integers) {
    unit = k.exp2(k.subF(reach, reference));
    k.store(unit, state(units), 4);
  }
  Values sum(count, zeros());
  for (int64_t q = 0; q < count; ++q) {
    Value origin = splat(vector::ExtractOp::create(k.b, k.loc, integers ? reach : reference, q));
    for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
      Value p = k.exp2(k.subF(k.load(f32s, exponent(q, lane), 64), origin));
      Value added = integers ? k.addF(p, k.load(f32s, k.offset(poisons, lane * 4), 64)) : p;
      if (!integers) {
        bool bf16 = values.encoding.element == CacheEncoding::Element::BF16;
        Type element = bf16 ? Type(k.b.getBF16Type()) : k.f16();
        Value rounded = k.widen(k.narrow(p, element));
        if (bf16) // a sum of two
          rounded = k.addF(rounded, k.widen(k.narrow(k.subF(p, rounded), element)));
        k.store(rounded, exponent(q, lane), 64);
      }
      for (int64_t g = 0; integers && g < values.groups(); ++g) {
        Value scale = k.load(f32s, k.offset(scales, (g * cacheBlock + lane) * 4), 64);
        // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
        Value fixed = k.bitcast(k.fma(p, scale, k.number(f32s, 12582912.0)), i32s);
        int64_t place = ((g * group + firstQuery + q) * cacheBlock + lane) * 2;
        k.store(k.truncate(fixed, k.i16()), k.offset(weights, place), 32);
      }
      sum[q] = k.addF(sum[q], added);
    }
  }
  Values totals = llvm::map_to_vector(sum, [&](Value lanesOf) { return k.sumLanes(lanesOf); });
  Value total = gather(totals), older = k.mulF(k.load(lanes, state(sums), 4), keep);
  k.store(integers ? k.fma(total, unit, older) : k.addF(older, total), state(sums), 4);
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

void AttentionKernel::addIntegers(Value tilesBase, Value firstTile, Value tileCount,
                                  int64_t firstQuery, int64_t count) {
  constexpr int64_t linePositions = 4, unroll = 1;
  int64_t padded = values.paddedDim(), bits = values.encoding.bits();
  int64_t lineBlocks = bits == 8 ? 1 : 2; // blocks of 16 elements that a line has
  int64_t blocks = padded / kLanes, stride = linePositions * padded * bits / 8;
  int64_t groupElements =
      values.encoding.group == CacheEncoding::head ? padded : values.encoding.groupElements(dim);
  // The lanes of a line's operands that are one register.
  int64_t lanes = k.isa == Isa::Avx2 ? kLanes / 2 : kLanes;
  VectorType integers = k.vec(lanes, k.i32()), floats = k.vec(lanes, k.f32());
  for (int64_t block = 0; block < blocks; block += 2)
    for (int64_t lane = 0; lane < kLanes; lane += lanes) {
      int64_t together = std::min<int64_t>(2, blocks - block), lines = together / lineBlocks;
      int64_t g = block * kLanes / groupElements, sums = count * together;
      if (g >= values.groups())
        continue; // elements that only pad
      int64_t parts = std::min<int64_t>(2, chains(sums, true));
      SmallVector<Value> start(sums * parts, k.integer(integers, 0));
      Values added = k.loop(firstTile, tileCount, 1, start, [&](Value tile, ValueRange outer) {
        Value base = k.offset(at(tilesBase, tile, values.tileBytes()),
                              block / lineBlocks * kLine + lane * 4);
        Value weightBase =
            k.offset(at(weights, tile, cacheTile * 2), (g * group + firstQuery) * cacheBlock * 2);
        return k.loop(
            k.index(0), k.index(cacheTile / linePositions), unroll, outer,
            [&](Value number, ValueRange carried) {
              Values next(carried);
              for (int64_t u = 0; u < unroll; ++u) {
                Value place = k.offset(at(base, number, stride), u * stride);
                // words[block of elements][pair of positions]
                SmallVector<Values> words(together);
                for (int64_t line = 0; line < lines; ++line) {
                  Value from = k.offset(place, line * kLine);
                  if (firstQuery == 0 && lane == 0)
                    prefetchNext(values, from, kLine);
                  for (auto [i, operand] : llvm::enumerate(loadWords(values, from, lanes)))
                    words[line * lineBlocks + static_cast<int64_t>(i) % lineBlocks].push_back(
                        operand);
                }
                for (int64_t pair = 0; pair < linePositions / 2; ++pair)
                  for (int64_t q = 0; q < count; ++q) {
                    int64_t position = u * linePositions + 2 * pair;
                    Value from = k.offset(at(weightBase, number, linePositions * 2),
                                          (q * cacheBlock + position) * 2);
                    Value two = k.load(k.i32(), from, 4);
                    for (int64_t i = 0; i < together; ++i) {
                      Value &sum = next[pair % parts * sums + q * together + i];
                      sum = k.multiplyAddPairs(sum, words[i][pair], two);
                    }
                  }
              }
              return next;
            });
      });
      for (int64_t q = 0; q < count; ++q) {
        auto factor = [&](Value array) {
          return k.splat(k.load(k.f32(), k.offset(array, (firstQuery + q) * 4), 4), lanes);
        };
        Value keep = factor(keeps), unit = factor(units);
        for (int64_t i = 0; i < together; ++i) {
          Value sum = added[q * together + i];
          for (int64_t part = 1; part < parts; ++part)
            sum = k.add(sum, added[part * sums + q * together + i]);
          Value place =
              k.offset(outputs, ((firstQuery + q) * padded + (block + i) * kLanes + lane) * 4);
          Value older = k.mulF(k.load(floats, place, lanes * 4), keep);
          k.store(k.fma(k.toFloat(sum), unit, older), place, lanes * 4);
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
  if (values.encoding.element == CacheEncoding::Element::E4M3 && together > 1)
    together -= together % 2;
  for (int64_t block = 0; block < blocks; block += together) {
    int64_t n = std::min(together, blocks - block);
    k.emptyRegisters(); // of the constants of softmax
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
      Value vector = at(tile, k.rem(number, cacheTile), padded * bytes);
      SmallVector<Value> next(carried);
      if (firstQuery == 0)
        prefetchNext(values, k.offset(vector, block * kLanes * bytes), n * kLanes * bytes);
      Values elements = loadElements(values, vector, block, n);
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
    if (values.encoding.element == CacheEncoding::Element::E4M3)
      sum = k.mulF(sum, k.number(f32s, 1 / KernelBuilder::e4m3Divisor));
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
  prologue.row = k.scratch(prologue.rowBytes());
  exponents = k.scratch(group * cacheBlock * 4);
  outputs = k.scratch(group * valuePadded * 4);
  for (Value *array : {&references, &sums, &keeps, &units})
    *array = k.scratch(group * 4);
  if (values.encoding.isInteger()) {
    scales = k.scratch(values.groups() * cacheBlock * 4);
    bounds = k.scratch(cacheBlock * 4);
    poisons = k.scratch(cacheBlock * 4);
    weights = k.scratch(values.groups() * group * cacheBlock * 2);
  }
  LogicalResult result = success();
  if (op.getActive())
    std::tie(begin, end) = shareOf(
        k, k.mul(activeTokens(k, interface, op.getActive(), tokens), heads), begin, end, items());
  k.loop(begin, end, 1, [&](Value item) {
    token = k.div(item, heads);
    head = k.rem(item, heads);
    last = prologue.position(token);
    Value firstBlock = k.index(0);
    if (std::optional<uint64_t> window = op.getWindow()) {
      oldest = k.max(k.sub(last, static_cast<int64_t>(*window) - 1), k.index(0));
      firstBlock = k.sub(oldest, k.rem(oldest, cacheBlock));
    }
    Value number = keys.sequences == 1 ? head : item;
    Value keyBase = at(interface.cachePointer(op.getKeysAttr()), number, keys.headBytes());
    Value valueBase = at(interface.cachePointer(op.getValuesAttr()), number, values.headBytes());

    if (failed(prologue.append(token, head, last, keyBase, valueBase))) {
      result = failure();
      return;
    }
    k.loop(k.index(0), k.index(group), 1, [&](Value q) {
      if (failed(result) || failed(prologue.evaluate(prologue.query(), token,
                                                     k.add(k.mul(head, group), q), keyPadded))) {
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
              for (Value array : {bounds, poisons}) {
                Value place = k.offset(array, lane * 4);
                k.store(k.select(mask, k.load(f32s, place, 64), zeros()), place, 64);
              }
              for (int64_t g = 0; g < values.groups(); ++g) {
                Value place = k.offset(scales, (g * cacheBlock + lane) * 4);
                k.store(k.select(mask, k.load(f32s, place, 64), zeros()), place, 64);
              }
            }
          },
          [] {});
      for (int64_t q = 0; q < group; q += kSoftmaxQueries)
        softmax(q, std::min(kSoftmaxQueries, group - q));
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
