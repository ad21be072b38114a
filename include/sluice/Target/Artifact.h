// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Writes the artifact of a module at stage plan.

#ifndef SLUICE_TARGET_ARTIFACT_H
#define SLUICE_TARGET_ARTIFACT_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace sluice {

/// A file of the artifact other than plan.json, and the role it has in it.
struct ArtifactFile {
  std::string role; ///< kernels, weights, tokenizer
  std::string name; ///< within the directory
};

/// The directory that an artifact is written to before it appears under its name, all at once.
class ArtifactDirectory {
public:
  /// Fails if `path` exists and is neither an artifact nor an empty directory.
  static llvm::Expected<ArtifactDirectory> create(llvm::StringRef path);
  ArtifactDirectory(ArtifactDirectory &&other) noexcept;
  /// Removes what was written unless it was committed.
  ~ArtifactDirectory();

  /// Path of a file of the artifact while it is being written.
  std::string pathOf(llvm::StringRef name) const;
  llvm::Error write(llvm::StringRef name, llvm::StringRef contents);
  /// Gives the directory its final name.
  llvm::Error commit();

private:
  ArtifactDirectory(std::string path, std::string temporary)
      : path(std::move(path)), temporary(std::move(temporary)) {}
  std::string path, temporary;
};

/// Writes weights.safetensors: carries out the recipe of every weight that the plan's buffers name
/// (reads, quantizes, orders and packs a tile at a time, on all CPUs).
llvm::Error writeWeights(mlir::ModuleOp module, llvm::StringRef path,
                         const std::function<void(double done)> &progress);

/// plan.json of a module at stage plan. `target` goes in as it is; sizes and checksums of `files` are
/// read from `directory`. The format is described in docs/artifact.md.
llvm::Expected<std::string> planJson(mlir::ModuleOp module, const nlohmann::json &target,
                                     llvm::ArrayRef<ArtifactFile> files,
                                     const ArtifactDirectory &directory);

} // namespace sluice

#endif // SLUICE_TARGET_ARTIFACT_H
