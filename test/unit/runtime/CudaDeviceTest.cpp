// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The cuda device on a driver without a GPU.

#include "sluice-runtime/Chat.h"
#include "sluice-runtime/Commands.h"
#include "sluice-runtime/sluice.h"
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

/// A step that the host waits for.
const std::vector<std::string> wholeStep = {
    "cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuEventRecord",     "cuStreamWaitEvent",
    "cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuEventSynchronize"};

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
  /// Counts the calls of an entry point, which the driver itself does, from zero again.
  static void forgetCalls(const char *name) {
    reinterpret_cast<void (*)(const char *)>(
        dlsym(dlopen(SLUICE_TEST_FAKE_CUDA, RTLD_NOW | RTLD_NOLOAD), "fakeCudaForget"))(name);
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
      {[&] { fake->totalBytes = 10000; },
       planName() +
           ": a session needs 48640 bytes of GPU memory (weights 38400, keys and values of "
           "48 positions 6144, the rest 4096), Fake GPU has 10000; compile the model with "
           "smaller weights or a shorter context"},
      {[&] { fake->freeBytes = 48639; },
       planName() +
           ": a session needs 48640 bytes of GPU memory (weights 38400, keys and values of "
           "48 positions 6144, the rest 4096), Fake GPU has 48639 free; compile the model "
           "with smaller weights or a shorter context"},
  };
  for (auto &c : cases) {
    made = TestArtifact();
    made.retargetToGpu();
    *fake = {};
    setenv("SLUICE_LIBCUDA", SLUICE_TEST_FAKE_CUDA, 1);
    c.change();
    made.others["cubin.x"] = made.others["ptx"];
    std::string message = loadError();
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
      forgetCalls(name);
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
  fake->failing = "cuEventSynchronize";
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

TEST_F(CudaDevice, GraphsAreCapturedOnceAndReplayed) {
  auto artifact = open();
  Session session(artifact);
  // Two steps that can be in flight at once have a graph each.
  size_t captured = 2 * artifact->plan().steps[0].launches.size();
  EXPECT_EQ(fake->launches.size(), captured);
  EXPECT_TRUE(std::all_of(fake->launches.begin(), fake->launches.end(),
                          [](const FakeLaunch &launch) { return launch.captured; }));
  EXPECT_EQ(fake->graphExecs, 2);
  EXPECT_EQ(fake->graphs, 0) << "the templates are not needed any more";
  EXPECT_EQ(count("cuGraphUpload"), 2);
  fake->calls.clear();
  session.decode(3);
  // A step is one small copy, one graph, one copy back and one wait.
  EXPECT_EQ(fake->calls, wholeStep);
  for (int i = 0; i < 20; ++i)
    session.decode(i);
  EXPECT_EQ(fake->launches.size(), captured);
  EXPECT_EQ(count("cuGraphLaunch"), 21);
}

TEST_F(CudaDevice, LargeOutputsAreCopiedWhenTheyAreAskedFor) {
  made.addSampling();
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
  session.wait();
  check(3, wholeStep, {4});
  SamplingOptions options;
  options.topK = 11;
  Sampler sampler(options);
  EXPECT_EQ(session.next(9, sampler, {}), 11);
  check(9, wholeStep, {4});
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
  session.wait();
  EXPECT_EQ(fake->downloads, (std::vector<size_t>{4096, 4}));
  EXPECT_GT(logitsOf(session)[TestArtifact::letterA + 1], 9);
  EXPECT_EQ(fake->downloads.size(), 2u);
}

TEST_F(CudaDevice, BlocksOfCooperativeLaunchesLiveAtTheSameTime) {
  // 32 blocks.
  launches()[1]["cooperative"] = true;
  launches()[1]["cluster"] = 8;
  fake->residentClusters = 3;
  EXPECT_EQ(loadError(), planName() +
                             ": launch \"attend\" of step \"decode\" needs 4 clusters of 8 "
                             "blocks at the same time, Fake GPU has room for 3");
  {
    fake->residentClusters = 4;
    Session session(open());
    EXPECT_FALSE(fake->launches[0].cooperative);
    EXPECT_TRUE(fake->launches[1].cooperative);
  }
  launches()[1]["cluster"] = 1;
  fake->residentBlocks = 7; // on 4 multiprocessors
  EXPECT_EQ(loadError(), planName() + ": launch \"attend\" of step \"decode\" needs 32 blocks at "
                                      "the same time, Fake GPU has room for 28");
}

TEST_F(CudaDevice, WithoutRoomForOneKernelAGraphDecodes) {
  json graph = made.plan["steps"]["decode"];
  made.plan["steps"]["decode_graph"] = graph;
  launches()[1]["cooperative"] = true;
  launches()[1]["cluster"] = 8;
  std::vector<std::string> warnings;
  SessionOptions options{"cuda", {}};
  options.deviceOptions.onWarning = [&](const std::string &line) { warnings.push_back(line); };
  auto cooperative = [&] {
    return std::any_of(fake->launches.begin(), fake->launches.end(),
                       [](const FakeLaunch &launch) { return launch.cooperative; });
  };
  fake->residentClusters = 3;
  {
    Session session(open(), options);
    EXPECT_EQ(warnings, (std::vector<std::string>{
                            planName() + ": launch \"attend\" of step \"decode\" needs 4 clusters "
                                         "of 8 blocks at the same time, Fake GPU has room for 3; "
                                         "its tokens are decoded by a graph of kernels"}));
    EXPECT_FALSE(cooperative());
    EXPECT_GT(session.decode(TestArtifact::letterA)[TestArtifact::letterA + 1], 9);
  }
  fake->residentClusters = 4;
  fake->launches.clear();
  {
    Session session(open(), options);
    EXPECT_EQ(warnings.size(), 1u);
    EXPECT_TRUE(cooperative());
  }
  // As somebody wants it.
  options.deviceOptions.graph = true;
  fake->launches.clear();
  Session session(open(), options);
  EXPECT_EQ(warnings.size(), 1u);
  EXPECT_FALSE(cooperative());
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
  uint64_t weights = 0, caches = 0, twice = 0;
  auto up = [](uint64_t bytes) { return (bytes + 255) / 256 * 256; };
  for (const Buffer &buffer : artifact->plan().buffers)
    if (buffer.kind == BufferKind::Weights)
      weights += up(buffer.bytes);
    else if (buffer.kind == BufferKind::Cache)
      caches += up(buffer.bytes);
    else if (buffer.kind != BufferKind::Arena)
      twice += up(buffer.bytes);
  // Two steps in flight have inputs and outputs each.
  EXPECT_EQ(fake->allocated, weights + caches + 2 * twice + up(artifact->plan().arenaBytes));
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
    EXPECT_EQ(fake->launches.size(), 2 * launches().size());
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

// ---- Steps that start before their token is known ----

namespace {

/// Whenever streams do their work.
class CudaSteps : public CudaDevice, public testing::WithParamInterface<WorkOrder> {
protected:
  CudaSteps() { fake->order = GetParam(); }
  /// A step that draws tokens, here and on the host.
  void draw() {
    made.addSampling("draw");
    made.retargetToGpu();
    host.addSampling("draw");
  }
  /// Inserts a kernel that spoils logits before they are drawn from.
  void insert(const char *kernel, const std::vector<std::string> &arguments) {
    for (TestArtifact *artifact : {&made, &host}) {
      json &launches = artifact->plan["steps"]["decode"]["launches"];
      json spoil = launches.back();
      spoil["kernel"] = spoil["label"] = kernel;
      spoil["arguments"] = arguments;
      launches.insert(launches.end() - 1, spoil);
    }
  }
  /// A session on the CPU, which waits for every token.
  Session openHost() {
    host.write(hostDirectory.path());
    return Session(Artifact::open(hostDirectory.path()), {"cpu", {1}});
  }
  std::vector<int32_t> encode(std::string_view text) {
    return open()->tokenizer().encode(text, true);
  }
  /// Everything that a later token can depend on.
  static void expectSameState(Session &session, Session &expected) {
    ASSERT_EQ(session.position(), expected.position());
    std::span<const float> want = expected.logits(), logits = session.logits();
    EXPECT_EQ(std::memcmp(logits.data(), want.data(), want.size_bytes()), 0);
    std::vector<float> cache = session.readBufferAsFloat("cache"),
                       wanted = expected.readBufferAsFloat("cache");
    for (int64_t i = 0; i < session.position() * TestArtifact::hidden; ++i)
      ASSERT_EQ(cache[i], wanted[i]) << i;
  }

  TestArtifact host;
  TemporaryDirectory hostDirectory;
};

GenerateOptions greedy(int64_t maxTokens) {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.maxTokens = maxTokens;
  return options;
}

} // namespace

INSTANTIATE_TEST_SUITE_P(Streams, CudaSteps,
                         testing::Values(WorkOrder::Late, WorkOrder::Early, WorkOrder::GraphsEarly),
                         [](const auto &info) {
                           return info.param == WorkOrder::Late    ? "Late"
                                  : info.param == WorkOrder::Early ? "Early"
                                                                   : "GraphsEarly";
                         });

TEST_P(CudaSteps, StartBeforeTheTokenIsRead) {
  draw();
  Session session(open());
  Sampler sampler(greedy(1).sampling);
  EXPECT_TRUE(session.startsAhead(sampler));
  const size_t launches = session.artifact().plan().steps[0].launches.size();
  auto forget = [&] {
    fake->calls.clear();
    fake->executed.clear();
    fake->uploadedBytes = 0;
  };
  forget();
  int32_t token = session.next(TestArtifact::letterA, sampler, {}, 1);
  EXPECT_EQ(token, TestArtifact::letterA + 1);
  const std::vector<std::string> startAhead = {"cuMemcpyHtoDAsync_v2", "cuEventRecord",
                                               "cuStreamWaitEvent", "cuGraphLaunch",
                                               "cuEventRecord"},
                                 read = {"cuStreamWaitEvent", "cuMemcpyDtoHAsync_v2",
                                         "cuMemcpyDtoHAsync_v2", "cuEventRecord",
                                         "cuEventSynchronize"};
  std::vector<std::string> calls = {"cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuEventRecord"};
  calls.insert(calls.end(), startAhead.begin(), startAhead.end());
  calls.insert(calls.end(), read.begin(), read.end());
  EXPECT_EQ(fake->calls, calls);
  // Token, position and sampling, then the last two.
  EXPECT_EQ(fake->uploadedBytes, 3 * 256u + 2 * 256u);
  // The token is read while the next step may still run.
  if (fake->order == WorkOrder::Late)
    EXPECT_EQ(fake->executed.size(), launches);
  calls = startAhead;
  calls.insert(calls.end(), read.begin(), read.end());
  for (int i = 2; i < 5; ++i) {
    forget();
    EXPECT_EQ(session.position(), i - 1);
    token = session.next(token, sampler, {}, i);
    EXPECT_EQ(token, TestArtifact::letterA + i);
    EXPECT_EQ(fake->calls, calls);
    EXPECT_EQ(fake->uploadedBytes, 2 * 256u);
    EXPECT_EQ(fake->executed.size(), launches);
  }
  // The last one that is asked for is in flight already.
  forget();
  EXPECT_EQ(session.next(token, sampler, {}), TestArtifact::letterA + 5);
  EXPECT_EQ(fake->calls, read);
}

TEST_P(CudaSteps, GenerateWhatTheHostWouldWaitFor) {
  draw();
  Session session(open()), expected = openHost();
  const std::vector<int32_t> prompt = encode("abc");
  for (double temperature : {0.0, 0.7})
    for (uint64_t seed : {1, 2, 3})
      for (int64_t maxTokens : {0, 1, 2, 9, -1}) {
        GenerateOptions options = greedy(maxTokens);
        options.sampling.temperature = static_cast<float>(temperature);
        options.sampling.seed = seed;
        options.ignoreEos = seed == 2;
        session.reset();
        expected.reset();
        fake->calls.clear();
        std::vector<int32_t> seen, wanted;
        GenerateResult result = generate(session, prompt, options,
                                         {{},
                                          [&](int32_t token, bool) {
                                            seen.push_back(token);
                                            return true;
                                          }}),
                       want = generate(expected, prompt, options, {{}, [&](int32_t token, bool) {
                                                                     wanted.push_back(token);
                                                                     return true;
                                                                   }});
        ASSERT_EQ(result.ids, want.ids);
        EXPECT_EQ(seen, wanted);
        EXPECT_EQ(result.text, want.text);
        EXPECT_EQ(result.reason, want.reason);
        // At most one step too many is started, and none where the end is known.
        const bool surprised = result.reason == FinishReason::Eos && maxTokens != 9;
        const int64_t steps =
            static_cast<int64_t>(prompt.size() + result.ids.size()) - (result.ids.empty() ? 0 : 1);
        if (result.reason == FinishReason::Length)
          EXPECT_EQ(count("cuGraphLaunch"), steps);
        if (surprised)
          EXPECT_EQ(count("cuGraphLaunch"), steps + 1);
        expectSameState(session, expected);
      }
}

TEST_P(CudaSteps, ASequenceGoesOnWhereADiscardedStepWas) {
  draw();
  Session session(open()), expected = openHost();
  for (Session *one : {&session, &expected}) {
    EXPECT_EQ(generate(*one, encode("x"), greedy(-1)).text, "yz");
    EXPECT_EQ(one->position(), 4);
    // Its callback ends this one: the step of "e" has started and is not wanted.
    GenerateResult cancelled =
        generate(*one, encode("b"), greedy(-1),
                 {{}, [](int32_t token, bool) { return token != TestArtifact::letterA + 3; }});
    EXPECT_EQ(cancelled.ids.size(), 2u);
    EXPECT_EQ(cancelled.reason, FinishReason::Cancelled);
    GenerateOptions stops = greedy(-1);
    stops.stops = {"pq"};
    EXPECT_EQ(generate(*one, encode("m"), stops).text, "no");
  }
  expectSameState(session, expected);
  for (Session *one : {&session, &expected})
    one->decode(7);
  expectSameState(session, expected);
  EXPECT_EQ(session.readBuffer("ping"), expected.readBuffer("ping"));
  // To the end of the context, behind which no step is started.
  GenerateOptions options = greedy(-1);
  options.ignoreEos = true;
  fake->calls.clear();
  const int64_t left = TestArtifact::context - session.position();
  for (Session *one : {&session, &expected})
    EXPECT_EQ(generate(*one, encode("k"), options).reason, FinishReason::Context);
  EXPECT_EQ(count("cuGraphLaunch"), left);
  expectSameState(session, expected);
}

TEST_P(CudaSteps, FromC) {
  draw();
  open();
  sluice_artifact *artifact = nullptr;
  sluice_session *session = nullptr;
  ASSERT_EQ(sluice_artifact_open(directory.path().c_str(), &artifact), SLUICE_OK);
  ASSERT_EQ(sluice_session_create(artifact, nullptr, &session), SLUICE_OK);
  sluice_generate_options options;
  sluice_generate_options_init(&options);
  options.temperature = 0;
  std::string text;
  auto append = [](const char *part, size_t bytes, void *user) {
    static_cast<std::string *>(user)->append(part, bytes);
    return 0;
  };
  sluice_generate_result result;
  ASSERT_EQ(sluice_generate_text(session, "x", &options, append, &text, &result), SLUICE_OK);
  EXPECT_EQ(text, "yz");
  EXPECT_EQ(result.tokens, 3);
  EXPECT_EQ(result.reason, SLUICE_FINISH_EOS);
  EXPECT_EQ(sluice_session_position(session), 4);
  // Where a step was discarded.
  const float *logits = nullptr;
  ASSERT_EQ(sluice_session_decode(session, TestArtifact::letterA, &logits), SLUICE_OK);
  EXPECT_GT(logits[TestArtifact::letterA + 1], 9);
  EXPECT_EQ(sluice_session_position(session), 5);
  // A callback that wants no more.
  ASSERT_EQ(
      sluice_generate_text(
          session, "m", &options, [](const char *, size_t, void *) { return 1; }, nullptr, &result),
      SLUICE_OK);
  EXPECT_EQ(result.tokens, 1);
  EXPECT_EQ(result.reason, SLUICE_FINISH_CANCELLED);
  EXPECT_EQ(sluice_session_position(session), 6);
  sluice_session_free(session);
  sluice_artifact_free(artifact);
}

TEST_P(CudaSteps, OnlyTheExpectedStepIsTaken) {
  draw();
  Session session(open());
  Sampler sampler(greedy(1).sampling);
  const int32_t a = TestArtifact::letterA;
  auto ahead = [&] {
    session.reset();
    EXPECT_EQ(session.next(a, sampler, {}, 1), a + 1);
    fake->calls.clear();
  };
  auto expectAnother = [&](int32_t chosen, int32_t expected) {
    EXPECT_EQ(chosen, expected);
    EXPECT_EQ(count("cuGraphLaunch"), 1);
  };
  ahead();
  expectAnother(session.next(a + 7, sampler, {}), a + 8); // another token
  ahead();
  session.seek(9);
  expectAnother(session.next(a + 1, sampler, {}), a + 2); // another position
  ahead();
  SamplingOptions options;
  options.seed = 5;
  Sampler random(options), same(options);
  expectAnother(session.next(a + 1, random, {}), // another way to choose
                static_cast<int32_t>((same.nextWords().point >> 32) % 286));
  // Steps that are the same but for what is read of them.
  ahead();
  options.repetitionPenalty = 1.5f;
  options.temperature = 0;
  Sampler onHost(options);
  EXPECT_FALSE(session.startsAhead(onHost));
  EXPECT_EQ(session.next(a + 1, onHost, std::vector<int32_t>{a}, 2), a + 2);
  EXPECT_EQ(count("cuGraphLaunch"), 0);
  ahead();
  session.append(a + 1);
  session.wait();
  EXPECT_EQ(count("cuGraphLaunch"), 0);
  ahead();
  session.reset();
  session.seek(1);
  EXPECT_EQ(session.next(a + 1, sampler, {}), a + 2); // other caches
  EXPECT_EQ(count("cuGraphLaunch"), 1);
  // Where the context ends nothing follows.
  session.seek(TestArtifact::context - 1);
  fake->calls.clear();
  session.next(a, sampler, {}, TestArtifact::context);
  EXPECT_EQ(count("cuGraphLaunch"), 1);
}

TEST_P(CudaSteps, AConversationGoesBackToWhereTextsPart) {
  draw();
  Session session(open()), expected = openHost();
  auto talk = [](Session &on) {
    // Earlier answers are cut to one letter, so that the second turn goes back in the sequence,
    // past what was started ahead of the first answer's end.
    Chat chat(on, {"{% for m in messages %}{{ m.content[-1:] if m.role == 'assistant' else 'u' ~ "
                   "m.content }}{% endfor %}",
                   "t", on.artifact().tokenizer()});
    std::vector<std::string> answers;
    for (const char *text : {"v", "w", "k"})
      answers.push_back(chat.say(text, greedy(4)).text);
    return answers;
  };
  EXPECT_EQ(talk(session), (std::vector<std::string>{"wxyz", "xyz", "lmno"}));
  EXPECT_EQ(talk(expected), (std::vector<std::string>{"wxyz", "xyz", "lmno"}));
  expectSameState(session, expected);
}

TEST_P(CudaSteps, OfAPlanThatFeedsNothingWait) {
  draw();
  made.plan["buffers"][0].erase("fed_by");
  Session session(open()), expected = openHost();
  EXPECT_FALSE(session.startsAhead(Sampler(greedy(1).sampling)));
  fake->calls.clear();
  EXPECT_EQ(generate(session, encode("x"), greedy(-1)).ids,
            generate(expected, encode("x"), greedy(-1)).ids);
  EXPECT_EQ(count("cuGraphLaunch"), 4);
  expectSameState(session, expected);
}

TEST_P(CudaSteps, PromptsAndPerplexityAreAppendedAhead) {
  draw();
  Session session(open()), expected = openHost();
  const std::vector<int32_t> ids = encode("abcdeffghijklmaopqrstuvwxyzabzdefg");
  fake->calls.clear();
  for (int32_t id : ids)
    session.append(id);
  // Two are in flight at most, and nobody has waited for the last.
  EXPECT_EQ(count("cuEventSynchronize"), static_cast<int64_t>(ids.size()) - 1);
  for (int32_t id : ids)
    expected.append(id);
  expectSameState(session, expected);
  EXPECT_EQ(count("cuEventSynchronize"), static_cast<int64_t>(ids.size()));
  EXPECT_EQ(perplexity(session, ids, TestArtifact::bos, {10, 0}).meanNegativeLogLikelihood,
            perplexity(expected, ids, TestArtifact::bos, {10, 0}).meanNegativeLogLikelihood);
}

TEST_P(CudaSteps, ErrorsOfADiscardedStepAreNobodys) {
  draw();
  // Spoils the logits of the step after the end of the text.
  insert("spoil_late", {"position", "logits"});
  Session session(open()), expected = openHost();
  for (Session *one : {&session, &expected})
    EXPECT_EQ(generate(*one, encode("x"), greedy(-1)).text, "yz");
  expectSameState(session, expected);
  // What fails in it ends with it.
  fake->failing = "cuEventSynchronize";
  session.reset();
  fake->failing.clear();
  EXPECT_EQ(generate(session, encode("a"), greedy(1)).text, "b");
  // One that cannot even be started is none.
  session.reset();
  Sampler sampler(greedy(1).sampling);
  fake->failing = "cuGraphLaunch";
  forgetCalls("cuGraphLaunch");
  fake->failAfter = 1;
  EXPECT_EQ(session.next(TestArtifact::letterA, sampler, {}, 1), TestArtifact::letterA + 1);
  fake->failing.clear();
  EXPECT_EQ(session.next(TestArtifact::letterA + 1, sampler, {}), TestArtifact::letterA + 2);
}

TEST_P(CudaSteps, ErrorsOfTheStepBeforeAreItsOwn) {
  draw();
  insert("spoil_late", {"position", "logits"});
  Session session(open()), expected = openHost();
  auto message = [&](Session &one) {
    return messageOf([&] { generate(one, encode("abcd"), greedy(-1)); });
  };
  std::string want = message(expected);
  EXPECT_NE(
      want.find("the logit of token 0 is NaN, expected a finite number; the first result that "
                "is not finite is element 0 of buffer \"logits\" (f32), NaN, of kernel "
                "\"spoil_late\""),
      std::string::npos)
      << want;
  EXPECT_EQ(message(session), want);
  expectSameState(session, expected);
  // And what the device says of it.
  session.reset();
  Sampler sampler(greedy(1).sampling);
  fake->failing = "cuEventSynchronize";
  EXPECT_EQ(messageOf([&] { session.next(TestArtifact::letterA, sampler, {}, 1); }),
            "cuda: step \"decode\" failed: CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)");
  fake->failing.clear();
  EXPECT_EQ(session.next(TestArtifact::letterA, sampler, {}), TestArtifact::letterA + 1);
}

// Whichever call fails, the text is right or there is an error, and what comes after is right.
TEST_P(CudaSteps, EveryCallMayFail) {
  draw();
  Session session(open());
  const std::vector<int32_t> prompt = encode("abx");
  for (const char *name : {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuGraphLaunch",
                           "cuEventRecord", "cuStreamWaitEvent", "cuEventSynchronize"})
    for (int after = 0; after < 16; ++after) {
      fake->failing = name;
      fake->failAfter = after;
      forgetCalls(name);
      std::string text;
      std::string message = messageOf([&] { text = generate(session, prompt, greedy(-1)).text; });
      if (message == "no error")
        EXPECT_EQ(text, "yz") << name << " after " << after;
      else
        EXPECT_NE(message.find("CUDA_ERROR_LAUNCH_FAILED"), std::string::npos) << message;
      EXPECT_TRUE(after > 0 || message != "no error") << name;
      fake->failing.clear();
      messageOf([&] { session.reset(); }); // may say what failed in the last step
      session.reset();
      EXPECT_EQ(generate(session, prompt, greedy(-1)).text, "yz") << name << " after " << after;
      session.reset();
    }
}

// What a step feeds is where the host writes the next one's token.
TEST_P(CudaSteps, ResultsAreReadBeforeTheHostWritesOverThem) {
  draw();
  Session session(open());
  Device &device = session.device();
  StepQueue &queue = *device.queue();
  const Plan &plan = session.artifact().plan();
  int32_t chosen = 0;
  for (int32_t i = 0; i < 9; ++i) {
    int32_t token = TestArtifact::letterA + i * 7 % 25; // never the one that was chosen
    device.write(plan.bufferIndex("token"), 0, std::as_bytes(std::span(&token, 1)));
    device.write(plan.bufferIndex("position"), 0, std::as_bytes(std::span(&i, 1)));
    queue.start(0, /*fed=*/false);
    if (i > 0) {
      queue.finish();
      EXPECT_EQ(*static_cast<const int32_t *>(device.output(plan.bufferIndex("next"))), chosen);
      EXPECT_GT(logitsOf(session)[chosen], 9);
    }
    chosen = token + 1;
  }
}

TEST_P(CudaSteps, TwoAreInFlightAtMost) {
  draw();
  Session session(open());
  StepQueue &queue = *session.device().queue();
  EXPECT_EQ(messageOf([&] { queue.finish(); }), "no step of the cuda device is in flight");
  queue.start(0, false);
  queue.start(0, true);
  EXPECT_EQ(messageOf([&] { queue.start(0, true); }),
            "two steps of the cuda device are in flight, one has to be finished first");
  queue.finish();
  EXPECT_EQ(messageOf([&] { session.device().profile(0); }),
            "a step of the cuda device is in flight, which has to be finished first");
  // A device that is destroyed waits for it.
}

TEST_P(CudaSteps, BenchMeasuresWhatAGenerationDoes) {
  draw();
  Session session(open());
  BenchOptions options;
  options.tokens = 5;
  options.repetitions = 1;
  fake->calls.clear();
  BenchResult result = measureSpeed(session, options);
  EXPECT_TRUE(result.startsAhead);
  // 1 and 3 tokens to warm up; the last of each measurement is followed by none.
  EXPECT_EQ(count("cuGraphLaunch"), 1 + 3 + 5 + 5 /* measureStep */);
  EXPECT_EQ(count("cuEventSynchronize"), 1 + 3 + 5);
  // A penalty needs the host.
  options.sampling.repetitionPenalty = 2;
  EXPECT_FALSE(measureSpeed(session, options).startsAhead);
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
