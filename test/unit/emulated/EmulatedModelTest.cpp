// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Whole models compiled for a GPU and run by the emulator, against the same models compiled for the
// host.

#include "../compiled/Compiled.h"
#include "../compiled/RandomModels.h"
#include "sluice-runtime/Session.h"
#include "sluice/Emulator/Emulator.h"
#include "sluice/Formats/CacheLayout.h"

#include "llvm/ADT/Sequence.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

const std::string kModel = SLUICE_MODELS "/llama-4m";

/// One cache as a device has it.
struct Cache {
  const runtime::Buffer &buffer;
  bool onGpu;
  std::vector<uint16_t> halves;

  Cache(const runtime::Buffer &buffer, bool onGpu)
      : buffer(buffer), onGpu(onGpu), halves(buffer.bytes / sizeof(uint16_t)) {}

  int64_t heads() const { return buffer.shape[2]; }
  int64_t dim() const { return buffer.shape[3]; }
  formats::CacheShape shape() const {
    using formats::CacheOrder;
    CacheOrder keys = onGpu ? CacheOrder::MmaKeys : CacheOrder::LanesKeys,
               values = onGpu ? CacheOrder::MmaValues : CacheOrder::LanesValues;
    return {1,
            buffer.shape[1],
            heads(),
            dim(),
            {formats::CacheEncoding::Element::F16},
            isKeys() ? keys : values};
  }
  bool isKeys() const { return llvm::StringRef(buffer.name).starts_with("cache.k."); }

  uint16_t &at(int64_t position, int64_t head, int64_t d) {
    formats::CacheShape shape = this->shape();
    int64_t byte = head * shape.headBytes() + position / formats::cacheTile * shape.tileBytes() +
                   formats::cacheCodeByte(shape, position % formats::cacheTile, d);
    return halves[byte / 2];
  }
  template <typename Visit> void visit(Visit visit) const {
    for (int64_t head = 0; head < heads(); ++head)
      for (int64_t d = 0; d < dim(); ++d)
        visit(head, d);
  }
  /// What a position holds, in the same order for every device.
  std::vector<float> entry(int64_t position) {
    std::vector<float> values;
    visit([&](int64_t head, int64_t d) {
      values.push_back(formats::f16ToFloat(at(position, head, d)));
    });
    return values;
  }
};

/// A model's artifact on a device.
class Device {
public:
  Device(const Compiled &compiled, const std::string &device)
      : session(runtime::Artifact::open(compiled.artifact()), {device, {}}) {}

  std::vector<float> decode(int32_t token) {
    std::span<const float> logits = session.decode(token);
    return {logits.begin(), logits.end()};
  }

  std::vector<Cache> readCaches() {
    std::vector<Cache> caches;
    const runtime::Plan &plan = session.artifact().plan();
    for (const runtime::Buffer &buffer : plan.buffers)
      if (buffer.kind == runtime::BufferKind::Cache) {
        std::vector<std::byte> bytes = session.readBuffer(buffer.name);
        Cache &cache = caches.emplace_back(buffer, plan.target.kind == "gpu");
        std::memcpy(cache.halves.data(), bytes.data(), bytes.size());
      }
    return caches;
  }

  /// Goes on from where another device's sequence is.
  void continueFrom(Device &other) {
    int64_t positions = other.session.position();
    for (auto [mine, theirs] : llvm::zip_equal(readCaches(), other.readCaches())) {
      EXPECT_EQ(mine.buffer.name, theirs.buffer.name);
      for (int64_t position = 0; position < positions; ++position)
        mine.visit([&, &mine = mine, &theirs = theirs](int64_t head, int64_t d) {
          mine.at(position, head, d) = theirs.at(position, head, d);
        });
      session.device().write(session.artifact().plan().bufferIndex(mine.buffer.name), 0,
                             std::as_bytes(std::span(mine.halves)));
    }
    session.seek(positions);
  }

  runtime::Session session;
};

/// How far the emulated kernels may be from the host's: about twice what was measured
/// (docs/numerics.md).
struct Case {
  const char *name;
  std::string model;
  const char *weights;
  double logits, cached;
};

class EmulatedContext : public testing::Test {
protected:
  static void SetUpTestSuite() { emulator::registerEmulatorDevice(); }
};

class EmulatedModel : public EmulatedContext, public testing::WithParamInterface<Case> {};

} // namespace

// A step of the emulator takes more than a second, so what comes before it is decoded on the host,
// and the emulator goes on from the host's caches.
TEST_P(EmulatedModel, LogitsAndCachesAreTheHosts) {
  constexpr int64_t context = 300;
  const Case &model = GetParam();
  Compiled forHost, forGpu;
  forHost.compile(model.model, model.weights, context, "host");
  forGpu.compile(model.model, model.weights, context, "h200");
  if (HasFatalFailure())
    return;
  Device host(forHost, "cpu"), emulated(forGpu, "emulator");
  std::ifstream file(dataFile("alice.txt"));
  std::string text(4096, 0);
  file.read(text.data(), text.size());
  std::vector<int32_t> tokens =
      host.session.artifact().tokenizer().encode(text.substr(0, file.gcount()), /*addBos=*/true);
  ASSERT_GE(tokens.size(), size_t(context));

  double worstLogits = 0, worstCached = 0;
  for (int64_t last : {1, 15, 16, 17, int(context)}) {
    SCOPED_TRACE("context " + std::to_string(last));
    while (host.session.position() < last - 1)
      host.decode(tokens[host.session.position()]);
    emulated.continueFrom(host);
    std::vector<Cache> before = emulated.readCaches();
    std::vector<float> expected = host.decode(tokens[last - 1]),
                       found = emulated.decode(tokens[last - 1]);
    double error = relativeError(found, expected);
    EXPECT_LE(error, model.logits) << "logits";
    worstLogits = worse(worstLogits, error);

    for (auto [untouched, mine, theirs] :
         llvm::zip_equal(before, emulated.readCaches(), host.readCaches())) {
      error = relativeError(mine.entry(last - 1), theirs.entry(last - 1));
      EXPECT_LE(error, model.cached) << mine.buffer.name;
      worstCached = worse(worstCached, error);
      mine.visit([&, &untouched = untouched, &mine = mine](int64_t head, int64_t d) {
        mine.at(last - 1, head, d) = untouched.at(last - 1, head, d);
      });
      EXPECT_TRUE(mine.halves == untouched.halves)
          << "another position of " << mine.buffer.name << " was written";
    }
  }
  RecordProperty("logits", std::to_string(worstLogits));
  RecordProperty("cached", std::to_string(worstCached));
  EXPECT_GT(worstLogits, 0) << "sums have other orders: equal logits mean that something was "
                               "compared with itself";
}

INSTANTIATE_TEST_SUITE_P(Formats, EmulatedModel,
                         testing::Values(Case{"f16", kModel, "f16", 7e-4, 1.2e-3},
                                         Case{"int8_g128", kModel, "int8-g128", 4e-4, 9e-4},
                                         Case{"int4_g64", kModel, "int4-g64", 4e-4, 9e-4},
                                         Case{"q8_0_keep", dataFile("llama-4m.Q8_0.gguf"), "keep",
                                              4e-4, 9e-4}),
                         [](const auto &info) { return std::string(info.param.name); });

/// Compares the logits at `positions`, which ascend: where one follows another, the emulator goes
/// on by itself, else from the host's caches.
static void expectHostLogits(const RandomModel &model, llvm::ArrayRef<int64_t> positions) {
  Folder source;
  writeHuggingFace(model, source);
  Compiled forHost, forGpu;
  forHost.compile(source.str(), "f16", model.context, "host");
  forGpu.compile(source.str(), "f16", model.context, "h200");
  if (testing::Test::HasFatalFailure())
    return;
  Device host(forHost, "cpu"), emulated(forGpu, "emulator");
  auto tokenAt = [&](int64_t position) { return static_cast<int32_t>(position * 7 % model.vocab); };
  double worst = 0;
  for (int64_t position : positions) {
    while (host.session.position() < position)
      host.decode(tokenAt(host.session.position()));
    if (emulated.session.position() != position)
      emulated.continueFrom(host);
    int32_t token = tokenAt(position);
    worst = worse(worst, relativeError(emulated.decode(token), host.decode(token)));
  }
  testing::Test::RecordProperty("logits", std::to_string(worst));
  EXPECT_LE(worst, 1.5e-3);
}

// Heads that are padded in a GPU's cache, and more query heads for a key/value head than the tensor
// cores have columns.
TEST_F(EmulatedContext, MayHaveAnyHeads) {
  RandomModel model;
  model.heads = 12;
  model.headDim = 20;
  model.context = 20;
  expectHostLogits(model, llvm::to_vector(llvm::seq<int64_t>(0, model.context)));
}

// A window that begins within a piece, at its edge and in the one before.
TEST_F(EmulatedContext, MayHaveAWindow) {
  RandomModel model;
  model.family = "mistral";
  model.window = 35;
  expectHostLogits(model, {0, 33, 34, 35, 66, 67, 127});
}

// Contexts that are no whole number of a cache's tiles, the least and a model's own: every
// position is there, and none beyond.
TEST_F(EmulatedContext, MayHaveAnyLength) {
  RandomModel model;
  model.context = formats::cacheTile + 1;
  Folder source;
  writeHuggingFace(model, source);
  for (int64_t context : {1, 0}) {
    SCOPED_TRACE("context " + std::to_string(context));
    Compiled forHost, forGpu;
    forHost.compile(source.str(), "int8-g32", context, "host");
    forGpu.compile(source.str(), "int8-g32", context, "h200");
    if (HasFatalFailure())
      return;
    Device host(forHost, "cpu"), emulated(forGpu, "emulator");
    int64_t positions = context ? context : model.context;
    EXPECT_EQ(emulated.session.artifact().model().contextLength, positions);
    double worst = 0;
    for (int64_t position = 0; position < positions; ++position) {
      int32_t token = static_cast<int32_t>(position * 7 % model.vocab);
      worst = worse(worst, relativeError(emulated.decode(token), host.decode(token)));
    }
    RecordProperty("context" + std::to_string(positions), std::to_string(worst));
    EXPECT_LE(worst, 1.5e-3);
    try {
      emulated.decode(0);
      ADD_FAILURE() << "went on";
    } catch (const runtime::Error &error) {
      EXPECT_TRUE(llvm::StringRef(error.what()).starts_with("the context is full")) << error.what();
    }
  }
}
