// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Owners of contexts, memory and events of a GPU.

#ifndef SLUICE_RUNTIME_DEVICE_CUDA_HANDLES_H
#define SLUICE_RUNTIME_DEVICE_CUDA_HANDLES_H

#include "runtime/device/cuda/Kernels.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace sluice::runtime::cuda {

/// Makes a context current in the calling thread for its own lifetime.
class CurrentContext {
public:
  CurrentContext(const Driver &driver, Context context) : driver(driver) {
    driver.check(driver.cuCtxPushCurrent_v2(context), "cannot use the GPU's context");
  }
  ~CurrentContext() {
    Context popped;
    driver.cuCtxPopCurrent_v2(&popped);
  }
  CurrentContext(const CurrentContext &) = delete;
  CurrentContext &operator=(const CurrentContext &) = delete;

private:
  const Driver &driver;
};

/// The primary context of a GPU; a process has one of each GPU.
class PrimaryContext {
public:
  PrimaryContext(std::shared_ptr<const Driver> theDriver, const Gpu &gpu)
      : driver(std::move(theDriver)), device(gpu.handle) {
    driver->check(driver->cuDevicePrimaryCtxRetain(&context, device),
                  "cannot make a context on " + gpu.name);
  }
  ~PrimaryContext() { driver->cuDevicePrimaryCtxRelease_v2(device); }
  PrimaryContext(const PrimaryContext &) = delete;
  PrimaryContext &operator=(const PrimaryContext &) = delete;

  operator Context() const { return context; }

private:
  std::shared_ptr<const Driver> driver;
  DeviceHandle device;
  Context context = nullptr;
};

// Objects of the classes below are made and destroyed while the context is current.

class DeviceMemory {
public:
  DeviceMemory() = default;
  DeviceMemory(const Driver &driver, uint64_t bytes, const std::string &what)
      : driver(&driver), size(bytes) {
    if (bytes)
      driver.check(driver.cuMemAlloc_v2(&pointer, bytes),
                   "cannot allocate " + std::to_string(bytes) + " bytes of GPU memory for " + what);
  }
  DeviceMemory(DeviceMemory &&other) noexcept { *this = std::move(other); }
  DeviceMemory &operator=(DeviceMemory &&other) noexcept {
    std::swap(driver, other.driver);
    std::swap(pointer, other.pointer);
    std::swap(size, other.size);
    return *this;
  }
  ~DeviceMemory() {
    if (pointer)
      driver->cuMemFree_v2(pointer);
  }

  DevicePointer address() const { return pointer; }
  uint64_t bytes() const { return size; }

private:
  const Driver *driver = nullptr;
  DevicePointer pointer = 0;
  uint64_t size = 0;
};

/// Page-locked host memory: the GPU copies from and to it by itself.
class PinnedMemory {
public:
  PinnedMemory() = default;
  PinnedMemory(const Driver &driver, uint64_t bytes) : driver(&driver), size(bytes) {
    if (!bytes)
      return;
    driver.check(driver.cuMemHostAlloc(&memory, bytes, 0),
                 "cannot pin " + std::to_string(bytes) + " bytes of host memory");
    std::memset(memory, 0, bytes);
  }
  PinnedMemory(PinnedMemory &&other) noexcept { *this = std::move(other); }
  PinnedMemory &operator=(PinnedMemory &&other) noexcept {
    std::swap(driver, other.driver);
    std::swap(memory, other.memory);
    std::swap(size, other.size);
    return *this;
  }
  ~PinnedMemory() {
    if (memory)
      driver->cuMemFreeHost(memory);
  }

  std::byte *data() const { return static_cast<std::byte *>(memory); }
  uint64_t bytes() const { return size; }

private:
  const Driver *driver = nullptr;
  void *memory = nullptr;
  uint64_t size = 0;
};

class StreamHandle {
public:
  explicit StreamHandle(const Driver &driver) : driver(driver) {
    driver.check(driver.cuStreamCreate(&stream, streamNonBlocking), "cannot create a stream");
  }
  StreamHandle(const StreamHandle &) = delete;
  StreamHandle &operator=(const StreamHandle &) = delete;
  ~StreamHandle() { driver.cuStreamDestroy_v2(stream); }

  operator Stream() const { return stream; }
  /// Work from here on waits for what was recorded.
  void waitFor(Event event) const {
    driver.check(driver.cuStreamWaitEvent(stream, event, 0), "cannot wait for an event");
  }

private:
  const Driver &driver;
  Stream stream = nullptr;
};

class EventHandle {
public:
  /// `flags` of cuEventCreate.
  explicit EventHandle(const Driver &driver, unsigned flags = 0) : driver(&driver) {
    driver.check(driver.cuEventCreate(&event, flags), "cannot create an event");
  }
  EventHandle(EventHandle &&other) noexcept
      : driver(other.driver), event(std::exchange(other.event, nullptr)) {}
  EventHandle &operator=(EventHandle &&) = delete;
  ~EventHandle() {
    if (event)
      driver->cuEventDestroy_v2(event);
  }
  operator Event() const { return event; }
  void record(Stream stream) const {
    driver->check(driver->cuEventRecord(event, stream), "cannot record an event");
  }
  void wait(const std::string &what) const {
    driver->check(driver->cuEventSynchronize(event), what);
  }
  double secondsSince(const EventHandle &start) const {
    float milliseconds = 0;
    driver->check(driver->cuEventElapsedTime(&milliseconds, start.event, event),
                  "cannot read the time between two events");
    return static_cast<double>(milliseconds) * 1e-3;
  }

private:
  const Driver *driver;
  Event event = nullptr;
};

} // namespace sluice::runtime::cuda

#endif // SLUICE_RUNTIME_DEVICE_CUDA_HANDLES_H
