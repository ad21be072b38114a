// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

Value sluice::host::emitElementwise(KernelBuilder &k, Operation *op, ValueRange operands) {
  // Arithmetic on narrow floats is that of float32, rounded once.
  auto binary = [&](auto combine) {
    Value result = combine(k.widen(operands[0]), k.widen(operands[1]));
    return k.narrow(result, getElementTypeOrSelf(op->getResult(0).getType()));
  };
  return llvm::TypeSwitch<Operation *, Value>(op)
      .Case<arith::AddFOp>(
          [&](auto) { return binary([&](Value x, Value y) { return k.addF(x, y); }); })
      .Case<arith::SubFOp>(
          [&](auto) { return binary([&](Value x, Value y) { return k.subF(x, y); }); })
      .Case<arith::MulFOp>(
          [&](auto) { return binary([&](Value x, Value y) { return k.mulF(x, y); }); })
      .Case<arith::DivFOp>(
          [&](auto) { return binary([&](Value x, Value y) { return k.divF(x, y); }); })
      .Case<arith::NegFOp>([&](auto) { return arith::NegFOp::create(k.b, k.loc, operands[0]); })
      .Case<arith::ExtFOp>([&](auto) { return k.widen(operands[0]); })
      .Case<arith::TruncFOp>([&](auto) {
        return k.narrow(k.widen(operands[0]), getElementTypeOrSelf(op->getResult(0).getType()));
      })
      .Case<model::SiluOp>([&](auto) { return k.silu(operands[0]); })
      .Default([](Operation *) { return Value(); });
}
