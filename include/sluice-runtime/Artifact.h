// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// An artifact directory, opened and checked: the plan, the mapped weights, the tokenizer.

#ifndef SLUICE_RUNTIME_ARTIFACT_H
#define SLUICE_RUNTIME_ARTIFACT_H

#include "sluice-runtime/Plan.h"
#include "sluice-runtime/Tokenizer.h"
#include "sluice-support/MappedFile.h"

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sluice::runtime {

using support::MappedFile;

/// What to check when an artifact is opened.
struct ArtifactOptions {
  /// Read every file once to compare it with its checksum. Sizes are always compared.
  bool verifyChecksums = true;
  /// Open the tokenizer and nothing else; the other files may be missing.
  bool tokenizerOnly = false;
  /// Called repeatedly while files are read, with the bytes done and all bytes.
  std::function<void(uint64_t done, uint64_t total)> onProgress;
};

/// An artifact. Immutable, and usable by several sessions and threads at once.
class Artifact {
public:
  /// Opens the directory and checks all of its files against the plan. Throws Error.
  static std::shared_ptr<const Artifact> open(const std::filesystem::path &directory,
                                              const ArtifactOptions &options = {});

  /// Whether the path looks like an artifact: a directory with a plan.json.
  static bool isArtifact(const std::filesystem::path &path);

  const std::filesystem::path &directory() const { return root; }
  const Plan &plan() const { return thePlan; }
  const ModelInfo &model() const { return thePlan.model; }

  /// Path of the file with this role; an Error if the plan names none.
  std::filesystem::path filePath(const std::string &role) const;
  /// The mapped file with this role; an Error if the plan names none.
  const MappedFile &file(const std::string &role) const;

  /// The bytes of a buffer of kind Weights that is not synthetic.
  std::span<const std::byte> weights(const Buffer &buffer) const;

  bool hasTokenizer() const { return theTokenizer.has_value(); }
  /// An Error if the artifact has none.
  const Tokenizer &tokenizer() const;

  /// Starts error messages about the plan.
  std::string planName() const { return (root / "plan.json").string(); }

private:
  Artifact() = default;
  std::filesystem::path root;
  Plan thePlan;
  std::map<std::string, std::unique_ptr<MappedFile>> files;
  /// The tensors of the weights file, by name.
  std::map<std::string, std::span<const std::byte>, std::less<>> tensors;
  std::optional<Tokenizer> theTokenizer;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_ARTIFACT_H
