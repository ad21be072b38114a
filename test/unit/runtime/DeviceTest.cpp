// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/CpuFeatures.h"
#include "runtime/device/ThreadPool.h"
#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

using namespace sluice::runtime;
using namespace sluice::runtime::test;

namespace {

struct Loaded {
  TemporaryDirectory directory;
  std::shared_ptr<const Artifact> artifact;
  explicit Loaded(TestArtifact made = {}) {
    made.write(directory.path());
    artifact = Artifact::open(directory.path());
  }
};

std::string messageOf(const std::function<void()> &function) {
  try {
    function();
  } catch (const Error &e) {
    return e.what();
  }
  return "no error";
}

/// What the launches of the test's artifact leave in "ping".
std::vector<float> expectedPing(const std::vector<int32_t> &tokens) {
  constexpr int64_t n = TestArtifact::hidden;
  std::vector<float> sums(n), rotated(n);
  for (int64_t i = 0; i < n; ++i)
    for (int32_t token : tokens)
      sums[i] += TestArtifact::embedding(token, i);
  for (int r = 0; r < 2 * TestArtifact::rotations; ++r) {
    for (int64_t i = 0; i < n; ++i)
      rotated[i] = sums[(i + n / 2 + 1) % n] + 1;
    sums.swap(rotated);
  }
  return sums;
}

class CpuDeviceThreads : public testing::TestWithParam<int> {};

TEST_P(CpuDeviceThreads, StepsLeaveTheRightBuffers) {
  Loaded loaded;
  Session session(loaded.artifact, {"cpu", {GetParam()}});
  std::vector<int32_t> tokens;
  for (int i = 0; i < TestArtifact::context; ++i) {
    int32_t token = (i * 13 + 5) % static_cast<int32_t>(loaded.artifact->model().vocabSize);
    tokens.push_back(token);
    std::span<const float> logits = session.decode(token);
    ASSERT_EQ(static_cast<int64_t>(logits.size()), loaded.artifact->model().vocabSize);
    for (size_t v = 0; v < logits.size(); ++v) {
      float likely = static_cast<int32_t>(v) == TestArtifact::next(token) ? 10.0f : 0.0f;
      ASSERT_EQ(logits[v], likely + TestArtifact::bias(static_cast<int64_t>(v)));
    }
    ASSERT_EQ(session.readBufferAsFloat("ping"), expectedPing(tokens)) << "token " << i;
    ASSERT_EQ(session.position(), i + 1);
  }
}

TEST_P(CpuDeviceThreads, ProfilingGivesTheSameResults) {
  Loaded loaded;
  Session session(loaded.artifact, {"cpu", {GetParam()}});
  std::vector<double> seconds = session.profile(7);
  EXPECT_EQ(seconds.size(), loaded.artifact->plan().steps[0].launches.size());
  for (double s : seconds)
    EXPECT_TRUE(s >= 0 && s < 60);
  EXPECT_EQ(session.position(), 0);
  EXPECT_EQ(session.readBufferAsFloat("ping"), expectedPing({7}));
}

INSTANTIATE_TEST_SUITE_P(Threads, CpuDeviceThreads, testing::Range(1, 9));

TEST(CpuDevice, BuffersAreAligned) {
  // Weights lie at an odd place in the file, and are copied; kernels may use aligned loads.
  Loaded loaded;
  const Plan &plan = loaded.artifact->plan();
  EXPECT_NE(reinterpret_cast<uintptr_t>(
                loaded.artifact->weights(plan.buffers[plan.bufferIndex("bias")]).data()) %
                64,
            0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(
                loaded.artifact->weights(plan.buffers[plan.bufferIndex("table")]).data()) %
                64,
            0u);
  Session session(loaded.artifact, {"cpu", {1}});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(session.decode(1).data()) % 64, 0u);
  EXPECT_EQ(std::to_integer<int>(session.readBuffer("bias")[100]), 100);
}

TEST(CpuDevice, CachesStartAtZeroAndAreClearedByReset) {
  Loaded loaded;
  Session session(loaded.artifact, {"cpu", {2}});
  for (float value : session.readBufferAsFloat("cache"))
    ASSERT_EQ(value, 0);
  session.decode(5);
  session.decode(6);
  EXPECT_NE(session.readBufferAsFloat("cache")[TestArtifact::hidden], 0);
  session.reset();
  EXPECT_EQ(session.position(), 0);
  for (float value : session.readBufferAsFloat("cache"))
    ASSERT_EQ(value, 0);
  session.decode(9);
  EXPECT_EQ(session.readBufferAsFloat("ping"), expectedPing({9}));
}

TEST(CpuDevice, SessionsOfOneArtifactDoNotMeet) {
  Loaded loaded;
  Session first(loaded.artifact, {"cpu", {2}}), second(loaded.artifact, {"cpu", {2}});
  first.decode(5);
  second.decode(6);
  EXPECT_EQ(first.readBufferAsFloat("ping"), expectedPing({5}));
  EXPECT_EQ(second.readBufferAsFloat("ping"), expectedPing({6}));
}

TEST(Session, RefusesWhatIsOutside) {
  Loaded loaded;
  Session session(loaded.artifact, {"cpu", {1}});
  EXPECT_NE(
      messageOf([&] { session.decode(-1); }).find("token -1 is not in the model's vocabulary"),
      std::string::npos);
  EXPECT_NE(messageOf([&] { session.decode(100000); }).find("token 100000"), std::string::npos);
  for (int i = 0; i < TestArtifact::context; ++i)
    session.decode(4);
  EXPECT_NE(
      messageOf([&] { session.decode(4); }).find("context is full: position 48 of a context of 48"),
      std::string::npos);
  EXPECT_EQ(session.position(), TestArtifact::context);
  EXPECT_NE(messageOf([&] { session.seek(TestArtifact::context); }).find("position 48"),
            std::string::npos);
  EXPECT_NE(messageOf([&] { session.seek(-1); }).find("position -1"), std::string::npos);
  EXPECT_NE(messageOf([&] { session.readBuffer("nothing"); }).find("no buffer \"nothing\""),
            std::string::npos);
  EXPECT_NE(messageOf([&] { session.readBufferAsFloat("token"); }).find("of type i32"),
            std::string::npos);
  uint32_t ping = loaded.artifact->plan().bufferIndex("ping"),
           table = loaded.artifact->plan().bufferIndex("table");
  std::byte bytes[16] = {};
  EXPECT_NE(messageOf([&] { session.device().write(ping, 120, bytes); }).find("leaves it"),
            std::string::npos);
  EXPECT_NE(
      messageOf([&] { session.device().read(ping, UINT64_MAX - 3, bytes); }).find("leaves it"),
      std::string::npos);
  EXPECT_NE(messageOf([&] { session.device().write(table, 0, bytes); }).find("cannot be written"),
            std::string::npos);
}

TEST(Session, ReadsHalvesAsFloat) {
  TestArtifact made;
  // The bytes of "table" read as f16: x has 32 of them at its start.
  for (auto &buffer : made.plan["buffers"])
    if (buffer["name"] == "x")
      buffer["type"] = "f16";
  Loaded loaded(made);
  Session session(loaded.artifact, {"cpu", {1}});
  uint32_t x = loaded.artifact->plan().bufferIndex("x");
  const uint16_t halves[] = {0x3C00, 0xC000, 0x0001, 0x83FF, 0x7BFF, 0x8000, 0x7C00, 0x3555};
  session.device().write(x, 0, std::as_bytes(std::span(halves)));
  std::vector<float> values = session.readBufferAsFloat("x");
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], -2.0f);
  EXPECT_EQ(values[2], 0x1p-24f);
  EXPECT_EQ(values[3], -0x3FFp-24f);
  EXPECT_EQ(values[4], 65504.0f);
  EXPECT_TRUE(values[5] == 0 && std::signbit(values[5]));
  EXPECT_TRUE(std::isinf(values[6]));
  EXPECT_EQ(values[7], 0x1.554p-2f);
}

TEST(Device, SyntheticWeightsAreFiniteAndNeedNoFile) {
  TestArtifact made;
  made.plan["model"]["synthetic"] = true;
  made.plan["files"].erase("weights");
  made.plan["files"].erase("tokenizer");
  for (auto &buffer : made.plan["buffers"])
    if (buffer["kind"] == "weights")
      buffer["synthetic"] = {
          {"seed", "0000000000000001"},
          {"regions", {{{"bytes", 8}, {"keep", "807fffff807fffff"}, {"set", "3f0000003f000000"}}}}};
  // What follows a token comes from the weights, here from numbers: do not look it up.
  auto &launches = made.plan["steps"]["decode"]["launches"];
  launches.erase(launches.size() - 1);
  Loaded loaded(made);
  Session session(loaded.artifact, {"cpu", {2}});
  session.decode(3);
  std::vector<float> table = session.readBufferAsFloat("table");
  float smallest = table[0], largest = table[0];
  for (float value : table) {
    ASSERT_TRUE(std::fabs(value) >= 0.5f && std::fabs(value) < 1);
    smallest = std::min(smallest, value);
    largest = std::max(largest, value);
  }
  EXPECT_LT(smallest, 0);
  EXPECT_GT(largest, 0);
  EXPECT_NE(messageOf([&] { loaded.artifact->tokenizer(); }).find("has no tokenizer"),
            std::string::npos);
}

TEST(Device, UnknownOrUnavailable) {
  Loaded loaded;
  EXPECT_EQ(messageOf([&] { Session(loaded.artifact, {"emulator", {}}); }),
            "device \"emulator\" is not available in this program, which has: cpu, cuda");
  EXPECT_NE(
      messageOf([&] { createDevice("cpu", {5000}); }).find("threads is 5000, expected 1 to 1024"),
      std::string::npos);
  EXPECT_NE(messageOf([&] { createDevice("cpu", {-1}); }).find("threads is -1"), std::string::npos);
}

/// A device from outside of the library: its logits are a constant.
class FakeDevice final : public Device {
public:
  static inline int runs = 0;
  std::string name() const override { return "fake"; }
  std::string description() const override { return "a fake"; }
  void load(std::shared_ptr<const Artifact> artifact) override {
    logits.assign(artifact->model().vocabSize, 0.25f);
    decode = artifact->plan().decodeStep(/*graph=*/false);
  }
  uint32_t decodeStep() const override { return decode; }
  void run(uint32_t) override { ++runs; }
  void trace(uint32_t, const std::function<bool(size_t)> &) override {}
  std::vector<double> profile(uint32_t) override { return {}; }
  void write(uint32_t, uint64_t, std::span<const std::byte>) override {}
  void read(uint32_t, uint64_t, std::span<std::byte>) override {}
  const void *output(uint32_t) override { return logits.data(); }
  void clearCaches() override {}
  Bandwidth measureReadBandwidth() override { return {1, 1, "nothing"}; }

private:
  uint32_t decode = 0;
  std::vector<float> logits;
};

TEST(Device, OthersCanBeRegistered) {
  registerDevice("fake", [](const DeviceOptions &) { return std::make_unique<FakeDevice>(); });
  EXPECT_EQ(deviceNames(), (std::vector<std::string>{"cpu", "cuda", "fake"}));
  // Also as what an artifact of its kind runs on.
  TestArtifact made;
  made.plan["target"]["kind"] = "fake";
  Loaded loaded(made);
  Session session(loaded.artifact);
  EXPECT_EQ(session.decode(1)[3], 0.25f);
  EXPECT_EQ(FakeDevice::runs, 1);
  EXPECT_NE(messageOf([&] {
              Session(loaded.artifact, {"cpu", {}});
            }).find("which the cpu device cannot run"),
            std::string::npos);
}

TEST(Device, BandwidthIsMeasured) {
  Loaded loaded;
  Session session(loaded.artifact, {"cpu", {2}});
  Bandwidth bandwidth = session.device().measureReadBandwidth();
  EXPECT_GT(bandwidth.bytesPerSecond, 1e8);
  EXPECT_GE(bandwidth.bufferBytes, 4 * largestCacheBytes());
  EXPECT_EQ(bandwidth.buffer, "a buffer of its own");
  // The fastest quarter of its parts is hardly slower than all of them.
  EXPECT_GE(bandwidth.undisturbed, 0.9 * bandwidth.bytesPerSecond);
  // A second device reads the same buffer.
  Session other(loaded.artifact, {"cpu", {1}});
  EXPECT_EQ(other.device().measureReadBandwidth().bufferBytes, bandwidth.bufferBytes);
}

TEST(CpuFeatures, KnownOnesAgreeWithTheCompilersView) {
#if defined(__x86_64__)
  EXPECT_TRUE(missingCpuFeatures({"sse2"}).empty());
  auto agrees = [](const char *name, bool present) {
    EXPECT_EQ(missingCpuFeatures({name}).empty(), present) << name;
  };
  agrees("avx2", __builtin_cpu_supports("avx2"));
  agrees("fma", __builtin_cpu_supports("fma"));
  agrees("avx512f", __builtin_cpu_supports("avx512f"));
  agrees("avx512bw", __builtin_cpu_supports("avx512bw"));
  agrees("avx512vl", __builtin_cpu_supports("avx512vl"));
  agrees("avx512dq", __builtin_cpu_supports("avx512dq"));
  agrees("avx512vnni", __builtin_cpu_supports("avx512vnni"));
  agrees("avx512bf16", __builtin_cpu_supports("avx512bf16"));
  agrees("popcnt", __builtin_cpu_supports("popcnt"));
  agrees("bmi2", __builtin_cpu_supports("bmi2"));
#endif
  EXPECT_EQ(missingCpuFeatures({"abacus"}), std::vector<std::string>{"abacus"});
}

TEST(CpuFeatures, ReadAllReadsAll) {
  std::vector<uint8_t> bytes(1000003, 0);
  for (size_t i = 1000000; i < bytes.size(); ++i)
    bytes[i] = 1;
  EXPECT_EQ(readAll(bytes.data(), bytes.size()), 3u);
}

TEST(ThreadPool, BarriersSeparatePhases) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    std::vector<int> values(static_cast<size_t>(threads));
    std::atomic<int> wrong{0};
    for (int run = 0; run < 20; ++run)
      pool.run([&](int thread) {
        for (int phase = 0; phase < 50; ++phase) {
          values[thread] = run * 50 + phase;
          pool.barrier(thread);
          for (int value : values)
            wrong += value != run * 50 + phase;
          pool.barrier(thread);
        }
      });
    EXPECT_EQ(wrong, 0) << threads;
  }
}

TEST(ThreadPool, SleepingThreadsWakeUp) {
  ThreadPool pool(4);
  std::atomic<int> count{0};
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    pool.run([&](int thread) {
      // The others sleep at the barrier.
      if (thread == 2)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      pool.barrier(thread);
      ++count;
    });
  }
  EXPECT_EQ(count, 12);
}

} // namespace
