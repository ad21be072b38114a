// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The host CPU as a device: the artifact's shared object on a thread pool.

#ifndef SLUICE_RUNTIME_DEVICE_CPUDEVICE_H
#define SLUICE_RUNTIME_DEVICE_CPUDEVICE_H

#include "sluice-runtime/Device.h"

namespace sluice::runtime {

std::unique_ptr<Device> createCpuDevice(const DeviceOptions &options);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_CPUDEVICE_H
