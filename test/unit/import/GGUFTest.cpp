// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/GGUF.h"

#include "TestFiles.h"

using namespace sluice;
using namespace sluice::test;

TEST(GGUF, EveryValueType) {
  Folder folder;
  GGUFBuilder gguf;
  gguf.value<uint8_t>("u8", 0, 200);
  gguf.value<int8_t>("i8", 1, -3);
  gguf.value<uint16_t>("u16", 2, 60000);
  gguf.value<int16_t>("i16", 3, -30000);
  gguf.value<uint32_t>("u32", 4, 4000000000u);
  gguf.value<int32_t>("i32", 5, -5);
  gguf.value<float>("f32", 6, 0.5f);
  gguf.boolean("bool", 1);
  gguf.string("string", "text");
  gguf.value<uint64_t>("u64", 10, uint64_t(1) << 40);
  gguf.value<uint64_t>("huge", 10, UINT64_MAX);
  gguf.value<int64_t>("i64", 11, -1);
  gguf.value<double>("f64", 12, 0.25);
  gguf.strings("strings", {"a", "", "ccc"});
  gguf.array<int32_t>("ints", 5, {1, -2});
  // An array of two arrays of u8.
  Bytes nested;
  nested.put<uint32_t>(9).put<uint32_t>(9).put<uint64_t>(2);
  nested.put<uint32_t>(0).put<uint64_t>(2).put<uint8_t>(7).put<uint8_t>(8);
  nested.put<uint32_t>(0).put<uint64_t>(1).put<uint8_t>(9);
  gguf.raw("nested", nested.data);
  SLUICE_UNWRAP(file, GGUFFile::open(folder.write("values.gguf", gguf.build())));

  EXPECT_EQ(file.metadata().size(), 16u);
  EXPECT_EQ(file.find("u8")->asInteger(), 200);
  EXPECT_EQ(file.find("i8")->asInteger(), -3);
  EXPECT_EQ(file.find("u16")->asInteger(), 60000);
  EXPECT_EQ(file.find("i16")->asInteger(), -30000);
  EXPECT_EQ(file.find("u32")->asInteger(), 4000000000);
  EXPECT_EQ(file.find("i32")->asInteger(), -5);
  EXPECT_EQ(file.find("f32")->asFloat(), 0.5);
  EXPECT_EQ(file.find("f32")->asInteger(), std::nullopt);
  EXPECT_EQ(file.find("bool")->asBool(), true);
  EXPECT_EQ(file.find("string")->asString(), "text");
  EXPECT_EQ(file.find("u64")->asInteger(), int64_t(1) << 40);
  EXPECT_EQ(file.find("huge")->asInteger(), std::nullopt);
  EXPECT_EQ(file.find("i64")->asInteger(), -1);
  EXPECT_EQ(file.find("f64")->asFloat(), 0.25);
  EXPECT_EQ(file.find("strings")->asStrings(), (std::vector<llvm::StringRef>{"a", "", "ccc"}));
  EXPECT_EQ(file.find("strings")->asStrings(1), (std::vector<llvm::StringRef>{"a"}));
  EXPECT_EQ(file.find("ints")->asIntegers(), (std::vector<int64_t>{1, -2}));
  EXPECT_EQ(file.find("ints")->asStrings(), std::nullopt);
  auto inner = file.find("nested")->asValues();
  ASSERT_EQ(inner->size(), 2u);
  EXPECT_EQ((*inner)[0].asIntegers(), (std::vector<int64_t>{7, 8}));
  EXPECT_EQ((*inner)[1].asIntegers(), (std::vector<int64_t>{9}));
  EXPECT_EQ(file.find("missing"), nullptr);
}

TEST(GGUF, TensorsLieWhereTheFileSays) {
  Folder folder;
  GGUFBuilder gguf;
  gguf.alignment = 64;
  gguf.u32("general.alignment", 64);
  gguf.version = 2;
  gguf.f32Tensor("a", {3, 2}, 1.0f);
  gguf.f32Tensor("b", {5}, 2.0f);
  std::string bytes = gguf.build();
  SLUICE_UNWRAP(file, GGUFFile::open(folder.write("tensors.gguf", bytes)));
  EXPECT_EQ(file.version(), 2u);
  EXPECT_EQ(file.alignment(), 64u);
  ASSERT_EQ(file.tensors().size(), 2u);
  const TensorRef *b = file.findTensor("b");
  ASSERT_TRUE(b);
  EXPECT_EQ(b->file, "tensors.gguf");
  EXPECT_EQ(b->bytes, 20u);
  EXPECT_EQ(b->offset, bytes.size() - 20);
  EXPECT_EQ(llvm::ArrayRef<int64_t>(file.findTensor("a")->shape), llvm::ArrayRef<int64_t>({2, 3}));
}

TEST(GGUF, KnowsEveryTypeOfTheSample) {
  SLUICE_UNWRAP(file, GGUFFile::open(dataFile("types.gguf")));
  ASSERT_EQ(file.tensors().size(), 17u);
  for (const TensorRef &tensor : file.tensors())
    EXPECT_EQ(llvm::StringRef(tensor.name).split('.').first.upper(),
              storageName(tensor.type).str());
}
