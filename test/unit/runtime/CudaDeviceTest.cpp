// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The cuda device on a driver without a GPU.

#include "sluice-runtime/Commands.h"
#include "test/unit/runtime/FakeCuda.h"
#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <dlfcn.h>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;

namespace {

std::string messageOf(const std::function<void()> &function) {
  try {
    function();
  } catch (const Error &e) {
    return e.what();
  }
  return "no error";
}

class CudaDevice : public testing::Test {
protected:
  CudaDevice() {
    setenv("SLUICE_LIBCUDA", SLUICE_TEST_FAKE_CUDA, 1);
    void *library = dlopen(SLUICE_TEST_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
    if (!library)
      throw std::runtime_error(dlerror());
    reinterpret_cast<void (*)()>(dlsym(library, "fakeCudaReset"))();
    fake = reinterpret_cast<FakeCudaState>(dlsym(library, "fakeCuda"))();
    made.retargetToGpu();
  }
  ~CudaDevice() override {
    unsetenv("SLUICE_LIBCUDA");
    // Whatever a test did, nothing is left and nothing was misused.
    EXPECT_EQ(fake->complaints, std::vector<std::string>{});
    EXPECT_EQ(fake->allocated, 0u);
    EXPECT_EQ(fake->contexts, 0);
    EXPECT_EQ(fake->modules, 0);
    EXPECT_EQ(fake->streams, 0);
    EXPECT_EQ(fake->events, 0);
    EXPECT_EQ(fake->graphs, 0);
    EXPECT_EQ(fake->graphExecs, 0);
    EXPECT_EQ(fake->pinned, 0);
    EXPECT_EQ(fake->current, 0);
  }

  std::shared_ptr<const Artifact> open() {
    made.write(directory.path());
    return Artifact::open(directory.path());
  }
  /// What a session on the artifact ends with.
  std::string loadError() {
    return messageOf([&] { Session session(open()); });
  }
  json &launches() { return made.plan["steps"]["decode"]["launches"]; }
  int64_t count(const std::string &call) const {
    return std::count(fake->calls.begin(), fake->calls.end(), call);
  }
  std::string planName() const { return (directory.path() / "plan.json").string(); }
  /// Makes the weights generated ones, with regions of `bytes`.
  void makeSynthetic(int64_t bytes) {
    made.plan["model"]["synthetic"] = true;
    made.plan["files"].erase("weights");
    launches().erase(launches().size() - 1);
    int seed = 0;
    for (json &buffer : made.plan["buffers"])
      if (buffer["kind"] == "weights")
        buffer["synthetic"] = {
            {"seed", "000000000000000" + std::to_string(seed++)},
            {"regions",
             {{{"bytes", bytes}, {"keep", "807fffff807fffff"}, {"set", "3f0000003f000000"}},
              {{"bytes", 2 * bytes}, {"keep", "ffffffffffffffff"}, {"set", "0000000000000000"}}}}};
  }

  TemporaryDirectory directory;
  TestArtifact made;
  FakeCuda *fake;
};

} // namespace

// ---- One line, before anything is allocated ----

TEST_F(CudaDevice, ErrorsBeforeAnythingIsAllocated) {
  struct {
    std::function<void()> change;
    std::string expected;
  } cases[] = {
      {[&] { setenv("SLUICE_LIBCUDA", "/nowhere/libcuda.so.1", 1); },
       "cuda: there is no NVIDIA driver on this machine: /nowhere/libcuda.so.1: cannot open shared "
       "object file: No such file or directory"},
      {[&] { fake->version = 11080; },
       "cuda: the NVIDIA driver is too old: it is for CUDA 11.8, at least 12.3 is needed"},
      {[&] { fake->initResult = 100; },
       "cuda: there is no NVIDIA GPU on this machine, or none that is visible "
       "(CUDA_VISIBLE_DEVICES)"},
      {[&] { fake->devices = 0; },
       "cuda: there is no NVIDIA GPU on this machine, or none that is visible "
       "(CUDA_VISIBLE_DEVICES)"},
      {[&] { fake->initResult = 34; }, std::string("cuda: ") + SLUICE_TEST_FAKE_CUDA +
                                           " is the toolkit's stub for linking, not a driver"},
      {[&] { fake->initResult = 803; }, "cuda: cannot initialise the driver: error 803"},
      {[&] { fake->major = 8; },
       planName() + ": Fake GPU is sm_80, but the artifact has machine code for sm_90, PTX for "
                    "sm_90; compile the model for this GPU"},
      {[&] {
         made.plan["files"].erase("ptx");
         fake->major = 10;
       },
       planName() + ": Fake GPU is sm_100, but the artifact has machine code for sm_90; compile "
                    "the model for this GPU"},
      {[&] {
         made.plan["target"]["arch"] = "sm_90a";
         made.plan["files"].erase("cubin.sm_90");
         fake->major = 10;
       },
       planName() + ": Fake GPU is sm_100, but the artifact has PTX for sm_90a; compile the model "
                    "for this GPU"},
      {[&] {
         made.plan["files"].erase("ptx");
         made.plan["files"].erase("cubin.sm_90");
       },
       planName() + ": the artifact has no GPU kernels: neither files.ptx nor files.cubin.sm_NN"},
      {[&] { made.plan["files"]["cubin.x"] = made.plan["files"]["ptx"]; },
       planName() + ": files: role \"cubin.x\" names no GPU architecture, expected "
                    "\"cubin.sm_90\" or another one"},
      {[&] { launches()[1]["block"] = 0; },
       planName() + ": launch \"attend\" of step \"decode\" has block 0, expected 1 to 1024 "
                    "threads on Fake GPU"},
      {[&] { launches()[1]["shared"] = 300000; },
       planName() + ": launch \"attend\" of step \"decode\" has shared 300000, expected at most "
                    "232448 bytes on Fake GPU"},
      {[&] { launches()[1]["cluster"] = 3; },
       planName() + ": launch \"attend\" of step \"decode\" has cluster 3, expected a divisor of "
                    "its grid of 32 blocks on Fake GPU"},
      {[&] {
         made.plan["target"]["arch"] = "sm_80";
         fake->major = 8;
         launches()[1]["overlap"] = true;
       },
       planName() + ": launch \"attend\" of step \"decode\" overlaps the launch before it, which "
                    "needs sm_90, but Fake GPU is sm_80"},
      {[&] { fake->totalBytes = 10000; }, "of GPU memory (weights "},
      {[&] { fake->freeBytes = 20000; },
       "Fake GPU has 20000 free; compile the model with smaller weights or a shorter context"},
  };
  for (auto &c : cases) {
    made = TestArtifact();
    made.retargetToGpu();
    *fake = {};
    setenv("SLUICE_LIBCUDA", SLUICE_TEST_FAKE_CUDA, 1);
    c.change();
    made.others["cubin.x"] = made.others["ptx"];
    std::string message = loadError();
    if (c.expected.starts_with("of GPU") || c.expected.starts_with("Fake GPU has"))
      EXPECT_NE(message.find(c.expected), std::string::npos) << message;
    else
      EXPECT_EQ(message, c.expected);
    EXPECT_EQ(fake->peak, 0u) << message;
    EXPECT_EQ(count("cuMemAlloc_v2"), 0) << message;
    EXPECT_EQ(fake->contexts, 0);
  }
}

TEST_F(CudaDevice, ArtifactsOfOtherTargets) {
  made = TestArtifact();
  auto artifact = open();
  EXPECT_EQ(messageOf([&] { Session session(artifact, {"cuda", {}}); }),
            planName() +
                ": was compiled for target \"host\" (cpu), which the cuda device cannot run");
  EXPECT_EQ(fake->calls, std::vector<std::string>{});
}

TEST_F(CudaDevice, MissingKernel) {
  launches()[0]["kernel"] = "nothing";
  EXPECT_EQ(loadError(), (directory.path() / "kernels.sm_90.cubin").string() +
                             ": has no kernel \"nothing\", which launch \"embed\" needs");
  EXPECT_EQ(fake->peak, 0u);
}

TEST_F(CudaDevice, KernelThatNeedsTooManyRegisters) {
  fake->kernelMaxThreads = 64;
  EXPECT_NE(
      loadError().find("kernel \"attend\" runs with at most 64 threads per block on this GPU, "
                       "but launch \"attend\" has 128"),
      std::string::npos);
}

TEST_F(CudaDevice, PlanOfAGpu) {
  made.plan["target"]["arch"] = "sm_9";
  EXPECT_NE(messageOf([&] { open(); }).find("target.arch is 'sm_9', expected a GPU architecture"),
            std::string::npos);
  made.plan["target"].erase("arch");
  EXPECT_NE(messageOf([&] { open(); }).find("target.arch is missing"), std::string::npos);
}

TEST_F(CudaDevice, MachineCodeThatIsNone) {
  made.others["cubin.sm_90"] = "text";
  EXPECT_NE(loadError().find("kernels.sm_90.cubin: is not an ELF file with GPU machine code"),
            std::string::npos);
}

TEST_F(CudaDevice, TheCompilersLogIsInTheError) {
  made.plan["files"].erase("cubin.sm_90");
  fake->jitLog = "ptxas fatal : Unresolved extern 'x'\nptxas fatal : aborted\n";
  EXPECT_EQ(loadError(),
            (directory.path() / "kernels.ptx").string() +
                ": the NVIDIA driver (CUDA 12.4) cannot compile it: CUDA_ERROR_INVALID_PTX (a PTX "
                "JIT compilation failed): ptxas fatal : Unresolved extern 'x'; ptxas fatal : "
                "aborted");
}

// Whichever call fails, the message is a line and nothing is left behind (the fixture looks).
TEST_F(CudaDevice, EveryCallMayFail) {
  makeSynthetic(16);
  made.plan["utilities"]["sluice_synthesize"] = {
      {"block", 256}, {"shared", 0}, {"blocks_per_multiprocessor", 2}};
  auto artifact = open();
  for (const char *name :
       {"cuDevicePrimaryCtxRetain", "cuMemGetInfo_v2", "cuModuleLoadDataEx", "cuModuleGetFunction",
        "cuFuncGetAttribute", "cuFuncSetAttribute", "cuMemAlloc_v2", "cuMemHostAlloc",
        "cuMemcpyHtoDAsync_v2", "cuMemsetD8Async", "cuStreamCreate", "cuStreamSynchronize",
        "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags",
        "cuGraphUpload", "cuEventCreate", "cuEventRecord", "cuLaunchKernelEx"})
    for (int after = 0; after < 3; ++after) {
      *fake = {};
      fake->failing = name;
      fake->failAfter = after;
      // The count is the driver's own.
      reinterpret_cast<void (*)(const char *)>(
          dlsym(dlopen(SLUICE_TEST_FAKE_CUDA, RTLD_NOW | RTLD_NOLOAD), "fakeCudaForget"))(name);
      std::string message = messageOf([&] { Session session(artifact); });
      if (after == 0) {
        EXPECT_NE(message.find("CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)"),
                  std::string::npos)
            << name << ": " << message;
      }
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_EQ(fake->allocated, 0u) << name;
      EXPECT_EQ(fake->modules + fake->streams + fake->graphs + fake->graphExecs + fake->pinned +
                    fake->events + fake->contexts,
                0)
          << name << " after " << after;
    }
}

TEST_F(CudaDevice, AStepThatFailsIsAnError) {
  auto artifact = open();
  Session session(artifact);
  session.decode(3);
  fake->failing = "cuStreamSynchronize";
  EXPECT_EQ(messageOf([&] { session.decode(3); }),
            "cuda: step \"decode\" failed: CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)");
}

// ---- What runs ----

TEST_F(CudaDevice, DecodesLikeTheCpu) {
  auto artifact = open();
  TestArtifact host;
  TemporaryDirectory hostDirectory;
  host.write(hostDirectory.path());
  Session expected(Artifact::open(hostDirectory.path()), {"cpu", {1}});
  Session session(artifact);
  EXPECT_EQ(session.device().name(), "cuda");
  for (int i = 0; i < TestArtifact::context; ++i) {
    int32_t token = (i * 13 + 5) % static_cast<int32_t>(artifact->model().vocabSize);
    std::span<const float> want = expected.decode(token), logits = session.decode(token);
    ASSERT_TRUE(std::equal(want.begin(), want.end(), logits.begin(), logits.end())) << i;
    ASSERT_EQ(session.readBuffer("ping"), expected.readBuffer("ping"));
    ASSERT_EQ(session.readBuffer("cache"), expected.readBuffer("cache"));
  }
  EXPECT_EQ(session.readBuffer("bias"), expected.readBuffer("bias"));
  session.reset();
  for (std::byte byte : session.readBuffer("cache"))
    ASSERT_EQ(byte, std::byte{0});
  expected.reset();
  std::span<const float> want = expected.decode(9), logits = session.decode(9);
  EXPECT_TRUE(std::equal(want.begin(), want.end(), logits.begin(), logits.end()));
  EXPECT_EQ(session.readBuffer("ping"), expected.readBuffer("ping"));
}

TEST_F(CudaDevice, OneGraphCapturedOnceAndReplayed) {
  auto artifact = open();
  Session session(artifact);
  size_t launchesOfAStep = artifact->plan().steps[0].launches.size();
  EXPECT_EQ(fake->launches.size(), launchesOfAStep);
  EXPECT_TRUE(std::all_of(fake->launches.begin(), fake->launches.end(),
                          [](const FakeLaunch &launch) { return launch.captured; }));
  EXPECT_EQ(fake->graphExecs, 1);
  EXPECT_EQ(fake->graphs, 0) << "the template is not needed any more";
  EXPECT_EQ(count("cuGraphUpload"), 1);
  fake->calls.clear();
  session.decode(3);
  // A step is one small copy, one graph, one copy back and one wait.
  EXPECT_EQ(fake->calls, (std::vector<std::string>{"cuMemcpyHtoDAsync_v2", "cuGraphLaunch",
                                                   "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"}));
  for (int i = 0; i < 20; ++i)
    session.decode(i);
  EXPECT_EQ(fake->launches.size(), launchesOfAStep);
  EXPECT_EQ(count("cuGraphLaunch"), 21);
}

TEST_F(CudaDevice, LargeOutputsAreCopiedWhenTheyAreAskedFor) {
  made.addSampling();
  const std::vector<std::string> step = {"cuMemcpyHtoDAsync_v2", "cuGraphLaunch",
                                         "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"};
  const std::vector<std::string> copy = {"cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"};
  for (json &buffer : made.plan["buffers"])
    if (buffer["name"] == "logits")
      buffer["bytes"] = 4100;
  auto artifact = open();
  Session session(artifact);
  TestArtifact host;
  TemporaryDirectory hostDirectory;
  host.write(hostDirectory.path());
  Session expected(Artifact::open(hostDirectory.path()), {"cpu", {1}});
  auto forget = [&] {
    fake->calls.clear();
    fake->downloads.clear();
  };
  auto check = [&](int32_t token, const std::vector<std::string> &calls,
                   const std::vector<size_t> &downloads) {
    EXPECT_EQ(fake->calls, calls);
    EXPECT_EQ(fake->downloads, downloads);
    forget();
    // Copied once, however often it is asked for, and what the last step left.
    std::span<const float> want = expected.decode(token), logits = logitsOf(session);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), logits.begin(), logits.end())) << token;
    logitsOf(session);
    EXPECT_EQ(fake->calls, copy);
    EXPECT_EQ(fake->downloads, std::vector<size_t>{4100});
    forget();
  };
  // Zeros before the first step, here and there.
  forget();
  EXPECT_EQ(logitsOf(session)[0], 0.0f);
  EXPECT_EQ(fake->calls, std::vector<std::string>{});
  session.append(3);
  check(3, step, {4});
  SamplingOptions options;
  options.topK = 11;
  Sampler sampler(options);
  EXPECT_EQ(session.next(9, sampler, {}), 11);
  check(9, step, {4});
  // Whatever else runs the step makes the copy an old one, too.
  session.profile(5);
  forget();
  logitsOf(session);
  EXPECT_EQ(fake->downloads, std::vector<size_t>{4100});
  session.device().measureStep(0, 2);
  forget();
  logitsOf(session);
  EXPECT_EQ(fake->downloads, std::vector<size_t>{4100});
}

TEST_F(CudaDevice, SmallOutputsComeWithTheStep) {
  made.addSampling();
  for (json &buffer : made.plan["buffers"])
    if (buffer["name"] == "logits")
      buffer["bytes"] = 4096;
  Session session(open());
  fake->downloads.clear();
  session.append(TestArtifact::letterA);
  EXPECT_EQ(fake->downloads, (std::vector<size_t>{4096, 4}));
  EXPECT_GT(logitsOf(session)[TestArtifact::letterA + 1], 9);
  EXPECT_EQ(fake->downloads.size(), 2u);
}

TEST_F(CudaDevice, LaunchesAreAsThePlanSays) {
  launches()[0]["overlap"] = true; // nothing is before it
  launches()[1]["overlap"] = true;
  launches()[1]["cluster"] = 8;
  launches()[1]["shared"] = 100000;
  launches()[2]["cluster"] = 16;
  launches()[3]["shared"] = 5000; // the same kernel as 2, with less there
  launches()[2]["shared"] = 1000;
  auto artifact = open();
  Session session(artifact);
  const std::vector<FakeLaunch> &made = fake->launches;
  EXPECT_FALSE(made[0].overlap);
  EXPECT_TRUE(made[1].overlap);
  EXPECT_FALSE(made[2].overlap);
  EXPECT_EQ(made[0].cluster, 1u);
  EXPECT_EQ(made[1].cluster, 8u);
  EXPECT_EQ(made[2].cluster, 16u);
  EXPECT_EQ(made[1].grid, 32u);
  EXPECT_EQ(made[1].block, 128u);
  EXPECT_EQ(made[1].shared, 100000u);
  EXPECT_EQ(made[2].shared, 1000u);
  EXPECT_EQ(fake->sharedLimit["attend"], 100000);
  EXPECT_EQ(fake->sharedLimit["rotate"], 5000);
  EXPECT_TRUE(fake->nonPortable["rotate"]);
  EXPECT_FALSE(fake->nonPortable["attend"]);
  // The same buffer is the same pointer in all launches, and every pointer is aligned.
  EXPECT_EQ(made[0].arguments[4], made[1].arguments[1]);
  EXPECT_EQ(made[1].arguments[2], made[2].arguments[0]);
  EXPECT_EQ(made[2].arguments[0], made[3].arguments[1]);
  EXPECT_EQ(made[3].arguments[1] + 128, made[3].arguments[0]) << "offsets in the arena";
  for (const FakeLaunch &launch : made)
    for (size_t i = 0; i < launch.arguments.size(); ++i)
      EXPECT_EQ(launch.arguments[i] % 64, 0u);
}

TEST_F(CudaDevice, MachineCodeThatFitsElsePtx) {
  {
    Session session(open());
    EXPECT_EQ(fake->images, (std::vector<std::string>{"cubin"}));
    EXPECT_NE(session.device().description().find("Fake GPU, sm_90, 4 multiprocessors, driver for "
                                                  "CUDA 12.4, kernels.sm_90.cubin"),
              std::string::npos);
  }
  // A later major version: the driver compiles the PTX.
  fake->images.clear();
  fake->major = 12;
  {
    Session session(open());
    EXPECT_EQ(fake->images, (std::vector<std::string>{"// PTX of nothing"}));
    EXPECT_NE(session.device().description().find("compiled by the driver from kernels.ptx"),
              std::string::npos);
  }
  // A later minor version runs machine code.
  fake->images.clear();
  fake->major = 9;
  fake->minor = 3;
  Session session(open());
  EXPECT_EQ(fake->images, (std::vector<std::string>{"cubin"}));
}

TEST_F(CudaDevice, MemoryAndUploads) {
  auto artifact = open();
  std::vector<std::pair<uint64_t, uint64_t>> progress;
  SessionOptions options;
  options.deviceOptions.onProgress = [&](uint64_t done, uint64_t total) {
    progress.push_back({done, total});
  };
  Session session(artifact, options);
  uint64_t weights = 0, rest = 0;
  auto up = [](uint64_t bytes) { return (bytes + 255) / 256 * 256; };
  for (const Buffer &buffer : artifact->plan().buffers)
    if (buffer.kind == BufferKind::Weights)
      weights += up(buffer.bytes);
    else if (buffer.kind != BufferKind::Arena)
      rest += up(buffer.bytes);
  EXPECT_EQ(fake->allocated, weights + rest + up(artifact->plan().arenaBytes));
  EXPECT_EQ(count("cuMemAlloc_v2"), 3);
  EXPECT_EQ(fake->uploadedBytes, weights);
  ASSERT_FALSE(progress.empty());
  EXPECT_GT(progress.back().second, weights / 2);
  // Session's copies of what the file has.
  for (const Buffer &buffer : artifact->plan().buffers)
    if (buffer.kind == BufferKind::Weights) {
      std::vector<std::byte> there = session.readBuffer(buffer.name);
      std::span<const std::byte> want = artifact->weights(buffer);
      EXPECT_TRUE(std::equal(there.begin(), there.end(), want.begin(), want.end()));
    }
}

/// A model whose table is larger than two pieces of an upload.
TEST_F(CudaDevice, LargeWeightsAreUploadedInPieces) {
  const uint64_t bytes = (uint64_t(40) << 20) + 12345;
  made.plan["model"]["synthetic"] = true;
  made.plan["files"].erase("weights");
  launches().erase(launches().size() - 1);
  for (json &buffer : made.plan["buffers"])
    if (buffer["kind"] == "weights") {
      buffer["synthetic"] = {
          {"seed", "0123456789abcdef"},
          {"regions",
           {{{"bytes", 37}, {"keep", "ffffffffffffffff"}, {"set", "0000000000000000"}},
            {{"bytes", 101}, {"keep", "0f0f0f0f0f0f0f0f"}, {"set", "1010101010101010"}}}}};
      buffer["bytes"] = std::max(bytes, buffer["bytes"].get<uint64_t>());
    }
  fake->totalBytes = fake->freeBytes = size_t(1) << 40;
  auto artifact = open();
  Session session(artifact);
  EXPECT_LE(fake->largestUpload, size_t(16) << 20);
  EXPECT_GT(fake->uploadedBytes, 3 * bytes);
  for (const char *name : {"table", "next", "bias"}) {
    const Buffer &buffer = artifact->plan().buffers[artifact->plan().bufferIndex(name)];
    std::vector<std::byte> there = session.readBuffer(name);
    std::vector<uint8_t> want(there.size());
    buffer.synthetic->generate(0, want.data(), want.size());
    EXPECT_EQ(std::memcmp(there.data(), want.data(), want.size()), 0) << name;
  }
}

TEST_F(CudaDevice, WeightsAreGeneratedByTheKernelWhereItCan) {
  makeSynthetic(16);
  std::map<std::string, std::vector<std::byte>> onHost;
  {
    Session session(open());
    EXPECT_EQ(fake->launches.size(), launches().size());
    for (const char *name : {"table", "next", "bias"})
      onHost[name] = session.readBuffer(name);
  }
  made.plan["utilities"]["sluice_synthesize"] = {
      {"block", 256}, {"shared", 0}, {"blocks_per_multiprocessor", 2}};
  for (int64_t region : {16, 20}) {
    if (region == 20) {
      // Regions that are no multiples of 8 bytes are the host's work.
      made = TestArtifact();
      made.retargetToGpu();
      makeSynthetic(region);
    }
    fake->launches.clear();
    Session session(open());
    auto generating =
        std::count_if(fake->launches.begin(), fake->launches.end(), [](const FakeLaunch &launch) {
          return launch.kernel == "sluice_synthesize";
        });
    // "bias" has as many bytes as there are tokens, which is no multiple of 8.
    ASSERT_NE(made.vocabSize() % 8, 0);
    EXPECT_EQ(generating, region == 16 ? 1 + (made.vocabSize() % 2 == 0) : 0);
    if (region == 16) {
      EXPECT_EQ(fake->launches[0].grid, 8u);
      EXPECT_EQ(fake->launches[0].block, 256u);
      for (const char *name : {"table", "next", "bias"})
        EXPECT_EQ(session.readBuffer(name), onHost[name]) << name;
    }
  }
}

TEST_F(CudaDevice, BuffersAreChecked) {
  auto artifact = open();
  Session session(artifact);
  uint32_t ping = artifact->plan().bufferIndex("ping"),
           table = artifact->plan().bufferIndex("table");
  std::byte bytes[16] = {};
  EXPECT_NE(messageOf([&] { session.device().write(ping, 120, bytes); }).find("leaves it"),
            std::string::npos);
  EXPECT_NE(messageOf([&] { session.device().read(ping, UINT64_MAX, bytes); }).find("leaves it"),
            std::string::npos);
  EXPECT_NE(messageOf([&] { session.device().write(table, 0, bytes); }).find("cannot be written"),
            std::string::npos);
  EXPECT_NE(messageOf([&] { session.device().output(ping); }).find("is no output"),
            std::string::npos);
  bytes[3] = std::byte{42};
  session.device().write(ping, 64, bytes);
  EXPECT_EQ(session.readBuffer("ping")[67], std::byte{42});
  int32_t token = 77;
  session.device().write(artifact->plan().bufferIndex("token"), 0,
                         std::as_bytes(std::span(&token, 1)));
  EXPECT_EQ(session.readBuffer("token")[0], std::byte{77});
  EXPECT_EQ(messageOf([&] { createDevice("cuda")->run(0); }),
            "the cuda device has loaded no artifact");
}

// ---- What is measured ----

TEST_F(CudaDevice, ProfilesOutsideOfTheGraph) {
  launches()[1]["overlap"] = true;
  launches()[1]["cluster"] = 8;
  auto artifact = open();
  Session session(artifact);
  std::vector<float> logits;
  {
    std::span<const float> ran = session.decode(7);
    logits.assign(ran.begin(), ran.end());
  }
  std::vector<std::byte> ping = session.readBuffer("ping");
  session.seek(0);
  fake->launches.clear();
  std::vector<double> seconds = session.profile(7);
  const Step &step = artifact->plan().steps[0];
  ASSERT_EQ(seconds.size(), step.launches.size());
  for (size_t i = 0; i < seconds.size(); ++i)
    EXPECT_NEAR(seconds[i], 1e-6 * static_cast<double>(step.launches[i].grid), 1e-9);
  ASSERT_EQ(fake->launches.size(), step.launches.size());
  EXPECT_FALSE(fake->launches[1].captured);
  EXPECT_FALSE(fake->launches[1].overlap);
  EXPECT_EQ(fake->launches[1].cluster, 8u);
  EXPECT_EQ(session.readBuffer("ping"), ping);
  EXPECT_EQ(std::memcmp(session.device().output(artifact->plan().bufferIndex("logits")),
                        logits.data(), logits.size() * sizeof(float)),
            0);
  EXPECT_NE(session.device().profileRemark().find("outside of the graph"), std::string::npos);
  // Launch by launch, as far as it is wanted.
  fake->launches.clear();
  std::vector<size_t> traced;
  session.device().trace(0, [&](size_t launch) {
    traced.push_back(launch);
    EXPECT_EQ(fake->launches.size(), launch + 1);
    return launch < 1;
  });
  EXPECT_EQ(traced, (std::vector<size_t>{0, 1}));
  EXPECT_FALSE(fake->launches[1].overlap);
  // The whole step by the device's clock.
  double whole = 0;
  for (double s : seconds)
    whole += s;
  EXPECT_NEAR(*session.device().measureStep(0, 10), whole, 1e-8);
}

TEST_F(CudaDevice, BandwidthByTheArtifactsKernel) {
  made.plan["utilities"]["sluice_read_ceiling"] = {
      {"block", 512}, {"shared", 65536}, {"blocks_per_multiprocessor", 2}};
  Session session(open());
  Bandwidth measured = session.device().measureReadBandwidth();
  EXPECT_EQ(measured.method, "reads by sluice_read_ceiling");
  // The weights fit into the caches: something larger is read.
  EXPECT_EQ(measured.buffer, "a buffer of its own");
  EXPECT_EQ(measured.bufferBytes, uint64_t(64) << 20);
  EXPECT_NEAR(measured.bytesPerSecond, double(64 << 20) / 8e-6, 1e9);
  const FakeLaunch &launch = fake->launches.back();
  EXPECT_EQ(launch.kernel, "sluice_read_ceiling");
  EXPECT_EQ(launch.grid, 8u);
  EXPECT_EQ(launch.block, 512u);
  EXPECT_EQ(launch.shared, 65536u);
  EXPECT_EQ(fake->sharedLimit["sluice_read_ceiling"], 65536);
  size_t allocated = fake->allocated;
  session.device().measureReadBandwidth();
  EXPECT_EQ(fake->allocated, allocated);
}

TEST_F(CudaDevice, BandwidthByCopies) {
  Session session(open());
  Bandwidth measured = session.device().measureReadBandwidth();
  EXPECT_NE(measured.method.find("copies on the GPU, reads and writes counted"), std::string::npos);
  // The fake copies a byte a nanosecond: one read and one written.
  EXPECT_NEAR(measured.bytesPerSecond, 2e9, 1e6);
}

TEST_F(CudaDevice, UtilityThatIsNotThere) {
  made.plan["utilities"]["sluice_read_ceiling"] = {
      {"block", 2048}, {"shared", 0}, {"blocks_per_multiprocessor", 1}};
  EXPECT_NE(loadError().find("utilities.sluice_read_ceiling.block is 2048, expected"),
            std::string::npos);
}

TEST_F(CudaDevice, Bench) {
  made.write(directory.path());
  BenchOptions options;
  options.tokens = 3;
  options.repetitions = 2;
  options.perKernel = true;
  std::FILE *file = std::tmpfile();
  bench(directory.path(), options, file);
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  ASSERT_EQ(std::fread(text.data(), 1, text.size(), file), text.size());
  std::fclose(file);
  for (const char *line : {"device          cuda: Fake GPU", "step alone      ", "us on the device",
                           "copies on the GPU, reads and writes counted, of a buffer of its own",
                           "(measured outside of the graph"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
}

// ---- The end ----

TEST_F(CudaDevice, EverythingIsGivenBackInOrder) {
  {
    Session session(open());
    session.decode(3);
    fake->calls.clear();
  }
  auto place = [&](const char *call) {
    auto found = std::find(fake->calls.begin(), fake->calls.end(), call);
    EXPECT_NE(found, fake->calls.end()) << call;
    return found - fake->calls.begin();
  };
  // What runs is waited for; graphs go before what they use, and the context last.
  EXPECT_EQ(place("cuStreamSynchronize"), 0);
  EXPECT_LT(place("cuGraphExecDestroy"), place("cuStreamDestroy_v2"));
  EXPECT_LT(place("cuGraphExecDestroy"), place("cuMemFree_v2"));
  EXPECT_LT(place("cuGraphExecDestroy"), place("cuModuleUnload"));
  EXPECT_LT(place("cuMemFree_v2"), place("cuModuleUnload"));
  EXPECT_EQ(place("cuDevicePrimaryCtxRelease_v2"), static_cast<long>(fake->calls.size()) - 1);
}
