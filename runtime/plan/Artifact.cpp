// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Artifact.h"

#include "sluice-support/Safetensors.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <sys/mman.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace sluice::runtime;
using sluice::support::hexDigits;
using sluice::support::printable;
namespace fs = std::filesystem;

/// plan.json and tokenizer.json are read whole and turned into trees: a limit on what is tried.
static constexpr size_t maxJsonBytes = size_t(256) << 20;

/// XXH3 of all bytes; `onPart` gets the length of each part when it is done.
template <typename F> static uint64_t digest(std::span<const std::byte> bytes, F &&onPart) {
  constexpr size_t part = size_t(32) << 20;
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (size_t i = 0; i < bytes.size(); i += part) {
    size_t length = std::min(part, bytes.size() - i);
    XXH3_64bits_update(&state, bytes.data() + i, length);
    onPart(length);
  }
  return XXH3_64bits_digest(&state);
}

bool Artifact::isArtifact(const fs::path &path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) && fs::exists(path / "plan.json", ignored);
}

std::shared_ptr<const Artifact> Artifact::open(const fs::path &directory,
                                               const ArtifactOptions &options) {
  std::error_code status;
  if (!fs::exists(directory, status))
    throw Error(directory.string() + ": there is no such directory");
  if (!fs::is_directory(directory, status))
    throw Error(directory.string() + ": is not an artifact, which is a directory with a plan.json");
  if (!fs::exists(directory / "plan.json", status))
    throw Error(directory.string() + ": is not an artifact: it has no plan.json");

  std::shared_ptr<Artifact> artifact(new Artifact);
  artifact->root = directory;
  MappedFile planFile(artifact->planName(), maxJsonBytes);
  artifact->thePlan = Plan::parse(planFile.text(), artifact->planName());
  const Plan &plan = artifact->thePlan;

  uint64_t done = 0, total = 0;
  for (const auto &[role, info] : plan.files)
    total += info.bytes;
  for (const auto &[role, info] : plan.files) {
    if (options.tokenizerOnly && role != "tokenizer")
      continue;
    uint64_t limit = role == "tokenizer" ? maxJsonBytes : UINT64_MAX;
    auto file = std::make_unique<MappedFile>((directory / info.name).string(), limit);
    const std::string &path = file->path();
    if (file->size() != info.bytes)
      throw Error(path + ": has " + std::to_string(file->size()) + " bytes, expected " +
                  std::to_string(info.bytes) + " (plan.json)");
#ifdef MADV_HUGEPAGE
    // Fewer page table walks where the file system can do it; no error anywhere else.
    if (role == "weights" && !file->bytes().empty())
      madvise(const_cast<std::byte *>(file->bytes().data()), file->bytes().size(), MADV_HUGEPAGE);
#endif
    if (options.verifyChecksums) {
      uint64_t actual = digest(file->bytes(), [&](uint64_t bytes) {
        done += bytes;
        if (options.onProgress)
          options.onProgress(done, total);
      });
      if (actual != info.xxh3)
        throw Error(path + ": checksum is " + hexDigits(actual) + ", expected " +
                    hexDigits(info.xxh3) + " (plan.json): the file was changed or damaged");
    }
    artifact->files.emplace(role, std::move(file));
  }

  if (artifact->files.count("weights")) {
    const MappedFile &weights = artifact->file("weights");
    auto header = sluice::support::readSafetensors(weights.bytes(), weights.path());
    if (header.trailingBytes)
      throw Error(weights.path() + ": " + std::to_string(header.trailingBytes) +
                  " bytes follow the last tensor");
    for (auto &tensor : header.tensors) {
      if (!sluice::support::safetensorsElementBits(tensor.dtype))
        throw Error(weights.path() + ": tensor " + sluice::support::quote(tensor.name) +
                    " has the unknown dtype " + sluice::support::quote(tensor.dtype));
      artifact->tensors.emplace(std::move(tensor.name),
                                weights.bytes().subspan(tensor.offset, tensor.bytes));
    }
  }
  for (const Buffer &buffer : plan.buffers)
    if (buffer.kind == BufferKind::Weights && !buffer.synthetic && !options.tokenizerOnly)
      artifact->weights(buffer);

  if (artifact->files.count("tokenizer")) {
    const MappedFile &tokenizer = artifact->file("tokenizer");
    artifact->theTokenizer = Tokenizer::fromJson(tokenizer.text(), tokenizer.path());
  }
  return artifact;
}

fs::path Artifact::filePath(const std::string &role) const { return file(role).path(); }

const MappedFile &Artifact::file(const std::string &role) const {
  auto found = files.find(role);
  if (found == files.end())
    throw Error(planName() + ": files." + role + " is missing");
  return *found->second;
}

std::span<const std::byte> Artifact::weights(const Buffer &buffer) const {
  auto found = tensors.find(buffer.tensor);
  if (found == tensors.end())
    throw Error((files.count("weights") ? file("weights").path() : planName()) +
                ": there is no tensor \"" + printable(buffer.tensor) + "\", which buffer \"" +
                printable(buffer.name) + "\" needs");
  if (found->second.size() != buffer.bytes)
    throw Error(file("weights").path() + ": tensor \"" + printable(buffer.tensor) + "\" has " +
                std::to_string(found->second.size()) + " bytes, expected " +
                std::to_string(buffer.bytes) + " (plan.json, buffer \"" + printable(buffer.name) +
                "\")");
  return found->second;
}

const Tokenizer &Artifact::tokenizer() const {
  if (!theTokenizer)
    throw Error(planName() + ": the artifact has no tokenizer");
  return *theTokenizer;
}
