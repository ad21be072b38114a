// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/unit/runtime/TestArtifact.h"

#include <cstring>
#include <fstream>
#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;
namespace fs = std::filesystem;

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = (fs::temp_directory_path() / "sluice-runtime-XXXXXX").string();
  if (!mkdtemp(pattern.data()))
    throw std::runtime_error("cannot make a temporary directory");
  directory = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  fs::remove_all(directory, ignored);
}

std::span<const float> test::logitsOf(Session &session) {
  const Artifact &artifact = session.artifact();
  return {
      static_cast<const float *>(session.device().output(artifact.plan().bufferIndex("logits"))),
      static_cast<size_t>(artifact.model().vocabSize)};
}

std::string test::readFile(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void test::writeFile(const fs::path &path, const std::string &bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush())
    throw std::runtime_error("cannot write " + path.string());
}

static std::string digest(const std::string &bytes) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(bytes.data(), bytes.size())));
  return text;
}

std::string test::makeSafetensors(const std::string &header, const std::string &data) {
  uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

static Tokenizer makeTokenizer() {
  GgufTokenizer gguf;
  gguf.model = "llama";
  auto add = [&](const std::string &text, float score, int32_t type) {
    gguf.tokens.push_back(text);
    gguf.scores.push_back(score);
    gguf.types.push_back(type);
  };
  add("<unk>", 0, 2);
  add("<s>", 0, 3);
  add("</s>", 0, 3);
  add("\u2581", -1, 1);
  for (char c = 'a'; c <= 'z'; ++c)
    add(std::string(1, c), -2, 1);
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", byte);
    add(text, 0, 6);
  }
  gguf.bosId = TestArtifact::bos;
  gguf.unknownId = 0;
  gguf.eosIds = {TestArtifact::eos};
  gguf.addBos = true;
  gguf.addSpacePrefix = false;
  return Tokenizer::fromGguf(gguf, "test");
}

float TestArtifact::embedding(int32_t token, int64_t i) {
  return static_cast<float>((token * 31 + i * 7) % 17 - 8) / 4;
}

int32_t TestArtifact::next(int32_t token) {
  if (token >= letterA && token < letterA + 25)
    return token + 1;
  return token == letterA + 25 ? eos : letterA;
}

float TestArtifact::bias(int64_t token) { return static_cast<float>(token % 200) / 256; }

std::string TestArtifact::safetensors() const {
  std::string table, nextIds, biases;
  for (int32_t v = 0; v < vocab; ++v) {
    for (int64_t i = 0; i < hidden; ++i) {
      float value = embedding(v, i);
      table.append(reinterpret_cast<const char *>(&value), 4);
    }
    int32_t id = next(v);
    nextIds.append(reinterpret_cast<const char *>(&id), 4);
    biases.push_back(static_cast<char>(v % 200));
  }
  // The last one starts at an odd place, so that it can not be used where it lies.
  std::string data = table + nextIds + std::string(1, 'x') + biases;
  json header = {
      {"__metadata__", {{"format", "sluice"}}},
      {"next",
       {{"dtype", "I32"},
        {"shape", {vocab}},
        {"data_offsets", {table.size(), table.size() + nextIds.size()}}}},
      {"odd",
       {{"dtype", "U8"},
        {"shape", {1}},
        {"data_offsets", {data.size() - biases.size() - 1, data.size() - biases.size()}}}},
      {"bias",
       {{"dtype", "U8"},
        {"shape", {vocab}},
        {"data_offsets", {data.size() - biases.size(), data.size()}}}},
      {"table",
       {{"dtype", "F32"}, {"shape", {vocab, hidden}}, {"data_offsets", {0, table.size()}}}}};
  std::string text = header.dump();
  text.append(63 - (text.size() + 8 + 63) % 64, ' ');
  return makeSafetensors(text, data);
}

TestArtifact::TestArtifact(int64_t extraRows) {
  Tokenizer made = makeTokenizer();
  vocab = made.vocabSize() + extraRows;
  tokenizer = made.toJson();
  kernels = readFile(SLUICE_TEST_KERNELS);
  weights = safetensors();
  auto launch = [](const char *kernel, int64_t grid, std::vector<std::string> arguments) {
    return json{{"kernel", kernel}, {"label", kernel},       {"grid", grid},
                {"block", 0},       {"shared", 0},           {"cluster", 1},
                {"overlap", false}, {"arguments", arguments}};
  };
  auto arena = [](const char *name, int64_t offset) {
    return json{{"name", name},         {"kind", "arena"},     {"type", "f32"},
                {"shape", {1, hidden}}, {"bytes", hidden * 4}, {"offset", offset}};
  };
  auto scalar = [](const char *name) {
    return json{{"name", name}, {"kind", "input"}, {"type", "i32"}, {"shape", {1}}, {"bytes", 4}};
  };
  json launches = {launch("embed", hidden, {"token", "position", "table", "x", "cache"}),
                   launch("attend", hidden, {"position", "cache", "ping"})};
  for (int i = 0; i < rotations; ++i) {
    launches.push_back(launch("rotate", hidden, {"ping", "pong"}));
    launches.push_back(launch("rotate", hidden, {"pong", "ping"}));
  }
  launches.push_back(launch("head", vocab, {"token", "next", "bias", "logits"}));
  launches.back()["traffic"] = {{"weights", vocab * 5}, {"scales", 0},
                                {"activations", 4},     {"keys", 128},
                                {"values", 0},          {"written", vocab * 4},
                                {"operations", vocab},  {"operations_per_position", 0}};
  plan = {{"format", "sluice-plan"},
          {"version", 1},
          {"producer", "test"},
          {"model",
           {{"name", "letters"},
            {"architecture", "test"},
            {"vocab_size", vocab},
            {"context_length", context},
            {"hidden_size", hidden},
            {"layers", 1},
            {"heads", 1},
            {"kv_heads", 1},
            {"head_dim", hidden},
            {"bos_id", bos},
            {"eos_ids", {eos}},
            {"weights", "f32"},
            {"synthetic", false}}},
          {"target",
           {{"name", "host"},
            {"kind", "cpu"},
            {"triple", "x86_64-linux-gnu"},
            {"isa", "avx2"},
            {"features", {"sse2"}}}},
          {"files",
           {{"kernels", {{"name", "kernels.x86_64-linux-gnu.so"}}},
            {"weights", {{"name", "weights.safetensors"}}},
            {"tokenizer", {{"name", "tokenizer.json"}}}}},
          {"arena_bytes", 384},
          {"buffers",
           {scalar("token"),
            scalar("position"),
            arena("x", 0),
            arena("ping", 128),
            arena("pong", 256),
            {{"name", "table"},
             {"kind", "weights"},
             {"type", "f32"},
             {"shape", {vocab, hidden}},
             {"bytes", vocab * hidden * 4},
             {"tensor", "table"}},
            {{"name", "next"},
             {"kind", "weights"},
             {"type", "i32"},
             {"shape", {vocab}},
             {"bytes", vocab * 4},
             {"tensor", "next"}},
            {{"name", "bias"},
             {"kind", "weights"},
             {"type", "u8"},
             {"shape", {vocab}},
             {"bytes", vocab},
             {"tensor", "bias"}},
            {{"name", "cache"},
             {"kind", "cache"},
             {"type", "f32"},
             {"shape", {context, hidden}},
             {"bytes", context * hidden * 4}},
            {{"name", "logits"},
             {"kind", "output"},
             {"type", "f32"},
             {"shape", {1, vocab}},
             {"bytes", vocab * 4}}}},
          {"steps", {{"decode", {{"launches", launches}}}}},
          {"decisions", json::array()}};
  updateFiles();
}

void TestArtifact::retargetToGpu() {
  plan["target"] = {{"name", "test"}, {"kind", "gpu"}, {"arch", "sm_90"}};
  plan["files"].erase("kernels");
  others = {{"ptx", "// PTX of nothing"},
            {"cubin.sm_90", "\x7f"
                            "ELF" +
                                std::string(64, 'x')}};
  plan["files"]["ptx"] = {{"name", "kernels.ptx"}};
  plan["files"]["cubin.sm_90"] = {{"name", "kernels.sm_90.cubin"}};
  for (auto &launch : plan["steps"]["decode"]["launches"])
    launch["block"] = 128;
}

void TestArtifact::setNext(int32_t token, int32_t following) {
  // See safetensors(): the ids, one byte, the biases.
  std::memcpy(weights.data() + weights.size() - vocab - 1 - 4 * (vocab - token), &following, 4);
}

void TestArtifact::setBias(int32_t token, uint8_t steps) {
  weights[weights.size() - vocab + token] = static_cast<char>(steps);
}

void TestArtifact::addSampling(const std::string &kernel) {
  json &launches = plan["steps"]["decode"]["launches"];
  // The weights of this name make way; their tensor keeps it.
  for (json &buffer : plan["buffers"])
    if (buffer["name"] == "next")
      buffer["name"] = "following";
  for (json &launch : launches)
    for (json &argument : launch["arguments"])
      if (argument == "next")
        argument = "following";
  plan["buffers"].push_back(
      {{"name", "sampling"}, {"kind", "input"}, {"type", "i32"}, {"shape", {1, 8}}, {"bytes", 32}});
  plan["buffers"].push_back(
      {{"name", "next"}, {"kind", "output"}, {"type", "i32"}, {"shape", {1}}, {"bytes", 4}});
  plan["buffers"][0]["fed_by"] = "next";
  json choose = launches.back();
  choose.erase("traffic");
  choose["kernel"] = choose["label"] = kernel;
  choose["grid"] = 1;
  choose["arguments"] = {"logits", "sampling", "next"};
  launches.push_back(choose);
}

void TestArtifact::updateFiles() {
  auto update = [&](const char *role, const std::string &bytes) {
    if (!plan["files"].contains(role))
      return;
    plan["files"][role]["bytes"] = bytes.size();
    plan["files"][role]["xxh3"] = digest(bytes);
  };
  update("kernels", kernels);
  update("weights", weights);
  update("tokenizer", tokenizer);
  for (const auto &[role, bytes] : others)
    update(role.c_str(), bytes);
}

std::string TestArtifact::planText() const {
  json complete = plan;
  complete.erase("checksum");
  complete["checksum"] = digest(complete.dump());
  return complete.dump();
}

void TestArtifact::writeFiles(const fs::path &directory, const std::string &planText) const {
  writeFile(directory / "plan.json", planText);
  writeFile(directory / "kernels.x86_64-linux-gnu.so", kernels);
  writeFile(directory / "weights.safetensors", weights);
  writeFile(directory / "tokenizer.json", tokenizer);
  for (const auto &[role, bytes] : others)
    if (plan["files"].contains(role))
      writeFile(directory / plan["files"][role]["name"].get<std::string>(), bytes);
}

void TestArtifact::write(const fs::path &directory) {
  updateFiles();
  writeFiles(directory, planText());
}
