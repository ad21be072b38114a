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

/// The attribute of a kernel that no step launches but the runtime itself: a dictionary of its
/// launch's extents, which plan.json has under "utilities".
inline constexpr llvm::StringLiteral kUtilityAttr = "sluice.utility";

/// A file of the artifact other than plan.json, and its role there.
struct ArtifactFile {
  std::string role; ///< kernels, ptx, cubin.sm_90, weights, tokenizer
  std::string name; ///< within the directory
};

/// The directory that an artifact is written to before it appears under its name, all at once.
/// Unless it was committed, it is removed (ScratchDirectory.h says when).
class ArtifactDirectory {
public:
  /// Fails if `path` exists and is neither an artifact nor an empty directory, or cannot be
  /// written.
  static llvm::Expected<ArtifactDirectory> create(llvm::StringRef path);
  /// Path of a file of the artifact while it is being written.
  std::string pathOf(llvm::StringRef name) const;
  /// The path of `other` while the artifact is being written, if it is to lie inside the artifact.
  std::optional<std::string> pathInside(llvm::StringRef other) const;
  llvm::Error write(llvm::StringRef name, llvm::StringRef contents);
  /// Gives the directory its final name. An artifact of that name stays until then.
  llvm::Error commit();

private:
  ArtifactDirectory() = default;

  std::string given; ///< path as it was given
  std::string path;
  ScratchDirectory scratch;
};

/// How the bytes of a plan's weights buffer are generated; nothing if its weight comes from a file.
/// An error names what is wrong with the weight's recipe.
llvm::Expected<std::optional<synthetic::SyntheticPattern>>
syntheticPattern(mlir::Operation *buffer, const mlir::SymbolTable &symbols);

/// Writes weights.safetensors: carries out the recipe of every weight that the plan's buffers name
/// (reads, quantizes, orders and packs a tile at a time, on all CPUs), except for synthetic ones.
llvm::Error writeWeights(mlir::ModuleOp module, llvm::StringRef path,
                         const std::function<void(double done)> &progress);

/// An attribute as plan.json has it: numbers, strings, lists and dictionaries as such, others as
/// their text.
nlohmann::json attributeJson(mlir::Attribute attribute);

/// plan.json of a module at stage plan. `target` is copied, and so is `kernels` (what the assembler
/// said of each kernel, by name) unless it is empty; sizes and checksums of `files` are read
/// from `directory`. The format is described in docs/artifact.md.
llvm::Expected<std::string> planJson(mlir::ModuleOp module, const nlohmann::json &target,
                                     const nlohmann::json &kernels,
                                     llvm::ArrayRef<ArtifactFile> files,
                                     const ArtifactDirectory &directory);

} // namespace sluice

#endif // SLUICE_TARGET_ARTIFACT_H
