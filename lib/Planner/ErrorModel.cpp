// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ErrorModel.h"

#include "sluice/Import/FileSet.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Import/TensorReader.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/Parallel.h"

#include <deque>
#include <mutex>
#include <random>

using namespace llvm;
using namespace mlir;
using namespace sluice;
using namespace sluice::planner;
using formats::Rounder;

/// The sensitivity of a weight where none was measured: the mean over the weights of four models is
/// 0.15 to 0.28 nats (docs/planner.md).
static constexpr double kCommonSensitivity = 0.25;

Expected<ErrorModel> ErrorModel::create(ModuleOp module, StringRef path) {
  ErrorModel model;
  model.module = module;
  if (path.empty())
    return model;
  Expected<calibration::Statistics> read = calibration::Statistics::read(path);
  if (!read)
    return read.takeError();
  model.statistics = std::move(*read);
  model.statisticsPath = path.str();
  return model;
}

std::string ErrorModel::basis() const {
  if (!statistics)
    return "the weights alone";
  if (!statistics->hasSensitivities())
    return "moments of inputs, without sensitivities";
  return formatv("statistics of {0} tokens", statistics->source.tokens);
}

double ErrorModel::margin() const {
  return statistics && statistics->hasSensitivities() ? 1 : kMarginWithoutSensitivities;
}

std::optional<double> ErrorModel::keys(int64_t layer, const formats::CacheChoice &choice) const {
  return statistics ? statistics->cacheLoss(layer, /*isKey=*/true, choice.name()) : std::nullopt;
}

std::optional<double> ErrorModel::values(int64_t layer, const formats::CacheChoice &choice) const {
  return statistics ? statistics->cacheLoss(layer, /*isKey=*/false, choice.name()) : std::nullopt;
}

/// Rows of a weight that are rounded, of wide ones fewer: rows take time with the square of their
/// width, and the errors of 16 of them average to within some percent.
static int64_t sampledRows(int64_t columns) {
  return std::clamp<int64_t>((int64_t(1) << 17) / columns, 16, 64);
}

/// Without statistics no row is worth more than another, and so many numbers of a weight are
/// enough: predictions are rough in any case.
static constexpr int64_t kElementsWithoutStatistics = 4096;

/// Rows that stand for a weight, one after another: spread evenly over it. Of a weight that does
/// not exist, rows of independent numbers.
static Expected<std::vector<float>> sampleRows(RoundingTask &task, int64_t count, FileSet *files) {
  count = std::min(count, task.rows);
  std::vector<float> values(count * task.columns);
  if (task.weight.isSynthetic()) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float &value : values)
      value = normal(random);
    return values;
  }
  Expected<Weight> located = weightInFile(task.weight);
  if (!located)
    return located.takeError();
  Expected<TensorReader> reader = TensorReader::open(*located, *files);
  if (!reader)
    return reader.takeError();
  for (int64_t i = 0; i < count; ++i)
    reader->readRow(i * task.rows / count,
                    MutableArrayRef(values).slice(i * task.columns, task.columns));
  return values;
}

Error ErrorModel::predict(MutableArrayRef<RoundingTask> tasks,
                          const std::function<void(double)> &progress) const {
  std::optional<FileSet> files;
  if (any_of(tasks, [](RoundingTask &task) { return !task.weight.isSynthetic(); })) {
    Expected<std::string> root = weightRoot(module);
    if (!root)
      return root.takeError();
    files.emplace(*root);
  }
  // What is prepared for an input serves all weights that read it.
  MapVector<const calibration::InputStatistics *, SmallVector<RoundingTask *>> byInput;
  std::deque<SmallVector<RoundingTask *>> alone;
  for (RoundingTask &task : tasks) {
    StringRef name = task.weight.getSymName();
    const calibration::InputStatistics *input = statistics ? statistics->inputOf(name) : nullptr;
    if (input && input->columns() != task.columns)
      return createStringError(statisticsPath + ": weight " + name + " has " + Twine(task.columns) +
                               " columns, its statistics have " + Twine(input->columns()) +
                               ": they are of another model");
    if (input)
      byInput[input].push_back(&task);
    else
      alone.push_back({&task});
  }
  if (statistics && !tasks.empty() && byInput.empty())
    return createStringError(statisticsPath +
                             ": has statistics of none of the weights: they are of another model");
  std::vector<std::pair<const calibration::InputStatistics *, ArrayRef<RoundingTask *>>> jobs;
  for (auto &[input, own] : byInput)
    jobs.emplace_back(input, own);
  for (auto &own : alone)
    jobs.emplace_back(nullptr, own);

  auto sensitivityOf = [&](RoundingTask &task) {
    const calibration::WeightStatistics *known =
        statistics ? statistics->find(task.weight.getSymName()) : nullptr;
    return known ? known->sensitivity.value_or(kCommonSensitivity) : kCommonSensitivity;
  };
  size_t done = 0;
  for (auto &[input, own] : jobs) {
    // This uses all processors by itself.
    Expected<Rounder> rounder = calibration::makeRounder(input, own.front()->columns);
    if (!rounder)
      return rounder.takeError();
    SmallVector<std::vector<float>> rows;
    SmallVector<std::pair<size_t, size_t>> pairs; // of a task and one of its encodings
    for (auto [index, task] : enumerate(own)) {
      int64_t count = input ? sampledRows(task->columns)
                            : std::max<int64_t>(1, kElementsWithoutStatistics / task->columns);
      Expected<std::vector<float>> sample = sampleRows(*task, count, files ? &*files : nullptr);
      if (!sample)
        return sample.takeError();
      rows.push_back(std::move(*sample));
      task->divergences.resize(task->encodings.size());
      for (size_t i = 0; i < task->encodings.size(); ++i)
        pairs.emplace_back(index, i);
    }
    std::mutex mutex;
    Error failed = Error::success();
    parallelFor(0, pairs.size(), [&](size_t i) {
      auto [index, encoding] = pairs[i];
      RoundingTask &task = *own[index];
      Expected<double> error = rounder->relativeError(task.encodings[encoding], rows[index]);
      if (error) {
        task.divergences[encoding] = sensitivityOf(task) * *error;
        return;
      }
      std::lock_guard lock(mutex);
      if (failed) // One of them is enough to know.
        consumeError(error.takeError());
      else
        failed = createStringError(task.weight.getSymName() + ": " + toString(error.takeError()));
    });
    if (failed)
      return failed;
    done += own.size();
    if (progress)
      progress(static_cast<double>(done) / static_cast<double>(tasks.size()));
  }
  return Error::success();
}
