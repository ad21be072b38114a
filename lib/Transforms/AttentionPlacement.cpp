// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionPlacement.h"

#include "dialects/Fused/Traffic.h"
#include "sluice/Formats/RowOrder.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using fused::AttentionOp;

/// Appending in the prologue takes an H100 0.1 to 0.35 us a layer longer than in an epilogue, in
/// which it costs nothing that can be measured; the memory reads this many bytes meanwhile.
static constexpr int64_t kPrologueBytes = 1 << 20;

/// What works on a head at a time, or on less.
static bool isHeadwise(Operation *op) {
  auto norm = dyn_cast_or_null<model::RmsNormOp>(op);
  return norm ? norm.getHeadDim().has_value()
              : isa_and_nonnull<model::HadamardOp, model::RotaryOp, arith::TruncFOp>(op);
}

Value sluice::followHeads(Value value, SmallVectorImpl<Operation *> &chain) {
  while (isHeadwise(value.getDefiningOp()) && value.hasOneUse()) {
    chain.push_back(value.getDefiningOp());
    value = value.getDefiningOp()->getOperand(0);
  }
  return value;
}

std::array<model::CacheAppendOp, 2> sluice::findAppends(AttentionOp attention) {
  std::array<model::CacheAppendOp, 2> appends;
  for (Operation *op = attention->getPrevNode(); op; op = op->getPrevNode()) {
    auto append = dyn_cast<model::CacheAppendOp>(op);
    if (append && append.getPositions() == attention.getPositions())
      for (auto [found, cache] :
           llvm::zip_equal(appends, ArrayRef{attention.getKeysAttr(), attention.getValuesAttr()}))
        if (append.getCacheAttr() == cache && !found)
          found = append;
  }
  return appends;
}

/// Why only a prologue, which has whole heads, can do what `chain` does; empty if an epilogue can.
static StringRef whyWholeHeads(ArrayRef<Operation *> chain) {
  for (Operation *op : chain) {
    if (isa<model::RmsNormOp>(op))
      return "a norm needs whole heads";
    if (isa<model::HadamardOp>(op))
      return "a rotation needs whole heads";
    if (auto rotary = dyn_cast<model::RotaryOp>(op); rotary && rotary.getInterleaved())
      return "an epilogue has no interleaved pairs";
  }
  return {};
}

static StringRef whyWholeHeads(model::CacheAppendOp append) {
  auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(append, append.getCacheAttr());
  if (!cache || cache.getCacheType().getEncoding().bits() >= 16)
    return {};
  return cache.getCacheType().getEncoding().isInteger() ? "integer codes need a head's scale"
                                                        : "an epilogue stores 16 bits";
}

/// Bytes of weights that padding adds to the product of which `rotary` turns a result: in an
/// epilogue the halves of a head are rows of their own tiles.
static int64_t paddingOf(model::RotaryOp rotary) {
  Value start = rotary.getInput();
  while (isa_and_present<model::AddBiasOp, model::ScaleChannelsOp>(start.getDefiningOp()))
    start = start.getDefiningOp()->getOperand(0);
  auto product = start.getDefiningOp<fused::MatvecOp>();
  if (!product)
    return 0;
  constexpr int64_t half = formats::tileRows / 2;
  auto dim = static_cast<int64_t>(rotary.getHeadDim());
  int64_t heads = rotary.getType().getDimSize(1) / dim;
  int64_t added = heads * (2 * static_cast<int64_t>(llvm::alignTo(dim / 2, half)) - dim);
  Type weight = product.getWeights().front().getType();
  auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight);
  int64_t rows = quantized ? quantized.getRows() : cast<RankedTensorType>(weight).getDimSize(0);
  MatrixBytes bytes = matrixBytes(weight);
  return added * ((bytes.elements + bytes.scales) / rows);
}

std::optional<AttentionPlacement> sluice::placeAttention(AttentionOp attention,
                                                         PlacementOption option) {
  std::array<FlatSymbolRefAttr, 2> caches = {attention.getKeysAttr(), attention.getValuesAttr()};
  SmallVector<model::CacheAppendOp> all;
  attention->getParentOfType<func::FuncOp>().walk([&](model::CacheAppendOp append) {
    if (llvm::is_contained(caches, append.getCacheAttr()))
      all.push_back(append);
  });
  if (all.empty())
    return std::nullopt;

  AttentionPlacement result;
  SmallVector<Operation *> rotaries;
  int64_t padding = 0;
  auto demand = [&](StringRef reason) {
    if (!reason.empty() && result.reason.empty()) {
      result.prologue = true;
      result.reason = reason.str();
    }
  };
  auto visit = [&](Value value) {
    SmallVector<Operation *> chain;
    followHeads(value, chain);
    demand(whyWholeHeads(chain));
    for (Operation *op : chain)
      if (auto rotary = dyn_cast<model::RotaryOp>(op)) {
        rotaries.push_back(rotary);
        padding += paddingOf(rotary);
      }
  };
  visit(attention.getQuery());
  for (model::CacheAppendOp append : all) {
    visit(append.getInput());
    demand(whyWholeHeads(append));
  }

  // Rotary embeddings go where appends go, unless only appends need whole heads: then they stay in
  // the epilogue as long as it is cheaper.
  auto [keys, values] = findAppends(attention);
  auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(attention, caches.front());
  bool mayAppend =
      keys && values && cache && cache.getCacheType().getSequences() == attention.getTokens();
  bool turns = false;
  if (result.prologue) {
    turns = option == PlacementOption::Prologue ||
            (option == PlacementOption::Auto && padding > kPrologueBytes);
  } else if (!mayAppend) {
    result.reason = "a prologue appends keys and values of rows that are sequences of their own";
  } else if (option == PlacementOption::Auto) {
    turns = result.prologue = padding > kPrologueBytes;
    result.reason = "halves of heads as rows of a product pad its weights by " +
                    std::to_string(padding) + " bytes; a prologue costs as much as " +
                    std::to_string(kPrologueBytes);
  } else {
    turns = result.prologue = option == PlacementOption::Prologue;
    result.reason = "asked for";
  }
  if (result.prologue)
    result.kept.insert_range(all);
  if (turns)
    result.kept.insert_range(rotaries);
  return result;
}
