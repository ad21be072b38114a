// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The parameters of the time model (TimeModel.h), from measurements.

#ifndef SLUICE_ANALYSIS_TIMEFIT_H
#define SLUICE_ANALYSIS_TIMEFIT_H

#include "sluice/Analysis/TimeModel.h"

namespace sluice {

/// A step that was measured: its launches in order, and seconds of each by itself and of all
/// together.
struct StepMeasurement {
  int64_t context = 0;
  std::vector<KernelLoad> kernels;
  std::vector<double> alone;
  double seconds = 0;
  /// Of a CPU, what a plain read of memory reached at that time, bytes a second; 0 if it was as
  /// fast as ever (the target's read ceiling).
  double readBandwidth = 0;
};

/// How well a target's parameters predict measurements: the median of the errors' magnitudes, as
/// shares.
struct FitErrors {
  double kernel = 0, step = 0, worstStep = 0;
};
FitErrors predictionErrors(const TargetDescription &target, llvm::ArrayRef<StepMeasurement> steps);

/// `base` with the parameters that predict `steps` best, by least squares of the logarithms (a
/// kernel's error of 5% counts as much as a step's of 2%). What no measurement tells stays as it
/// is; the rates of formats that were not measured change as those that were. A parameter whose
/// value comes from the measurements has `source`.
///
/// On a CPU, which other programs use as well, a kernel that took much longer than predicted counts
/// little more than one that took somewhat longer; whole steps, which are long enough to be
/// interrupted each time, only tell what they take beside their kernels; and bandwidths are those
/// of the time at which a step was measured.
TargetDescription fitTime(TargetDescription base, llvm::ArrayRef<StepMeasurement> steps,
                          llvm::StringRef source);

} // namespace sluice

#endif // SLUICE_ANALYSIS_TIMEFIT_H
