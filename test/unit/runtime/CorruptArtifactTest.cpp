// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

#include <functional>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;

namespace {

/// An artifact with one thing wrong. `damage` changes what is written; `expected` are words of the
/// one message.
struct Corruption {
  const char *name;
  /// Changes the artifact; sizes and digests are brought up to date afterwards.
  std::function<void(TestArtifact &)> damage;
  /// Changes the files and the text of plan.json after that.
  std::function<void(TestArtifact &, std::string &planText)> damageFiles;
  std::vector<std::string> expected;
};

void PrintTo(const Corruption &corruption, std::ostream *out) { *out << corruption.name; }

json &buffer(TestArtifact &artifact, const std::string &name) {
  for (json &found : artifact.plan["buffers"])
    if (found["name"] == name)
      return found;
  throw std::runtime_error("no buffer " + name);
}

json &launch(TestArtifact &artifact, size_t index) {
  return artifact.plan["steps"]["decode"]["launches"][index];
}

/// weights.safetensors with another header over the same data.
void editHeader(TestArtifact &artifact, const std::function<void(json &)> &edit) {
  uint64_t length;
  std::memcpy(&length, artifact.weights.data(), 8);
  json header = json::parse(artifact.weights.substr(8, length));
  edit(header);
  artifact.weights = makeSafetensors(header.dump(), artifact.weights.substr(8 + length));
}

using A = TestArtifact;

const std::vector<Corruption> corruptions = {
    // plan.json as a file.
    {"PlanEmpty", {}, [](A &, std::string &text) { text.clear(); }, {"plan.json", "is empty"}},
    {"PlanTruncated",
     {},
     [](A &, std::string &text) { text.resize(text.size() / 2); },
     {"plan.json", "not valid JSON"}},
    {"PlanFlippedBit",
     {},
     [](A &, std::string &text) { text[text.find("letters")] ^= 1; },
     {"plan.json", "checksum is", "changed"}},
    {"PlanBinary",
     {},
     [](A &, std::string &text) { text.assign(1000, '\xFF'); },
     {"plan.json", "not valid JSON"}},
    {"PlanWithTail",
     {},
     [](A &, std::string &text) { text += "{}"; },
     {"plan.json", "not valid JSON"}},
    {"PlanNestedDeep",
     {},
     [](A &, std::string &text) { text = std::string(1'000'000, '['); },
     {"plan.json", "nested deeper"}},
    {"PlanNestedDeepInside",
     {},
     [](A &, std::string &text) {
       text.insert(1, "\"decoration\":" + std::string(100, '[') + std::string(100, ']') + ",");
     },
     {"plan.json", "nested deeper"}},
    {"PlanDuplicateKey",
     {},
     [](A &, std::string &text) { text.insert(1, "\"version\":1,"); },
     {"plan.json", "version", "twice"}},
    {"PlanOversized",
     {},
     [](A &, std::string &text) {
       text += std::string((size_t(256) << 20) + 1 - text.size(), ' ');
     },
     {"plan.json", "at most 268435456"}},
    {"PlanIsAList",
     {},
     [](A &, std::string &text) { text = "[1]"; },
     {"plan.json", "is an array", "expected an object"}},
    {"WrongFormat",
     [](A &a) { a.plan["format"] = "sluice-diagram"; },
     {},
     {"plan.json", "format", "sluice-plan"}},
    {"WrongVersion",
     [](A &a) { a.plan["version"] = 2; },
     {},
     {"plan.json", "version is 2", "expected 1", "compile"}},
    {"WrongChecksum",
     {},
     [](A &, std::string &text) {
       json plan = json::parse(text);
       plan["checksum"] = "0123456789abcdef";
       text = plan.dump();
     },
     {"plan.json", "0123456789abcdef", "changed"}},
    {"ChecksumNotHexadecimal",
     {},
     [](A &, std::string &text) {
       json plan = json::parse(text);
       plan["checksum"] = "zz";
       text = plan.dump();
     },
     {"plan.json", "checksum is 'zz'", "16 lowercase hexadecimal digits"}},
    {"ChecksumMissing",
     {},
     [](A &, std::string &text) {
       json plan = json::parse(text);
       plan.erase("checksum");
       text = plan.dump();
     },
     {"plan.json", "checksum is missing"}},
    // What plan.json says.
    {"ArenaOverflow",
     [](A &a) { buffer(a, "pong")["offset"] = 320; },
     {},
     {"plan.json", "\"pong\" ends at byte 448", "arena of 384"}},
    {"ArenaOffsetWraps",
     [](A &a) { buffer(a, "pong")["offset"] = UINT64_MAX - 63; },
     {},
     {"plan.json", "buffers[4].offset is 18446744073709551552", "integer"}},
    {"ArenaMisaligned",
     [](A &a) { buffer(a, "pong")["offset"] = 200; },
     {},
     {"plan.json", "offset is 200", "multiple of 64"}},
    {"ArenaTooLarge",
     [](A &a) { a.plan["arena_bytes"] = int64_t(1) << 46; },
     {},
     {"plan.json",
      "a session needs 70368744185088 bytes of memory (weights 0, keys and values of 48 positions "
      "6144, the rest 70368744178944), this machine has ",
      " free; compile the model with smaller weights or a shorter context"}},
    {"ArenaBuffersCollide",
     [](A &a) { buffer(a, "pong")["offset"] = 192; },
     {},
     {"plan.json", "\"ping\" and \"pong\" share bytes"}},
    {"NegativeBytes",
     [](A &a) { buffer(a, "cache")["bytes"] = -64; },
     {},
     {"plan.json", "buffers[8].bytes is -64", "integer"}},
    {"NegativeExtent",
     [](A &a) { buffer(a, "cache")["shape"] = {-48, -32}; },
     {},
     {"plan.json", "buffers[8].shape[0] is -48"}},
    {"FractionalBytes",
     [](A &a) { buffer(a, "cache")["bytes"] = 6144.5; },
     {},
     {"plan.json", "bytes is 6144.5", "integer"}},
    {"HugeShape",
     [](A &a) { buffer(a, "cache")["shape"] = {int64_t(1) << 40, int64_t(1) << 40}; },
     {},
     {"plan.json", "buffers[8].shape", "2^48"}},
    {"HugeCache",
     [](A &a) { buffer(a, "cache")["bytes"] = int64_t(1) << 47; },
     {},
     {"plan.json", "keys and values of 48 positions 140737488355328, the rest 1",
      "this machine has "}},
    {"ShapeLargerThanBytes",
     [](A &a) { buffer(a, "cache")["shape"] = {480, 32}; },
     {},
     {"plan.json", "bytes is 6144", "at least 61440", "\"cache\""}},
    {"UnknownKind",
     [](A &a) { buffer(a, "cache")["kind"] = "stack"; },
     {},
     {"plan.json", "kind is 'stack'", "arena"}},
    {"DuplicateBuffer",
     [](A &a) { buffer(a, "pong")["name"] = "ping"; },
     {},
     {"plan.json", "name is 'ping'", "no buffer before"}},
    {"UnknownBuffer",
     [](A &a) { launch(a, 1)["arguments"][2] = "pang"; },
     {},
     {"plan.json", "launches[1].arguments[2] is 'pang'", "buffer"}},
    {"NoLogits",
     [](A &a) {
       buffer(a, "logits")["name"] = "probabilities";
       launch(a, a.plan["steps"]["decode"]["launches"].size() - 1)["arguments"][3] =
           "probabilities";
     },
     {},
     {"plan.json", "no buffer \"logits\""}},
    {"LogitsTooFew",
     [](A &a) { buffer(a, "logits")["shape"] = {1, 20}; },
     {},
     {"plan.json", "\"logits\"", "20 x f32"}},
    {"TokenIsFloat",
     [](A &a) { buffer(a, "token")["type"] = "f32"; },
     {},
     {"plan.json", "\"token\"", "1 x f32", "expected input, 1 x i32"}},
    {"SamplingWithoutNext",
     [](A &a) {
       a.addSampling();
       buffer(a, "next")["name"] = "chosen";
       launch(a, a.plan["steps"]["decode"]["launches"].size() - 1)["arguments"][2] = "chosen";
     },
     {},
     {"plan.json", "no buffer \"next\""}},
    {"SamplingWithWeightsCalledNext",
     [](A &a) {
       a.addSampling();
       a.plan["buffers"].erase(a.plan["buffers"].size() - 1);
       a.plan["steps"]["decode"]["launches"].erase(a.plan["steps"]["decode"]["launches"].size() -
                                                   1);
       buffer(a, "following")["name"] = "next";
       launch(a, a.plan["steps"]["decode"]["launches"].size() - 1)["arguments"][1] = "next";
     },
     {},
     {"plan.json", "\"next\" is weights, 286 x i32", "expected output, 1 x i32"}},
    {"NextIsFloat",
     [](A &a) {
       a.addSampling();
       buffer(a, "next")["type"] = "f32";
     },
     {},
     {"plan.json", "\"next\" is output, 1 x f32", "expected output, 1 x i32"}},
    {"NextOfTwoSequences",
     [](A &a) {
       a.addSampling();
       buffer(a, "next")["shape"] = {2};
       buffer(a, "next")["bytes"] = 8;
     },
     {},
     {"plan.json", "\"next\" is output, 2 x i32", "expected output, 1 x i32"}},
    {"FedByNothing",
     [](A &a) {
       a.addSampling();
       buffer(a, "token")["fed_by"] = "prev";
     },
     {},
     {"plan.json", "buffers[0].fed_by is 'prev'", "expected the name of an output"}},
    {"FedByAnInput",
     [](A &a) { buffer(a, "token")["fed_by"] = "position"; },
     {},
     {"plan.json", "buffers[0].fed_by is 'position'", "expected the name of an output"}},
    {"FedByAnotherType",
     [](A &a) { buffer(a, "token")["fed_by"] = "logits"; },
     {},
     {"plan.json", "buffers[0].fed_by names \"logits\"", "is not that of \"token\""}},
    {"TwoAreFed",
     [](A &a) {
       a.addSampling();
       buffer(a, "position")["fed_by"] = "next";
     },
     {},
     {"plan.json", "buffers[1].fed_by names \"next\"", "feeds \"token\" already"}},
    {"AnOutputIsFed",
     [](A &a) {
       a.addSampling();
       buffer(a, "logits")["fed_by"] = "next";
     },
     {},
     {"plan.json", "fed_by is for inputs only", "\"logits\" is output"}},
    {"SamplingTooShort",
     [](A &a) {
       a.addSampling();
       buffer(a, "sampling")["shape"] = {1, 4};
     },
     {},
     {"plan.json", "\"sampling\" is input, 4 x i32", "expected input, 8 x i32"}},
    {"SamplingIsFloat",
     [](A &a) {
       a.addSampling();
       buffer(a, "sampling")["type"] = "f32";
     },
     {},
     {"plan.json", "\"sampling\" is input, 8 x f32", "expected input, 8 x i32"}},
    {"NoLaunches",
     [](A &a) { a.plan["steps"]["decode"]["launches"] = json::array(); },
     {},
     {"plan.json", "launches", "at least one"}},
    {"NoDecodeStep",
     [](A &a) { a.plan["steps"] = {{"prefill", a.plan["steps"]["decode"]}}; },
     {},
     {"plan.json", "steps.decode is missing"}},
    {"DecodeOfManyTokens",
     [](A &a) { a.plan["steps"]["decode"]["tokens"] = 16; },
     {},
     {"plan.json", "steps.decode.tokens", "is for other steps"}},
    {"StepWithoutTokens",
     [](A &a) { a.plan["steps"]["prefill_16"] = a.plan["steps"]["decode"]; },
     {},
     {"plan.json", "steps.prefill_16.tokens is missing"}},
    {"StepOfOneToken",
     [](A &a) {
       a.plan["steps"]["prefill_1"] = a.plan["steps"]["decode"];
       a.plan["steps"]["prefill_1"]["tokens"] = 1;
     },
     {},
     {"plan.json", "steps.prefill_1.tokens is 1", "from 2"}},
    {"StepWithoutInputs",
     [](A &a) {
       a.plan["steps"]["prefill_16"] = a.plan["steps"]["decode"];
       a.plan["steps"]["prefill_16"]["tokens"] = 16;
     },
     {},
     {"plan.json", "there is no buffer \"tokens\""}},
    {"AllLogitsWithoutBuffer",
     [](A &a) {
       a.plan["steps"]["verify_16"] = a.plan["steps"]["decode"];
       a.plan["steps"]["verify_16"]["tokens"] = 16;
       a.plan["steps"]["verify_16"]["all_logits"] = true;
     },
     {},
     {"plan.json", "there is no buffer \"all_logits\""}},
    {"BatchTooLarge",
     [](A &a) { a.plan["model"]["batch"] = 65; },
     {},
     {"plan.json", "model.batch is 65", "from 1 to 64"}},
    {"BatchWithoutRoom",
     [](A &a) { a.plan["model"]["batch"] = 2; },
     {},
     {"plan.json", "buffer \"token\" is input, 1 x i32, expected input, 2 x i32"}},
    {"PagesOfOneSequence",
     [](A &a) { a.plan["model"]["cache_pages"] = 3; },
     {},
     {"plan.json", "model.cache_pages is 3 for 1 sequences, expected pages for several"}},
    {"NegativeGrid",
     [](A &a) { launch(a, 0)["grid"] = -1; },
     {},
     {"plan.json", "launches[0].grid is -1"}},
    {"GridIsText",
     [](A &a) { launch(a, 0)["grid"] = "32"; },
     {},
     {"plan.json", "launches[0].grid is '32'", "integer"}},
    {"TooManyArguments",
     [](A &a) { launch(a, 0)["arguments"] = std::vector<std::string>(2049, "x"); },
     {},
     {"plan.json", "2049 elements"}},
    {"HugeTraffic",
     [](A &a) { a.plan["steps"]["decode"]["launches"].back()["traffic"]["keys"] = INT64_MAX; },
     {},
     {"plan.json", "traffic.keys"}},
    {"HugeVocabulary",
     [](A &a) { a.plan["model"]["vocab_size"] = int64_t(1) << 40; },
     {},
     {"plan.json", "model.vocab_size is 1099511627776"}},
    {"EosOutsideOfVocabulary",
     [](A &a) { a.plan["model"]["eos_ids"] = {100000}; },
     {},
     {"plan.json", "eos_ids[0] is 100000"}},
    {"ContextZero",
     [](A &a) { a.plan["model"]["context_length"] = 0; },
     {},
     {"plan.json", "context_length is 0"}},
    {"NameWithControlCharacters",
     [](A &a) { a.plan["model"]["name"] = "two\nlines"; },
     {},
     {"plan.json", "model.name", "control characters"}},
    {"FileElsewhere",
     [](A &a) { a.plan["files"]["weights"]["name"] = "../weights.safetensors"; },
     {},
     {"plan.json", "files.weights.name", "same directory"}},
    {"FileAbsolute",
     [](A &a) { a.plan["files"]["kernels"]["name"] = "/lib/x86_64-linux-gnu/libm.so.6"; },
     {},
     {"plan.json", "files.kernels.name", "same directory"}},
    {"FileMissing",
     [](A &a) { a.plan["files"]["weights"]["name"] = "other.safetensors"; },
     {},
     {"other.safetensors", "cannot be opened"}},
    {"FileIsADirectory",
     [](A &a) { a.plan["files"]["weights"]["name"] = "."; },
     {},
     {"plan.json", "files.weights.name"}},
    {"NoKernelsFile",
     [](A &a) { a.plan["files"].erase("kernels"); },
     {},
     {"plan.json", "files.kernels is missing"}},
    // Another machine.
    {"UnknownFeature",
     [](A &a) { a.plan["target"]["features"] = {"sse2", "abacus"}; },
     {},
     {"plan.json", "CPU features", "abacus"}},
    {"OtherArchitecture",
     [](A &a) { a.plan["target"]["triple"] = "riscv64-linux-gnu"; },
     {},
     {"plan.json", "riscv64-linux-gnu", "this machine is"}},
    {"OtherDevice",
     [](A &a) {
       a.plan["target"]["kind"] = "npu";
       a.plan["target"]["name"] = "x100";
     },
     {},
     {"device \"npu\" is not available", "cpu, cuda"}},
    // weights.safetensors.
    {"WeightsTruncated",
     {},
     [](A &a, std::string &) { a.weights.resize(a.weights.size() - 100); },
     {"weights.safetensors", "bytes, expected"}},
    {"WeightsEmpty",
     {},
     [](A &a, std::string &) { a.weights.clear(); },
     {"weights.safetensors", "has 0 bytes"}},
    {"WeightsOversized",
     {},
     [](A &a, std::string &) { a.weights += std::string(64, '\0'); },
     {"weights.safetensors", "bytes, expected"}},
    {"WeightsFlippedBit",
     {},
     [](A &a, std::string &) { a.weights[a.weights.size() - 500] ^= 4; },
     {"weights.safetensors", "checksum is", "damaged"}},
    {"WeightsHeaderTooLong",
     [](A &a) { a.weights.replace(0, 8, 8, '\x7F'); },
     {},
     {"weights.safetensors", "header length"}},
    {"WeightsHeaderNotJson",
     [](A &a) { a.weights[9] = 'x'; },
     {},
     {"weights.safetensors", "header", "not valid JSON"}},
    {"WeightsHeaderDeep",
     [](A &a) { a.weights = makeSafetensors("{\"table\":" + std::string(100000, '['), ""); },
     {},
     {"weights.safetensors", "header", "nested deeper"}},
    {"TensorMissing",
     [](A &a) {
       editHeader(a, [](json &h) {
         h["last"] = h["next"];
         h.erase("next");
       });
     },
     {},
     {"weights.safetensors", "no tensor \"next\""}},
    {"TensorTooSmall",
     [](A &a) {
       editHeader(a, [](json &h) {
         h["bias"]["shape"] = {10};
         h["bias"]["data_offsets"][1] = h["bias"]["data_offsets"][0].get<int>() + 10;
       });
       a.weights.resize(a.weights.size() - (a.vocabSize() - 10));
     },
     {},
     {"weights.safetensors", "\"bias\" has 10 bytes"}},
    {"TensorsAndMore",
     [](A &a) { a.weights += "x"; },
     {},
     {"weights.safetensors", "1 bytes follow the last tensor"}},
    {"TensorOutsideOfFile",
     [](A &a) {
       editHeader(a, [](json &h) { h["bias"]["data_offsets"] = {1 << 30, (1 << 30) + 286}; });
     },
     {},
     {"weights.safetensors", "tensor 'bias' has data_offsets [1073741824"}},
    {"TensorOffsetsSwapped",
     [](A &a) {
       editHeader(a, [](json &h) {
         std::swap(h["bias"]["data_offsets"][0], h["bias"]["data_offsets"][1]);
       });
     },
     {},
     {"weights.safetensors", "tensor 'bias' has data_offsets ["}},
    {"TensorNegativeOffset",
     [](A &a) { editHeader(a, [](json &h) { h["bias"]["data_offsets"][0] = -1; }); },
     {},
     {"weights.safetensors", "tensor 'bias' has data_offsets", "expected an array of two numbers"}},
    {"TensorHugeShape",
     [](A &a) {
       editHeader(a, [](json &h) { h["bias"]["shape"] = {int64_t(1) << 40, int64_t(1) << 40}; });
     },
     {},
     {"weights.safetensors", "tensor 'bias'", "more than any file"}},
    {"TensorUnknownType",
     [](A &a) { editHeader(a, [](json &h) { h["bias"]["dtype"] = "Q9"; }); },
     {},
     {"weights.safetensors", "tensor 'bias' has the unknown dtype 'Q9'"}},
    {"TensorsOverlap",
     [](A &a) {
       editHeader(a, [](json &h) { h["bias"]["data_offsets"] = {0, h["bias"]["shape"][0]}; });
     },
     {},
     {"weights.safetensors", "overlap", "bias", "table"}},
    // The kernels.
    {"KernelsTruncated",
     {},
     [](A &a, std::string &) { a.kernels.resize(a.kernels.size() / 2); },
     {"kernels.x86_64-linux-gnu.so", "bytes, expected"}},
    {"KernelsFlippedBit",
     {},
     [](A &a, std::string &) { a.kernels[a.kernels.size() / 2] ^= 1; },
     {"kernels.x86_64-linux-gnu.so", "checksum is"}},
    {"KernelsTruncatedKnowingly",
     [](A &a) { a.kernels.resize(3000); },
     {},
     {"kernels.x86_64-linux-gnu.so", "not a shared object", "outside"}},
    {"KernelsShorterThanAHeader",
     [](A &a) { a.kernels.resize(20); },
     {},
     {"kernels.x86_64-linux-gnu.so", "not a shared object", "20 bytes"}},
    {"KernelsEmpty",
     [](A &a) { a.kernels.clear(); },
     {},
     {"kernels.x86_64-linux-gnu.so", "not a shared object", "0 bytes"}},
    {"KernelsAreText",
     [](A &a) { a.kernels = std::string(5000, 'k'); },
     {},
     {"kernels.x86_64-linux-gnu.so", "not an ELF file"}},
    {"KernelsForOtherMachine",
     [](A &a) { a.kernels[18] = char(0xF3); },
     {},
     {"kernels.x86_64-linux-gnu.so", "machine"}},
    {"KernelsProgramHeadersOutside",
     [](A &a) { a.kernels[35] = char(0x7F); },
     {},
     {"kernels.x86_64-linux-gnu.so", "program headers"}},
    {"KernelMissing",
     [](A &a) { launch(a, 0)["kernel"] = "embedding"; },
     {},
     {"kernels.x86_64-linux-gnu.so", "no kernel \"embedding\"", "embed"}},
    {"KernelOfAnotherLibrary",
     [](A &a) { launch(a, 0)["kernel"] = "exit"; },
     {},
     {"kernels.x86_64-linux-gnu.so", "no kernel \"exit\""}},
    // The tokenizer.
    {"TokenizerTruncated",
     {},
     [](A &a, std::string &) { a.tokenizer.resize(a.tokenizer.size() / 2); },
     {"tokenizer.json", "bytes, expected"}},
    {"TokenizerFlippedBit",
     {},
     [](A &a, std::string &) { a.tokenizer[a.tokenizer.size() / 2] ^= 1; },
     {"tokenizer.json", "checksum is"}},
    {"TokenizerTruncatedKnowingly",
     [](A &a) { a.tokenizer.resize(a.tokenizer.size() / 2); },
     {},
     {"tokenizer.json"}},
    {"TokenizerEmpty", [](A &a) { a.tokenizer.clear(); }, {}, {"tokenizer.json"}},
    {"TokenizerIsAList", [](A &a) { a.tokenizer = "[]"; }, {}, {"tokenizer.json"}},
    {"TokenizerNestedDeep",
     [](A &a) { a.tokenizer = std::string(1'000'000, '['); },
     {},
     {"tokenizer.json"}},
};

class CorruptArtifact : public testing::TestWithParam<Corruption> {};

TEST_P(CorruptArtifact, IsOneClearError) {
  const Corruption &corruption = GetParam();
  TemporaryDirectory directory;
  TestArtifact artifact;
  if (corruption.damage)
    corruption.damage(artifact);
  artifact.updateFiles();
  std::string planText = artifact.planText();
  if (corruption.damageFiles)
    corruption.damageFiles(artifact, planText);
  artifact.writeFiles(directory.path(), planText);
  try {
    Session session(Artifact::open(directory.path()), {"", {2}});
    FAIL() << "was accepted";
  } catch (const Error &e) {
    std::string message = e.what();
    for (const std::string &words : corruption.expected)
      EXPECT_NE(message.find(words), std::string::npos) << message << "\nexpected: " << words;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 700u) << message;
  }
}

INSTANTIATE_TEST_SUITE_P(Table, CorruptArtifact, testing::ValuesIn(corruptions),
                         [](const auto &info) { return std::string(info.param.name); });

TEST(ArtifactFiles, TheTableStartsFromAGoodOne) {
  TemporaryDirectory directory;
  TestArtifact().write(directory.path());
  EXPECT_NO_THROW(Session(Artifact::open(directory.path()), {"", {2}}).decode(1));
}

TEST(ArtifactFiles, SharedObjectsOfAnyLengthAreLoadedOrRefused) {
  TemporaryDirectory directory;
  TestArtifact artifact;
  const std::string whole = artifact.kernels;
  for (size_t length = 0; length < whole.size(); length += 97) {
    artifact.kernels = whole.substr(0, length);
    // Another name each time: the loader knows a file by its inode.
    std::string name = "kernels." + std::to_string(length) + ".so";
    artifact.plan["files"]["kernels"]["name"] = name;
    artifact.write(directory.path());
    writeFile(directory.path() / name, artifact.kernels);
    try {
      Session(Artifact::open(directory.path()), {"", {1}}).decode(1);
    } catch (const Error &e) {
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << e.what();
    }
  }
}

TEST(ArtifactFiles, NotAnArtifact) {
  TemporaryDirectory directory;
  auto message = [](const std::filesystem::path &path) {
    try {
      Artifact::open(path);
    } catch (const Error &e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(directory.path() / "none"),
            (directory.path() / "none").string() + ": there is no such directory");
  EXPECT_EQ(message(directory.path()),
            directory.path().string() + ": is not an artifact: it has no plan.json");
  writeFile(directory.path() / "file", "x");
  EXPECT_NE(message(directory.path() / "file").find("is not an artifact"), std::string::npos);
  std::filesystem::create_directory(directory.path() / "plan.json");
  EXPECT_EQ(message(directory.path()),
            (directory.path() / "plan.json").string() + ": is a directory, expected a file");
  EXPECT_FALSE(Artifact::isArtifact(directory.path() / "none"));
}

} // namespace
