// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of all query heads of one key/value head: each key and value is read and widened once
// for all of them.

#include "Products.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

/// Positions between the key that is read and the one that is asked for.
static constexpr int64_t kKeysAhead = 32;

namespace {
class AttentionKernel {
public:
  AttentionKernel(KernelBuilder &k, fused::AttentionOp op, const KernelInterface &interface)
      : k(k), op(op), interface(interface) {
    RankedTensorType keys = interface.cacheType(op.getKeysAttr());
    positions = keys.getDimSize(0);
    keyHeads = keys.getDimSize(1);
    head = keys.getDimSize(2);
    width = op.getQuery().getType().getDimSize(1);
    group = width / head / keyHeads;
    // Scores are computed for as many positions at a time as a register has lanes.
    lanes = k.isa == Isa::Avx2 ? 8 : 16;
    padded = llvm::alignTo(head, lanes);
    block = llvm::alignTo(
        std::max<int64_t>(cast<fused::HostScheduleAttr>(*op.getSchedule()).getPositions(), 1),
        lanes);
    vector = k.vec(lanes, k.f32());
  }

  void emit(Value begin, Value end);
  int64_t items() { return op.getQuery().getType().getDimSize(0) * keyHeads; }

private:
  /// Calls `body` with the columns of a head, `lanes` at a time, and a mask for the last ones if
  /// not all exist.
  void forColumns(llvm::function_ref<void(Value column, Value mask)> body);
  /// The first element of a cached row of this head.
  Value cached(FlatSymbolRefAttr cache, Value position);
  Value widened(Value row, Value column, Value mask) {
    return k.widen(k.load(k.vec(lanes, k.f16()), k.offset(row, k.mul(column, 2)), 2, mask));
  }
  Value place(Value base, Value row, int64_t stride, Value column) {
    return k.offset(base, k.mul(k.add(k.mul(row, stride), column), 4));
  }
  unsigned alignment() const { return lanes * 4; }

  void start(Value token);
  /// Scores of `count` positions from `first` on, `start` places into the block.
  void scoresOf(Value first, Value start, Value count);
  Value transposeAndSum(SmallVector<Value> vectors);
  /// Turns a block's scores to weights and rescales what was summed with an older maximum.
  void softmax(Value query, Value count);
  void addValues(Value first, Value count);
  void finish(Value token);

  KernelBuilder &k;
  fused::AttentionOp op;
  const KernelInterface &interface;
  int64_t positions, keyHeads, head, width, group, lanes, padded, block;
  VectorType vector;
  /// Stack memory, float32: queries and outputs [group][padded], scores [group][block], keys
  /// [lanes][padded], maxima and sums [group].
  Value queries, outputs, scores, keys, maxima, sums;
  Value keyHead;
};
} // namespace

void AttentionKernel::forColumns(llvm::function_ref<void(Value, Value)> body) {
  int64_t full = head / lanes * lanes;
  if (full)
    k.loop(k.index(0), k.index(full), lanes, [&](Value column) { body(column, Value()); });
  if (full < head)
    body(k.index(full), k.firstLanes(lanes, k.index(head - full)));
}

Value AttentionKernel::cached(FlatSymbolRefAttr cache, Value position) {
  Value row = k.add(k.mul(position, keyHeads), keyHead);
  return k.offset(interface.cachePointer(cache), k.mul(row, head * 2));
}

void AttentionKernel::start(Value token) {
  k.loop(k.index(0), k.index(group), 1, [&](Value query) {
    Value first = k.add(k.mul(token, width), k.mul(k.add(k.mul(keyHead, group), query), head));
    Value row = k.offset(interface.pointer(op.getQuery()), k.mul(first, 2));
    forColumns([&](Value column, Value mask) {
      k.store(widened(row, column, mask), place(queries, query, padded, column), alignment());
      k.store(k.number(vector, 0.0), place(outputs, query, padded, column), alignment());
    });
    Value state = k.mul(query, 4);
    k.store(k.number(k.f32(), -std::numeric_limits<double>::infinity()), k.offset(maxima, state),
            4);
    k.store(k.number(k.f32(), 0.0), k.offset(sums, state), 4);
  });
}

/// Lane i of the result is the sum of the lanes of vector i: halves are added while vectors are
/// joined pairwise.
Value AttentionKernel::transposeAndSum(SmallVector<Value> vectors) {
  for (int64_t run = lanes; run > 1; run /= 2) {
    SmallVector<int64_t> low, high;
    for (int64_t first = 0; first < 2 * lanes; first += run)
      for (int64_t lane = 0; lane < run / 2; ++lane) {
        low.push_back(first + lane);
        high.push_back(first + run / 2 + lane);
      }
    SmallVector<Value> joined;
    for (size_t i = 0; i < vectors.size(); i += 2)
      joined.push_back(k.addF(k.shuffle(vectors[i], vectors[i + 1], low),
                              k.shuffle(vectors[i], vectors[i + 1], high)));
    vectors = std::move(joined);
  }
  return vectors.front();
}

void AttentionKernel::scoresOf(Value first, Value start, Value count) {
  k.loop(k.index(0), count, 1, [&](Value i) {
    Value position = k.add(first, i);
    Value row = cached(op.getKeysAttr(), position);
    // A head's rows lie apart, which the hardware does not foresee. The block's values are next.
    Value valueRow = cached(op.getValuesAttr(), position);
    for (int64_t byte = 0; byte < head * 2; byte += 64) {
      int64_t ahead = kKeysAhead * keyHeads * head * 2;
      k.prefetch(k.outside(row, k.index(ahead + byte)), /*locality=*/3);
      k.prefetch(k.outside(valueRow, k.index(byte)), /*locality=*/3);
    }
    forColumns([&](Value column, Value mask) {
      k.store(widened(row, column, mask), place(keys, i, padded, column), alignment());
    });
  });
  Value valid = k.firstLanes(lanes, count);
  k.loop(k.index(0), k.index(group), 1, [&](Value query) {
    SmallVector<Value> zeros(lanes, k.number(vector, 0.0));
    SmallVector<Value> products =
        k.loop(k.index(0), k.index(padded), lanes, zeros, [&](Value column, ValueRange carried) {
          Value q = k.load(vector, place(queries, query, padded, column), alignment());
          SmallVector<Value> next;
          Value base = k.offset(keys, k.mul(column, 4));
          for (auto [i, sum] : llvm::enumerate(carried))
            next.push_back(k.fma(
                q, k.load(vector, k.offset(base, int64_t(i) * padded * 4), alignment()), sum));
          return next;
        });
    Value score =
        k.mulF(transposeAndSum(products), k.number(vector, op.getScale().convertToDouble()));
    score = k.select(valid, score, k.number(vector, -std::numeric_limits<double>::infinity()));
    k.store(score, place(scores, query, block, start), alignment());
  });
}

void AttentionKernel::softmax(Value query, Value count) {
  Value state = k.mul(query, 4), zero = k.index(0);
  Value lowest = k.number(vector, -std::numeric_limits<double>::infinity());
  Value greatest = k.loop(zero, count, lanes, lowest, [&](Value start, ValueRange carried) {
    Value score = k.load(vector, place(scores, query, block, start), alignment());
    return SmallVector<Value>{k.maxF(score, carried[0])};
  })[0];
  Value blockMaximum = k.reduce(greatest, [&](Value x, Value y) { return k.maxF(x, y); });
  Value oldMaximum = k.load(k.f32(), k.offset(maxima, state), 4);
  Value maximum = k.maxF(blockMaximum, oldMaximum);
  Value correction = k.exp(k.subF(oldMaximum, maximum));
  Value maximumLanes = k.splat(maximum, lanes);
  Value total =
      k.loop(zero, count, lanes, k.number(vector, 0.0), [&](Value start, ValueRange carried) {
        Value slot = place(scores, query, block, start);
        Value weight = k.exp(k.subF(k.load(vector, slot, alignment()), maximumLanes));
        k.store(k.widen(k.narrow(weight, k.f16())), slot, alignment());
        return SmallVector<Value>{k.addF(carried[0], weight)};
      })[0];
  Value oldSum = k.load(k.f32(), k.offset(sums, state), 4);
  k.store(k.fma(oldSum, correction, k.sumLanes(total)), k.offset(sums, state), 4);
  k.store(maximum, k.offset(maxima, state), 4);
  Value correctionLanes = k.splat(correction, lanes);
  k.loop(zero, k.index(padded), lanes, [&](Value column) {
    Value slot = place(outputs, query, padded, column);
    k.store(k.mulF(k.load(vector, slot, alignment()), correctionLanes), slot, alignment());
  });
}

void AttentionKernel::addValues(Value first, Value count) {
  // Queries times column vectors whose sums stay in registers together.
  int64_t registers = lanes == 16 ? 16 : 8;
  int64_t queryTile = std::min(group, registers / 2), columnTile = registers / queryTile;
  int64_t columns = padded / lanes;
  for (int64_t query = 0; query < group; query += queryTile)
    for (int64_t column = 0; column < columns; column += columnTile) {
      int64_t queryCount = std::min(queryTile, group - query),
              columnCount = std::min(columnTile, columns - column);
      auto slot = [&](int64_t q, int64_t c) {
        return k.offset(outputs, ((query + q) * padded + (column + c) * lanes) * 4);
      };
      SmallVector<Value> loaded;
      for (int64_t q = 0; q < queryCount; ++q)
        for (int64_t c = 0; c < columnCount; ++c)
          loaded.push_back(k.load(vector, slot(q, c), alignment()));
      Value mask;
      if (column + columnCount == columns && head % lanes)
        mask = k.firstLanes(lanes, k.index(head % lanes));
      SmallVector<Value> added =
          k.loop(k.index(0), count, 1, loaded, [&](Value i, ValueRange carried) {
            Value row = cached(op.getValuesAttr(), k.add(first, i));
            SmallVector<Value> values, next;
            for (int64_t c = 0; c < columnCount; ++c)
              values.push_back(widened(row, k.index((column + c) * lanes),
                                       column + c + 1 == columns ? mask : Value()));
            for (int64_t q = 0; q < queryCount; ++q) {
              Value weight = k.load(k.f32(), place(scores, k.index(query + q), block, i), 4);
              Value weights = k.splat(weight, lanes);
              for (int64_t c = 0; c < columnCount; ++c)
                next.push_back(k.fma(weights, values[c], carried[q * columnCount + c]));
            }
            return next;
          });
      for (int64_t q = 0; q < queryCount; ++q)
        for (int64_t c = 0; c < columnCount; ++c)
          k.store(added[q * columnCount + c], slot(q, c), alignment());
    }
}

void AttentionKernel::finish(Value token) {
  k.loop(k.index(0), k.index(group), 1, [&](Value query) {
    Value sum = k.splat(k.load(k.f32(), k.offset(sums, k.mul(query, 4)), 4), lanes);
    Value first = k.add(k.mul(token, width), k.mul(k.add(k.mul(keyHead, group), query), head));
    forColumns([&](Value column, Value mask) {
      Value output =
          k.divF(k.load(vector, place(outputs, query, padded, column), alignment()), sum);
      k.store(k.narrow(output, k.f16()),
              k.offset(interface.resultPointer(0), k.mul(k.add(first, column), 2)), 2, mask);
    });
  });
}

void AttentionKernel::emit(Value begin, Value end) {
  queries = k.scratch(group * padded * 4);
  outputs = k.scratch(group * padded * 4);
  scores = k.scratch(group * block * 4);
  keys = k.scratch(lanes * padded * 4);
  maxima = k.scratch(group * 4);
  sums = k.scratch(group * 4);
  // Positions that do not exist are computed like the others before their scores are replaced.
  k.loop(k.index(0), k.index(lanes * padded), lanes, [&](Value i) {
    k.store(k.number(vector, 0.0), k.offset(keys, k.mul(i, 4)), alignment());
  });
  k.loop(k.index(0), k.index(group * padded), lanes, [&](Value i) {
    k.store(k.number(vector, 0.0), k.offset(queries, k.mul(i, 4)), alignment());
    k.store(k.number(vector, 0.0), k.offset(outputs, k.mul(i, 4)), alignment());
  });
  k.loop(begin, end, 1, [&](Value item) {
    Value token = k.div(item, keyHeads);
    keyHead = k.rem(item, keyHeads);
    Value last =
        k.load(k.i32(), k.offset(interface.pointer(op.getPositions()), k.mul(token, 4)), 4);
    Value context = k.add(k.toIndex(k.clampIndex(last, positions)), 1);
    start(token);
    Value oldest = k.index(0);
    if (std::optional<uint64_t> window = op.getWindow())
      oldest = k.sub(context, k.min(context, k.index(static_cast<int64_t>(*window))));
    k.loop(oldest, context, block, [&](Value first) {
      Value count = k.min(k.sub(context, first), k.index(block));
      k.loop(k.index(0), count, lanes, [&](Value start) {
        scoresOf(k.add(first, start), start, k.min(k.sub(count, start), k.index(lanes)));
      });
      k.loop(k.index(0), k.index(group), 1, [&](Value query) { softmax(query, count); });
      addValues(first, count);
    });
    finish(token);
  });
}

FailureOr<int64_t> sluice::host::emitAttention(KernelBuilder &k, fused::AttentionOp op,
                                               const KernelInterface &interface, Value begin,
                                               Value end) {
  for (FlatSymbolRefAttr cache : {op.getKeysAttr(), op.getValuesAttr()})
    if (!interface.cacheType(cache).getElementType().isF16())
      return op.emitOpError() << "reads cache " << cache << " of "
                              << interface.cacheType(cache).getElementType()
                              << ", host kernels read caches of f16";
  AttentionKernel kernel(k, op, interface);
  kernel.emit(begin, end);
  return kernel.items();
}
