// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Files that are wrong in every way we could think of: each must end in one line that names the
// file and what is wrong with it.

#include "../compiled/FamilyModels.h"
#include "TestFiles.h"

#include "sluice/Import/GGUF.h"
#include "sluice/Import/Listing.h"
#include "sluice/Import/ModelFiles.h"
#include "sluice/Import/Safetensors.h"

#include <fstream>
#include <functional>

using namespace sluice;
using namespace sluice::test;
using nlohmann::json;

namespace {
struct Corruption {
  const char *name;
  /// Writes the files and returns the path to open.
  std::function<std::string(const Folder &)> make;
  const char *expected;
};
void PrintTo(const Corruption &corruption, std::ostream *os) { *os << corruption.name; }

/// What stands for a large file in a clone that was made without git-lfs.
constexpr const char *gitLfsPointer =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 16060617592\n";

/// A GGUF file of the small model, changed.
std::function<std::string(const Folder &)> gguf(std::function<void(GGUFBuilder &)> change) {
  return [=](const Folder &folder) {
    GGUFBuilder builder = smallLlamaGGUF();
    change(builder);
    return folder.write("model.gguf", builder.build());
  };
}

/// The bytes of the small model's GGUF file, changed.
std::function<std::string(const Folder &)> ggufBytes(std::function<void(std::string &)> change) {
  return [=](const Folder &folder) {
    std::string bytes = smallLlamaGGUF().build();
    change(bytes);
    return folder.write("model.gguf", bytes);
  };
}

/// A folder with the small model's config and a changed safetensors header.
std::function<std::string(const Folder &)>
safetensors(std::function<void(SafetensorsBuilder &)> change) {
  return [=](const Folder &folder) {
    folder.write("config.json", smallConfig().dump());
    SafetensorsBuilder builder = smallSafetensors();
    change(builder);
    folder.write("model.safetensors", builder.build());
    return folder.str();
  };
}

/// The same with the file's bytes.
std::function<std::string(const Folder &)>
safetensorsBytes(std::function<void(std::string &)> change) {
  return [=](const Folder &folder) {
    folder.write("config.json", smallConfig().dump());
    std::string bytes = smallSafetensors().build();
    change(bytes);
    folder.write("model.safetensors", bytes);
    return folder.str();
  };
}

/// A folder whose whole model is in a.safetensors, with that index.
std::function<std::string(const Folder &)> index(std::function<void(json &)> change) {
  return [=](const Folder &folder) {
    folder.write("config.json", smallConfig().dump());
    folder.write("a.safetensors", smallSafetensors().build());
    json document = {{"weight_map", json::object()}};
    for (const auto &[name, shape] : smallTensors())
      document["weight_map"][name] = "a.safetensors";
    change(document);
    folder.write("model.safetensors.index.json", document.dump());
    return folder.str();
  };
}

std::string readFile(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder with the small GPT-2 of test/data, whose safetensors are changed.
std::function<std::string(const Folder &)> gpt2(std::function<void(std::string &)> change) {
  return [=](const Folder &folder) {
    folder.write("config.json", readFile(familyFolder("gpt2") + "/config.json"));
    std::string bytes = readFile(familyFolder("gpt2") + "/model.safetensors");
    change(bytes);
    folder.write("model.safetensors", bytes);
    return folder.str();
  };
}

/// Every `from` as `to`, which is as long.
void rename(std::string &bytes, llvm::StringRef from, llvm::StringRef to) {
  size_t at = bytes.find(from.str());
  ASSERT_NE(at, std::string::npos);
  for (; at != std::string::npos; at = bytes.find(from.str(), at + to.size()))
    bytes.replace(at, from.size(), to.str());
}

std::function<std::string(const Folder &)> configText(const char *text) {
  return [=](const Folder &folder) { return folder.write("config.json", text); };
}

template <typename T> void poke(std::string &bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

/// Where the tensor infos' name is stored (its characters).
size_t nameAt(const std::string &bytes, llvm::StringRef name) {
  return llvm::StringRef(bytes).find(name);
}

std::vector<Corruption> corruptions() {
  std::vector<Corruption> list;
  auto add = [&](const char *name, std::function<std::string(const Folder &)> make,
                 const char *expected) { list.push_back({name, std::move(make), expected}); };

  // What is at the path.
  add("NothingThere", [](const Folder &f) { return f / "none.gguf"; }, "cannot be opened: No such");
  add("FolderWithoutConfig", [](const Folder &f) { return f.str(); }, "has no config.json");
  add(
      "UnknownKindOfFile", [](const Folder &f) { return f.write("a.bin", "hello, world"); },
      "is not a model");
  add(
      "SafetensorsAlone",
      [](const Folder &f) { return f.write("a.safetensors", smallSafetensors().build()); },
      "expected the folder that holds it");
  add(
      "ConfigIsAFolder",
      [](const Folder &f) {
        EXPECT_FALSE(llvm::sys::fs::create_directory(f / "config.json"));
        return f.str();
      },
      "config.json: is a directory, expected a file");

  // GGUF: the header.
  add(
      "GGUFEmpty", [](const Folder &f) { return f.write("a.gguf", ""); },
      "not a GGUF file: it has 0 bytes");
  add(
      "GGUFMagicOnly", [](const Folder &f) { return f.write("a.gguf", "GGUF"); },
      "not a GGUF file: it has 4 bytes");
  add(
      "GGUFWrongMagic",
      [](const Folder &f) { return f.write("a.gguf", "ggjt" + std::string(100, '\0')); },
      "begins with 'ggjt', expected 'GGUF'");
  add("GGUFVersion1", gguf([](GGUFBuilder &b) { b.version = 1; }),
      "has GGUF version 1, expected 2 or 3");
  add("GGUFVersion4", gguf([](GGUFBuilder &b) { b.version = 4; }),
      "has GGUF version 4, expected 2 or 3");
  add("GGUFBigEndian", gguf([](GGUFBuilder &b) { b.version = 0x03000000; }),
      "is a big-endian GGUF file (version 3)");
  add("GGUFHugeValueCount", gguf([](GGUFBuilder &b) { b.claimedValues = UINT64_MAX; }),
      "declares 18446744073709551615 metadata values");
  add("GGUFHugeTensorCount", gguf([](GGUFBuilder &b) { b.claimedTensors = uint64_t(1) << 60; }),
      "declares 1152921504606846976 tensors");
  add("GGUFOneValueTooMany", gguf([](GGUFBuilder &b) { b.claimedValues = 18; }), "model.gguf: ");
  add("GGUFOneTensorMissing", gguf([](GGUFBuilder &b) { b.claimedTensors = 11; }),
      "the descriptions of 11 tensors and their data is not padding");

  // GGUF: metadata.
  add("GGUFKeyLength2To63", ggufBytes([](std::string &b) { poke<uint64_t>(b, 24, 1ull << 63); }),
      "metadata key 0 needs 9223372036854775808 bytes");
  add("GGUFStringLengthAllOnes", ggufBytes([](std::string &b) {
        poke<uint64_t>(b, nameAt(b, "general.architecture") + 20 + 4, UINT64_MAX);
      }),
      "metadata 'general.architecture' needs 18446744073709551615 bytes");
  add("GGUFUnknownValueType", gguf([](GGUFBuilder &b) { b.value<uint32_t>("x", 13, 0); }),
      "metadata 'x' has the unknown value type 13");
  add("GGUFBoolOfTwo", gguf([](GGUFBuilder &b) { b.boolean("x", 2); }),
      "metadata 'x' is a bool of value 2");
  add("GGUFArrayCount2To61", gguf([](GGUFBuilder &b) {
        b.raw("x", Bytes().put<uint32_t>(9).put<uint32_t>(10).put<uint64_t>(1ull << 61).data);
      }),
      "metadata 'x' has 2305843009213693952 elements of type u64");
  add("GGUFStringArrayCountTooLarge", gguf([](GGUFBuilder &b) {
        b.raw("x", Bytes().put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(1ull << 40).data);
      }),
      "metadata 'x' has 1099511627776 elements of type string");
  add("GGUFArrayOfUnknownType", gguf([](GGUFBuilder &b) {
        b.raw("x", Bytes().put<uint32_t>(9).put<uint32_t>(77).put<uint64_t>(1).data);
      }),
      "the elements of metadata 'x' has the unknown value type 77");
  add("GGUFDeepArrays", gguf([](GGUFBuilder &b) {
        Bytes bytes;
        bytes.put<uint32_t>(9);
        for (int i = 0; i < 100000; ++i)
          bytes.put<uint32_t>(9).put<uint64_t>(1);
        b.raw("x", bytes.data);
      }),
      "metadata 'x' nests arrays deeper than 4 levels");
  add("GGUFDuplicateKey", gguf([](GGUFBuilder &b) { b.u32("llama.block_count", 1); }),
      "metadata 'llama.block_count' is there twice");
  for (auto [name, alignment, expected] :
       {std::tuple("GGUFAlignment0", 0u, "general.alignment is 0, expected a power of two"),
        std::tuple("GGUFAlignment48", 48u, "general.alignment is 48, expected a power of two"),
        std::tuple("GGUFAlignmentHuge", 1u << 31, "truncated: the data begins at byte 2147483648")})
    add(name,
        gguf([alignment = alignment](GGUFBuilder &b) { b.u32("general.alignment", alignment); }),
        expected);
  add("GGUFAlignmentIsText", gguf([](GGUFBuilder &b) { b.string("general.alignment", "32"); }),
      "general.alignment is of type string");

  // GGUF: tensors.
  add("GGUFDuplicateTensor", gguf([](GGUFBuilder &b) { b.f32Tensor("output.weight", {64, 16}); }),
      "tensor 'output.weight' is there twice");
  add("GGUFNamelessTensor", gguf([](GGUFBuilder &b) { b.f32Tensor("", {1}); }),
      "tensor info 12 has an empty name");
  add("GGUFFiveDimensions", gguf([](GGUFBuilder &b) { b.f32Tensor("x", {1, 1, 1, 1, 1}); }),
      "tensor 'x' has 5 dimensions, expected at most 4");
  add("GGUFUnknownTensorType", gguf([](GGUFBuilder &b) { b.tensors[0].type = 999; }),
      "tensor 'token_embd.weight' has type unknown (ggml type 999), expected F32, F16, BF16");
  add("GGUFDimension2To63", gguf([](GGUFBuilder &b) { b.tensors[0].dims = {1ull << 63, 16}; }),
      "has a dimension of 9223372036854775808");
  add("GGUFDimensionsOverflow",
      gguf([](GGUFBuilder &b) { b.tensors[0].dims = {1ull << 32, 1ull << 32}; }),
      "has shape [4294967296, 4294967296], which no file can hold");
  add("GGUFRowsOfHalfBlocks", gguf([](GGUFBuilder &b) {
        b.tensors[0].type = 8;
        b.tensors[0].dims = {48, 16};
      }),
      "tensor 'token_embd.weight' has rows of 48 elements, expected a multiple of 32 for Q8_0");
  add("GGUFOffsetOutside", gguf([](GGUFBuilder &b) { b.tensors[3].offset = 1 << 20; }),
      "tensor 'blk.0.attn_k.weight' has 8192 bytes at offset 1048576, outside");
  add("GGUFOffsetWraps", gguf([](GGUFBuilder &b) { b.tensors[3].offset = UINT64_MAX - 31; }),
      "at offset 18446744073709551584, outside");
  add("GGUFOffsetUnaligned", gguf([](GGUFBuilder &b) { b.tensors[3].offset = 8; }),
      "has offset 8, expected a multiple of the alignment 32");
  add("GGUFOverlap", gguf([](GGUFBuilder &b) { b.tensors[3].offset = 32; }),
      "tensor 'blk.0.attn_k.weight' overlaps tensor 'token_embd.weight'");
  add("GGUFLastByteMissing", ggufBytes([](std::string &b) { b.pop_back(); }),
      "tensor 'output.weight' has 4096 bytes at offset");
  for (auto [name, percent] : {std::pair("GGUFCutAt1Percent", 1), std::pair("GGUFCutAt2Percent", 2),
                               std::pair("GGUFCutAt50Percent", 50)})
    add(name,
        ggufBytes([percent = percent](std::string &b) { b.resize(b.size() * percent / 100); }),
        "model.gguf: ");

  // GGUF: the model.
  add("GGUFUnknownArchitecture", gguf([](GGUFBuilder &b) {
        b.erase("general.architecture");
        b.string("general.architecture", "mamba");
      }),
      "general.architecture is 'mamba', supported are llama, qwen2, qwen3, gpt2, ");
  add("GGUFArchitectureMissing", gguf([](GGUFBuilder &b) { b.erase("general.architecture"); }),
      "general.architecture is missing");
  add("GGUFNotANumberEps", gguf([](GGUFBuilder &b) {
        b.erase("llama.attention.layer_norm_rms_epsilon");
        b.f32("llama.attention.layer_norm_rms_epsilon", NAN);
      }),
      "llama.attention.layer_norm_rms_epsilon is nan, expected a number above 0");
  add("GGUFHeadsNotDivisible", gguf([](GGUFBuilder &b) {
        b.erase("llama.attention.head_count");
        b.u32("llama.attention.head_count", 4);
        b.erase("llama.attention.head_count_kv");
        b.u32("llama.attention.head_count_kv", 3);
      }),
      "llama.attention.head_count is 4 and llama.attention.head_count_kv is 3");
  add("GGUFHugeWidth", gguf([](GGUFBuilder &b) {
        b.erase("llama.embedding_length");
        b.u32("llama.embedding_length", UINT32_MAX);
      }),
      "llama.embedding_length is 4294967295, expected an integer from 1 to 1048576");
  add("GGUFZeroLayers", gguf([](GGUFBuilder &b) {
        b.erase("llama.block_count");
        b.u32("llama.block_count", 0);
      }),
      "llama.block_count is 0");
  add("GGUFMoreLayersThanTensors", gguf([](GGUFBuilder &b) {
        b.erase("llama.block_count");
        b.u32("llama.block_count", 2);
      }),
      "tensor 'blk.1.attn_norm.weight' is missing, expected shape [64]");
  add("GGUFExperts", gguf([](GGUFBuilder &b) { b.u32("llama.expert_count", 8); }),
      "llama.expert_count is above 0: a mixture of experts is not supported");
  add("GGUFPartialRotary", gguf([](GGUFBuilder &b) { b.u32("llama.rope.dimension_count", 16); }),
      "llama.rope.dimension_count is 16, expected the head size 32");
  add("GGUFDynamic", gguf([](GGUFBuilder &b) { b.string("llama.rope.scaling.type", "dynamic"); }),
      "llama.rope.scaling.type is 'dynamic', expected none, linear, yarn or longrope");
  add("GGUFMixture", gguf([](GGUFBuilder &b) {
        b.erase("general.architecture");
        b.string("general.architecture", "qwen3moe");
      }),
      "general.architecture is 'qwen3moe', a mixture of experts, which is not supported");
  add("GGUFFactorsOfTwoKinds", gguf([](GGUFBuilder &b) {
        b.f32Tensor("rope_freqs.weight", {16});
        b.f32Tensor("rope_factors_long.weight", {16});
        b.f32Tensor("rope_factors_short.weight", {16});
      }),
      "has tensors of rotary factors that do not belong together");
  add("Gpt2WithoutPositions", gpt2([](std::string &header) { rename(header, "wpe", "wpx"); }),
      "tensor 'transformer.wpe.weight' is missing, expected shape [64, 32]");
  add("Gpt2WithOtherProjections",
      gpt2([](std::string &header) { rename(header, "[32,96]", "[96,32]"); }),
      "tensor 'transformer.h.0.attn.c_attn.weight' has shape [96, 32], expected [32, 96]");
  add("Gpt2WithOtherTensors",
      gpt2([](std::string &header) { rename(header, "ln_f.bias", "ln_f.what"); }),
      "tensor 'transformer.ln_f.bias' is missing");
  add("GGUFSplit", gguf([](GGUFBuilder &b) { b.value<uint16_t>("split.count", 2, 3); }),
      "is one of the 3 parts of a split GGUF file, which are not supported");
  add("GGUFRopeFactorsOfWrongLength",
      gguf([](GGUFBuilder &b) { b.f32Tensor("rope_freqs.weight", {8}); }),
      "tensor 'rope_freqs.weight' is F32 [8], expected F32 [16]");
  add("GGUFRopeFactorsOfZero",
      gguf([](GGUFBuilder &b) { b.f32Tensor("rope_freqs.weight", {16}, 0.0f); }),
      "tensor 'rope_freqs.weight' holds 0, expected numbers above 0");
  add("GGUFRopeFactorsAndScaling", gguf([](GGUFBuilder &b) {
        b.f32Tensor("rope_freqs.weight", {16});
        b.f32("llama.rope.scaling.factor", 4.0f);
      }),
      "tensor 'rope_freqs.weight' and a linear scaling of positions are both there");
  add("GGUFOtherGraph", gguf([](GGUFBuilder &b) {
        b.f32Tensor("blk.0.attn_q_norm.weight", {32});
        b.f32Tensor("blk.0.attn_k_norm.weight", {32});
      }),
      "model.gguf: tensors 'blk.0.attn_q_norm.weight', 'blk.0.attn_k_norm.weight': a model of "
      "this family and config has no such tensors, so this is another graph");
  add("GGUFHeadBias", gguf([](GGUFBuilder &b) { b.f32Tensor("output.bias", {16}); }),
      "tensor 'output.bias': a model of this family");
  add("GGUFLearnedPositions",
      gguf([](GGUFBuilder &b) { b.f32Tensor("position_embd.weight", {64, 128}); }),
      "tensor 'position_embd.weight': a model of this family");
  add("GGUFLayersLeftOut",
      gguf([](GGUFBuilder &b) { b.f32Tensor("blk.1.attn_norm.weight", {64}); }),
      "tensor 'blk.1.attn_norm.weight' is of layer 1 (counted from 0), but the model's "
      "configuration has only 1");
  add(
      "GGUFGitLfsPointer", [](const Folder &f) { return f.write("model.gguf", gitLfsPointer); },
      "model.gguf: is a git-lfs pointer, expected the file that `git lfs pull` puts in its place");
  add("GGUFWrongShape",
      gguf([](GGUFBuilder &b) { b.find("blk.0.ffn_down.weight")->dims = {64, 96}; }),
      "tensor 'blk.0.ffn_down.weight' has shape [96, 64], expected [64, 96]");
  add("GGUFUnsupportedType", gguf([](GGUFBuilder &b) {
        auto *tensor = b.find("blk.0.attn_q.weight");
        tensor->type = 9;
        tensor->bytes.resize(64 * 64 / 32 * 36);
      }),
      "tensor 'blk.0.attn_q.weight' has type Q8_1, expected F32, F16, BF16, Q4_0, Q4_1, ");
  add("GGUFNvFp4WithFactor", gguf([](GGUFBuilder &b) {
        auto *tensor = b.find("blk.0.attn_q.weight");
        tensor->type = 40;
        tensor->bytes.resize(64 * 64 / 64 * 36);
        b.f32Tensor("blk.0.attn_q.scale", {1});
      }),
      "tensor 'blk.0.attn_q.weight' has type NVFP4 with a factor of the whole tensor in "
      "'blk.0.attn_q.scale', which is not supported");
  add("GGUFQuantizedNorm", gguf([](GGUFBuilder &b) {
        auto *tensor = b.find("blk.0.attn_norm.weight");
        tensor->type = 8;
        tensor->bytes.resize(68);
      }),
      "tensor 'blk.0.attn_norm.weight' has type Q8_0, expected F32, F16 or BF16");
  add("GGUFOneBiasMissing", gguf([](GGUFBuilder &b) { b.f32Tensor("blk.0.ffn_up.bias", {96}); }),
      "tensor 'blk.0.ffn_gate.bias' is missing, expected shape [96]");
  add("GGUFTokenIdOutside",
      gguf([](GGUFBuilder &b) { b.u32("tokenizer.ggml.padding_token_id", 16); }),
      "tokenizer.ggml.padding_token_id is 16, expected a token of the vocabulary of 16");
  add("GGUFScoresTooFew", gguf([](GGUFBuilder &b) {
        b.erase("tokenizer.ggml.scores");
        b.array<float>("tokenizer.ggml.scores", 6, {1.0f});
      }),
      "tokenizer.ggml.scores has 1 entries, expected one for each of 16 tokens");
  add("GGUFCharacterMapIsNoBytes", gguf([](GGUFBuilder &b) {
        b.array<int32_t>("tokenizer.ggml.precompiled_charsmap", 5, {256});
      }),
      "tokenizer.ggml.precompiled_charsmap is a value of type array of i32, expected an array of "
      "u8");
  add("GGUFTokensAreNumbers", gguf([](GGUFBuilder &b) {
        b.erase("tokenizer.ggml.tokens");
        b.array<int32_t>("tokenizer.ggml.tokens", 5, {1});
      }),
      "tokenizer.ggml.tokens is a value of type array of i32, expected an array of strings");

  // safetensors: the header.
  add("SafetensorsEmpty", safetensorsBytes([](std::string &b) { b.clear(); }),
      "not a safetensors file: it has 0 bytes");
  add("SafetensorsHeaderLength2To63",
      safetensorsBytes([](std::string &b) { poke<uint64_t>(b, 0, 1ull << 63); }),
      "header length 9223372036854775808 is above the format's limit");
  add("SafetensorsHeaderLongerThanFile",
      safetensorsBytes([](std::string &b) { poke<uint64_t>(b, 0, b.size()); }),
      "truncated: header length");
  add("SafetensorsHeaderIsNoObject", safetensorsBytes([](std::string &b) { b[8] = '['; }),
      "the header does not begin with '{'");
  add("SafetensorsBadJson", safetensorsBytes([](std::string &b) { b[9] = '}'; }),
      "not valid JSON: parse error at line 1");
  add(
      "SafetensorsDeepJson",
      [](const Folder &folder) {
        folder.write("config.json", smallConfig().dump());
        SafetensorsBuilder builder;
        folder.write("model.safetensors", builder.build("{\"a\":" + std::string(1000000, '[')));
        return folder.str();
      },
      "JSON is nested deeper than 32 levels");
  add("SafetensorsCut", safetensorsBytes([](std::string &b) { b.resize(b.size() - 1); }),
      "outside the file's");
  add(
      "SafetensorsDuplicateName",
      [](const Folder &folder) {
        folder.write("config.json", smallConfig().dump());
        SafetensorsBuilder builder;
        std::string entry = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
        folder.write("model.safetensors", builder.build("{" + entry + "," + entry + "}"));
        return folder.str();
      },
      "JSON has the key 'a' twice in one object");
  add("SafetensorsMetadataOfNumbers",
      safetensors([](SafetensorsBuilder &b) { b.header["__metadata__"] = {{"a", 1}}; }),
      "__metadata__ key 'a' is 1, expected a string");
  add("SafetensorsNoDtype",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"].erase("dtype"); }),
      "tensor 'lm_head.weight' lacks dtype");
  add("SafetensorsEntryIsANumber",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"] = 3; }),
      "tensor 'lm_head.weight' lacks dtype");
  add("SafetensorsUnknownDtype",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"]["dtype"] = "F4"; }),
      "tensor 'lm_head.weight' has type unknown (F4), expected F32, F16 or BF16");
  add("SafetensorsDtypeIsANumber",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"]["dtype"] = 4; }),
      "tensor 'lm_head.weight' has dtype 4, expected a string");
  add("SafetensorsNegativeDimension",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"]["shape"] = {-16, 64}; }),
      "tensor 'lm_head.weight' has a dimension of -16");
  add("SafetensorsShapeOverflow", safetensors([](SafetensorsBuilder &b) {
        b.header["lm_head.weight"]["shape"] = {int64_t(1) << 62, 1024};
      }),
      "F16 [4611686018427387904, 1024] takes more than any file");
  add("SafetensorsExtentOff",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"]["shape"] = {15, 64}; }),
      "tensor 'lm_head.weight' has 2048 bytes, but F16 [15, 64] takes 1920");
  add("SafetensorsOffsetsReversed", safetensors([](SafetensorsBuilder &b) {
        b.header["lm_head.weight"]["data_offsets"] = {8, 0};
      }),
      "tensor 'lm_head.weight' has data_offsets [8, 0] outside");
  add("SafetensorsOffsetsNegative", safetensors([](SafetensorsBuilder &b) {
        b.header["lm_head.weight"]["data_offsets"] = {-8, 2040};
      }),
      "expected an array of two numbers");
  add("SafetensorsOverlap", safetensors([](SafetensorsBuilder &b) {
        b.header["lm_head.weight"]["data_offsets"] = {0, 2048};
      }),
      "and overlaps tensor 'lm_head.weight'");
  add("SafetensorsHole",
      safetensors([](SafetensorsBuilder &b) { b.header.erase("model.norm.weight"); }),
      "leaving a hole after tensor 'model.layers.0.mlp.down_proj.weight'");

  // safetensors: the model.
  add("SafetensorsWrongShape",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"]["shape"] = {64, 16}; }),
      "tensor 'lm_head.weight' has shape [64, 16], expected [16, 64]");
  add("SafetensorsIntegerWeights",
      safetensors([](SafetensorsBuilder &b) { b.header["lm_head.weight"]["dtype"] = "I16"; }),
      "tensor 'lm_head.weight' has type I16, expected F32, F16 or BF16");
  add("SafetensorsMissingTensor", safetensors([](SafetensorsBuilder &b) {
        b.header["spelled.wrong"] = b.header["model.norm.weight"];
        b.header.erase("model.norm.weight");
      }),
      "tensor 'model.norm.weight' is missing, expected shape [64]");
  add(
      "SafetensorsMissingBias",
      [](const Folder &folder) {
        folder.write("config.json", smallConfig("qwen2").dump());
        folder.write("model.safetensors", smallSafetensors().build());
        return folder.str();
      },
      "tensor 'model.layers.0.self_attn.q_proj.bias' is missing, expected shape [64]");

  // Norms of heads that a family has or has not, and their shape.
  auto qwen3 = [](std::vector<std::pair<const char *, int64_t>> norms) {
    return [norms](const Folder &folder) {
      nlohmann::json config = smallConfig("qwen3");
      config["head_dim"] = 32;
      folder.write("config.json", config.dump());
      SafetensorsBuilder tensors = smallSafetensors();
      for (auto [name, size] : norms)
        tensors.add(std::string("model.layers.0.self_attn.") + name + "_norm.weight", {size});
      folder.write("model.safetensors", tensors.build());
      return folder.str();
    };
  };
  add("SafetensorsMissingHeadNorm", qwen3({{"q", 32}}),
      "tensor 'model.layers.0.self_attn.k_norm.weight' is missing, expected shape [32]");
  add("SafetensorsHeadNormOfARow", qwen3({{"q", 64}, {"k", 32}}),
      "tensor 'model.layers.0.self_attn.q_norm.weight' has shape [64], expected [32]");
  add(
      "GGUFMissingHeadNorm",
      [](const Folder &folder) {
        GGUFBuilder builder = smallLlamaGGUF("qwen3");
        builder.f32Tensor("blk.0.attn_q_norm.weight", {32});
        return folder.write("m.gguf", builder.build());
      },
      "tensor 'blk.0.attn_k_norm.weight' is missing, expected shape [32]");
  add("GGUFHeadNormOfAnotherFamily",
      gguf([](GGUFBuilder &b) { b.f32Tensor("blk.0.attn_q_norm.weight", {32}); }),
      "tensor 'blk.0.attn_q_norm.weight': a model of this family and config has no such tensors");

  add("SafetensorsOtherGraph", safetensors([](SafetensorsBuilder &b) {
        b.add("model.layers.0.self_attn.q_norm.weight", {32});
        for (const char *part : {"q", "k", "v"})
          b.add(std::string("model.layers.0.self_attn.") + part + "_proj.bias", {32});
      }),
      "model.safetensors: tensors 'model.layers.0.self_attn.q_norm.weight', "
      "'model.layers.0.self_attn.q_proj.bias', 'model.layers.0.self_attn.k_proj.bias' and 1 more: "
      "a model of this family and config has no such tensors");
  add("SafetensorsLayersLeftOut", safetensors([](SafetensorsBuilder &b) {
        b.add("model.layers.3.input_layernorm.weight", {64});
      }),
      "tensor 'model.layers.3.input_layernorm.weight' is of layer 3 (counted from 0), but the "
      "model's configuration has only 1");
  for (auto [name, file] : {std::pair("ConfigGitLfsPointer", "config.json"),
                            std::pair("SafetensorsGitLfsPointer", "model.safetensors"),
                            std::pair("GenerationConfigGitLfsPointer", "generation_config.json"),
                            std::pair("TokenizerJsonGitLfsPointer", "tokenizer.json"),
                            std::pair("TokenizerModelGitLfsPointer", "tokenizer.model")})
    add(
        name,
        [file = file](const Folder &folder) {
          folder.write("config.json", smallConfig().dump());
          folder.write("model.safetensors", smallSafetensors().build());
          folder.write(file, gitLfsPointer);
          return folder.str();
        },
        "is a git-lfs pointer, expected the file");

  // The index.
  add("IndexMissingShard",
      index([](json &i) { i["weight_map"]["lm_head.weight"] = "b.safetensors"; }),
      "index.json: tensor 'lm_head.weight' is missing, as is its shard 'b.safetensors'");
  add(
      "IndexMissingTensor",
      [](const Folder &folder) {
        folder.write("b.safetensors", SafetensorsBuilder().add("extra", {1}).build());
        return index([](json &i) { i["weight_map"]["lm_head.weight"] = "b.safetensors"; })(folder);
      },
      "b.safetensors: tensor 'lm_head.weight' is missing, but");
  add("IndexLacksTensor", index([](json &i) { i["weight_map"].erase("lm_head.weight"); }),
      "model.safetensors.index.json: tensor 'lm_head.weight' is missing");
  add("IndexLeavesTheFolder",
      index([](json &i) { i["weight_map"]["lm_head.weight"] = "../a.safetensors"; }),
      "weight_map has '../a.safetensors' for tensor 'lm_head.weight'");
  add("IndexAbsolutePath",
      index([](json &i) { i["weight_map"]["lm_head.weight"] = "/etc/passwd"; }),
      "weight_map has '/etc/passwd'");
  add("IndexParent", index([](json &i) { i["weight_map"]["lm_head.weight"] = ".."; }),
      "weight_map has '..'");
  add("IndexOfNumbers", index([](json &i) { i["weight_map"]["lm_head.weight"] = 1; }),
      "weight_map has 1 for tensor 'lm_head.weight'");
  add("IndexWithoutMap", index([](json &i) { i.erase("weight_map"); }),
      "weight_map is missing or empty");

  // config.json (its keys are in ModelConfigTest).
  add("ConfigEmpty", configText(""), "config.json: is empty, expected JSON");
  add("ConfigCut", configText("{\"model_type\": \"lla"), "not valid JSON: parse error at line 1");
  add("ConfigIsAnArray", configText("[1]"),
      "config.json: is an array of 1 elements, expected an object");
  add("ConfigNumberOverflows", configText("{\"rms_norm_eps\": 1e999}"),
      "not valid JSON: number overflow");
  add("ConfigKeyTwice", configText("{\"a\": 1, \"a\": 2}"), "JSON has the key 'a' twice");
  add("ConfigNotUtf8", configText("{\"model_type\": \"\xff\"}"),
      "not valid JSON: parse error at line 1");
  add(
      "GenerationConfigBroken",
      [](const Folder &folder) {
        folder.write("config.json", smallConfig().dump());
        folder.write("model.safetensors", smallSafetensors().build());
        folder.write("generation_config.json", "{");
        return folder.str();
      },
      "generation_config.json: not valid JSON");
  return list;
}
} // namespace

class CorruptFiles : public testing::TestWithParam<Corruption> {};

TEST_P(CorruptFiles, EndInOneLine) {
  Folder folder;
  std::string path = GetParam().make(folder);
  std::string error = message(openModel(path));
  EXPECT_EQ(error.find(folder.str()), 0u) << error;
  EXPECT_NE(error.find(GetParam().expected), std::string::npos) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  EXPECT_LT(error.size(), 500u) << error;
}

INSTANTIATE_TEST_SUITE_P(Table, CorruptFiles, testing::ValuesIn(corruptions()),
                         [](const auto &info) { return std::string(info.param.name); });

/// Opens what is under `path` in both ways; whatever comes out must come out in order.
static void openEverything(const std::string &path, const std::string &what) {
  auto check = [&](const std::string &text) {
    if (text != "success") {
      ASSERT_EQ(text.find('\n'), std::string::npos) << what << ": " << text;
      ASSERT_EQ(text.find(path), 0u) << what << ": " << text;
    }
  };
  check(message(openModel(path)));
  auto listing = listModelFile(path);
  if (!listing)
    return check(llvm::toString(listing.takeError()));
  std::string text;
  llvm::raw_string_ostream os(text);
  printListing(*listing, os);
}

/// Inverts each byte of the file's first `length`, then flips its lowest and its highest bit.
static void flipBytes(const std::string &file, const std::string &path, size_t length) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  for (size_t i = 0; i < length; ++i) {
    char good = 0;
    stream.seekg(i).get(good);
    for (int mask : {0xff, 0x01, 0x80}) {
      stream.seekp(i).put(static_cast<char>(good ^ mask)).flush();
      openEverything(path, "byte " + std::to_string(i));
      if (testing::Test::HasFatalFailure())
        return;
    }
    stream.seekp(i).put(good).flush();
  }
  ASSERT_TRUE(stream.good());
  ASSERT_EQ(message(openModel(path)), "success");
}

TEST(BitFlips, GGUF) {
  Folder folder;
  std::string path = folder.write("model.gguf", smallLlamaGGUF().build());
  flipBytes(path, path, 4000);
}

TEST(BitFlips, Safetensors) {
  Folder folder;
  std::string bytes = smallSafetensors().build();
  folder.write("config.json", smallConfig().dump());
  flipBytes(folder.write("model.safetensors", bytes), folder.str(),
            bytes.size() - smallSafetensors().dataBytes);
}

static size_t safetensorsHeader(const std::string &path) {
  std::string bytes = readFile(path);
  uint64_t length;
  std::memcpy(&length, bytes.data(), 8);
  return 8 + length;
}

// Fused weights that are views, a table of positions.
TEST(BitFlips, Gpt2) {
  Folder folder;
  gpt2([](std::string &) {})(folder);
  std::string file = folder / "model.safetensors";
  flipBytes(file, folder.str(), safetensorsHeader(file));
}

// Fused weights, and tensors that the configuration is read from.
TEST(BitFlips, Phi3GGUF) {
  Folder folder;
  std::string path = writeFamilyGGUF("phi3-longrope", folder);
  flipBytes(path, path, 3000);
}

TEST(Truncation, Gpt2InItsHeader) {
  Folder folder;
  gpt2([](std::string &) {})(folder);
  std::string file = folder / "model.safetensors", good = readFile(file);
  for (size_t length = 0, end = safetensorsHeader(file); length <= end; length += 7) {
    folder.write("model.safetensors", llvm::StringRef(good).take_front(length));
    std::string error = message(openModel(folder.str()));
    ASSERT_NE(error, "success") << length;
    ASSERT_EQ(error.find(folder.str()), 0u) << error;
  }
}

TEST(Truncation, GGUFAtEveryByteOfItsHeader) {
  Folder folder;
  std::string good = smallLlamaGGUF().build();
  for (size_t length = 0; length < 3000; ++length) {
    std::string path = folder.write("cut.gguf", llvm::StringRef(good).take_front(length));
    std::string error = message(openModel(path));
    ASSERT_NE(error, "success") << length;
    ASSERT_EQ(error.find(path), 0u) << error;
  }
}

TEST(Truncation, SafetensorsAtEveryByteOfItsHeader) {
  Folder folder;
  folder.write("config.json", smallConfig().dump());
  std::string good = smallSafetensors().build();
  size_t parsed = good.size() - smallSafetensors().dataBytes;
  for (size_t length = 0; length <= parsed; ++length) {
    folder.write("model.safetensors", llvm::StringRef(good).take_front(length));
    std::string error = message(openModel(folder.str()));
    ASSERT_NE(error, "success") << length;
    ASSERT_EQ(error.find(folder.str()), 0u) << error;
  }
}
