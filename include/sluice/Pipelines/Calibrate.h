// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A target description whose times were measured. Probes are models with the shapes of a layer or
// two and synthetic weights, compiled as any other; the runtime measures them (measureProbes) on a
// machine that needs no compiler; the parameters of the time model are fitted to what it saw.

#ifndef SLUICE_PIPELINES_CALIBRATE_H
#define SLUICE_PIPELINES_CALIBRATE_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <string>

namespace sluice {

struct ProbeOptions {
  /// Name or path of the description that calibration starts from.
  std::string target;
  /// A directory that exists and gets the artifacts and probes.json.
  std::string directory;
  /// Tiny probes, which show that everything works and measure nothing.
  bool quick = false;
  std::function<void(llvm::StringRef what, double done)> progress;
};

llvm::Error compileProbes(const ProbeOptions &options);

struct Calibration {
  /// Of the target file.
  std::string text;
  /// "12 probes, 25 steps: ..." for people.
  std::string summary;
};

/// Fits the parameters of `target` to `results`, the text that measureProbes returned, which errors
/// call `path`. The new description is called `name`.
llvm::Expected<Calibration> calibrateTarget(llvm::StringRef results, llvm::StringRef path,
                                            llvm::StringRef target, llvm::StringRef name);

} // namespace sluice

#endif // SLUICE_PIPELINES_CALIBRATE_H
