// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/SyntheticWeights.h"
#include "runtime/device/cuda/CudaDeviceImpl.h"

#include <array>

using namespace sluice::runtime;
using namespace sluice::runtime::cuda;

static constexpr uint64_t stagingBytes = uint64_t(16) << 20;

/// Copies `bytes` bytes in pieces: `fill` writes a piece to pinned memory while the piece before it
/// is being copied.
void CudaDevice::upload(DevicePointer to, uint64_t bytes,
                        const std::function<void(uint64_t, std::span<std::byte>)> &fill,
                        const std::function<void(uint64_t)> &onDone) {
  const uint64_t piece = std::min(bytes, stagingBytes);
  std::array<PinnedMemory, 2> staging = {PinnedMemory(*driver, piece),
                                         PinnedMemory(*driver, piece)};
  std::array<EventHandle, 2> copied = {EventHandle(*driver), EventHandle(*driver)};
  // Memory must not be freed while a copy reads it, also when something below throws.
  struct Waiter {
    const Driver &driver;
    Stream stream;
    ~Waiter() { driver.cuStreamSynchronize(stream); }
  } waiter{*driver, loaded->stream};
  for (uint64_t at = 0, i = 0; at < bytes; at += piece, ++i) {
    const uint64_t length = std::min(piece, bytes - at);
    if (i >= 2)
      copied[i % 2].wait("cannot copy weights to the GPU");
    fill(at, {staging[i % 2].data(), length});
    driver->check(
        driver->cuMemcpyHtoDAsync_v2(to + at, staging[i % 2].data(), length, loaded->stream),
        "cannot copy weights to the GPU");
    copied[i % 2].record(loaded->stream);
    onDone(length);
  }
  driver->check(driver->cuStreamSynchronize(loaded->stream), "cannot copy weights to the GPU");
}

void CudaDevice::fillWeights() {
  const Plan &plan = artifact->plan();
  uint64_t done = 0, total = 0;
  for (const Buffer &buffer : plan.buffers)
    total += buffer.kind == BufferKind::Weights ? buffer.bytes : 0;
  auto onDone = [&](uint64_t bytes) {
    done += bytes;
    if (options.onProgress)
      options.onProgress(done, total);
  };
  // A piece may hold several weights: they can be much smaller than a piece.
  struct Source {
    uint64_t begin;
    uint32_t buffer;
  };
  std::vector<Source> sources;
  std::vector<uint32_t> onGpu;
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer &buffer = plan.buffers[i];
    if (buffer.kind != BufferKind::Weights)
      continue;
    if (buffer.synthetic && loaded->synthesize && buffer.synthetic->isWordAligned() &&
        buffer.bytes % 8 == 0)
      onGpu.push_back(i);
    else
      sources.push_back({layout.offsets[i], i});
  }
  synthesizeOnGpu(onGpu, onDone);
  // Adjacent weights are uploaded together, zeros in the padding between them.
  for (size_t first = 0; first < sources.size();) {
    size_t last = first + 1;
    auto endOf = [&](size_t i) {
      return sources[i].begin + alignUp(plan.buffers[sources[i].buffer].bytes);
    };
    while (last < sources.size() && sources[last].begin == endOf(last - 1))
      ++last;
    const uint64_t begin = sources[first].begin;
    size_t next = first;
    auto fill = [&](uint64_t offset, std::span<std::byte> out) {
      std::memset(out.data(), 0, out.size());
      const uint64_t from = begin + offset, to = from + out.size();
      while (endOf(next) <= from)
        ++next;
      for (size_t i = next; i < last && sources[i].begin < to; ++i) {
        const Buffer &buffer = plan.buffers[sources[i].buffer];
        const uint64_t start = std::max(from, sources[i].begin),
                       stop = std::min(to, sources[i].begin + buffer.bytes);
        if (start >= stop)
          continue;
        std::span<std::byte> part = out.subspan(start - from, stop - start);
        const uint64_t inBuffer = start - sources[i].begin;
        if (buffer.synthetic)
          generateSynthetic(*buffer.synthetic, part, hostThreads(), inBuffer);
        else
          std::memcpy(part.data(), artifact->weights(buffer).data() + inBuffer, part.size());
      }
    };
    upload(loaded->weights.address() + begin, endOf(last - 1) - begin, fill, onDone);
    first = last;
  }
}

void CudaDevice::synthesizeOnGpu(const std::vector<uint32_t> &buffers,
                                 const std::function<void(uint64_t)> &onDone) {
  if (buffers.empty())
    return;
  const Utility &utility = artifact->plan().utilities.at(synthesizeKernel);
  std::vector<uint64_t> table, starts;
  for (uint32_t index : buffers) {
    const Buffer &buffer = bufferAt(index);
    starts.push_back(table.size() * sizeof(uint64_t));
    table.insert(table.end(), {buffer.bytes, buffer.synthetic->seed, buffer.synthetic->period(),
                               buffer.synthetic->regions.size()});
    for (const sluice::synthetic::SyntheticRegion &region : buffer.synthetic->regions)
      table.insert(table.end(), {region.end, region.masks.keep, region.masks.set});
  }
  const uint64_t tableBytes = table.size() * sizeof(uint64_t);
  DeviceMemory memory(*driver, tableBytes, "the patterns of generated weights");
  upload(
      memory.address(), tableBytes,
      [&](uint64_t offset, std::span<std::byte> out) {
        std::memcpy(out.data(), reinterpret_cast<const std::byte *>(table.data()) + offset,
                    out.size());
      },
      [](uint64_t) {});
  for (size_t i = 0; i < buffers.size(); ++i) {
    DevicePointer pattern = memory.address() + starts[i];
    void *parameters[] = {&pattern, &loaded->slots[0].pointers[buffers[i]]};
    launchUtility(loaded->synthesize, utility, parameters, synthesizeKernel);
    onDone(bufferAt(buffers[i]).bytes);
  }
  synchronize("cannot generate weights");
}
