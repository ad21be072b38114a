// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;

namespace {

TEST(Plan, SamplesIfItHasTheInputForIt) {
  TestArtifact artifact;
  EXPECT_FALSE(Plan::parse(artifact.planText(), "plan.json").samples());
  artifact.addSampling();
  Plan plan = Plan::parse(artifact.planText(), "plan.json");
  EXPECT_TRUE(plan.samples());
  EXPECT_EQ(plan.buffers[plan.bufferIndex("token")].fedBy, plan.bufferIndex("next"));
  EXPECT_FALSE(plan.buffers[plan.bufferIndex("position")].fedBy);
}

/// Intermediate results are called by what they are of.
TEST(Plan, ArenaBuffersMayHaveAnyName) {
  TestArtifact artifact;
  std::string text = artifact.plan.dump();
  for (auto [from, to] : {std::pair("\"next\"", "\"following\""), std::pair("\"ping\"", "\"next\""),
                          std::pair("\"pong\"", "\"sampling\"")})
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += std::strlen(to))
      text.replace(at, std::strlen(from), to);
  artifact.plan = json::parse(text);
  // The tensor is still called what it was.
  for (json &buffer : artifact.plan["buffers"])
    if (buffer["name"] == "following")
      buffer["tensor"] = "next";
  TemporaryDirectory directory;
  artifact.write(directory.path());
  Session session(Artifact::open(directory.path()), {"cpu", {1}});
  EXPECT_FALSE(session.artifact().plan().samples());
  SamplingOptions options;
  options.temperature = 0;
  Sampler sampler(options);
  EXPECT_EQ(session.next(TestArtifact::letterA, sampler, {}), TestArtifact::letterA + 1);
}

TEST(Plan, ReadsEveryField) {
  TestArtifact artifact;
  Plan plan = Plan::parse(artifact.planText(), "plan.json");
  EXPECT_EQ(plan.producer, "test");
  EXPECT_EQ(plan.model.name, "letters");
  EXPECT_EQ(plan.model.contextLength, TestArtifact::context);
  EXPECT_EQ(plan.model.bosId, TestArtifact::bos);
  EXPECT_EQ(plan.model.eosIds, std::vector<int32_t>{TestArtifact::eos});
  EXPECT_FALSE(plan.model.synthetic);
  EXPECT_EQ(plan.target.features, std::vector<std::string>{"sse2"});
  EXPECT_EQ(plan.files.at("weights").bytes, artifact.weights.size());
  EXPECT_EQ(plan.arenaBytes, 384u);
  const Buffer &pong = plan.buffers[plan.bufferIndex("pong")];
  EXPECT_EQ(pong.kind, BufferKind::Arena);
  EXPECT_EQ(pong.offset, 256u);
  EXPECT_EQ(plan.buffers[plan.bufferIndex("bias")].tensor, "bias");
  const Step &step = plan.steps[*plan.findStep("decode")];
  ASSERT_EQ(step.launches.size(), 3u + 2 * TestArtifact::rotations);
  EXPECT_EQ(step.launches[0].kernel, "embed");
  EXPECT_EQ(step.launches[0].arguments[2], plan.bufferIndex("table"));
  EXPECT_FALSE(step.launches[0].traffic);
  uint64_t vocab = static_cast<uint64_t>(artifact.vocabSize());
  EXPECT_EQ(plan.bytes(step, 10), vocab * 5 + 4 + 10 * 128 + vocab * 4);
}

TEST(Plan, WindowsLimitWhatIsRead) {
  Traffic traffic;
  traffic.weights = 5;
  traffic.keys = traffic.values = 10;
  EXPECT_EQ(traffic.bytes(100), 2005u);
  traffic.window = 30;
  EXPECT_EQ(traffic.bytes(100), 605u);
  EXPECT_EQ(traffic.bytes(3), 65u);
}

TEST(Plan, PromptsArePredictedStepByStep) {
  Plan plan;
  Step decode, prefill;
  decode.name = "decode";
  decode.time = PredictedTime{.boundary = 10};
  prefill.name = "prefill_16";
  prefill.tokens = 16;
  // Two seconds for each of the positions that come before half of its tokens.
  prefill.time = PredictedTime{.arithmetic = -16, .boundary = 100, .arithmeticPerPosition = 2};
  plan.steps = {decode, prefill};
  EXPECT_EQ(plan.predictedPrompt(1), 10);
  EXPECT_EQ(plan.predictedPrompt(16), 100 + 16);
  // Arithmetic is never less than nothing.
  EXPECT_EQ(plan.predictedPrompt(4), 100);
  // Two whole steps, and one for what is left.
  EXPECT_EQ(plan.predictedPrompt(35), (100 + 16) + (100 + 48) + (100 + 54));
  EXPECT_EQ(plan.predictedPrompt(33), (100 + 16) + (100 + 48) + 10);
  plan.steps.back().launches.emplace_back();
  EXPECT_FALSE(plan.predictedPrompt(16));
}

TEST(Plan, BosMayBeAbsent) {
  TestArtifact artifact;
  artifact.plan["model"]["bos_id"] = nullptr;
  EXPECT_EQ(Plan::parse(artifact.planText(), "plan.json").model.bosId, -1);
}

TEST(Plan, ChecksumIsTheOneThatPlansCarry) {
  TestArtifact artifact;
  std::string text = artifact.planText();
  EXPECT_EQ(Plan::checksum(text, "plan.json"), json::parse(text)["checksum"].get<std::string>());
  // Neither order nor white space count.
  EXPECT_EQ(Plan::checksum(json::parse(text).dump(3), "plan.json"),
            json::parse(text)["checksum"].get<std::string>());
  EXPECT_NO_THROW(Plan::parse(json::parse(text).dump(3), "plan.json"));
}

TEST(Plan, BuffersMayShareBytesWhenOneEndsWhereTheOtherBegins) {
  TestArtifact artifact;
  // x is used by the first launch only, ping from the second on.
  artifact.plan["buffers"][3]["offset"] = 0;
  EXPECT_NO_THROW(Plan::parse(artifact.planText(), "plan.json"));
}

TEST(Plan, EveryFlippedBitIsNoticed) {
  TestArtifact artifact;
  const std::string text = artifact.planText();
  for (size_t i = 0; i < text.size(); i += 3) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 1 << (i / 3) % 8);
    EXPECT_THROW(Plan::parse(damaged, "plan.json"), Error) << "byte " << i;
  }
}

/// Puts strange values into every place, with a right checksum: nothing but Error may come out.
TEST(Plan, StrangeValuesAnywhere) {
  TestArtifact artifact;
  std::string deep = std::string(20, '[') + std::string(20, ']');
  const std::vector<json> values = {nullptr,
                                    -1,
                                    0,
                                    1e300,
                                    0.5,
                                    INT64_MAX,
                                    UINT64_MAX,
                                    int64_t(1) << 47,
                                    "",
                                    "x\ny",
                                    std::string(10000, 'a'),
                                    true,
                                    json::array(),
                                    json::object(),
                                    json::parse(deep),
                                    json::array({-1})};
  size_t rejected = 0, accepted = 0;
  std::vector<json::json_pointer> places;
  std::function<void(const json &, const json::json_pointer &)> collect =
      [&](const json &value, const json::json_pointer &at) {
        places.push_back(at);
        if (value.is_object())
          for (auto &[key, member] : value.items())
            collect(member, at / key);
        else if (value.is_array() && at.to_string().find("launches") == std::string::npos)
          for (size_t i = 0; i < value.size(); ++i)
            collect(value[i], at / i);
      };
  collect(artifact.plan, json::json_pointer());
  for (const std::string key : {"0/kernel", "0/grid", "0/arguments", "0/arguments/1", "0/overlap",
                                "0/block", "0/shared", "0/cluster", "0/label"})
    places.emplace_back("/steps/decode/launches/" + key);
  const json original = artifact.plan;
  for (const auto &place : places) {
    for (const json &value : values) {
      artifact.plan = original;
      artifact.plan[place] = value;
      if (!artifact.plan.is_object())
        continue;
      try {
        Plan::parse(artifact.planText(), "plan.json");
        ++accepted;
      } catch (const Error &e) {
        ++rejected;
        EXPECT_EQ(std::string(e.what()).rfind("plan.json", 0), 0u) << e.what();
        EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
        EXPECT_LT(std::string(e.what()).size(), 500u) << e.what();
      }
    }
    // Nor with the place missing.
    artifact.plan = original;
    if (json::json_pointer parent = place.parent_pointer();
        !place.empty() && artifact.plan[parent].is_object()) {
      artifact.plan[parent].erase(place.back());
      try {
        Plan::parse(artifact.planText(), "plan.json");
      } catch (const Error &) {
      }
    }
  }
  EXPECT_GT(rejected, 800u);
  EXPECT_GT(accepted, 20u);
}

} // namespace
