// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The prologue of attention in a kernel of its own. Work items are the key heads of tokens, each
// with its query heads.

#include "ActiveTokens.h"
#include "AttentionPrologue.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::CacheShape;

FailureOr<int64_t> sluice::host::emitAppend(KernelBuilder &k, fused::AppendOp op,
                                            const KernelInterface &interface, Value begin,
                                            Value end) {
  AttentionPrologue prologue(k, op, interface);
  if (failed(prologue.plan()))
    return failure();
  const CacheShape &keys = prologue.keys;
  if (keys.sequences != 1 && !op.getSequences())
    return op.emitOpError() << "appends tokens of one sequence to caches of " << keys.sequences;
  prologue.row = k.scratch(prologue.rowBytes());
  int64_t dim = keys.dim, heads = keys.heads, width = op.getQuery().getType().getDimSize(1);
  int64_t items = op.getTokens() * heads, group = width / dim / heads;
  Type element = op.getType().getElementType();
  int64_t bytes = bytesOf(element);
  VectorType f32s = k.vec(kLanes, k.f32());

  Value active = activeTokens(k, interface, op.getActive(), op.getTokens());
  auto [first, last] = shareOf(k, k.mul(active, heads), begin, end, items);
  LogicalResult result = success();
  k.loop(first, last, 1, [&](Value item) {
    Value token = k.div(item, heads), head = k.rem(item, heads);
    auto [keyTiles, valueTiles] = prologue.tilesOf(token, head);
    result = prologue.append(token, head, prologue.position(token), keyTiles, valueTiles);
    if (failed(result))
      return;
    k.loop(k.index(0), k.index(group), 1, [&](Value query) {
      Value number = k.add(k.mul(head, group), query);
      result = prologue.evaluate(prologue.query(), token, number, keys.paddedDim());
      if (failed(result))
        return;
      Value to =
          k.at(interface.resultPointer(0), k.add(k.mul(token, width), k.mul(number, dim)), bytes);
      for (int64_t d = 0; d < dim; d += kLanes) {
        Value mask = d + kLanes <= dim ? Value() : k.firstLanes(kLanes, k.index(dim - d));
        k.storeFloats(k.load(f32s, k.offset(prologue.row, d * 4), 64), element,
                      k.offset(to, d * bytes), bytes, mask);
      }
    });
  });
  if (failed(result))
    return failure();
  return items;
}
