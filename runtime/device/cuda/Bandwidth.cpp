// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/cuda/CudaDeviceImpl.h"

#include <array>

using namespace sluice::runtime;
using namespace sluice::runtime::cuda;

/// A buffer this many times as large as the L2 cache is read from memory.
static constexpr uint64_t cachesToMeasure = 4;
static constexpr int bandwidthRuns = 5;

Bandwidth CudaDevice::measureReadBandwidth() {
  requireLoaded();
  CurrentContext current(*driver, *context);
  const uint64_t enough =
      std::max<uint64_t>(cachesToMeasure * static_cast<uint64_t>(gpu.l2Bytes), uint64_t(64) << 20);
  auto ownBuffer = [&](DeviceMemory &memory, const char *what) {
    if (memory.bytes())
      return;
    memory = DeviceMemory(*driver, enough / readCeilingUnit * readCeilingUnit, what);
    driver->check(driver->cuMemsetD8Async(memory.address(), 1, memory.bytes(), loaded->stream),
                  "cannot fill memory to be measured");
  };
  Bandwidth result;
  DevicePointer buffer = loaded->weights.address();
  uint64_t bytes = layout.weights / readCeilingUnit * readCeilingUnit;
  result.buffer = "the weights";
  if (bytes < enough) {
    ownBuffer(loaded->bandwidthBuffer, "measuring the memory");
    buffer = loaded->bandwidthBuffer.address();
    bytes = loaded->bandwidthBuffer.bytes();
    result.buffer = "a buffer of its own";
  }
  result.bufferBytes = bytes;

  std::function<void()> readOnce;
  uint64_t moved = bytes;
  if (loaded->readCeiling) {
    const Utility &utility = artifact->plan().utilities.at(readCeilingKernel);
    result.method = std::string("reads by ") + readCeilingKernel;
    uint64_t outBytes = 8 * static_cast<uint64_t>(gpu.multiprocessors) *
                        static_cast<uint64_t>(utility.blocksPerMultiprocessor);
    // The scratch memory is | the kernel's parameters | its results |.
    if (loaded->bandwidthScratch.bytes() == 0) {
      loaded->bandwidthScratch =
          DeviceMemory(*driver, alignment + outBytes, "measuring the memory");
      upload(
          loaded->bandwidthScratch.address(), sizeof(bytes),
          [&](uint64_t, std::span<std::byte> out) {
            std::memcpy(out.data(), &bytes, sizeof(bytes));
          },
          [](uint64_t) {});
    }
    readOnce = [&] {
      DevicePointer size = loaded->bandwidthScratch.address(), out = size + alignment;
      void *parameters[] = {&buffer, &size, &out};
      launchUtility(loaded->readCeiling, utility, parameters, readCeilingKernel);
    };
  } else {
    result.method = "copies on the GPU, reads and writes counted,";
    ownBuffer(loaded->bandwidthScratch, "measuring the memory");
    moved = 2 * bytes;
    readOnce = [&] {
      const DeviceMemory &to = loaded->bandwidthScratch;
      for (uint64_t at = 0; at < bytes; at += to.bytes())
        driver->check(driver->cuMemcpyDtoDAsync_v2(to.address(), buffer + at,
                                                   std::min(to.bytes(), bytes - at),
                                                   loaded->stream),
                      "cannot copy within the GPU");
    };
  }
  std::vector<EventHandle> events;
  events.reserve(bandwidthRuns + 1);
  for (int i = 0; i <= bandwidthRuns; ++i)
    events.emplace_back(*driver);
  readOnce();
  events[0].record(loaded->stream);
  for (int i = 0; i < bandwidthRuns; ++i) {
    readOnce();
    events[i + 1].record(loaded->stream);
  }
  synchronize("cannot measure the memory");
  std::array<double, bandwidthRuns> seconds{};
  for (int i = 0; i < bandwidthRuns; ++i)
    seconds[i] = events[i + 1].secondsSince(events[i]);
  std::sort(seconds.begin(), seconds.end());
  result.bytesPerSecond = static_cast<double>(moved) / seconds[bandwidthRuns / 2];
  return result;
}
