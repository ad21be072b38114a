// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// An artifact's model on a device, and what its caches hold.

#ifndef SLUICE_TEST_UNIT_EMULATED_DEVICES_H
#define SLUICE_TEST_UNIT_EMULATED_DEVICES_H

#include "../compiled/Compiled.h"

#include "sluice-runtime/Session.h"
#include "sluice/Formats/CacheLayout.h"

#include <gtest/gtest.h>

namespace sluice::test {

/// One cache as a device has it.
struct Cache {
  const runtime::Buffer &buffer;
  formats::CacheShape shape;
  std::vector<uint8_t> bytes;

  Cache(const runtime::Buffer &buffer, bool onGpu)
      : buffer(buffer), shape(shapeOf(buffer, onGpu)), bytes(buffer.bytes) {}

  /// What a position holds, in the same order for every device.
  std::vector<float> entry(int64_t position, llvm::MutableArrayRef<float> scales = {}) const {
    std::vector<float> values(shape.heads * shape.dim);
    int64_t groups = scales.empty() ? 0 : shape.groups();
    for (int64_t head = 0; head < shape.heads; ++head)
      formats::loadCacheVector(
          shape, llvm::ArrayRef(bytes).slice(head * shape.headBytes(), shape.headBytes()), position,
          llvm::MutableArrayRef(values).slice(head * shape.dim, shape.dim),
          scales.slice(head * groups, groups));
    return values;
  }
  /// What was read from a cache of the same encoding is stored as it was there.
  void store(int64_t position, llvm::ArrayRef<float> values) {
    for (int64_t head = 0; head < shape.heads; ++head)
      formats::storeCacheVector(
          shape, llvm::MutableArrayRef(bytes).slice(head * shape.headBytes(), shape.headBytes()),
          position, values.slice(head * shape.dim, shape.dim));
  }

private:
  static formats::CacheShape shapeOf(const runtime::Buffer &buffer, bool onGpu) {
    using formats::CacheOrder;
    bool isKeys = llvm::StringRef(buffer.name).starts_with("cache.k.");
    CacheOrder keys = onGpu ? CacheOrder::MmaKeys : CacheOrder::LanesKeys,
               values = onGpu ? CacheOrder::MmaValues : CacheOrder::LanesValues;
    return {.sequences = 1,
            .positions = buffer.shape[1],
            .heads = buffer.shape[2],
            .dim = buffer.shape[3],
            .encoding = formats::CacheEncoding::fromName(buffer.type).value(),
            .order = isKeys ? keys : values};
  }
};

/// A model's artifact on a device.
class Device {
public:
  Device(const Compiled &compiled, const std::string &device, bool graph = false)
      : session(runtime::Artifact::open(compiled.artifact()), {device, {.graph = graph}}) {}

  std::vector<float> decode(int32_t token) {
    std::span<const float> logits = session.decode(token);
    return {logits.begin(), logits.end()};
  }

  std::vector<Cache> readCaches() {
    std::vector<Cache> caches;
    const runtime::Plan &plan = session.artifact().plan();
    for (const runtime::Buffer &buffer : plan.buffers)
      if (buffer.kind == runtime::BufferKind::Cache) {
        std::vector<std::byte> bytes = session.readBuffer(buffer.name);
        Cache &cache = caches.emplace_back(buffer, plan.target.kind == "gpu");
        std::memcpy(cache.bytes.data(), bytes.data(), bytes.size());
      }
    return caches;
  }

  /// Goes on from where another device's sequence is.
  void continueFrom(Device &other) {
    int64_t positions = other.session.position();
    for (auto [mine, theirs] : llvm::zip_equal(readCaches(), other.readCaches())) {
      EXPECT_EQ(mine.buffer.name, theirs.buffer.name);
      for (int64_t position = 0; position < positions; ++position)
        mine.store(position, theirs.entry(position));
      session.device().write(session.artifact().plan().bufferIndex(mine.buffer.name), 0,
                             std::as_bytes(std::span(mine.bytes)));
    }
    session.seek(positions);
  }

  runtime::Session session;
};

/// The worst relative error of logits, where both devices go on from the host's caches at each of
/// ascending `positions` of a text of a model with `vocabulary` tokens.
inline double worstLogits(Device &host, Device &emulated, llvm::ArrayRef<int64_t> positions,
                          int64_t vocabulary) {
  auto tokenAt = [&](int64_t position) { return static_cast<int32_t>(position * 7 % vocabulary); };
  double worst = 0;
  for (int64_t position : positions) {
    while (host.session.position() < position)
      host.decode(tokenAt(host.session.position()));
    if (emulated.session.position() != position)
      emulated.continueFrom(host);
    int32_t token = tokenAt(position);
    worst = worse(worst, relativeError(emulated.decode(token), host.decode(token)));
  }
  return worst;
}

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_EMULATED_DEVICES_H
