// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FormatDecisions.h"
#include "sluice/Transforms/Passes.h"

#include "sluice/Calibration/Statistics.h"
#include "sluice/Formats/WeightScheme.h"

#include "mlir/IR/Remarks.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "quantized-quantize-weights"

namespace sluice {
#define GEN_PASS_DEF_QUANTIZEDQUANTIZEWEIGHTS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using quantized::EncodingAttr;
using quantized::QuantizedTensorType;

struct QuantizedQuantizeWeights : impl::QuantizedQuantizeWeightsBase<QuantizedQuantizeWeights> {
  using QuantizedQuantizeWeightsBase::QuantizedQuantizeWeightsBase;
  void runOnOperation() override;

private:
  /// The float matrix that takes the place of `weight`: `weight` itself if its format stays. Null
  /// after an error.
  Value quantize(Value weight, EncodingAttr asked);
  /// How the packer will round a weight of so many columns; an error if the statistics do not fit.
  FailureOr<std::string> roundingOf(Value weight, EncodingAttr asked);
  /// Notes that `weight` has another format than the one asked for.
  void leave(Value weight, EncodingAttr asked, EncodingAttr found, StringRef reason);

  /// Weights that do not get what was asked for: "blk.0.ffn_down is f16, as decided before".
  SmallVector<std::pair<Location, std::string>> left;
  std::optional<calibration::Statistics> statistics;
  /// Weights that are rounded, and those of them that the statistics know.
  int64_t rounded = 0, known = 0;
};

void QuantizedQuantizeWeights::leave(Value weight, EncodingAttr asked, EncodingAttr found,
                                     StringRef reason) {
  remark::missed(weight.getLoc(), remark::RemarkOpts::name("not-as-asked").category(DEBUG_TYPE))
      << remark::reason("{0} instead of {1}: {2}", found.getName(), asked.getName(), reason.str());
  left.emplace_back(weight.getLoc(),
                    llvm::formatv("{0} is {1}, {2}", weightName(weight), found.getName(), reason));
}

FailureOr<std::string> QuantizedQuantizeWeights::roundingOf(Value weight, EncodingAttr asked) {
  if (!statistics || !asked.getValue().isInteger())
    return std::string("asked for");
  ++rounded;
  const calibration::InputStatistics *input = statistics->inputOf(weightName(weight));
  known += input != nullptr;
  int64_t columns = cast<RankedTensorType>(weight.getType()).getDimSize(1);
  if (input && input->columns() != columns)
    return emitError(weight.getLoc())
           << stats << ": weight " << weightName(weight) << " has " << columns
           << " columns, its statistics have " << input->columns() << ": they are of another model";
  return ("asked for, " + calibration::roundingName(input)).str();
}

Value QuantizedQuantizeWeights::quantize(Value weight, EncodingAttr asked) {
  auto dequantize = weight.getDefiningOp<quantized::DequantizeOp>();
  Value stored = dequantize ? Value(dequantize.getInput()) : weight;
  Operation *source = stored.getDefiningOp();
  auto type = cast<RankedTensorType>(weight.getType());
  auto storedType = dyn_cast<QuantizedTensorType>(stored.getType());
  EncodingAttr present =
      storedType ? storedType.getEncoding() : EncodingAttr::of(type.getElementType());
  if (source && (isa<quantized::QuantizeOp>(source) || source->hasAttr("sluice.decision"))) {
    if (present != asked)
      leave(weight, asked, present, "as decided before");
    return weight;
  }
  if (present == asked)
    return weight;
  if (!isa_and_nonnull<model::ParameterOp>(source)) {
    leave(weight, asked, present, "because a weight that is computed cannot be quantized");
    return weight;
  }
  if (!type.hasStaticShape()) {
    leave(weight, asked, present, "because its shape is not known");
    return weight;
  }

  if (!asked.getValue().fitsColumns(type.getDimSize(1))) {
    leave(weight, asked, present, "because its rows are no multiple of 256 columns");
    return weight;
  }

  FailureOr<std::string> reason = roundingOf(weight, asked);
  if (failed(reason))
    return Value();
  LDBG() << asked.getName() << " for " << *source;
  return quantizeWeight(weight, asked, *reason);
}

void QuantizedQuantizeWeights::runOnOperation() {
  llvm::Expected<formats::WeightScheme> parsed = formats::WeightScheme::parse(scheme);
  if (!parsed) {
    emitError(getOperation().getLoc()) << "scheme: " << llvm::toString(parsed.takeError());
    return signalPassFailure();
  }
  if (parsed->asksForNothing())
    return markAllAnalysesPreserved();
  left.clear();
  statistics.reset();
  rounded = known = 0;
  if (!stats.empty()) {
    llvm::Expected<calibration::Statistics> read = calibration::Statistics::read(stats);
    if (!read) {
      emitError(getOperation().getLoc()) << llvm::toString(read.takeError());
      return signalPassFailure();
    }
    statistics = std::move(*read);
  }
  DenseMap<Value, Value> replacements;
  WalkResult walked = getOperation().walk([&](model::LinearOp linear) {
    Value weight = linear.getWeight();
    auto [entry, isNew] = replacements.try_emplace(weight);
    if (isNew) {
      std::optional<formats::Encoding> asked = parsed->formatOf(weightName(weight));
      entry->second = asked ? quantize(weight, EncodingAttr::get(&getContext(), *asked)) : weight;
    }
    if (!entry->second)
      return WalkResult::interrupt();
    linear.getWeightMutable().assign(entry->second);
    return WalkResult::advance();
  });
  if (walked.wasInterrupted())
    return signalPassFailure();
  if (rounded && statistics && !known) {
    emitError(getOperation().getLoc())
        << stats << ": has statistics of none of the weights: they are of another model";
    return signalPassFailure();
  }
  if (left.empty())
    return;
  auto &[location, first] = left.front();
  InFlightDiagnostic warning = emitWarning(location) << scheme << " was asked for, but " << first;
  if (left.size() > 1)
    warning << " (and " << left.size() - 1 << " more)";
}
} // namespace
} // namespace sluice
