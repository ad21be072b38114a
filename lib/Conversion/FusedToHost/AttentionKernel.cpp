// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of all query heads of one key/value head, a block of 64 positions at a time: scores,
// softmax, weighted sums. Each key and value is read once for all of them.
//
// A prompt's tokens attend to the cache of their sequence (causal): the rows of a work item are
// then the query heads of several tokens, each up to its own position. Rows are computed in the
// same order of operations as a token's alone, so that the results have the same bits.
//
// Lanes are 16 positions of keys, or 16 elements of values (CacheLayout.h), so that nothing is
// added across lanes. Integer keys and values are multiplied as 16-bit words, two at a time, by
// queries and softmax weights that are such words; sums are exact.

#include "ActiveTokens.h"
#include "AttentionPrologue.h"

#include "dialects/Model/Semantics.h"
#include "sluice/Formats/Activations.h"

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
/// The two tiles of a block of 64 positions.
class BlockTiles {
public:
  BlockTiles(KernelBuilder &k, const kernels::HeadTiles &tiles, const CacheShape &shape,
             Value firstTile)
      : first(tiles.at(k, firstTile)), tileBytes(shape.tileBytes()) {
    if (!tiles.areInPages())
      return;
    auto tileAt = [&](int64_t ahead) {
      return tiles.at(k, k.min(k.add(firstTile, ahead), k.index(shape.tiles() - 1)));
    };
    second = tileAt(1);
    for (int64_t i = 0; i < 2; ++i)
      next[i] = tileAt(2 + i);
  }
  /// Tiles that follow each other.
  BlockTiles(const CacheShape &shape, Value first) : first(first), tileBytes(shape.tileBytes()) {}

  /// Tile `tile`, 0 or 1.
  Value at(KernelBuilder &k, Value tile) const {
    return second ? k.select(k.equal(tile, k.index(0)), first, second)
                  : k.at(first, tile, tileBytes);
  }
  /// Bytes from tile `tile` to its place in the next block; only to prefetch.
  Value ahead(KernelBuilder &k, Value tile) const {
    if (!second)
      return k.index(cacheBlock / cacheTile * tileBytes);
    auto address = [&](Value pointer) {
      return LLVM::PtrToIntOp::create(k.b, k.loc, k.i64(), pointer);
    };
    Value isFirst = k.equal(tile, k.index(0));
    return k.sub(address(k.select(isFirst, next[0], next[1])), address(at(k, tile)));
  }

private:
  Value first, second; ///< second: null if it follows the first
  Value next[2];
  int64_t tileBytes;
};

class AttentionKernel {
public:
  using Values = SmallVector<Value>;

  AttentionKernel(KernelBuilder &k, fused::AttentionOp op, const KernelInterface &interface)
      : k(k), op(op), interface(interface), prologue(k, op, interface),
        f32s(k.vec(kLanes, k.f32())), i32s(k.vec(kLanes, k.i32())) {}

  LogicalResult plan();
  LogicalResult emit(Value begin, Value end);
  int64_t items() const { return tokens * heads; }
  /// Queries of a work item: query heads of its tokens, [group][block].
  int64_t rows() const { return group * block; }

private:
  /// Query heads whose sums stay in registers together.
  int64_t queryTile() const { return std::min<int64_t>(group, k.isa == Isa::Avx2 ? 4 : 8); }
  Value at(Value base, Value index, int64_t bytes) { return k.offset(base, k.mul(index, bytes)); }
  Value splat(Value scalar) { return k.splat(scalar, kLanes); }
  /// Tokens whose sums stay in registers together.
  int64_t tokenTile() const { return k.isa == Isa::Avx2 ? 4 : 8; }
  Value rowOf(Value query, Value token) { return k.add(k.mul(query, block), token); }
  /// A score as an exponent of 2, after the soft cap.
  Value capped(Value exponent);
  Value zeros() { return k.number(f32s, 0.0); }

  void prepareQuery(Value query);
  /// Whether a cache is multiplied as bytes: a code of int4 is one without a sign, 8 too great, and
  /// what it is multiplied with two with a sign, a high and a low one, which a sum each belongs to.
  /// What 8 times the other operand adds is known before, and the sums start at less.
  bool hasBytes(const CacheShape &shape) const {
    return k.isa == Isa::Avx512Vnni && !causal && shape.encoding.isInteger() &&
           shape.encoding.bits() == 4 && group <= queryTile() && chains(2 * group, true) >= 2;
  }
  bool hasByteKeys() const { return hasBytes(keys); }
  /// Adding up the weights of several groups takes longer than bytes save.
  bool hasByteValues() const { return hasBytes(values) && values.groups() == 1; }
  /// Bytes of a position's weight, which as bytes lie as two vectors of four positions: high and
  /// low bytes of positions 0, 2, 1, 3, and eight more that nothing reads.
  int64_t weightBytes() const { return hasByteValues() ? 4 : 2; }
  /// Of a row and a group of elements, what its high bytes' sum starts at; that of the low bytes is
  /// the next.
  Value queryBias(Value row, int64_t g) {
    return k.offset(at(queryBiases, row, keys.groups() * 8), g * 8);
  }

  /// Asks for what lies a block, `ahead` bytes, after `bytes` bytes at `place`. A block of values
  /// is read in several passes, so that nearer ones would be needed too soon. What lies two blocks
  /// after is brought into the second cache: the first one can wait for few lines at once.
  void prefetchNext(Value ahead, Value place, int64_t bytes) {
    Value farther = k.mul(ahead, 2);
    for (int64_t byte = 0; byte < bytes; byte += kLine) {
      k.prefetch(k.outside(place, k.add(farther, byte)), /*locality=*/2);
      k.prefetch(k.outside(place, k.add(ahead, byte)), /*locality=*/3);
    }
  }
  /// `count` registers of a float cache as float32, those of E4M3 divided by 256: 16 positions of
  /// neighbouring elements of keys, or 16 neighbouring elements of values each. They begin at
  /// number `first`, counted from `base`; of E4M3 it is even and so is `count`, or `count` is 1.
  Values loadElements(const CacheShape &shape, Value base, int64_t first, int64_t count);
  /// The two operands of a line of an int4 cache, bytes: of keys elements 0, 4, 1, 5 and 2, 6, 3,
  /// 7, of values positions 0, 2, 1, 3 of each of two blocks of elements.
  std::array<Value, 2> loadBytes(Value place);
  /// Sums of high and low bytes as one.
  Value joinBytes(Value high, Value low) { return k.add(k.shl(high, 8), low); }
  /// The operands in `lanes` lanes of a line of an integer cache, 2 or 4.
  Values loadWords(const CacheShape &shape, Value place, int64_t lanes);
  int64_t keyGroupElements() const {
    return keys.encoding.group == CacheEncoding::head ? keys.paddedDim()
                                                      : keys.encoding.groupElements(dim);
  }
  /// Into how many sums the terms of each of `sums` sums go in turn, so that the multiply-adds that
  /// wait for each other do not set the pace.
  int64_t chains(int64_t sums, bool integers) const;
  /// Which of 16 positions from `number` on lie between `oldest`, if not null, and `last`.
  Value attended(Value number, Value last, Value oldest);
  void scoresOf(const BlockTiles &tiles, Value tile);
  /// Of `halves` vectors of positions from `half` on and of `count` rows. Prefetches with `ahead`,
  /// if it is not null.
  void scoresOf(Value tileBase, Value tile, Value half, int64_t halves, Value firstRow,
                int64_t count, int64_t parts, Value ahead);
  void readScales(const BlockTiles &tiles, Value tile, Value first);
  /// `maskOf` gives the lanes of a row that count; null: all.
  void softmax(Value firstRow, int64_t count,
               function_ref<Value(int64_t query, int64_t lane)> maskOf);
  /// Of 16 positions, whose weights are the low 16 bits of i32.
  void storeWeightBytes(Value fixed, Value place);
  void addIntegers(const BlockTiles &tiles, Value firstTile, Value tileCount, Value firstRow,
                   int64_t count, bool isFirst);
  /// `keeping` multiplies what was added before by its factor.
  void addFloats(const BlockTiles &tiles, Value begin, Value end, Value firstRow, int64_t count,
                 bool keeping, bool isFirst);
  void attendBlock(const kernels::HeadTiles &keyHead, const kernels::HeadTiles &valueHead,
                   Value first);
  /// Prepares a row to which `query` of `token` belongs.
  LogicalResult startRow(Value token, Value query, Value row);
  /// Writes the result of a token, whose rows are `block` apart from `firstRow` on.
  void finish(Value token, Value firstRow);
  /// Sets `oldest` to that of a position; returns the first position of its block.
  Value setOldest(Value position);
  /// The first position of the window that ends at one; null if there is no window.
  Value oldestOf(Value position);

  // Of a work item with several tokens.
  /// Tokens from `first` (counted in the item) on, whose positions are `position` to `last`. The
  /// first one's window begins at `oldest`.
  struct TokenTile {
    Value first, position, last, oldest;
  };
  LogicalResult emitCausal(Value begin, Value end);
  /// The `present` tokens from `firstToken` on, which are `sequence`'s.
  LogicalResult attendTile(Value firstToken, Value sequence);
  void attendBlockCausal(const kernels::HeadTiles &keyHead, const kernels::HeadTiles &valueHead,
                         Value first);
  /// Softmax and weighted sums.
  void mixCausal(const BlockTiles &valueTiles, Value first, Value firstRow, const TokenTile &tile);
  /// The position of a token of the item; of one that is not there, the last one's.
  Value positionOf(Value token);
  void forEachTokenTile(function_ref<void(const TokenTile &)> body);
  /// Converts tiles [first, count) of E4M3 to f16, in the order of a cache of those.
  BlockTiles toHalves(const CacheShape &shape, const CacheShape &read, const BlockTiles &tiles,
                      Value count, Value first, Value halves);

  KernelBuilder &k;
  fused::AttentionOp op;
  const KernelInterface &interface;
  AttentionPrologue prologue;
  VectorType f32s, i32s;
  CacheShape keys, values;
  /// As they are read: several tokens share what was converted from E4M3 to f16.
  CacheShape keysRead, valuesRead;
  Value keyHalves, valueHalves;
  bool appends = false, causal = false;
  /// `block` is how many tokens a work item has.
  int64_t tokens = 0, dim = 0, heads = 0, group = 0, block = 1;
  /// The greatest position that is attended to.
  Value head, last;
  /// Of several tokens: how many are there, the first one's position, the block's.
  Value present, firstPosition, blockFirst;
  Value oldest; ///< the first position of the window, if there is one
  /// Stack memory. Queries: [rows][padded] int16 (or for every 8 elements the high bytes, then the
  /// low ones, of each operand of bytes, and [rows][groups][2] biases) and [rows] factors from
  /// integers to exponents, or [rows][padded] float32. Float32: exponents [rows][64]; of values
  /// outputs [rows][padded], scales [groups][64], bounds of their logarithms and NaN or 0 [64];
  /// reference points, sums of weights, what older outputs and this block's are multiplied by
  /// [rows]. Weights: [groups][rows][64] int16 (or bytes, see weightBytes, and [rows] biases), or
  /// exponents' place.
  Value queries, queryBiases, factors, weightBiases, exponents, outputs, scales, bounds, poisons,
      weights, references, sums, keeps, units;
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
  causal = op.getActive() != nullptr;
  if (causal && keys.sequences != 1 && !op.getStarts())
    return op.emitOpError() << "attends to tokens of one sequence in caches of " << keys.sequences;
  keysRead = keys;
  valuesRead = values;
  if (causal) {
    // More would read less often what is in the cache anyway, but are less evenly divided.
    block = 8;
    for (CacheShape *shape : {&keysRead, &valuesRead})
      if (shape->encoding.element == CacheEncoding::Element::E4M3) {
        shape->dim = shape->paddedDim();
        shape->encoding.element = CacheEncoding::Element::F16;
      }
  }
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
  // Of every group of elements, the sums of high and of low bytes.
  SmallVector<std::array<Value, 2>> byteSums(keys.groups());
  for (int64_t d = 0; d < padded; d += kLanes) {
    Value x = k.load(f32s, k.offset(prologue.row, d * 4), 64);
    x = k.select(splat(usable), x, zeros());
    Value rounded = k.roundToInt(k.mulF(x, splat(inverse)));
    if (!hasByteKeys()) {
      k.store(k.truncate(rounded, k.i16()), k.offset(to, d * 2), 2);
      continue;
    }
    Value high = k.sar(k.add(rounded, 128), 8), low = k.sub(rounded, k.shl(high, 8));
    // Eight elements are four times four bytes: low nibbles' high and low ones, high nibbles'.
    SmallVector<int64_t> order;
    for (int64_t first = 0; first < kLanes; first += 8)
      for (int64_t nibble : {0, 2})
        for (int64_t byte : {int64_t(0), int64_t(kLanes)})
          for (int64_t element : {0, 4, 1, 5})
            order.push_back(byte + first + nibble + element);
    k.store(k.shuffle(k.truncate(high, k.i8()), k.truncate(low, k.i8()), order),
            k.offset(to, d * 2), 32);
    int64_t g = d / keyGroupElements();
    if (g >= keys.groups())
      continue; // elements that only pad
    for (auto [sum, bytes] : llvm::zip_equal(byteSums[g], std::array<Value, 2>{high, low}))
      sum = sum ? k.add(sum, bytes) : bytes;
  }
  for (int64_t g = 0; hasByteKeys() && g < keys.groups(); ++g)
    for (int64_t i = 0; i < 2; ++i) {
      Value sum = k.reduce(byteSums[g][i], [&](Value x, Value y) { return k.add(x, y); });
      k.store(k.mul(sum, -8), k.offset(queryBias(query, g), i * 4), 4);
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

std::array<Value, 2> AttentionKernel::loadBytes(Value place) {
  Value words = k.load(k.vec(2 * kLanes, k.i16()), place, kLine);
  std::array<Value, 2> result;
  for (auto [nibble, operand] : llvm::enumerate(result)) {
    Value codes = k.bitAnd(nibble ? k.shr(words, 4) : words, 0x0F0F);
    operand = k.bitcast(k.bitXor(codes, 0x0808), k.vec(4 * kLanes, k.i8()));
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
void AttentionKernel::scoresOf(const BlockTiles &tiles, Value tile) {
  Value tileBase = tiles.at(k, tile), ahead = causal ? Value() : tiles.ahead(k, tile);
  // Vectors of 16 positions that are computed together, so that they share the query's loads.
  int64_t halves = k.isa == Isa::Avx2 ? 1 : 2;
  k.loop(k.index(0), k.index(2), halves, [&](Value half) {
    auto chainsOf = [&](int64_t count) {
      return chains(count * halves, keys.encoding.isInteger());
    };
    if (!causal) {
      for (int64_t begin = 0; begin < group; begin += queryTile()) {
        int64_t count = std::min(queryTile(), group - begin);
        scoresOf(tileBase, tile, half, halves, k.index(begin), count, chainsOf(count),
                 begin == 0 ? ahead : Value());
      }
      return;
    }
    // As many chains as each query head has where a token is alone: the last ones may have more.
    int64_t rest = group % queryTile();
    for (auto [begin, end, parts] : {std::tuple(int64_t(0), group - rest, chainsOf(queryTile())),
                                     {group - rest, group, chainsOf(std::max<int64_t>(rest, 1))}}) {
      if (begin == end)
        continue;
      k.loop(k.index(begin), k.index(end), 1, [&](Value query) {
        forEachTokenTile([&](const TokenTile &tokensOf) {
          Value from = k.add(k.mul(tile, cacheTile), blockFirst);
          Value isRead = k.less(from, k.add(tokensOf.last, 1));
          if (tokensOf.oldest)
            isRead = k.bitAnd(isRead, k.less(tokensOf.oldest, k.add(from, cacheTile)));
          k.ifThen(isRead, [&] {
            scoresOf(tileBase, tile, half, halves, rowOf(query, tokensOf.first), tokenTile(), parts,
                     /*ahead=*/Value());
          });
        });
      });
    }
  });
}

void AttentionKernel::scoresOf(Value tileBase, Value tile, Value half, int64_t halves,
                               Value firstRow, int64_t count, int64_t parts, Value ahead) {
  CacheEncoding encoding = keysRead.encoding;
  int64_t padded = keysRead.paddedDim(), halfBytes = keysRead.tileCodeBytes() / 2,
          sums = count * halves;
  Value base = at(tileBase, half, halfBytes);
  auto prefetch = [&](Value place, int64_t bytes) {
    for (int64_t h = 0; ahead && h < halves; ++h)
      prefetchNext(ahead, k.offset(place, h * halfBytes), bytes);
  };
  // Of the sums, those of one chain lie together, in them those of a query.
  auto addChains = [&](Values all) {
    if (hasByteKeys()) { // chains are of high and of low bytes in turn
      Values joined;
      for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i)
        if (i / sums % 2 == 0)
          joined.push_back(joinBytes(all[i], all[i + sums]));
      all = joined;
    }
    Values total(all.begin(), all.begin() + sums);
    for (int64_t i = sums; i < static_cast<int64_t>(all.size()); ++i)
      total[i % sums] =
          encoding.isInteger() ? k.add(total[i % sums], all[i]) : k.addF(total[i % sums], all[i]);
    return total;
  };
  Values scores(sums, zeros());
  if (!encoding.isInteger()) {
    int64_t bytes = encoding.bits() / 8, unroll = 4;
    Value rows = at(queries, firstRow, padded * 4);
    // Several tokens have no registers for all chains at once, but sums enough in each.
    int64_t passes = causal ? parts : 1;
    Values all;
    for (int64_t pass = 0; pass < passes; ++pass) {
      SmallVector<Value> start(sums * parts / passes, zeros());
      Values sumsOf = k.loop(
          k.index(0), k.index(padded), unroll * passes, start, [&](Value d, ValueRange carried) {
            Values next(carried);
            Value place = at(base, d, kLanes * bytes);
            prefetch(place, unroll * kLanes * bytes);
            SmallVector<Values> x;
            for (int64_t h = 0; h < halves; ++h) {
              Value from = k.offset(place, h * halfBytes);
              x.push_back({});
              if (passes == 1)
                x.back() = loadElements(keysRead, from, 0, unroll);
              for (int64_t i = 0; passes > 1 && i < unroll; ++i)
                x.back().append(loadElements(keysRead, from, i * passes + pass, 1));
            }
            for (int64_t i = 0; i < unroll; ++i)
              for (int64_t q = 0; q < count; ++q) {
                Value from = k.offset(rows, (q * padded + i * passes + pass) * 4);
                Value y = splat(k.load(k.f32(), at(from, d, 4), 4));
                for (int64_t h = 0; h < halves; ++h) {
                  Value &sum = next[i % (parts / passes) * sums + q * halves + h];
                  sum = k.fma(x[h][i], y, sum);
                }
              }
            return next;
          });
      all.append(sumsOf);
    }
    scores = addChains(all);
  } else {
    int64_t lineElements = 32 / encoding.bits(), unroll = 16;
    int64_t groupElements = keyGroupElements();
    bool bytes = hasByteKeys();
    Value rows = at(queries, firstRow, padded * 2);
    if (causal) // sums enough of the tokens alone
      parts = 1;
    for (int64_t g = 0; g < keys.groups(); ++g) {
      int64_t first = g * groupElements, last = std::min(first + groupElements, padded);
      SmallVector<Value> start(sums * parts, k.integer(i32s, 0));
      for (int64_t i = 0; bytes && i < 2 * sums; ++i) {
        Value bias = queryBias(k.add(firstRow, i % sums / halves), g);
        start[i] = splat(k.load(k.i32(), k.offset(bias, i / sums * 4), 4));
      }
      Values products = addChains(
          k.loop(k.index(first), k.index(last), unroll, start, [&](Value d, ValueRange carried) {
            Values next(carried);
            Value place = k.offset(base, k.mul(k.div(d, lineElements), kLine));
            prefetch(place, unroll / lineElements * kLine);
            for (int64_t line = 0; bytes && line < unroll / lineElements; ++line) {
              SmallVector<std::array<Value, 2>> operands;
              for (int64_t h = 0; h < halves; ++h)
                operands.push_back(loadBytes(k.offset(place, line * kLine + h * halfBytes)));
              for (int64_t i = 0; i < 2; ++i)
                for (int64_t q = 0; q < count; ++q)
                  for (int64_t low = 0; low < 2; ++low) {
                    int64_t byte = (q * padded + line * lineElements) * 2 + i * 8 + low * 4;
                    Value four = k.load(k.i32(), at(k.offset(rows, byte), d, 2), 4);
                    for (int64_t h = 0; h < halves; ++h) {
                      Value &sum = next[(2 * i % parts + low) * sums + q * halves + h];
                      sum = k.multiplyAddBytes(sum, operands[h][i], four);
                    }
                  }
            }
            for (int64_t line = 0; !bytes && line < unroll / lineElements; ++line) {
              SmallVector<Values> words;
              for (int64_t h = 0; h < halves; ++h)
                words.push_back(
                    loadWords(keys, k.offset(place, line * kLine + h * halfBytes), kLanes));
              for (int64_t i = 0; i < lineElements / 2; ++i)
                for (int64_t q = 0; q < count; ++q) {
                  int64_t element = line * lineElements + 2 * i;
                  Value from = k.offset(rows, (q * padded + element) * 2);
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
      if (ahead)
        prefetchNext(ahead, place, halves * kLanes * 2);
      for (int64_t h = 0; h < halves; ++h) {
        Value scale = k.widen(k.load(k.vec(kLanes, k.f16()), k.offset(place, h * kLanes * 2), 32));
        for (int64_t q = 0; q < count; ++q) {
          Value &score = scores[q * halves + h];
          score = k.fma(k.toFloat(products[q * halves + h]), scale, score);
        }
      }
    }
  }
  Value lane = k.add(k.mul(tile, cacheTile), k.mul(half, int64_t(kLanes)));
  Value to = at(at(exponents, firstRow, cacheBlock * 4), lane, 4);
  for (int64_t q = 0; q < count; ++q) {
    Value factor = splat(k.load(k.f32(), k.offset(at(factors, firstRow, 4), q * 4), 4));
    for (int64_t h = 0; h < halves; ++h)
      k.store(capped(k.mulF(scores[q * halves + h], factor)),
              k.offset(to, q * cacheBlock * 4 + h * kLanes * 4), 64);
  }
}

Value AttentionKernel::capped(Value exponent) {
  std::optional<APFloat> cap = op.getSoftCap();
  return cap ? model::softCapped(k, exponent, cap->convertToDouble() * 1.44269504088896341)
             : exponent;
}

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

Value AttentionKernel::attended(Value number, Value last, Value oldest) {
  auto before = [&](Value position) {
    return k.firstLanes(kLanes, k.max(k.sub(position, number), k.index(0)));
  };
  Value exist = before(k.add(last, 1));
  if (!oldest)
    return exist;
  Value ones = k.firstLanes(kLanes, k.index(kLanes));
  return arith::AndIOp::create(k.b, k.loc, exist,
                               arith::XOrIOp::create(k.b, k.loc, before(oldest), ones));
}

/// Scales of a tile's values, 0 for positions that are not attended to, bounds of their logarithms,
/// and what must not be lost in an integer: NaN of positions with a scale that is not a number.
void AttentionKernel::readScales(const BlockTiles &tiles, Value tile, Value first) {
  Value tileBase = tiles.at(k, tile), ahead = tiles.ahead(k, tile);
  for (int64_t half = 0; half < 2; ++half) {
    Value lane = k.add(k.mul(tile, cacheTile), half * int64_t(kLanes));
    // Of several tokens each masks its own.
    Value mask = causal ? Value() : attended(k.add(first, lane), last, oldest);
    Value greatest, poison = zeros();
    for (int64_t g = 0; g < values.groups(); ++g) {
      int64_t place = formats::cacheScaleByte(values, g) + half * kLanes * 2;
      if (half == 0)
        prefetchNext(ahead, k.offset(tileBase, place), cacheTile * 2);
      Value scale = k.widen(k.load(k.vec(kLanes, k.f16()), k.offset(tileBase, place), 32));
      if (mask)
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
void AttentionKernel::softmax(Value firstRow, int64_t count,
                              function_ref<Value(int64_t query, int64_t lane)> maskOf) {
  bool integers = values.encoding.isInteger();
  VectorType lanes = k.vec(count, k.f32());
  auto gather = [&](ArrayRef<Value> scalars) -> Value {
    return vector::FromElementsOp::create(k.b, k.loc, lanes, scalars);
  };
  auto exponent = [&](int64_t q, int64_t lane) {
    return k.offset(at(exponents, firstRow, cacheBlock * 4), (q * cacheBlock + lane) * 4);
  };
  auto state = [&](Value array) { return at(array, firstRow, 4); };
  // What is not attended to may be anything.
  auto masked = [&](int64_t q, int64_t lane, Value x, double other) {
    Value mask = maskOf(q, lane);
    return mask ? k.select(mask, x, k.number(f32s, other)) : x;
  };
  auto exponentOf = [&](int64_t q, int64_t lane) {
    return masked(q, lane, k.load(f32s, exponent(q, lane), 64),
                  -std::numeric_limits<double>::infinity());
  };
  Values own;
  for (int64_t q = 0; q < count; ++q) {
    Value greatest = k.number(f32s, -1e29);
    for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
      Value reach = exponentOf(q, lane);
      if (integers)
        reach = k.addF(reach, masked(q, lane, k.load(f32s, k.offset(bounds, lane * 4), 64), 0));
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
  Values sum(count, zeros()), weightSum(count);
  for (int64_t q = 0; q < count; ++q) {
    Value origin = splat(vector::ExtractOp::create(k.b, k.loc, integers ? reach : reference, q));
    for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
      Value p = k.exp2(k.subF(exponentOf(q, lane), origin));
      Value added =
          integers ? k.addF(p, masked(q, lane, k.load(f32s, k.offset(poisons, lane * 4), 64), 0))
                   : p;
      if (!integers) {
        bool bf16 = values.encoding.element == CacheEncoding::Element::BF16;
        Type element = bf16 ? Type(k.b.getBF16Type()) : k.f16();
        Value rounded = k.widen(k.narrow(p, element));
        if (bf16) // a sum of two
          rounded = k.addF(rounded, k.widen(k.narrow(k.subF(p, rounded), element)));
        k.store(rounded, exponent(q, lane), 64);
      }
      for (int64_t g = 0; integers && g < values.groups(); ++g) {
        Value scale =
            masked(q, lane, k.load(f32s, k.offset(scales, (g * cacheBlock + lane) * 4), 64), 0);
        // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
        Value fixed = k.bitcast(k.fma(p, scale, k.number(f32s, 12582912.0)), i32s);
        Value place = k.offset(at(weights, firstRow, cacheBlock * weightBytes()),
                               ((g * rows() + q) * cacheBlock + lane) * weightBytes());
        if (hasByteValues()) {
          storeWeightBytes(fixed, place);
          weightSum[q] = weightSum[q] ? k.add(weightSum[q], fixed) : fixed;
        } else {
          k.store(k.truncate(fixed, k.i16()), place, 32);
        }
      }
      sum[q] = k.addF(sum[q], added);
    }
    if (hasByteValues()) {
      // The bits of 1.5 * 2^23 count 64 times.
      constexpr uint32_t others = uint32_t(cacheBlock) * 0x4B400000u;
      Value all = k.reduce(weightSum[q], [&](Value x, Value y) { return k.add(x, y); });
      k.store(k.mul(k.sub(all, k.integer(k.i32(), int32_t(others))), -8),
              k.offset(state(weightBiases), q * 4), 4);
    }
  }
  Values totals = llvm::map_to_vector(sum, [&](Value lanesOf) { return k.sumLanes(lanesOf); });
  Value total = gather(totals), older = k.mulF(k.load(lanes, state(sums), 4), keep);
  k.store(integers ? k.fma(total, unit, older) : k.addF(older, total), state(sums), 4);
}

void AttentionKernel::storeWeightBytes(Value fixed, Value place) {
  // Byte 0 of a lane becomes the low one, byte 1 the high one, which is one more if that is
  // negative.
  Value both = k.bitOr(k.bitAnd(fixed, 0xFF), k.bitAnd(k.add(fixed, 128), 0xFF00));
  SmallVector<int64_t> order;
  for (int64_t four = 0; four < kLanes; four += 4)
    for (int64_t repeat = 0; repeat < 2; ++repeat)
      for (int64_t byte : {1, 0})
        for (int64_t position : {0, 2, 1, 3})
          order.push_back((four + position) * 4 + byte);
  Value bytes = k.bitcast(both, k.vec(4 * kLanes, k.i8()));
  k.store(k.shuffle(bytes, bytes, order), place, 64);
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

void AttentionKernel::addIntegers(const BlockTiles &tiles, Value firstTile, Value tileCount,
                                  Value firstRow, int64_t count, bool isFirst) {
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
      for (int64_t i = 0; hasByteValues() && i < sums; ++i)
        start[sums + i] =
            splat(k.load(k.i32(), k.offset(at(weightBiases, firstRow, 4), i / together * 4), 4));
      Values added = k.loop(firstTile, tileCount, 1, start, [&](Value tile, ValueRange outer) {
        Value base = k.offset(tiles.at(k, tile), block / lineBlocks * kLine + lane * 4);
        Value ahead = isFirst && lane == 0 ? tiles.ahead(k, tile) : Value();
        Value weightBase = k.offset(
            at(at(weights, firstRow, cacheBlock * weightBytes()), tile, cacheTile * weightBytes()),
            g * rows() * cacheBlock * weightBytes());
        return k.loop(
            k.index(0), k.index(cacheTile / linePositions), unroll, outer,
            [&](Value number, ValueRange carried) {
              Values next(carried);
              for (int64_t u = 0; u < unroll; ++u) {
                Value place = k.offset(at(base, number, stride), u * stride);
                if (hasByteValues()) {
                  if (ahead)
                    prefetchNext(ahead, place, kLine);
                  std::array<Value, 2> operands = loadBytes(place);
                  for (int64_t q = 0; q < count; ++q)
                    for (int64_t low = 0; low < 2; ++low) {
                      Value from = k.offset(at(weightBase, number, linePositions * weightBytes()),
                                            (q * cacheBlock + u * linePositions) * weightBytes());
                      Value four = k.load(k.i32(), k.offset(from, low * 4), 4);
                      for (int64_t i = 0; i < together; ++i) {
                        Value &sum = next[low * sums + q * together + i];
                        sum = k.multiplyAddBytes(sum, operands[i], four);
                      }
                    }
                  continue;
                }
                // words[block of elements][pair of positions]
                SmallVector<Values> words(together);
                for (int64_t line = 0; line < lines; ++line) {
                  Value from = k.offset(place, line * kLine);
                  if (ahead)
                    prefetchNext(ahead, from, kLine);
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
          return k.splat(k.load(k.f32(), k.offset(at(array, firstRow, 4), q * 4), 4), lanes);
        };
        Value keep = factor(keeps), unit = factor(units);
        for (int64_t i = 0; i < together; ++i) {
          Value sum = added[q * together + i];
          if (hasByteValues())
            sum = joinBytes(sum, added[sums + q * together + i]);
          for (int64_t part = 1; !hasByteValues() && part < parts; ++part)
            sum = k.add(sum, added[part * sums + q * together + i]);
          Value place = k.offset(at(outputs, firstRow, padded * 4),
                                 (q * padded + (block + i) * kLanes + lane) * 4);
          Value older = k.mulF(k.load(floats, place, lanes * 4), keep);
          k.store(k.fma(k.toFloat(sum), unit, older), place, lanes * 4);
        }
      }
    }
}

void AttentionKernel::addFloats(const BlockTiles &tiles, Value begin, Value end, Value firstRow,
                                int64_t count, bool keeping, bool isFirst) {
  int64_t padded = valuesRead.paddedDim(), bytes = valuesRead.encoding.bits() / 8;
  int64_t blocks = padded / kLanes;
  int64_t registers = k.isa == Isa::Avx2 ? 4 : 16;
  int64_t together = std::max<int64_t>(1, registers / count);
  if (valuesRead.encoding.element == CacheEncoding::Element::E4M3 && together > 1)
    together -= together % 2;
  for (int64_t block = 0; block < blocks; block += together) {
    int64_t n = std::min(together, blocks - block);
    k.emptyRegisters(); // of the constants of softmax
    auto slot = [&](int64_t q, int64_t i) {
      return k.offset(at(outputs, firstRow, padded * 4), (q * padded + (block + i) * kLanes) * 4);
    };
    SmallVector<Value> start;
    for (int64_t q = 0; q < count; ++q) {
      Value keep;
      if (keeping)
        keep = splat(k.load(k.f32(), k.offset(at(keeps, firstRow, 4), q * 4), 4));
      for (int64_t i = 0; i < n; ++i) {
        Value older = k.load(f32s, slot(q, i), 64);
        start.push_back(keep ? k.mulF(older, keep) : older);
      }
    }
    // Other positions are not read: whatever is there, it may be NaN.
    SmallVector<Value> after = k.loop(begin, end, 1, start, [&](Value number, ValueRange carried) {
      // `number` counts positions; tiles follow each other with scales between them.
      Value tile = k.div(number, cacheTile);
      Value vector = at(tiles.at(k, tile), k.rem(number, cacheTile), padded * bytes);
      SmallVector<Value> next(carried);
      if (isFirst)
        prefetchNext(tiles.ahead(k, tile), k.offset(vector, block * kLanes * bytes),
                     n * kLanes * bytes);
      Values elements = loadElements(valuesRead, vector, block, n);
      for (int64_t q = 0; q < count; ++q) {
        Value weight = k.load(
            k.f32(),
            at(k.offset(at(exponents, firstRow, cacheBlock * 4), q * cacheBlock * 4), number, 4),
            4);
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

void AttentionKernel::finish(Value token, Value firstRow) {
  int64_t padded = values.paddedDim(), width = heads * group * dim;
  k.loop(k.index(0), k.index(group), 1, [&](Value query) {
    Value row = k.add(k.mul(query, block), firstRow);
    Value sum = splat(k.load(k.f32(), at(sums, row, 4), 4));
    if (values.encoding.element == CacheEncoding::Element::E4M3)
      sum = k.mulF(sum, k.number(f32s, 1 / KernelBuilder::e4m3Divisor));
    Value first = k.add(k.mul(token, width), k.mul(k.add(k.mul(head, group), query), dim));
    Value to = at(interface.resultPointer(0), first, 2), from = at(outputs, row, padded * 4);
    for (int64_t d = 0; d < dim; d += kLanes) {
      Value mask = d + kLanes <= dim ? Value() : k.firstLanes(kLanes, k.index(dim - d));
      Value y = k.divF(k.load(f32s, k.offset(from, d * 4), 64), sum);
      k.store(k.narrow(y, k.f16()), k.offset(to, d * 2), 2, mask);
    }
  });
}

LogicalResult AttentionKernel::emit(Value begin, Value end) {
  int64_t keyPadded = keys.paddedDim(), valuePadded = values.paddedDim();
  queries = k.scratch(rows() * keyPadded * (keys.encoding.isInteger() ? 2 : 4));
  if (hasByteKeys())
    queryBiases = k.scratch(rows() * keys.groups() * 8);
  factors = k.scratch(rows() * 4);
  prologue.row = k.scratch(prologue.rowBytes());
  exponents = k.scratch(rows() * cacheBlock * 4);
  outputs = k.scratch(rows() * valuePadded * 4);
  for (Value *array : {&references, &sums, &keeps, &units})
    *array = k.scratch(rows() * 4);
  if (values.encoding.isInteger()) {
    scales = k.scratch(values.groups() * cacheBlock * 4);
    bounds = k.scratch(cacheBlock * 4);
    poisons = k.scratch(cacheBlock * 4);
    weights = k.scratch(values.groups() * rows() * cacheBlock * weightBytes());
    if (hasByteValues())
      weightBiases = k.scratch(rows() * 4);
  }
  if (causal)
    return emitCausal(begin, end);
  LogicalResult result = success();
  k.loop(begin, end, 1, [&](Value item) {
    Value token = k.div(item, heads);
    head = k.rem(item, heads);
    last = prologue.position(token);
    Value firstBlock = setOldest(last);
    auto [keyHead, valueHead] = prologue.tilesOf(token, head);
    if (failed(prologue.append(token, head, last, keyHead, valueHead))) {
      result = failure();
      return;
    }
    k.loop(k.index(0), k.index(group), 1, [&](Value q) {
      if (succeeded(result))
        result = startRow(token, q, q);
    });
    if (failed(result))
      return;
    k.loop(firstBlock, k.add(last, 1), cacheBlock,
           [&, &keyHead = keyHead, &valueHead = valueHead](Value first) {
             attendBlock(keyHead, valueHead, first);
           });
    finish(token, k.index(0));
  });
  return result;
}

Value AttentionKernel::setOldest(Value position) {
  oldest = oldestOf(position);
  return oldest ? k.sub(oldest, k.rem(oldest, cacheBlock)) : k.index(0);
}

LogicalResult AttentionKernel::startRow(Value token, Value query, Value row) {
  if (failed(prologue.evaluate(prologue.query(), token, k.add(k.mul(head, group), query),
                               keys.paddedDim())))
    return failure();
  prepareQuery(row);
  k.store(k.number(k.f32(), -1e30), at(references, row, 4), 4);
  k.store(k.number(k.f32(), 0.0), at(sums, row, 4), 4);
  for (int64_t d = 0; d < values.paddedDim(); d += kLanes)
    k.store(zeros(), k.offset(at(outputs, row, values.paddedDim() * 4), d * 4), 64);
  return success();
}

void AttentionKernel::attendBlock(const kernels::HeadTiles &keyHead,
                                  const kernels::HeadTiles &valueHead, Value first) {
  Value lowest = k.number(f32s, -std::numeric_limits<double>::infinity());
  Value firstTile = k.div(first, cacheTile);
  Value count = k.min(k.sub(k.add(last, 1), first), k.index(cacheBlock));
  Value tiles = k.div(k.add(count, cacheTile - 1), cacheTile);
  BlockTiles keyTiles(k, keyHead, keys, firstTile), valueTiles(k, valueHead, values, firstTile);
  Value behind = oldest ? k.max(k.sub(oldest, first), k.index(0)) : k.index(0);
  Value firstOfTiles = oldest ? k.div(behind, cacheTile) : behind;
  k.loop(firstOfTiles, tiles, 1, [&](Value tile) {
    scoresOf(keyTiles, tile);
    if (values.encoding.isInteger())
      readScales(valueTiles, tile, first);
  });
  // The block's positions that are not attended to, if there are any.
  Value isPartial = k.less(count, k.index(cacheBlock));
  if (oldest)
    isPartial = arith::OrIOp::create(k.b, k.loc, isPartial, k.less(first, oldest));
  k.ifElse(
      isPartial,
      [&] {
        for (int64_t lane = 0; lane < cacheBlock; lane += kLanes) {
          Value mask = attended(k.add(first, lane), last, oldest);
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
    softmax(k.index(q), std::min(kSoftmaxQueries, group - q),
            [](int64_t, int64_t) { return Value(); });
  for (int64_t q = 0; q < group; q += queryTile()) {
    int64_t n = std::min(queryTile(), group - q);
    if (values.encoding.isInteger())
      addIntegers(valueTiles, firstOfTiles, tiles, k.index(q), n, q == 0);
    else
      addFloats(valueTiles, behind, count, k.index(q), n, /*keeping=*/true, q == 0);
  }
}

//===----------------------------------------------------------------------===//
// Several tokens
//===----------------------------------------------------------------------===//

LogicalResult AttentionKernel::emitCausal(Value begin, Value end) {
  if (keysRead.encoding != keys.encoding)
    keyHalves = k.scratch(cacheBlock / cacheTile * keysRead.tileBytes());
  if (valuesRead.encoding != values.encoding)
    valueHalves = k.scratch(cacheBlock / cacheTile * valuesRead.tileBytes());
  Value active = activeTokens(k, interface, op.getActive(), tokens);
  // Of packed sequences some tiles have no tokens.
  Value blocks = op.getStarts() ? k.add(k.div(active, block), keys.sequences)
                                : k.div(k.add(active, block - 1), block);
  std::tie(begin, end) = shareOf(k, k.mul(blocks, heads), begin, end, items());
  LogicalResult result = success();
  k.loop(begin, end, 1, [&](Value item) {
    head = arith::DivUIOp::create(k.b, k.loc, item, blocks);
    Value number = arith::RemUIOp::create(k.b, k.loc, item, blocks), half = k.div(number, 2);
    // Later tokens have more positions: pairs of an early and a late block are alike.
    number = k.select(k.equal(k.rem(number, 2), k.index(0)), half, k.sub(k.sub(blocks, 1), half));
    Value firstToken = k.mul(number, block), sequence = k.index(0), end = active;
    if (op.getStarts()) {
      kernels::PackedTile tile =
          kernels::packedTile(k, interface, op.getStarts(), keys.sequences, tokens, block, number);
      firstToken = tile.first;
      sequence = tile.sequence;
      end = tile.end;
    }
    present = k.min(k.sub(end, firstToken), k.index(block));
    if (op.getStarts())
      k.ifThen(k.less(firstToken, end), [&] { result = attendTile(firstToken, sequence); });
    else
      result = attendTile(firstToken, sequence);
  });
  return result;
}

LogicalResult AttentionKernel::attendTile(Value firstToken, Value sequence) {
  LogicalResult result = success();
  firstPosition = prologue.position(firstToken);
  last = k.min(k.sub(k.add(firstPosition, present), 1), k.index(keys.positions - 1));
  Value firstBlock = setOldest(firstPosition);
  auto [keyHead, valueHead] = prologue.tilesOf(sequence, head);
  // Rows of the last tile without a token have the last token's query: what the stack holds may be
  // denormal numbers, each of which costs a hundred multiplications.
  Value rows = k.mul(k.div(k.add(present, tokenTile() - 1), tokenTile()), tokenTile());
  k.loop(k.index(0), rows, 1, [&](Value row) {
    Value token = k.add(firstToken, k.min(row, k.sub(present, 1)));
    k.loop(k.index(0), k.index(group), 1, [&](Value query) {
      if (succeeded(result))
        result = startRow(token, query, rowOf(query, row));
    });
  });
  if (failed(result))
    return failure();
  k.loop(firstBlock, k.add(last, 1), cacheBlock,
         [&, &keyHead = keyHead, &valueHead = valueHead](Value first) {
           attendBlockCausal(keyHead, valueHead, first);
         });
  k.loop(k.index(0), present, 1, [&](Value token) { finish(k.add(firstToken, token), token); });
  return success();
}

Value AttentionKernel::positionOf(Value token) { return k.min(k.add(firstPosition, token), last); }

Value AttentionKernel::oldestOf(Value position) {
  std::optional<uint64_t> window = op.getWindow();
  if (!window)
    return Value();
  return k.max(k.sub(position, static_cast<int64_t>(*window) - 1), k.index(0));
}

void AttentionKernel::forEachTokenTile(function_ref<void(const TokenTile &)> body) {
  k.loop(k.index(0), present, tokenTile(), [&](Value first) {
    Value position = positionOf(first);
    body({first, position, positionOf(k.add(first, tokenTile() - 1)), oldestOf(position)});
  });
}

BlockTiles AttentionKernel::toHalves(const CacheShape &shape, const CacheShape &read,
                                     const BlockTiles &tiles, Value count, Value first,
                                     Value halves) {
  // Codes of E4M3 have no scales between them.
  int64_t codes = shape.tileCodeBytes(), words = 2 * kLanes;
  k.loop(k.mul(first, codes), k.mul(count, codes), 2 * words, [&](Value byte) {
    Value from = k.offset(tiles.at(k, k.div(byte, codes)), k.rem(byte, codes));
    Value all = k.load(k.vec(words, k.i16()), from, 2 * words);
    Value low = k.decodeE4M3Words(all, false), high = k.decodeE4M3Words(all, true);
    Value to = at(halves, byte, 2);
    for (int64_t i = 0; i < 2; ++i) {
      k.store(k.slice(low, i * kLanes, kLanes), k.offset(to, 4 * i * kLanes), 2 * kLanes);
      k.store(k.slice(high, i * kLanes, kLanes), k.offset(to, (4 * i + 2) * kLanes), 2 * kLanes);
    }
  });
  return BlockTiles(read, halves);
}

void AttentionKernel::attendBlockCausal(const kernels::HeadTiles &keyHead,
                                        const kernels::HeadTiles &valueHead, Value first) {
  blockFirst = first;
  Value firstTile = k.div(first, cacheTile);
  // In the block, what all tokens together attend to.
  auto inBlock = [&](Value position) {
    return k.max(k.min(k.sub(position, first), k.index(cacheBlock)), k.index(0));
  };
  auto tilesTo = [&](Value count) { return k.div(k.add(count, cacheTile - 1), cacheTile); };
  Value tiles = tilesTo(inBlock(k.add(last, 1)));
  Value firstOfTiles = oldest ? k.div(inBlock(oldest), cacheTile) : k.index(0);
  BlockTiles keyTiles(k, keyHead, keys, firstTile), valueTiles(k, valueHead, values, firstTile);
  if (keyHalves)
    keyTiles = toHalves(keys, keysRead, keyTiles, tiles, firstOfTiles, keyHalves);
  if (valueHalves)
    valueTiles = toHalves(values, valuesRead, valueTiles, tiles, firstOfTiles, valueHalves);
  k.loop(firstOfTiles, tiles, 1, [&](Value tile) {
    scoresOf(keyTiles, tile);
    if (values.encoding.isInteger())
      readScales(valueTiles, tile, first);
  });
  k.loop(k.index(0), k.index(group), 1, [&](Value query) {
    forEachTokenTile([&](const TokenTile &tile) {
      Value isRead = k.less(first, k.add(tile.last, 1));
      if (oldest)
        isRead = k.bitAnd(isRead, k.less(tile.oldest, k.add(first, cacheBlock)));
      k.ifThen(isRead, [&] { mixCausal(valueTiles, first, rowOf(query, tile.first), tile); });
    });
  });
}

void AttentionKernel::mixCausal(const BlockTiles &valueTiles, Value first, Value firstRow,
                                const TokenTile &tile) {
  auto inBlock = [&](Value position) {
    return k.max(k.min(k.sub(position, first), k.index(cacheBlock)), k.index(0));
  };
  // What every token of the tile attends to, and what any does.
  Value latestOldest = oldestOf(tile.last);
  Value begin = latestOldest ? inBlock(latestOldest) : k.index(0);
  Value end = inBlock(k.add(tile.position, 1)), behind = inBlock(k.add(tile.last, 1));
  k.loop(k.index(0), k.index(tokenTile()), kSoftmaxQueries, [&](Value token) {
    softmax(k.add(firstRow, token), kSoftmaxQueries, [&](int64_t i, int64_t lane) {
      Value position = positionOf(k.add(k.add(tile.first, token), i));
      return attended(k.add(first, lane), position, oldestOf(position));
    });
  });
  if (values.encoding.isInteger()) {
    Value firstTile = tile.oldest ? k.div(inBlock(tile.oldest), cacheTile) : k.index(0);
    addIntegers(valueTiles, firstTile, k.div(k.add(behind, cacheTile - 1), cacheTile), firstRow,
                tokenTile(), false);
    return;
  }
  // What others attend to may be NaN, so each token's own positions come before and after those of
  // all, in their order.
  auto addOwn = [&](function_ref<std::pair<Value, Value>(Value, Value)> rangeOf, bool keeping) {
    k.loop(k.index(0), k.index(tokenTile()), 1, [&](Value token) {
      Value position = positionOf(k.add(tile.first, token)), own = oldestOf(position);
      auto [from, to] = rangeOf(own ? inBlock(own) : k.index(0), inBlock(k.add(position, 1)));
      addFloats(valueTiles, from, to, k.add(firstRow, token), 1, keeping, false);
    });
  };
  if (latestOldest)
    addOwn([&](Value from, Value to) { return std::pair(from, k.min(to, begin)); }, true);
  Value middle = k.max(begin, end);
  addFloats(valueTiles, begin, middle, firstRow, tokenTile(), !latestOldest, false);
  k.ifThen(k.less(middle, behind), [&] {
    addOwn([&](Value from, Value to) { return std::pair(k.max(from, middle), to); }, false);
  });
}

FailureOr<int64_t> sluice::host::emitAttention(KernelBuilder &k, fused::AttentionOp op,
                                               const KernelInterface &interface, Value begin,
                                               Value end) {
  AttentionKernel kernel(k, op, interface);
  if (failed(kernel.plan()) || failed(kernel.emit(begin, end)))
    return failure();
  return kernel.items();
}
