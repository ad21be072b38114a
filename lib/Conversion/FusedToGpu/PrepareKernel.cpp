// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The input of products of many tokens: a block computes the prologue of one token and writes it,
// rounded, where the products' copies take it from (fused::PreparedImage).

#include "Kernels.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

LogicalResult device::emitPrepare(Kernel &kernel, fused::PrepareOp op) {
  FailureOr<fused::PreparePlan> plan = fused::PreparePlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  DeviceBuilder &k = kernel.k;
  const fused::PreparedImage &image = plan->image;
  k.launchDependents();
  Value token = k.block();
  Prologue prologue(kernel, op, op.getPrologue(), op.getInput(), plan->input, k.thread(),
                    plan->warps * kWarp);
  if (failed(prologue.preload()))
    return failure();
  k.waitForPredecessor();
  Value active = emitActiveRows(kernel, op.getActive(), image.tokens);
  // Products read the tokens of a tile together.
  constexpr int64_t tile = fused::PreparedImage::kTileTokens;
  Value prepared =
      k.min(k.mul(k.div(k.add(active, tile - 1), tile), tile), k.constI32(image.paddedTokens));
  LogicalResult result = success();
  k.ifThen(k.less(token, prepared), [&] {
    result = prologue.emitToImage(image, kernel.interface.resultPointer(0), token,
                                  k.less(token, active));
  });
  return result;
}
