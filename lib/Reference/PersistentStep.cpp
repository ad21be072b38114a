// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "PersistentStep.h"

#include "sluice/Formats/FixedSum.h"

#include "llvm/ADT/STLExtras.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::reference;
using fused::IndexRange;
using fused::PersistentPlan;

llvm::Expected<PersistentStep> PersistentStep::get(Block &step,
                                                   fused::PersistentScheduleAttr schedule) {
  llvm::Expected<fused::DecoderStep> matched = fused::DecoderStep::match(step);
  if (!matched)
    return matched.takeError();
  // Whether it finds room in a device's memory does not matter here.
  fused::GpuDevice device;
  device.bulkCopies = true;
  device.sharedBytes = std::numeric_limits<int64_t>::max();
  llvm::Expected<PersistentPlan> plan =
      PersistentPlan::get(matched->shape, fused::PersistentSchedule::get(schedule), device);
  if (!plan)
    return plan.takeError();
  return PersistentStep(std::move(*matched), std::move(*plan));
}

PersistentStep::PersistentStep(fused::DecoderStep matched, PersistentPlan planned)
    : step(std::move(matched)), plan(std::move(planned)) {
  for (auto [layer, ops] : llvm::enumerate(step.layers)) {
    normed.insert(ops.projections);
    normed.insert(ops.gates);
    added[ops.output] = {int64_t(layer), /*mlp=*/false};
    added[ops.down] = {int64_t(layer), /*mlp=*/true};
  }
  normed.insert(step.head);
  int64_t layers = step.layers.size();
  for (auto [index, array] : llvm::enumerate(sums)) {
    array.words.assign(plan.shape.width, 0);
    array.poisoned.assign(plan.shape.width, false);
    array.limit = formats::fixedSumLimit(index ? plan.mlpAdditions() * llvm::divideCeil(layers, 2)
                                               : plan.attentionAdditions() * layers);
  }
}

llvm::SmallVector<IndexRange> PersistentStep::columnsOf(Operation *op) const {
  llvm::SmallVector<IndexRange> ranges;
  if (added.lookup(op).mlp) {
    for (int64_t cluster = 0; cluster < plan.schedule.clusters; ++cluster) {
      IndexRange groups = plan.clusterInnerGroups(cluster);
      ranges.push_back(
          {groups.begin * PersistentPlan::kGroup, groups.end * PersistentPlan::kGroup});
    }
    return ranges;
  }
  int64_t columns = plan.shape.group() * plan.shape.dim;
  for (int64_t cluster = 0; cluster < plan.schedule.attentionClusters; ++cluster) {
    IndexRange heads = plan.heads(cluster);
    ranges.push_back({heads.begin * columns, heads.end * columns});
  }
  return ranges;
}

void PersistentStep::add(Operation *op, const Tensor &part) {
  Words &array = sums[added.lookup(op).array()];
  ++array.additions;
  for (auto [row, value] : llvm::enumerate(part.row(0))) {
    std::optional<int64_t> term = formats::fixedSumTerm(value, array.limit);
    array.words[row] += formats::fixedSumIncrement(term.value_or(0));
    if (!term)
      array.poisoned[row] = true;
  }
}

float PersistentStep::Words::value(size_t row) const {
  return poisoned[row] ? std::numeric_limits<float>::quiet_NaN()
                       : formats::fixedSumValue(words[row], additions);
}

Tensor PersistentStep::streamAfter(Operation *op, const Tensor &embedding) const {
  Place place = added.lookup(op);
  // Of the MLPs' arrays, the one that was added to last.
  int64_t latest = place.mlp ? place.layer : place.layer + 1;
  Tensor stream = embedding;
  for (auto [row, value] : llvm::enumerate(stream.row(0)))
    value = (value + sums[0].value(row)) +
            (sums[1 + latest % 2].value(row) + sums[1 + (latest + 1) % 2].value(row));
  return stream;
}
