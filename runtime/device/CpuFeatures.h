// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the CPU that this process runs on can do.

#ifndef SLUICE_RUNTIME_DEVICE_CPUFEATURES_H
#define SLUICE_RUNTIME_DEVICE_CPUFEATURES_H

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::runtime {

/// Those of `features` (LLVM's names) that this CPU, or the operating system on it, lacks, or that
/// this library does not know.
std::vector<std::string> missingCpuFeatures(const std::vector<std::string> &features);

/// "x86_64", "aarch64", ...: the first part of this machine's triple.
std::string hostArchitecture();

/// The CPU's name as the system reports it.
std::string cpuModelName();

/// Bytes of the largest cache, 32 MiB if the system does not say.
uint64_t largestCacheBytes();

/// Bytes that programs can still have, swap included, or 0 if the system does not say.
uint64_t availableMemoryBytes();

/// Reads all bytes once with the widest plain loads there are. The sum keeps the compiler from
/// leaving it out.
uint64_t readAll(const void *data, uint64_t bytes);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_CPUFEATURES_H
