// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The sampling kernel takes the token that the rule in SamplingWords.h takes, and so does the
// runtime's sampler in double precision.

#include "GpuKernels.h"

#include "sluice-runtime/Sampling.h"
#include "sluice/Reference/Ops.h"

#include <gtest/gtest.h>

#include <limits>

using namespace sluice;
using namespace sluice::test;
using runtime::Sampler;
using runtime::SamplingOptions;
using sampling::SamplingWords;

static constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// One kernel for `rows` rows of `width` logits.
static std::unique_ptr<GpuKernels> compileSample(const std::string &target, int64_t rows,
                                                 int64_t width, int64_t warps, int64_t splits) {
  std::string r = std::to_string(rows),
              logits = "tensor<" + r + "x" + std::to_string(width) + "xf32>",
              words = "tensor<" + r + "x8xi32>", ids = "tensor<" + r + "xi32>";
  return GpuKernels::compile("func.func @f(%l: " + logits + ", %o: " + words + ") -> " + ids +
                                 " {\n  %y = fused.sample %l, %o " +
                                 gpuSchedule(rows * splits, warps, 1, 1, width, splits, "none") +
                                 " : " + logits + ", " + words + " -> " + ids +
                                 "\n  return %y : " + ids + "\n}\n",
                             target);
}

/// Runs the kernel and expects what the reference chooses, which is returned.
static std::vector<int32_t> expectReference(GpuKernels &kernels,
                                            const std::vector<std::vector<float>> &logits,
                                            const std::vector<SamplingWords> &words,
                                            uint64_t seed) {
  int64_t rows = logits.size(), width = logits.front().size();
  std::vector<float> all;
  for (const std::vector<float> &row : logits)
    all.insert(all.end(), row.begin(), row.end());
  std::vector<int32_t> options(rows * sampling::kWords);
  std::memcpy(options.data(), words.data(), rows * sizeof(SamplingWords));
  std::vector<int32_t> want =
      reference::sample(reference::Tensor::floats({rows, width}, all),
                        reference::Tensor::ints({rows, sampling::kWords}, options))
          .integers;
  Buffer input(all), given(options), output(rows * 4);
  kernels.run(0, {&input, &given, &output}, seed);
  std::vector<int32_t> found(output.as<int32_t>(), output.as<int32_t>() + rows);
  EXPECT_EQ(found, want);
  return want;
}

/// Logits like a model's: most around zero, a few that matter.
static std::vector<float> modelLogits(int64_t width, Random &random) {
  std::vector<float> logits = random.normal(width, 2);
  for (float more : random.normal(20))
    logits[random.integer(0, width - 1)] += 8 + more;
  return logits;
}

static std::vector<SamplingOptions> manyOptions() {
  std::vector<SamplingOptions> all;
  auto add = [&](float temperature, int topK, float topP, float minP) {
    SamplingOptions options;
    options.temperature = temperature;
    options.topK = topK;
    options.topP = topP;
    options.minP = minP;
    options.seed = all.size();
    all.push_back(options);
  };
  add(0, 0, 1, 0);
  add(1, 0, 1, 0);
  add(0.8f, 40, 0.95f, 0.05f); // the defaults
  add(1, 1, 1, 0);
  add(1.5f, 7, 1, 0);
  add(1, 0, 0.5f, 0);
  add(1, 0, 1e-6f, 0);
  add(3, 0, 0.999f, 0);
  add(1, 0, 1, 0.2f);
  add(1, 0, 1, 1);
  add(100, 1000000, 1, 0);
  add(1e-40f, 0, 1, 0);
  add(1e30f, 0, 1, 0);
  return all;
}

TEST(GpuSample, ChoosesAsTheSampler) {
  struct Case {
    const char *target;
    int64_t width, warps, splits;
  };
  // One block and clusters; fewer logits than threads; blocks without any; not kept in shared
  // memory.
  const Case cases[] = {{"h200", 1, 8, 1},      {"h200", 300, 8, 1},  {"h200", 3, 8, 4},
                        {"h200", 1000, 8, 4},   {"h200", 5003, 9, 8}, {"a100", 2048, 16, 1},
                        {"a100", 50000, 31, 1}, {"h200", 65536, 8, 1}};
  Random random(7);
  for (const Case &c : cases) {
    SCOPED_TRACE(std::string(c.target) + ", " + std::to_string(c.width) + " logits");
    std::unique_ptr<GpuKernels> kernels = compileSample(c.target, 1, c.width, c.warps, c.splits);
    ASSERT_TRUE(kernels);
    // Large ones take longer in the emulator.
    size_t step = c.width > 10000 ? 4 : 1, number = 0;
    for (const SamplingOptions &options : manyOptions()) {
      if (number++ % step)
        continue;
      SCOPED_TRACE("options " + std::to_string(number));
      std::vector<float> logits = modelLogits(c.width, random);
      Sampler words(options), sampler(options);
      std::vector<int32_t> chosen =
          expectReference(*kernels, {logits}, {words.nextWords()}, number);
      int32_t wanted = sampler.sample(logits, {});
      // Where thousands of tokens are about as likely, rounding may move top-p by one of them.
      bool isFlat = options.topP == 0.999f;
      int64_t between = llvm::count_if(logits, [&](float logit) {
        return logit > std::min(logits[wanted], logits[chosen.front()]) &&
               logit <= std::max(logits[wanted], logits[chosen.front()]);
      });
      EXPECT_LE(between, isFlat ? 1 : 0) << chosen.front() << " instead of " << wanted;
    }
  }
}

// Whatever verifies chooses the same.
TEST(GpuSample, EverySchedule) {
  Random random(9);
  SamplingOptions options;
  options.temperature = 0.9f;
  options.topK = 50;
  options.topP = 0.9f;
  for (int64_t warps = 8; warps <= 31; ++warps) {
    int64_t splits = 1 + warps % 8;
    SCOPED_TRACE(std::to_string(warps) + " warps, " + std::to_string(splits) + " splits");
    std::unique_ptr<GpuKernels> kernels = compileSample("h200", 1, 900, warps, splits);
    ASSERT_TRUE(kernels);
    options.seed = warps;
    expectReference(*kernels, {modelLogits(900, random)}, {Sampler(options).nextWords()}, warps);
    if (HasFailure())
      return;
  }
}

TEST(GpuSample, RowsApart) {
  constexpr int64_t rows = 3, width = 700;
  std::unique_ptr<GpuKernels> kernels = compileSample("h200", rows, width, 8, 2);
  ASSERT_TRUE(kernels);
  Random random(8);
  std::vector<std::vector<float>> logits;
  std::vector<SamplingWords> words;
  for (int64_t row = 0; row < rows; ++row) {
    logits.push_back(modelLogits(width, random));
    words.push_back(Sampler(manyOptions()[row]).nextWords());
  }
  expectReference(*kernels, logits, words, 1);
}

TEST(GpuSample, TiesMasksAndExtremes) {
  constexpr int64_t width = 600;
  std::unique_ptr<GpuKernels> kernels = compileSample("h200", 1, width, 8, 2);
  ASSERT_TRUE(kernels);
  auto choose = [&](const std::vector<float> &logits, SamplingWords words) {
    return expectReference(*kernels, {logits}, {words}, 3).front();
  };
  constexpr float log2e = 1.44269504f;
  SamplingWords greedy, all{log2e, 0, 1, -kInfinity}, three{log2e, 3, 1, -kInfinity};

  // Equal logits: the lower id first, whatever the sign of zero.
  std::vector<float> zeros(width, 0.0f);
  zeros[0] = -0.0f;
  EXPECT_EQ(choose(zeros, greedy), 0);
  for (auto [point, id] : {std::pair(uint64_t(0), 0), {uint64_t(1) << 63, 1}, {~uint64_t(0), 2}}) {
    three.point = point;
    EXPECT_EQ(choose(zeros, three), id);
  }
  all.point = uint64_t(1) << 63;
  EXPECT_EQ(choose(zeros, all), width / 2);
  all.point = ~uint64_t(0);
  EXPECT_EQ(choose(zeros, all), width - 1);

  // Masked logits are never chosen.
  std::vector<float> masked(width, -kInfinity);
  masked[17] = -1e30f;
  masked[599] = -3e38f;
  EXPECT_EQ(choose(masked, greedy), 17);
  EXPECT_EQ(choose(masked, all), 17);
  three.point = ~uint64_t(0);
  EXPECT_EQ(choose(masked, three), 17);
  std::vector<float> extreme(width, std::numeric_limits<float>::lowest());
  extreme[5] = std::numeric_limits<float>::max();
  EXPECT_EQ(choose(extreme, all), 5);
  EXPECT_EQ(choose(extreme, three), 5);

  // No choice at all.
  for (SamplingWords words : {greedy, all, three}) {
    EXPECT_EQ(choose(std::vector<float>(width, -kInfinity), words), -1);
    for (float bad : {kInfinity, std::numeric_limits<float>::quiet_NaN(),
                      -std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> logits(width, 1.0f);
      logits[400] = bad;
      EXPECT_EQ(choose(logits, words), -1);
    }
  }
}
