// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ActiveTokens.h"

using namespace mlir;
using namespace sluice::host;

Value sluice::host::activeTokens(KernelBuilder &k, const KernelInterface &interface, Value active,
                                 int64_t tokens) {
  if (!active)
    return k.index(tokens);
  // The runtime writes it; a wrong one must not reach memory outside.
  Value count = k.load(k.i32(), interface.pointer(active), 4);
  return k.toIndex(k.clampIndex(count, tokens + 1));
}

std::pair<Value, Value> sluice::host::shareOf(KernelBuilder &k, Value work, Value begin, Value end,
                                              int64_t items) {
  auto piece = [&](Value item) { return k.div(k.mul(item, work), items); };
  return {piece(begin), piece(end)};
}
