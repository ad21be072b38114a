// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What executes a plan. The host's CPU ("cpu") and NVIDIA GPUs ("cuda") are built in; other devices
// register themselves.

#ifndef SLUICE_RUNTIME_DEVICE_H
#define SLUICE_RUNTIME_DEVICE_H

#include "sluice-runtime/Artifact.h"

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace sluice::runtime {

struct DeviceOptions {
  /// Threads of the CPU device, the calling one included; 0 takes one for each CPU that this
  /// process may use. Other devices use the host's threads only to generate weights.
  int threads = 0;
  /// Called repeatedly while load() copies or generates weights, with the bytes done and all bytes.
  std::function<void(uint64_t done, uint64_t total)> onProgress = nullptr;
  /// Called with a line for people where load() does something else than was compiled for.
  std::function<void(const std::string &line)> onWarning = nullptr;
  /// Steps of one token as a graph of kernels even where they are one kernel, if the artifact has
  /// both.
  bool graph = false;
};

/// How fast a device reads memory.
struct Bandwidth {
  double bytesPerSecond = 0;
  uint64_t bufferBytes = 0;
  /// What was read: "the weights" or "a buffer of its own".
  std::string buffer;
  /// How: "plain loads", ...
  std::string method = "plain loads";
  /// Bytes a second of those parts of the buffer that other programs disturbed least; 0 on a device
  /// that others do not use at the same time.
  double undisturbed = 0;
};

/// Steps that run while the host does something else, of a device whose work does not need the
/// host's threads. Two can be in flight: started and not finished.
///
/// Everything else that a Device does with steps and buffers needs that none is, but for write() to
/// inputs, read() (which waits for them) and output().
class StepQueue {
public:
  virtual ~StepQueue();

  /// Starts a step, which runs after the one started before it, with the inputs as write() left
  /// them. With `fed`, inputs that name an output (Buffer::fedBy) have instead what the step
  /// started before leaves there, which the host need not have read yet. If it throws, the step was
  /// not started; one in flight stays so.
  virtual void start(uint32_t step, bool fed) = 0;

  /// Waits for the step that was started first; Device::output() then gives its results, until
  /// another one is finished. After an Error no step is in flight.
  virtual void finish() = 0;
};

/// Executes the steps of one artifact and owns their memory. A device belongs to one session and
/// is used by one thread at a time. Functions throw Error.
///
/// A device is constructed (which allocates nothing, and does not fail for reasons that depend on
/// the artifact), load() is called once, then run(), read() and write() any number of times. Token
/// and position are plan inputs like any other buffer, so that a device can keep them in its own
/// memory and record a step's launches once.
class Device {
public:
  virtual ~Device();

  /// The name that it was registered by: "cpu".
  virtual std::string name() const = 0;
  /// For people: name, threads, what matters of the hardware.
  virtual std::string description() const = 0;

  /// Checks that this device can run the artifact's kernels, before anything is allocated; loads
  /// them, allocates and binds all buffers (zeroed, weights in place) and prepares all steps.
  virtual void load(std::shared_ptr<const Artifact> artifact) = 0;

  /// The step that decodes one token on this device: the plan's "decode", or Plan::graphStep.
  virtual uint32_t decodeStep() const = 0;

  /// Runs a step to its end. `step` and buffers are indices into the plan.
  virtual void run(uint32_t step) = 0;

  /// The device's own, once it is loaded; null if steps run on the host's threads, so that nothing
  /// is gained by starting one before the results of the one before are known.
  virtual StepQueue *queue() { return nullptr; }

  /// Runs a step one launch at a time, and calls `afterLaunch` with the number of each after it:
  /// read() then gives what that launch left. Returning false ends the step there. For finding
  /// faults: the step's results are run()'s, but it takes much longer.
  virtual void trace(uint32_t step, const std::function<bool(size_t launch)> &afterLaunch) = 0;

  /// Runs a step and returns each launch's time in seconds, in the plan's order. The step's results
  /// are the same as run()'s; it may take longer.
  virtual std::vector<double> profile(uint32_t step) = 0;
  /// For people: how these times differ from those of the launches in run(); empty if they do not.
  virtual std::string profileRemark() const { return {}; }

  /// Seconds that one run of the step takes by the device's own clock, without what the host adds
  /// (inputs, outputs, waiting): the mean of `count` runs, one right after the other. Nothing if
  /// the device has no such clock. The inputs are those written last.
  virtual std::optional<double> measureStep(uint32_t step, int64_t count) {
    (void)step, (void)count;
    return std::nullopt;
  }

  /// Copies into (out of) a buffer at a byte offset; an Error if that leaves the buffer. Weights
  /// can not be written. The caller may change or free `bytes` on return.
  virtual void write(uint32_t buffer, uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual void read(uint32_t buffer, uint64_t offset, std::span<std::byte> bytes) = 0;

  /// The start of a buffer of kind Output as the step that was finished last left it, in host
  /// memory, valid until the next one is.
  virtual const void *output(uint32_t buffer) = 0;

  /// Zeroes all buffers of kind Cache.
  virtual void clearCaches() = 0;

  /// Reads memory once as fast as the device can: the weights, when they are much larger than the
  /// caches of the hardware, else a buffer that is.
  virtual Bandwidth measureReadBandwidth() = 0;
};

using DeviceFactory = std::function<std::unique_ptr<Device>(const DeviceOptions &)>;

/// Makes a device known under `name`; replaces one of the same name. Safe from any thread.
void registerDevice(const std::string &name, DeviceFactory factory);

/// The names that createDevice accepts, sorted.
std::vector<std::string> deviceNames();

/// Throws an Error that names the devices there are if there is none of this name.
std::unique_ptr<Device> createDevice(const std::string &name, const DeviceOptions &options = {});

/// The device that an artifact runs on when nobody chose one: "cpu" for a host target, "cuda" for a
/// GPU, else the target's kind.
std::string defaultDevice(const Plan &plan);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_H
