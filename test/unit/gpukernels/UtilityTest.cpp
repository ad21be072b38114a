// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The kernels that the runtime launches for itself.

#include "GpuKernels.h"

#include "sluice-runtime/SyntheticWords.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using synthetic::SyntheticPattern;

static std::unique_ptr<GpuKernels> compileFor(const std::string &target) {
  // Any operation: the kernels come with those of a step.
  return GpuKernels::compile("func.func @f(%t: tensor<1xi32>, %w: tensor<9x64xf16>) -> "
                             "tensor<1x64xf32> {\n  %y = fused.embedding %t, %w " +
                                 gpuSchedule(1, 4, 1, 1, 1024, 1, "none") +
                                 " : tensor<1xi32>, tensor<9x64xf16> -> tensor<1x64xf32>\n"
                                 "  return %y : tensor<1x64xf32>\n}\n",
                             target);
}

static void expectSynthesized(GpuKernels &kernels, const SyntheticPattern &pattern,
                              uint64_t bytes) {
  std::vector<uint64_t> header = {bytes, pattern.seed, pattern.period(), pattern.regions.size()};
  for (const synthetic::SyntheticRegion &region : pattern.regions)
    header.insert(header.end(), {region.end, region.masks.keep, region.masks.set});
  Buffer parameters(header.size() * 8), out(bytes);
  std::memcpy(parameters.as<void>(), header.data(), header.size() * 8);
  emulator::Launch launch;
  launch.kernel = "sluice_synthesize";
  launch.grid = 3;
  launch.block = 256;
  kernels.dispatches.push_back(launch);
  kernels.run(kernels.dispatches.size() - 1, {&parameters, &out}, 1);
  std::vector<uint8_t> want(bytes);
  pattern.generate(0, want.data(), bytes);
  EXPECT_EQ(std::memcmp(out.as<uint8_t>(), want.data(), bytes), 0);
}

TEST(UtilityKernels, SynthesizesWhatTheHostDoes) {
  for (const char *target : {"h200", "a100"}) {
    std::unique_ptr<GpuKernels> kernels = compileFor(target);
    ASSERT_TRUE(kernels);
    SyntheticPattern one{0xFEDCBA9876543210u, {{16, {0x83FF83FF83FF83FFu, 0x2800280028002800u}}}};
    expectSynthesized(*kernels, one, 8);
    expectSynthesized(*kernels, one, 12344);
    SyntheticPattern chunks{7, {}};
    chunks.append(1024, {~uint64_t(0), 0});
    chunks.append(32, {0x8000800080008000u, 0x22E722E722E722E7u});
    chunks.append(8, {0x0101010101010101u, 0xFEFEFEFEFEFEFEFEu});
    chunks.append(24, {});
    expectSynthesized(*kernels, chunks, 3 * 1088 + 1032);
  }
}

TEST(UtilityKernels, ReadsAllPieces) {
  for (const char *target : {"h200", "a100"}) {
    std::unique_ptr<GpuKernels> kernels = compileFor(target);
    ASSERT_TRUE(kernels);
    bool bulk = std::string(target) == "h200";
    // More pieces than a block's ring has stages, fewer than blocks, and none left over.
    for (uint64_t units : {1, 8, 13}) {
      uint64_t bytes = units * 65536;
      Buffer buffer(bytes), parameters(8), out(8 * 3);
      for (uint64_t i = 0; i < bytes / 8; ++i)
        buffer.as<uint64_t>()[i] = i / (32768 / 8) + 1;
      *parameters.as<uint64_t>() = bytes;
      emulator::Launch launch;
      launch.kernel = "sluice_read_ceiling";
      launch.grid = 3;
      launch.block = bulk ? 32 : 512;
      launch.shared = bulk ? 6 * (32768 + 8) : 0;
      kernels->dispatches.push_back(launch);
      kernels->run(kernels->dispatches.size() - 1, {&buffer, &parameters, &out}, units);
      if (!bulk)
        continue;
      // The last piece that a block copied into the first stage of its ring.
      for (uint64_t block = 0; block < 3; ++block) {
        uint64_t pieces = 2 * units, mine = block < pieces ? (pieces - block + 2) / 3 : 0;
        if (mine) {
          EXPECT_EQ(out.as<uint64_t>()[block], block + 3 * ((mine - 1) / 6 * 6) + 1);
        }
      }
    }
  }
}
