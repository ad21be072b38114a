// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/TensorReader.h"

#include "TestFiles.h"

#include "sluice-support/Float16.h"
#include "sluice/Import/GGUF.h"
#include "sluice/Import/Safetensors.h"

using namespace sluice;
using namespace sluice::test;

/// types.f32.safetensors is what ggml itself dequantizes types.gguf to.
class TensorReaderTypes : public testing::TestWithParam<const char *> {};

TEST_P(TensorReaderTypes, EqualsGgml) {
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("types.gguf")));
  SLUICE_UNWRAP(golden, SafetensorsFile::open(dataFile("types.f32.safetensors")));
  const TensorRef *tensor = gguf.findTensor(GetParam());
  const TensorRef *expected = golden.find(GetParam());
  ASSERT_TRUE(tensor && expected);
  SLUICE_UNWRAP(reader, TensorReader::open(*tensor, gguf.sharedFile()));
  SLUICE_UNWRAP(goldenReader, TensorReader::open(*expected, golden.sharedFile()));
  ASSERT_EQ(reader.rows(), 4);
  ASSERT_EQ(reader.columns(), 512);
  std::vector<float> row(512), goldenRow(512);
  bool anything = false;
  for (int64_t i = 0; i < 4; ++i) {
    reader.readRow(i, row);
    goldenReader.readRow(i, goldenRow);
    EXPECT_EQ(row, goldenRow) << "row " << i;
    anything |= row[0] != 0;
  }
  EXPECT_TRUE(anything);
}
INSTANTIATE_TEST_SUITE_P(Usable, TensorReaderTypes,
                         testing::Values("f32.weight", "f16.weight", "bf16.weight", "q8_0.weight",
                                         "q4_0.weight"));

class TensorReaderBlocks : public testing::TestWithParam<const char *> {};

TEST_P(TensorReaderBlocks, IntegersAndScalesRebuildTheFile) {
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("types.gguf")));
  SLUICE_UNWRAP(reader, TensorReader::open(*gguf.findTensor(GetParam()), gguf.sharedFile()));
  ASSERT_EQ(reader.blockElements(), 32);
  bool four = reader.type() == StorageType::Q4_0;
  std::vector<float> row(512);
  std::vector<int8_t> q(512);
  std::vector<uint16_t> scales(16);
  for (int64_t r = 0; r < 4; ++r) {
    reader.readRow(r, row);
    reader.readBlocks(r, q, scales);
    Bytes stored;
    for (int block = 0; block < 16; ++block) {
      for (int i = 0; i < 32; ++i)
        EXPECT_EQ(row[block * 32 + i], support::f16ToFloat(scales[block]) * q[block * 32 + i]);
      stored.put(scales[block]);
      for (int i = 0; i < (four ? 16 : 32); ++i)
        stored.put<uint8_t>(four ? (q[block * 32 + i] + 8) | (q[block * 32 + i + 16] + 8) << 4
                                 : static_cast<uint8_t>(q[block * 32 + i]));
    }
    llvm::ArrayRef<uint8_t> raw = reader.rowBytes(r);
    EXPECT_EQ(stored.data, std::string(raw.begin(), raw.end()));
  }
}
INSTANTIATE_TEST_SUITE_P(Blocks, TensorReaderBlocks, testing::Values("q8_0.weight", "q4_0.weight"));

TEST(TensorReader, RefusesTypesAndBoundsThatItCannotRead) {
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("types.gguf")));
  EXPECT_NE(message(TensorReader::open(*gguf.findTensor("q6_k.weight"), gguf.sharedFile()))
                .find("tensor 'q6_k.weight' has type Q6_K, expected F32, F16, BF16, Q8_0 or Q4_0"),
            std::string::npos);
  // References also come back from text that a person may have edited.
  TensorRef tensor = *gguf.findTensor("f16.weight");
  tensor.shape = {4, 511};
  EXPECT_NE(message(TensorReader::open(tensor, gguf.sharedFile())).find("is declared with 4096"),
            std::string::npos);
  tensor = *gguf.findTensor("f16.weight");
  tensor.offset = UINT64_MAX - 7;
  EXPECT_NE(message(TensorReader::open(tensor, gguf.sharedFile())).find("but the file has"),
            std::string::npos);
  FileSet files{std::string(SLUICE_TEST_DATA)};
  tensor.file = "../data/types.gguf";
  EXPECT_NE(message(TensorReader::open(tensor, files)).find("leaves the model's folder"),
            std::string::npos);
  tensor.file = "/etc/hostname";
  EXPECT_NE(message(TensorReader::open(tensor, files)).find("is not a path below"),
            std::string::npos);
}
