// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/Safetensors.h"

#include "TestFiles.h"

#include "sluice/Import/TensorReader.h"

using namespace sluice;
using namespace sluice::test;

using Declaration = SafetensorsWriter::Declaration;

static llvm::ArrayRef<uint8_t> bytesOf(const std::string &text) {
  return {reinterpret_cast<const uint8_t *>(text.data()), text.size()};
}

TEST(Safetensors, ReadsWhatTheFormatAllows) {
  Folder folder;
  SafetensorsBuilder builder;
  builder.header["__metadata__"] = {{"format", "pt"}, {"made by", "a test"}};
  builder.add("matrix", {2, 3}).add("empty", {0, 4}).add("scalar", {}, "F64", 8);
  builder.add("small", {3}, "F8_E4M3", 1).add("flags", {2}, "BOOL", 1);
  std::string bytes = builder.build();
  SLUICE_UNWRAP(file, SafetensorsFile::open(folder.write("a.safetensors", bytes)));
  ASSERT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.metadata().size(), 2u);
  EXPECT_EQ(file.metadata()[0].second, "pt");
  const TensorRef *small = file.find("small");
  ASSERT_TRUE(small);
  EXPECT_EQ(small->type, StorageType::F8E4M3);
  EXPECT_EQ(small->offset, bytes.size() - 5);
  EXPECT_EQ(small->bytes, 3u);
  EXPECT_EQ(file.find("empty")->bytes, 0u);
  EXPECT_EQ(file.find("nothing"), nullptr);
}

TEST(Safetensors, IndexNamesEachShardOnce) {
  Folder folder;
  SLUICE_UNWRAP(mapped, mapFile(folder.write("index.json", R"({"metadata": {}, "weight_map":
                              {"a": "two.safetensors", "b": "one.safetensors",
                               "c": "two.safetensors"}})")));
  SLUICE_UNWRAP(index, SafetensorsIndex::parse(*mapped));
  EXPECT_EQ(index.shards, (std::vector<std::string>{"one.safetensors", "two.safetensors"}));
  EXPECT_EQ(index.shardOf.lookup("a"), 1u);
  EXPECT_EQ(index.shardOf.lookup("b"), 0u);
  EXPECT_EQ(index.shardOf.lookup("c"), 1u);
}

TEST(SafetensorsWriter, AlignsEveryTensorAndReadsBack) {
  Folder folder;
  std::string path = folder / "100%.safetensors"; // '%' must survive the temporary name
  std::vector<Declaration> declarations = {{"odd", StorageType::U8, {3}},
                                           {"big", StorageType::F16, {4, 32}},
                                           {"odder", StorageType::F32, {5}},
                                           {"last \"quoted\"", StorageType::I8, {1, 7}},
                                           {"big2", StorageType::I8, {2, 64}}};
  std::vector<std::string> payload;
  for (const Declaration &declaration : declarations) {
    std::string bytes;
    for (uint64_t i = 0; i < *storageBytes(declaration.type, declaration.shape); ++i)
      bytes += static_cast<char>(payload.size() * 50 + i);
    payload.push_back(bytes);
  }
  std::pair<std::string, std::string> metadata[] = {{"format", "sluice"}};
  {
    SLUICE_UNWRAP(writer, SafetensorsWriter::create(path, declarations, metadata));
    // Backwards and in two pieces.
    for (size_t i = declarations.size(); i-- > 0;) {
      EXPECT_EQ(writer.offset(i) % 64, 0u);
      auto bytes = bytesOf(payload[i]);
      EXPECT_EQ(message(writer.append(i, bytes.take_front(2))), "success");
      EXPECT_EQ(message(writer.append(i, bytes.drop_front(2))), "success");
    }
    EXPECT_FALSE(llvm::sys::fs::exists(path));
    EXPECT_EQ(message(writer.finish()), "success");
  }
  SLUICE_UNWRAP(file, SafetensorsFile::open(path));
  EXPECT_EQ(file.metadata()[0].second, "sluice");
  for (size_t i = 0; i < declarations.size(); ++i) {
    const TensorRef *tensor = file.find(declarations[i].name);
    ASSERT_TRUE(tensor) << declarations[i].name;
    EXPECT_EQ(tensor->offset % 64, 0u);
    EXPECT_EQ(file.file().text().substr(tensor->offset, tensor->bytes), payload[i]);
  }
  // Two gaps between three tensors of odd sizes; what is whole lies in front of them.
  EXPECT_EQ(file.tensors().size(), declarations.size() + 2);
  EXPECT_EQ(file.tensors()[0].name, "big");
  EXPECT_EQ(file.tensors()[1].name, "big2");
}

TEST(SafetensorsWriter, EqualInputsGiveEqualFiles) {
  Folder folder;
  std::vector<Declaration> declarations = {{"b", StorageType::F32, {16}},
                                           {"a", StorageType::F32, {16}}};
  std::string text[2];
  for (int i = 0; i < 2; ++i) {
    std::string path = folder / ("file" + std::to_string(i));
    SLUICE_UNWRAP(writer, SafetensorsWriter::create(path, declarations));
    for (size_t t : {0, 1})
      EXPECT_EQ(message(writer.append(t, bytesOf(std::string(64, char('x' + t))))), "success");
    EXPECT_EQ(message(writer.finish()), "success");
    SLUICE_UNWRAP(file, mapFile(path));
    text[i] = file->text();
  }
  EXPECT_EQ(text[0], text[1]);
}

static size_t entries(const Folder &folder) {
  size_t count = 0;
  std::error_code ec;
  for (llvm::sys::fs::directory_iterator it(folder.str(), ec), end; it != end && !ec;
       it.increment(ec))
    ++count;
  return count;
}

TEST(SafetensorsWriter, LeavesNothingBehindOnFailure) {
  Folder folder;
  std::string path = folder / "w.safetensors";
  {
    SLUICE_UNWRAP(writer, SafetensorsWriter::create(path, {{"a", StorageType::F32, {4}}}));
    EXPECT_EQ(entries(folder), 1u);
    EXPECT_NE(message(writer.append(0, bytesOf(std::string(17, 'x'))))
                  .find("tensor 'a' was given more than its 16 bytes"),
              std::string::npos);
    EXPECT_EQ(message(writer.append(0, bytesOf(std::string(8, 'x')))), "success");
    EXPECT_NE(message(writer.finish()).find("tensor 'a' was given 8 of its 16 bytes"),
              std::string::npos);
  }
  EXPECT_EQ(entries(folder), 0u);
}

TEST(SafetensorsWriter, NamesWhatItCannotWrite) {
  Folder folder;
  std::string path = folder / "w.safetensors";
  auto failure = [&](std::vector<Declaration> declarations) {
    return message(SafetensorsWriter::create(path, declarations));
  };
  EXPECT_NE(failure({{"a", StorageType::Q8_0, {32}}}).find("safetensors has no type Q8_0"),
            std::string::npos);
  EXPECT_NE(failure({{"a", StorageType::U8, {1}}, {"a", StorageType::U8, {1}}})
                .find("tensor 'a' cannot be written twice"),
            std::string::npos);
  EXPECT_NE(failure({{"a", StorageType::U8, {-1}}}).find("with shape [-1]"), std::string::npos);
  EXPECT_NE(failure({{"__metadata__", StorageType::U8, {1}}}).find("reserved"), std::string::npos);
  EXPECT_NE(message(SafetensorsWriter::create(folder / "no/such/folder", {}))
                .find("no/such/folder: cannot be written: "),
            std::string::npos);
  EXPECT_EQ(entries(folder), 0u);
}
