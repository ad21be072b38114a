// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Writes the artifact of a module at stage plan.

#ifndef SLUICE_TARGET_ARTIFACT_H
#define SLUICE_TARGET_ARTIFACT_H

#include "sluice/Target/ScratchDirectory.h"

#include "sluice-runtime/SyntheticWords.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/SymbolTable.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace sluice {

/// On a kernel that the runtime launches for itself: a dictionary of its launch's extents, which
/// plan.json has under "utilities".
inline constexpr llvm::StringLiteral kUtilityAttr = "sluice.utility";

/// A file of the artifact other than plan.json, and the role it has in it.
struct ArtifactFile {
  std::string role; ///< kernels, ptx, cubin.sm_90, weights, tokenizer
  std::string name; ///< within the directory
};

/// The directory that an artifact is written to before it appears under its name, all at once.
/// Unless it was committed, nothing stays, whatever ends the process.
class ArtifactDirectory {
public:
  /// Fails if `path` exists and is neither an artifact nor an empty directory, or cannot be
  /// written.
  static llvm::Expected<ArtifactDirectory> create(llvm::StringRef path);
  /// Path of a file of the artifact while it is being written.
  std::string pathOf(llvm::StringRef name) const;
  /// If `other` is to lie inside the artifact, its path there while that is being written.
  std::optional<std::string> pathInside(llvm::StringRef other) const;
  llvm::Error write(llvm::StringRef name, llvm::StringRef contents);
  /// Gives the directory its final name. The artifact that had it is there until then.
  llvm::Error commit();

private:
  ArtifactDirectory() = default;

  std::string given; ///< path as it was given
  std::string path;
  ScratchDirectory scratch;
};

/// How the bytes of a plan's weights buffer are generated, if its weight comes from no file but
/// from synthetic ones. An error names what is wrong with the weight's recipe.
llvm::Expected<std::optional<synthetic::SyntheticPattern>>
syntheticPattern(mlir::Operation *buffer, const mlir::SymbolTable &symbols);

/// Writes weights.safetensors: carries out the recipe of every weight that the plan's buffers name
/// (reads, quantizes, orders and packs a tile at a time, on all CPUs), except for synthetic ones.
llvm::Error writeWeights(mlir::ModuleOp module, llvm::StringRef path,
                         const std::function<void(double done)> &progress);

/// plan.json of a module at stage plan. `target` goes in as it is, and `kernels` (what the
/// assembler said of each kernel by name) if there is any; sizes and checksums of `files` are read
/// from `directory`. The format is described in docs/artifact.md.
llvm::Expected<std::string> planJson(mlir::ModuleOp module, const nlohmann::json &target,
                                     const nlohmann::json &kernels,
                                     llvm::ArrayRef<ArtifactFile> files,
                                     const ArtifactDirectory &directory);

} // namespace sluice

#endif // SLUICE_TARGET_ARTIFACT_H
