// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionPlacement.h"

#include "sluice/Formats/RowOrder.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using fused::AttentionOp;
using llvm::formatv;

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

/// Rows that padding adds to the products whose results are turned: in an epilogue the halves of a
/// head are rows of their own tiles.
using Padding = llvm::MapVector<Operation *, int64_t>;

static void addPadding(model::RotaryOp rotary, Padding &padding) {
  Value start = rotary.getInput();
  while (isa_and_present<model::AddBiasOp, model::ScaleChannelsOp>(start.getDefiningOp()))
    start = start.getDefiningOp()->getOperand(0);
  auto product = start.getDefiningOp<fused::MatvecOp>();
  if (!product)
    return;
  constexpr int64_t half = formats::tileRows / 2;
  auto dim = static_cast<int64_t>(rotary.getHeadDim());
  int64_t heads = rotary.getType().getDimSize(1) / dim;
  padding[product] += heads * (2 * static_cast<int64_t>(llvm::alignTo(dim / 2, half)) - dim);
}

/// Seconds that products with these rows more take longer.
static double paddingSeconds(const Padding &padding, const TimeModel &model) {
  double seconds = 0;
  for (auto [product, rows] : padding) {
    KernelLoad load = kernelLoad(cast<fused::KernelOp>(product));
    seconds -= model.formula(load).at(1).seconds();
    load.weights.front().rows += rows;
    seconds += model.formula(load).at(1).seconds();
  }
  return seconds;
}

std::optional<AttentionPlacement>
sluice::placeAttention(AttentionOp attention, PlacementOption option, const TimeModel &model) {
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
  Padding padding;
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
        addPadding(rotary, padding);
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
  double padded = paddingSeconds(padding, model), appended = model.appendSeconds();
  bool turns = false;
  if (result.prologue) {
    turns = option == PlacementOption::Prologue ||
            (option == PlacementOption::Auto && padded > appended);
  } else if (!mayAppend) {
    result.reason = "a prologue appends keys and values of rows that are sequences of their own";
  } else if (option == PlacementOption::Auto) {
    int64_t rows = 0;
    for (auto [product, added] : padding)
      rows += added;
    turns = result.prologue = padded > appended;
    result.reason = formatv("halves of heads as rows of a product pad it by {0} rows, {1:F2} us; a "
                            "prologue takes {2:F2} us",
                            rows, 1e6 * padded, 1e6 * appended);
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
