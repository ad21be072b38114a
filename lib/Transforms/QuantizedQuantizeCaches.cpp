// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FormatDecisions.h"
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

void QuantizedQuantizeCaches::runOnOperation() {
  SmallVector<model::AttentionOp> layers;
  getOperation().walk([&](model::AttentionOp attention) { layers.push_back(attention); });
  auto count = static_cast<int64_t>(layers.size());
  FailureOr<CacheScheme> keyScheme = parse(keys.getArgStr(), keys, /*rotates=*/true, count);
  FailureOr<CacheScheme> valueScheme = parse(values.getArgStr(), values, /*rotates=*/false, count);
  if (failed(keyScheme) || failed(valueScheme))
    return signalPassFailure();
  for (auto [number, attention] : llvm::enumerate(layers)) {
    CacheChoice keyChoice = keyScheme->layer(number), valueChoice = valueScheme->layer(number);
    auto reason = [](const CacheChoice &choice) {
      return choice.automatic ? "auto is f16" : "asked for";
    };
    auto cacheOf = [&](FlatSymbolRefAttr name) {
      return getOperation().lookupSymbol<model::CacheOp>(name.getAttr());
    };
    model::CacheOp keyCache = cacheOf(attention.getKeysAttr()),
                   valueCache = cacheOf(attention.getValuesAttr());
    // What an earlier run, a plan or a hand has decided stays.
    if (!isDecided(valueCache))
      decideCache(valueCache, valueChoice, reason(valueChoice));
    if (isDecided(keyCache))
      continue;
    if (int64_t dim = keyCache.getCacheType().getHeadDim(); keyChoice.rotated && dim % 2) {
      emitError(getOperation().getLoc())
          << "--" << keys.getArgStr() << " " << keys << ": heads cannot be rotated, as their size "
          << dim << " is odd";
      return signalPassFailure();
    }
    decideCache(keyCache, keyChoice, reason(keyChoice));
    if (keyChoice.rotated)
      rotateKeys(attention);
  }
}
} // namespace
} // namespace sluice
