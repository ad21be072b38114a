// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// An artifact made by hand: a model that continues "a" with "b", "b" with "c" and ends after "z".

#ifndef SLUICE_TEST_UNIT_RUNTIME_TESTARTIFACT_H
#define SLUICE_TEST_UNIT_RUNTIME_TESTARTIFACT_H

#include "sluice-runtime/Session.h"

#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>
#include <span>
#include <string>

namespace sluice::runtime::test {

/// A directory of its own that is removed with the object.
class TemporaryDirectory {
public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::filesystem::path &path() const { return directory; }

private:
  std::filesystem::path directory;
};

/// What goes into the files; a test may change all of it before write().
class TestArtifact {
public:
  static constexpr int64_t hidden = 32, context = 48;
  static constexpr int32_t bos = 1, eos = 2, space = 3, letterA = 4;
  /// Pairs of launches that pass a vector from thread to thread.
  static constexpr int rotations = 20;

  /// The model can have more rows of logits than the tokenizer has tokens.
  explicit TestArtifact(int64_t extraRows);
  TestArtifact() : TestArtifact(0) {}

  int64_t vocabSize() const { return vocab; }
  /// Element i of the embedding of a token.
  static float embedding(int32_t token, int64_t i);
  /// The most likely token after another one.
  static int32_t next(int32_t token);
  /// What is added to the logit of a token.
  static float bias(int64_t token);

  /// A safetensors file of all tensors in order of their names.
  std::string safetensors() const;

  /// Brings sizes and digests in `plan` up to date with the files.
  void updateFiles();
  /// The text of plan.json with the right checksum.
  std::string planText() const;
  /// updateFiles() and write all to the directory.
  void write(const std::filesystem::path &directory);
  /// Write the files as they are.
  void writeFiles(const std::filesystem::path &directory, const std::string &planText) const;

  /// Makes it an artifact for a GPU: kernels of role "ptx" and "cubin.sm_90" that only a fake
  /// driver can load.
  void retargetToGpu();
  /// Makes the model predict another token after `token`, and changes the bias of another.
  void setNext(int32_t token, int32_t following);
  void setBias(int32_t token, uint8_t steps);
  /// Makes the step choose the next token, by kernels.c's "choose" or "draw": buffers "sampling"
  /// and "next", which feeds "token".
  void addSampling(const std::string &kernel = "choose");

  nlohmann::json plan;
  std::string kernels, weights, tokenizer;
  /// More files, by role; the plan has their names.
  std::map<std::string, std::string> others;

private:
  int64_t vocab;
};

/// The last step's, as a caller of Session::append could ask for them.
std::span<const float> logitsOf(Session &session);

std::string readFile(const std::filesystem::path &path);
void writeFile(const std::filesystem::path &path, const std::string &bytes);

/// A safetensors file from a header and its data.
std::string makeSafetensors(const std::string &header, const std::string &data);

} // namespace sluice::runtime::test

#endif // SLUICE_TEST_UNIT_RUNTIME_TESTARTIFACT_H
