// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice/Formats/CacheScheme.h"

#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "quantized-quantize-caches"

namespace sluice {
#define GEN_PASS_DEF_QUANTIZEDQUANTIZECACHES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using formats::CacheChoice;
using formats::CacheScheme;

struct QuantizedQuantizeCaches : impl::QuantizedQuantizeCachesBase<QuantizedQuantizeCaches> {
  using QuantizedQuantizeCachesBase::QuantizedQuantizeCachesBase;
  void runOnOperation() override;

private:
  FailureOr<CacheScheme> parse(StringRef option, StringRef text, bool rotates, int64_t layers);
  /// Gives the cache its encoding, unless an earlier run or a hand has.
  void quantize(FlatSymbolRefAttr name, const CacheChoice &choice);
  /// Rotates the query and what is appended to its keys.
  void rotate(model::AttentionOp attention);
};

FailureOr<CacheScheme> QuantizedQuantizeCaches::parse(StringRef option, StringRef text,
                                                      bool rotates, int64_t layers) {
  llvm::Expected<CacheScheme> scheme = CacheScheme::parse(text, rotates);
  llvm::Error error = scheme ? scheme->checkLayers(layers) : scheme.takeError();
  if (!error)
    return std::move(*scheme);
  return emitError(getOperation().getLoc())
         << "--" << option << " " << text << ": " << llvm::toString(std::move(error));
}

void QuantizedQuantizeCaches::quantize(FlatSymbolRefAttr name, const CacheChoice &choice) {
  auto cache = getOperation().lookupSymbol<model::CacheOp>(name.getAttr());
  cache.setType(cache.getCacheType().withEncoding(choice.encoding));
  Builder builder(&getContext());
  cache->setDiscardableAttr("sluice.decision", builder.getStringAttr(choice.name()));
  cache->setDiscardableAttr("sluice.reason",
                            builder.getStringAttr(choice.automatic ? "auto is f16" : "asked for"));
  LDBG() << choice.name() << " for " << name;
}

void QuantizedQuantizeCaches::rotate(model::AttentionOp attention) {
  int64_t dim = getOperation()
                    .lookupSymbol<model::CacheOp>(attention.getKeysAttr().getAttr())
                    .getCacheType()
                    .getHeadDim();
  auto rotated = [&](Operation *user, OpOperand &operand) {
    OpBuilder builder(user);
    operand.set(model::HadamardOp::create(builder, user->getLoc(), operand.get().getType(),
                                          operand.get(), builder.getI64IntegerAttr(dim)));
  };
  rotated(attention, attention.getQueryMutable());
  attention->getParentOfType<func::FuncOp>().walk([&](model::CacheAppendOp append) {
    if (append.getCacheAttr() == attention.getKeysAttr())
      rotated(append, append.getInputMutable());
  });
}

void QuantizedQuantizeCaches::runOnOperation() {
  SmallVector<model::AttentionOp> layers;
  getOperation().walk([&](model::AttentionOp attention) { layers.push_back(attention); });
  auto count = static_cast<int64_t>(layers.size());
  FailureOr<CacheScheme> keyScheme = parse(keys.getArgStr(), keys, /*rotates=*/true, count);
  FailureOr<CacheScheme> valueScheme = parse(values.getArgStr(), values, /*rotates=*/false, count);
  if (failed(keyScheme) || failed(valueScheme))
    return signalPassFailure();
  for (auto [number, attention] : llvm::enumerate(layers)) {
    auto cache = getOperation().lookupSymbol<model::CacheOp>(attention.getKeysAttr().getAttr());
    if (cache->hasAttr("sluice.decision"))
      continue; // Decided by an earlier run or by hand.
    CacheChoice keyChoice = keyScheme->layer(number), valueChoice = valueScheme->layer(number);
    if (int64_t dim = cache.getCacheType().getHeadDim(); keyChoice.rotated && dim % 2) {
      emitError(getOperation().getLoc())
          << "--" << keys.getArgStr() << " " << keys << ": heads cannot be rotated, as their size "
          << dim << " is odd";
      return signalPassFailure();
    }
    quantize(attention.getKeysAttr(), keyChoice);
    quantize(attention.getValuesAttr(), valueChoice);
    if (keyChoice.rotated)
      rotate(attention);
  }
}
} // namespace
} // namespace sluice
