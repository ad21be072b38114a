// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Norms, rotary embedding and rotation of many tokens' queries and keys, and the appends of keys
// and values: what attention's own prologue does where a token is alone in its sequence.

#include "AttentionPrologue.h"
#include "AttentionTiles.h"

#include "../FusedKernels/CachePlaces.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::CacheShape;
using formats::cacheTile;

namespace {
class AppendKernel : fused::AppendPlan {
public:
  AppendKernel(Kernel &kernel, fused::AppendOp op, const fused::AppendPlan &plan)
      : fused::AppendPlan(plan), kernel(kernel), k(kernel.k), op(op),
        yielded(cast<fused::YieldOp>(op.getPrologue().front().getTerminator()).getValues()[0]) {}

  LogicalResult emit();

private:
  LogicalResult emitToken();
  LogicalResult storeQuery(Head &place, Value number);
  LogicalResult append(Head &place, model::CacheAppendOp append);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::AppendOp op;
  Value yielded, lane, warp, token, head;
};
} // namespace

LogicalResult AppendKernel::storeQuery(Head &place, Value number) {
  place.moveTo(number);
  FailureOr<Head::Values> elements = place.evaluate(yielded);
  if (failed(elements))
    return failure();
  RankedTensorType type = op.getType();
  int64_t bytes = bytesOf(type.getElementType());
  Value first = k.add(k.mul(token, type.getDimSize(1)), k.mul(number, dim));
  for (auto [i, x] : llvm::enumerate(*elements)) {
    Value d = k.add(lane, static_cast<int64_t>(i) * kWarp);
    auto store = [&, x = x] {
      k.store(k.narrow(x, type.getElementType()),
              k.at(kernel.interface.resultPointer(0), k.add(first, d), bytes), bytes);
    };
    int64_t begin = static_cast<int64_t>(i) * kWarp;
    if (begin + kWarp <= dim)
      store();
    else if (begin < dim)
      k.ifThen(k.less(d, k.constI32(dim)), store);
  }
  return success();
}

LogicalResult AppendKernel::append(Head &place, model::CacheAppendOp append) {
  bool isKey = append.getCacheAttr() == op.getKeysAttr();
  if (!isKey && append.getCacheAttr() != op.getValuesAttr())
    return append.emitOpError() << "in a prologue appends to a cache that attention does not read";
  const CacheShape &shape = isKey ? keys : values;
  place.moveTo(head);
  FailureOr<Head::Values> elements = place.evaluate(append.getInput());
  if (failed(elements))
    return failure();
  Value position = k.clampIndex(
      k.load(k.i32(), k.at(kernel.interface.pointer(append.getPositions()), token, 4), 4),
      shape.positions);
  Value sequence =
      kernels::sequenceOf(k, kernel.interface, shape.sequences, op.getSequences(), token);
  StoredVector vector = encodeVector(k, shape, *elements, lane);
  storeVector(k, shape, vector,
              tilePlace(kernel, shape, append.getCacheAttr(), {op.getPages(), sequence, head},
                        k.div(position, cacheTile)),
              k.rem(position, cacheTile), lane);
  return success();
}

LogicalResult AppendKernel::emitToken() {
  auto appends = llvm::to_vector(op.getPrologue().front().getOps<model::CacheAppendOp>());
  LogicalResult result = success();
  // What no earlier kernel writes is read before the wait, each kind of head by its own warps.
  auto work = [&](ValueRange values, llvm::function_ref<LogicalResult(Head &)> body) {
    Head place(kernel, op, lane, token, dim, padded());
    if (failed(place.preload(values))) {
      result = failure();
      return;
    }
    k.waitForPredecessor();
    if (failed(body(place)))
      result = failure();
  };
  // The query heads, then the appends, go round the warps.
  int64_t items = group + static_cast<int64_t>(appends.size());
  k.loop(warp, k.constI32(items), warps, [&](Value item) {
    k.ifElse(
        k.less(item, k.constI32(group)),
        [&] {
          work(yielded,
               [&](Head &place) { return storeQuery(place, k.add(k.mul(head, group), item)); });
        },
        [&] {
          for (auto [number, one] : llvm::enumerate(appends))
            k.ifThen(k.equal(item, k.constI32(group + static_cast<int64_t>(number))), [&] {
              work(one.getInput(), [&](Head &place) { return append(place, one); });
            });
        });
  });
  return result;
}

LogicalResult AppendKernel::emit() {
  k.launchDependents();
  lane = k.bitAnd(k.thread(), kWarp - 1);
  warp = k.shr(k.thread(), 5);
  token = k.div(k.block(), heads);
  head = k.rem(k.block(), heads);
  LogicalResult result = success();
  ifActive(kernel, op.getActive(), token, [&] { result = emitToken(); });
  return result;
}

LogicalResult device::emitAppend(Kernel &kernel, fused::AppendOp op) {
  FailureOr<fused::AppendPlan> plan = fused::AppendPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  return AppendKernel(kernel, op, *plan).emit();
}
