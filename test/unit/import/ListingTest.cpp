// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/Listing.h"

#include "TestFiles.h"

using namespace sluice;
using namespace sluice::test;

static std::string printed(const nlohmann::ordered_json &listing) {
  std::string text;
  llvm::raw_string_ostream os(text);
  printListing(listing, os);
  return text;
}

static const nlohmann::ordered_json *entry(const nlohmann::ordered_json &list, const char *field,
                                           const std::string &name) {
  for (const auto &item : list)
    if (item[field] == name)
      return &item;
  return nullptr;
}

TEST(Listing, GGUF) {
  SLUICE_UNWRAP(listing, listModelFile(dataFile("llama-4m.Q8_0.gguf")));
  EXPECT_EQ(listing["format"], "GGUF");
  EXPECT_EQ(listing["version"], 3);
  EXPECT_EQ(listing["file_bytes"], 4512800);
  EXPECT_EQ(listing["metadata"].size(), 26u);
  const auto *tokens = entry(listing["metadata"], "key", "tokenizer.ggml.tokens");
  ASSERT_TRUE(tokens);
  EXPECT_EQ((*tokens)["type"], "array of string");
  EXPECT_EQ((*tokens)["value"]["count"], 2048);
  EXPECT_EQ((*tokens)["value"]["first"][1], "<s>");
  const auto *up = entry(listing["tensors"], "name", "blk.3.ffn_up.weight");
  ASSERT_TRUE(up);
  EXPECT_EQ((*up)["type"], "Q8_0");
  EXPECT_EQ((*up)["shape"], nlohmann::ordered_json({768, 256}));
  EXPECT_EQ((*up)["bytes"], 208896);
  EXPECT_EQ(listing["totals"]["tensors"], 39);
  EXPECT_EQ(listing["totals"]["elements"], 4196608);

  std::string text = printed(listing);
  EXPECT_NE(text.find("GGUF version 3, alignment 32, 4,512,800 bytes\n"), std::string::npos);
  EXPECT_NE(text.find("llama.attention.head_count_kv"), std::string::npos);
  EXPECT_NE(text.find("2,048 entries: \"<unk>\", \"<s>\""), std::string::npos);
  EXPECT_NE(text.find("total: 39 tensors, 4,196,608 elements, 4,465,664 bytes (F32: 9 tensors, "
                      "9,216 bytes; Q8_0: 30 tensors, 4,456,448 bytes)\n"),
            std::string::npos);
}

TEST(Listing, EveryGGUFType) {
  SLUICE_UNWRAP(listing, listModelFile(dataFile("types.gguf")));
  EXPECT_EQ(listing["totals"]["types"].size(), 17u);
  EXPECT_NE(printed(listing).find("nvfp4.weight"), std::string::npos);
}

TEST(Listing, SafetensorsAndFolders) {
  SLUICE_UNWRAP(file, listModelFile(dataFile("types.f32.safetensors")));
  EXPECT_EQ(file["format"], "safetensors");
  EXPECT_EQ(file["totals"]["tensors"], 17);
  EXPECT_NE(printed(file).find("mxfp4.weight   F32   [4, 512]"), std::string::npos)
      << printed(file);

  SLUICE_UNWRAP(folder, listModelFile(std::string(SLUICE_MODELS) + "/llama-4m"));
  EXPECT_EQ(folder["format"], "Hugging Face");
  EXPECT_EQ(folder["totals"]["bytes"], 8393216);
  EXPECT_EQ((*entry(folder["metadata"], "key", "hidden_size"))["value"], 256);
  EXPECT_NE(printed(folder).find("model-00002-of-00002.safetensors\n"), std::string::npos);
}

TEST(Listing, ArchitecturesThatCannotBeCompiled) {
  Folder folder;
  folder.write("config.json", R"({"model_type": "mamba", "list": [1, [2]]})");
  SLUICE_UNWRAP(listing, listModelFile(folder.str()));
  EXPECT_EQ(listing["totals"]["tensors"], 0);
  EXPECT_NE(printed(listing).find("\"mamba\""), std::string::npos);
}

TEST(Listing, UnknownTypesAndTrailingBytes) {
  Folder folder;
  GGUFBuilder gguf;
  gguf.tensors.push_back({"a", {64, 2}, 200, std::string(96, 'x'), std::nullopt});
  gguf.f32Tensor("b", {8});
  SLUICE_UNWRAP(listing,
                listModelFile(folder.write("a.gguf", gguf.build() + std::string(50, 'x'))));
  EXPECT_EQ(listing["trailing_bytes"], 50);
  EXPECT_EQ((*entry(listing["tensors"], "name", "a"))["bytes"], 96);
  std::string text = printed(listing);
  EXPECT_NE(text.find("a     unknown (ggml type 200)  [2, 64]"), std::string::npos) << text;
  EXPECT_NE(text.find(" bytes, 50 of them after the last tensor\n"), std::string::npos) << text;
}

TEST(Listing, TextThatIsNotUtf8StaysPrintable) {
  Folder folder;
  GGUFBuilder gguf;
  gguf.string("bad\n", "\xff\x01");
  gguf.array<float>("floats", 6, {NAN, INFINITY});
  SLUICE_UNWRAP(listing, listModelFile(folder.write("a.gguf", gguf.build())));
  std::string text = printed(listing);
  EXPECT_NE(text.find("bad\\x0A"), std::string::npos) << text;
  EXPECT_EQ(text.find('\x01'), std::string::npos);
  EXPECT_FALSE(listing.dump().empty());
}
