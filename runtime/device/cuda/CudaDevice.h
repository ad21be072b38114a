// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// An NVIDIA GPU as a device: a step is one CUDA graph, captured when the artifact is loaded.

#ifndef SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICE_H
#define SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICE_H

#include "sluice-runtime/Device.h"

namespace sluice::runtime {

/// The first GPU that the driver shows (CUDA_VISIBLE_DEVICES chooses among several). Needs nothing
/// of CUDA until load().
std::unique_ptr<Device> createCudaDevice(const DeviceOptions &options);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICE_H
