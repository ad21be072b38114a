// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/TimeFit.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/ScopeExit.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/StringSet.h"

#include <Eigen/Dense>
#include <cmath>
#include <numeric>

using namespace llvm;
using namespace sluice;

namespace {

/// Launches of a step that read the same: their typical time by itself.
struct KernelClass {
  KernelLoad load;
  int64_t context = 0, count = 0;
  double seconds = 0;
};

struct Step {
  double seconds = 0;
  /// As StepMeasurement.
  double readBandwidth = 0;
  std::vector<KernelClass> kernels;
};

/// A parameter that is fitted, and how far from its first value it may be expected to be (as a
/// logarithm) where measurements say little.
struct Parameter {
  Sourced<double> *number;
  double first, freedom;
};

double median(std::vector<double> values) {
  if (values.empty())
    return 0;
  auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What counts of the times of launches that read the same: on a CPU other programs add to some.
double typical(std::vector<double> seconds, bool isGpu) {
  if (isGpu || seconds.empty())
    return median(std::move(seconds));
  auto quarter = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 4);
  std::nth_element(seconds.begin(), quarter, seconds.end());
  return *quarter;
}

std::vector<Step> classify(ArrayRef<StepMeasurement> measurements, bool isGpu) {
  std::vector<Step> steps;
  for (const StepMeasurement &measured : measurements) {
    Step &step = steps.emplace_back();
    step.seconds = measured.seconds;
    step.readBandwidth = measured.readBandwidth;
    std::vector<std::vector<double>> times;
    for (auto [load, seconds] : zip_equal(measured.kernels, measured.alone)) {
      auto found = find_if(step.kernels, [&](const auto &known) { return known.load == load; });
      size_t index = found - step.kernels.begin();
      if (found == step.kernels.end()) {
        step.kernels.push_back({load, measured.context, 0, 0});
        times.emplace_back();
      }
      ++step.kernels[index].count;
      times[index].push_back(seconds);
    }
    for (auto [kernel, values] : zip_equal(step.kernels, times))
      kernel.seconds = typical(std::move(values), isGpu);
  }
  return steps;
}

/// Logarithms of predicted over measured seconds: of each class of kernels, then of the step. While
/// they are computed, a CPU's bandwidths are those of the step's time.
void errorsOf(TargetDescription &target, const Step &step,
              function_ref<void(double error, bool isStep)> visit) {
  const CpuTime kept = target.cpuTime;
  llvm::scope_exit restore([&] { target.cpuTime = kept; });
  if (!target.isGpu() && step.readBandwidth > 0)
    for (auto bandwidth :
         {&CpuTime::productBandwidth, &CpuTime::cacheBandwidth, &CpuTime::rowsBandwidth})
      (target.cpuTime.*bandwidth).value *= step.readBandwidth / target.bandwidth();
  TimeModel model(target, /*context=*/1);
  double seconds = model.stepSeconds();
  for (const KernelClass &kernel : step.kernels) {
    TimeFormula formula = model.formula(kernel.load);
    double inStep = formula.at(kernel.context).seconds();
    seconds += static_cast<double>(kernel.count) * inStep;
    visit(std::log((inStep + formula.alone) / kernel.seconds), false);
  }
  visit(std::log(seconds / step.seconds), true);
}

/// A residual whose square grows like the residual where it is large (the loss of pseudo-Huber).
double bounded(double residual) {
  return std::copysign(std::sqrt(2 * (std::sqrt(1 + residual * residual) - 1)), residual);
}

class Fit {
public:
  Fit(TargetDescription &target, ArrayRef<Step> steps) : target(target), steps(steps) {}

  void add(Sourced<double> &number, double freedom) {
    // Logarithms know no zero.
    constexpr double least = 1e-12;
    parameters.push_back({&number, std::max(number.value, least), freedom});
  }

  /// Levenberg and Marquardt's method, with derivatives by differences.
  void run() {
    constexpr int mostSteps = 60;
    Eigen::VectorXd place = Eigen::VectorXd::Zero(parameters.size());
    Eigen::VectorXd errors = residuals(place);
    double damping = 1e-2;
    for (int i = 0; i < mostSteps; ++i) {
      Eigen::MatrixXd slopes(errors.size(), place.size());
      for (Eigen::Index k = 0; k < place.size(); ++k) {
        constexpr double delta = 1e-4;
        Eigen::VectorXd near = place;
        near[k] += delta;
        slopes.col(k) = (residuals(near) - errors) / delta;
      }
      Eigen::MatrixXd square = slopes.transpose() * slopes;
      Eigen::VectorXd gradient = slopes.transpose() * errors;
      bool better = false;
      for (int tries = 0; tries < 10 && !better; ++tries) {
        Eigen::MatrixXd damped = square;
        damped.diagonal() *= 1 + damping;
        Eigen::VectorXd next = place - damped.ldlt().solve(gradient);
        Eigen::VectorXd nextErrors = residuals(next);
        better = nextErrors.squaredNorm() < errors.squaredNorm();
        damping *= better ? 0.3 : 4;
        if (better) {
          bool converged = nextErrors.squaredNorm() > errors.squaredNorm() * (1 - 1e-6);
          place = next;
          errors = nextErrors;
          if (converged)
            i = mostSteps;
        }
      }
      if (!better)
        break;
    }
    move(place);
  }

private:
  void move(const Eigen::VectorXd &place) {
    for (auto [index, parameter] : enumerate(parameters))
      parameter.number->value = parameter.first * std::exp(std::clamp(place[index], -7.0, 7.0));
  }

  Eigen::VectorXd residuals(const Eigen::VectorXd &place) {
    move(place);
    std::vector<double> values;
    for (const Step &step : steps)
      errorsOf(target, step, [&](double error, bool isStep) {
        if (target.isGpu())
          values.push_back(error / (isStep ? 0.02 : 0.05));
        else if (!isStep)
          values.push_back(bounded(error / 0.05));
      });
    for (auto [index, parameter] : enumerate(parameters))
      values.push_back(place[index] / parameter.freedom);
    return Eigen::Map<Eigen::VectorXd>(values.data(), static_cast<Eigen::Index>(values.size()));
  }

  TargetDescription &target;
  ArrayRef<Step> steps;
  std::vector<Parameter> parameters;
};

/// What the products of many tokens among `steps` depend on beside what others depend on.
SmallVector<Sourced<double> *> matmulParameters(GpuTime &time, ArrayRef<Step> steps) {
  // By arithmetic, of single warps and of warpgroups; then of both.
  Sourced<double> *rates[][2] = {{&time.warpIntegers, &time.warpgroupIntegers},
                                 {&time.warpFloats, &time.warpgroupFloats},
                                 {&time.warpRecords, &time.warpgroupRecords}};
  Sourced<double> *unpack[] = {&time.unpackIntegers, &time.unpackFloats, &time.unpackRecords};
  SmallSetVector<Sourced<double> *, 16> parameters;
  for (const Step &step : steps)
    for (const KernelClass &kernel : step.kernels) {
      if (kernel.load.kind != KernelLoad::Kind::Matmul)
        continue;
      auto arithmetic = static_cast<size_t>(kernel.load.matmul.arithmetic);
      parameters.insert(rates[arithmetic][kernel.load.matmul.warpgroups]);
      parameters.insert(unpack[arithmetic]);
    }
  parameters.insert_range(ArrayRef<Sourced<double> *>{&time.matmulWait, &time.matmulStage,
                                                      &time.l2Bandwidth, &time.l2BlockBandwidth,
                                                      &time.rowsBandwidth});
  return SmallVector<Sourced<double> *>(parameters.begin(), parameters.end());
}

/// Adds the formats that were measured to a table of rates.
template <typename Format>
StringSet<> addMeasured(FormatRates &rates, ArrayRef<Format> measured,
                        function_ref<double(const Format &)> rateOf) {
  StringSet<> names;
  FormatRates added;
  for (const Format &format : measured) {
    names.insert(format.name());
    if (!rates.count(format.name()))
      added[format.name()].value = rateOf(format);
  }
  rates.insert(added.begin(), added.end());
  return names;
}

} // namespace

FitErrors sluice::predictionErrors(const TargetDescription &target,
                                   ArrayRef<StepMeasurement> measurements) {
  std::vector<double> kernels, steps;
  TargetDescription own = target;
  for (const Step &step : classify(measurements, target.isGpu()))
    errorsOf(own, step, [&](double error, bool isStep) {
      (isStep ? steps : kernels).push_back(std::abs(std::expm1(error)));
    });
  FitErrors errors;
  errors.kernel = median(kernels);
  errors.step = median(steps);
  for (double error : steps)
    errors.worstStep = std::max(errors.worstStep, error);
  return errors;
}

TargetDescription sluice::fitTime(TargetDescription base, ArrayRef<StepMeasurement> measurements,
                                  StringRef source) {
  std::vector<Step> steps = classify(measurements, base.isGpu());
  SmallVector<formats::Encoding> encodings, matmulEncodings;
  SmallVector<formats::CacheEncoding> caches;
  for (const Step &step : steps)
    for (const KernelClass &kernel : step.kernels) {
      for (const WeightLoad &weight : kernel.load.weights)
        encodings.push_back(weight.encoding);
      for (const WeightLoad &weight : kernel.load.matmul.weights)
        matmulEncodings.push_back(weight.encoding);
      if (kernel.load.kind == KernelLoad::Kind::Attention)
        caches.append({kernel.load.attention.keys, kernel.load.attention.values});
    }
  TargetDescription fitted = base;
  StringSet<> products, attentions, operands, matmuls;
  {
    TimeModel model(base, /*context=*/1);
    products = addMeasured<formats::Encoding>(fitted.productRates, encodings,
                                              [&](const auto &f) { return model.productRate(f); });
    attentions = addMeasured<formats::CacheEncoding>(
        fitted.attentionRates, caches, [&](const auto &f) { return model.attentionRate(f); });
    if (!base.isGpu()) {
      operands = addMeasured<formats::CacheEncoding>(
          fitted.attentionOperandRates, caches,
          [&](const auto &f) { return model.attentionOperandRate(f); });
      matmuls = addMeasured<formats::Encoding>(fitted.matmulRates, matmulEncodings,
                                               [&](const auto &f) { return model.matmulRate(f); });
    }
  }
  FormatRates firstProducts = fitted.productRates, firstAttention = fitted.attentionRates,
              firstOperands = fitted.attentionOperandRates, firstMatmuls = fitted.matmulRates;

  Fit fit(fitted, steps);
  auto addTime = [&](Sourced<double> &number, double freedom) {
    number.source = source.str();
    fit.add(number, freedom);
  };
  if (fitted.isGpu()) {
    GpuTime &time = fitted.gpuTime;
    for (auto *bandwidth : {&time.productBandwidth, &time.cacheBandwidth, &time.blockBandwidth})
      addTime(*bandwidth, 0.3);
    for (auto *seconds : {&time.productGap, &time.productWait, &time.productColumn,
                          &time.attentionWait, &time.step, &time.alone})
      addTime(*seconds, 0.7);
    // They run once a step, so that their times alone say all: nothing else tells them from it.
    for (auto *seconds : {&time.smallKernel, &time.samplingLogit})
      addTime(*seconds, 0.2);
    if (!matmulEncodings.empty())
      for (Sourced<double> *number : matmulParameters(time, steps))
        addTime(*number, 0.7);
  } else {
    CpuTime &time = fitted.cpuTime;
    // A description's are those of another machine.
    for (auto *bandwidth : {&time.productBandwidth, &time.cacheBandwidth, &time.rowsBandwidth}) {
      bandwidth->value = fitted.bandwidth();
      addTime(*bandwidth, 0.15);
    }
    for (auto *seconds : {&time.launch, &time.productColumn})
      addTime(*seconds, 1);
    if (!steps.empty()) {
      std::vector<double> beside;
      for (const StepMeasurement &step : measurements)
        beside.push_back(step.seconds - std::accumulate(step.alone.begin(), step.alone.end(), 0.0));
      time.step = {std::max(0.0, typical(std::move(beside), /*isGpu=*/false)), source.str()};
    }
  }
  auto addRates = [&](FormatRates &rates, const StringSet<> &measured) {
    for (auto &[name, rate] : rates)
      if (measured.contains(name))
        // CPUs of one instruction set differ more than GPUs of a generation.
        addTime(rate, fitted.isGpu() ? 0.5 : 1);
  };
  addRates(fitted.productRates, products);
  addRates(fitted.attentionRates, attentions);
  addRates(fitted.attentionOperandRates, operands);
  addRates(fitted.matmulRates, matmuls);
  fit.run();

  auto scaleOthers = [&](FormatRates &rates, const FormatRates &first,
                         const StringSet<> &measured) {
    std::vector<double> factors;
    for (auto &[name, rate] : rates)
      if (measured.contains(name))
        factors.push_back(rate.value / first.at(name).value);
    for (auto &[name, rate] : rates)
      if (!measured.contains(name) && !factors.empty()) {
        rate.value *= median(factors);
        rate.source = "not measured: that of target " + base.name +
                      ", scaled by the median of the formats that were";
      }
  };
  scaleOthers(fitted.productRates, firstProducts, products);
  scaleOthers(fitted.attentionRates, firstAttention, attentions);
  scaleOthers(fitted.attentionOperandRates, firstOperands, operands);
  scaleOthers(fitted.matmulRates, firstMatmuls, matmuls);
  return fitted;
}
