// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/CpuFeatures.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

using namespace sluice::runtime;

std::string sluice::runtime::hostArchitecture() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "unknown";
#endif
}

#if defined(__x86_64__)

namespace {

enum Register { EAX, EBX, ECX, EDX };

/// Where CPUID reports a feature, and which register state the operating system must save for it
/// (Intel SDM volume 2, CPUID, and volume 1, XCR0; AMD64 manual volume 3, appendix E).
struct Feature {
  uint32_t leaf, subleaf;
  Register reg;
  int bit;
  uint64_t state;
};

constexpr uint64_t noState = 0, avxState = 0x6, avx512State = 0xE6, amxState = 0x60000;

const std::map<std::string, Feature> &knownFeatures() {
  static const std::map<std::string, Feature> features = {
      {"sse", {1, 0, EDX, 25, noState}},
      {"sse2", {1, 0, EDX, 26, noState}},
      {"sse3", {1, 0, ECX, 0, noState}},
      {"pclmul", {1, 0, ECX, 1, noState}},
      {"ssse3", {1, 0, ECX, 9, noState}},
      {"fma", {1, 0, ECX, 12, avxState}},
      {"cx16", {1, 0, ECX, 13, noState}},
      {"sse4.1", {1, 0, ECX, 19, noState}},
      {"sse4.2", {1, 0, ECX, 20, noState}},
      {"movbe", {1, 0, ECX, 22, noState}},
      {"popcnt", {1, 0, ECX, 23, noState}},
      {"avx", {1, 0, ECX, 28, avxState}},
      {"f16c", {1, 0, ECX, 29, avxState}},
      {"bmi", {7, 0, EBX, 3, noState}},
      {"avx2", {7, 0, EBX, 5, avxState}},
      {"bmi2", {7, 0, EBX, 8, noState}},
      {"avx512f", {7, 0, EBX, 16, avx512State}},
      {"avx512dq", {7, 0, EBX, 17, avx512State}},
      {"avx512ifma", {7, 0, EBX, 21, avx512State}},
      {"avx512cd", {7, 0, EBX, 28, avx512State}},
      {"avx512bw", {7, 0, EBX, 30, avx512State}},
      {"avx512vl", {7, 0, EBX, 31, avx512State}},
      {"avx512vbmi", {7, 0, ECX, 1, avx512State}},
      {"avx512vbmi2", {7, 0, ECX, 6, avx512State}},
      {"gfni", {7, 0, ECX, 8, noState}},
      {"avx512vnni", {7, 0, ECX, 11, avx512State}},
      {"avx512bitalg", {7, 0, ECX, 12, avx512State}},
      {"avx512vpopcntdq", {7, 0, ECX, 14, avx512State}},
      {"amx-bf16", {7, 0, EDX, 22, amxState}},
      {"avx512fp16", {7, 0, EDX, 23, avx512State}},
      {"amx-tile", {7, 0, EDX, 24, amxState}},
      {"amx-int8", {7, 0, EDX, 25, amxState}},
      {"avxvnni", {7, 1, EAX, 4, avxState}},
      {"avx512bf16", {7, 1, EAX, 5, avx512State}},
      {"avxvnniint8", {7, 1, EDX, 4, avxState}},
      {"lzcnt", {0x80000001, 0, ECX, 5, noState}},
  };
  return features;
}

} // namespace

static uint64_t enabledState() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27)))
    return 0;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

static bool has(const Feature &feature) {
  unsigned regs[4];
  if (!__get_cpuid_count(feature.leaf, feature.subleaf, &regs[EAX], &regs[EBX], &regs[ECX],
                         &regs[EDX]))
    return false;
  return (regs[feature.reg] >> feature.bit & 1) &&
         (enabledState() & feature.state) == feature.state;
}

static bool has(const std::string &feature) {
  auto found = knownFeatures().find(feature);
  return found != knownFeatures().end() && has(found->second);
}

#else

static bool has(const std::string &) { return false; }

#endif

std::vector<std::string>
sluice::runtime::missingCpuFeatures(const std::vector<std::string> &features) {
  std::vector<std::string> missing;
  for (const std::string &feature : features)
    if (!has(feature))
      missing.push_back(feature);
  return missing;
}

std::string sluice::runtime::cpuModelName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0)
      if (size_t colon = line.find(": "); colon != line.npos)
        return line.substr(colon + 2);
  return hostArchitecture() + " CPU";
}

uint64_t sluice::runtime::largestCacheBytes() {
  // Not sysconf: glibc adds up the caches of cores that are not this machine's, on AMD's in
  // particular, so that a virtual machine of two cores seems to have 384 MiB.
  long size = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) +
                       "/size");
    long amount = 0;
    char unit = 0;
    if (file >> amount && amount > 0 && amount < (1 << 24)) {
      file >> unit;
      size = std::max(size, unit == 'M' ? amount << 20 : unit == 'K' ? amount << 10 : amount);
    }
  }
  return size > 0 ? static_cast<uint64_t>(size) : uint64_t(32) << 20;
}

uint64_t sluice::runtime::availableMemoryBytes() {
  // sysconf knows free pages only; those that cache files can be had, too.
  std::ifstream info("/proc/meminfo");
  uint64_t sum = 0, kibibytes = 0;
  std::string key, rest;
  while (info >> key >> kibibytes && std::getline(info, rest))
    if (key == "MemAvailable:" || key == "SwapFree:")
      sum += kibibytes << 10;
  return sum;
}

/// Sums vectors of `Vector`'s size, `unrolled` of them at a time so that enough loads are under
/// way.
template <typename Vector>
static inline __attribute__((always_inline)) uint64_t readVectors(const char *data,
                                                                  uint64_t bytes) {
  constexpr int unrolled = 8;
  Vector sums[unrolled] = {};
  uint64_t i = 0;
  for (; i + unrolled * sizeof(Vector) <= bytes; i += unrolled * sizeof(Vector))
    for (int j = 0; j < unrolled; ++j) {
      Vector part;
      std::memcpy(&part, data + i + j * sizeof(Vector), sizeof(Vector));
      sums[j] += part;
    }
  for (int j = 1; j < unrolled; ++j)
    sums[0] += sums[j];
  uint64_t sum = 0;
  for (size_t j = 0; j < sizeof(Vector) / 8; ++j)
    sum += sums[0][j];
  for (; i < bytes; ++i)
    sum += static_cast<unsigned char>(data[i]);
  return sum;
}

using Vector16 = uint64_t __attribute__((vector_size(16)));

#if defined(__x86_64__)
using Vector32 = uint64_t __attribute__((vector_size(32)));
using Vector64 = uint64_t __attribute__((vector_size(64)));
__attribute__((target("avx2"))) static uint64_t readAvx2(const char *data, uint64_t bytes) {
  return readVectors<Vector32>(data, bytes);
}
__attribute__((target("avx512f"))) static uint64_t readAvx512(const char *data, uint64_t bytes) {
  return readVectors<Vector64>(data, bytes);
}
#endif

uint64_t sluice::runtime::readAll(const void *data, uint64_t bytes) {
  const char *from = static_cast<const char *>(data);
#if defined(__x86_64__)
  static const int level = has("avx512f") ? 2 : has("avx2") ? 1 : 0;
  if (level == 2)
    return readAvx512(from, bytes);
  if (level == 1)
    return readAvx2(from, bytes);
#endif
  return readVectors<Vector16>(from, bytes);
}
