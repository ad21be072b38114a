// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A session's state as a file: tensor "tokens", int32 [position], and for each cache a tensor of
// bytes [sequences x heads][bytes of the tiles that are filled]. The metadata name the artifact's
// plan by its digest, so that what the bytes mean is known.

#include "sluice-runtime/Session.h"

#include "runtime/generate/Checks.h"
#include "sluice-support/MappedFile.h"
#include "sluice-support/Safetensors.h"
#include "sluice-support/Text.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unistd.h>

using namespace sluice::runtime;
using sluice::support::printable;

namespace {

constexpr const char *kFormat = "sluice-session", *kTokens = "tokens";

/// The runs of a cache's bytes that so many positions fill: `count` of `bytes` each, `stride` apart
/// (Formats/CacheLayout.h: heads one after the other, each as tiles of 32 positions; what shares a
/// unit of softmax weights is 64 positions, so that whole blocks are kept).
struct FilledPart {
  uint64_t count = 0, stride = 0, bytes = 0;

  FilledPart(const Buffer &cache, int64_t filled) {
    constexpr int64_t block = 64;
    // [sequences, positions, heads, head size]
    int64_t positions = cache.shape.at(1);
    count = static_cast<uint64_t>(cache.shape.at(0) * cache.shape.at(2));
    stride = cache.bytes / count;
    uint64_t perPosition = stride / static_cast<uint64_t>(positions);
    int64_t whole = std::min(positions, (filled + block - 1) / block * block);
    bytes = perPosition * static_cast<uint64_t>(whole);
  }
};

/// A file that is gone unless it was finished.
class TemporaryFile {
public:
  explicit TemporaryFile(const std::filesystem::path &path)
      : path(path), temporary(path.string() + ".tmp-" + std::to_string(getpid())),
        file(std::fopen(temporary.c_str(), "wbx")) {
    if (!file)
      fail();
  }
  TemporaryFile(const TemporaryFile &) = delete;
  TemporaryFile &operator=(const TemporaryFile &) = delete;
  ~TemporaryFile() {
    if (file)
      std::fclose(file);
    if (!isDone)
      std::remove(temporary.c_str());
  }
  void write(std::span<const std::byte> bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size())
      fail();
  }
  void finish() {
    if (std::fclose(std::exchange(file, nullptr)))
      fail();
    if (std::rename(temporary.c_str(), path.c_str()))
      fail();
    isDone = true;
  }

private:
  [[noreturn]] void fail() {
    throw Error(path.string() + ": cannot be written: " + std::strerror(errno));
  }

  const std::filesystem::path path;
  const std::string temporary;
  std::FILE *file;
  bool isDone = false;
};

} // namespace

void Session::save(const std::filesystem::path &path) {
  if (std::find(sequence.begin(), sequence.end(), -1) != sequence.end())
    throw Error(path.string() + ": the session has skipped positions, so it has no state to save");
  wait();
  discardAhead();
  const Plan &plan = theArtifact->plan();
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", kFormat}, {"version", "1"}, {"artifact", plan.digest}};
  uint64_t end = 0;
  auto declare = [&](const std::string &name, const char *dtype, std::vector<uint64_t> shape,
                     uint64_t bytes) {
    header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  };
  declare(kTokens, "I32", {sequence.size()}, sequence.size() * sizeof(int32_t));
  for (const Buffer &buffer : plan.buffers)
    if (buffer.kind == BufferKind::Cache) {
      FilledPart part(buffer, nextPosition);
      declare(buffer.name, "U8", {part.count, part.bytes}, part.count * part.bytes);
    }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');

  TemporaryFile file(path);
  const uint64_t length = text.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(text)));
  file.write(std::as_bytes(std::span(sequence)));
  std::vector<std::byte> bytes;
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    if (plan.buffers[i].kind != BufferKind::Cache)
      continue;
    FilledPart part(plan.buffers[i], nextPosition);
    bytes.resize(part.bytes);
    for (uint64_t run = 0; run < part.count; ++run) {
      theDevice->read(i, run * part.stride, bytes);
      file.write(bytes);
    }
  }
  file.finish();
}

void Session::load(const std::filesystem::path &path) {
  const Plan &plan = theArtifact->plan();
  reset();
  support::MappedFile file(path.string());
  const std::string name = path.string();
  support::SafetensorsHeader header = support::readSafetensors(file.bytes(), name);
  auto metadata = [&](std::string_view key) -> std::string {
    for (const auto &[entry, value] : header.metadata)
      if (entry == key)
        return value;
    return {};
  };
  if (metadata("format") != kFormat || metadata("version") != "1")
    throw Error(name + ": is not a session's state of version 1");
  if (std::string artifact = metadata("artifact"); artifact != plan.digest)
    throw Error(name + ": is of the artifact with checksum " + printable(artifact) +
                ", expected that of " + theArtifact->planName() + ", " + plan.digest);
  auto tensor = [&](const std::string &wanted, const char *dtype,
                    uint64_t bytes) -> std::span<const std::byte> {
    for (const support::SafetensorsTensor &found : header.tensors)
      if (found.name == wanted) {
        if (found.dtype != dtype || (bytes && found.bytes != bytes))
          throw Error(name + ": tensor \"" + printable(wanted) + "\" is " +
                      std::to_string(found.bytes) + " bytes of " + printable(found.dtype) +
                      ", expected " + std::to_string(bytes) + " of " + dtype);
        return file.bytes().subspan(found.offset, found.bytes);
      }
    throw Error(name + ": has no tensor \"" + printable(wanted) + "\"");
  };
  std::span<const std::byte> ids = tensor(kTokens, "I32", 0);
  std::vector<int32_t> tokens(ids.size() / sizeof(int32_t));
  if (!tokens.empty())
    std::memcpy(tokens.data(), ids.data(), ids.size());
  const auto filled = static_cast<int64_t>(tokens.size());
  if (filled > plan.model.contextLength)
    throw Error(name + ": has " + std::to_string(filled) +
                " tokens, expected at most the context's " +
                std::to_string(plan.model.contextLength));
  try {
    checkTokens(plan.model, tokens);
  } catch (const Error &error) {
    throw Error(name + ": " + error.what());
  }
  // Everything is checked before the caches change.
  for (const Buffer &buffer : plan.buffers)
    if (buffer.kind == BufferKind::Cache && filled) {
      FilledPart part(buffer, filled);
      (void)tensor(buffer.name, "U8", part.count * part.bytes);
    }
  for (uint32_t i = 0; i < plan.buffers.size() && filled; ++i) {
    const Buffer &buffer = plan.buffers[i];
    if (buffer.kind != BufferKind::Cache)
      continue;
    FilledPart part(buffer, filled);
    std::span<const std::byte> bytes = tensor(buffer.name, "U8", part.count * part.bytes);
    for (uint64_t run = 0; run < part.count; ++run)
      theDevice->write(i, run * part.stride, bytes.subspan(run * part.bytes, part.bytes));
  }
  sequence = std::move(tokens);
  nextPosition = filled;
}
