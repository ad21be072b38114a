// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/TensorReader.h"

#include "TestFiles.h"

#include "sluice-support/Float16.h"
#include "sluice/Import/GGUF.h"
#include "sluice/Import/Safetensors.h"

using namespace sluice;
using namespace sluice::test;

/// types.f32.safetensors is what ggml itself dequantizes types.gguf to,
/// repacked-types.f32.safetensors what ggml's Python package does (scripts/make-test-types).
class TensorReaderTypes : public testing::TestWithParam<std::tuple<const char *, const char *>> {};

TEST_P(TensorReaderTypes, EqualsGgml) {
  std::string file = std::get<0>(GetParam()), name = std::get<1>(GetParam());
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile(file + ".gguf")));
  SLUICE_UNWRAP(golden, SafetensorsFile::open(dataFile(file + ".f32.safetensors")));
  const TensorRef *tensor = gguf.findTensor(name);
  const TensorRef *expected = golden.find(name);
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
INSTANTIATE_TEST_SUITE_P(
    Usable, TensorReaderTypes,
    testing::Combine(testing::Values("types"),
                     testing::Values("f32.weight", "f16.weight", "bf16.weight", "q8_0.weight",
                                     "q4_0.weight", "q4_1.weight", "q5_0.weight", "q5_1.weight",
                                     "q2_k.weight", "q3_k.weight", "q4_k.weight", "q5_k.weight",
                                     "q6_k.weight", "iq4_nl.weight", "iq4_xs.weight",
                                     "mxfp4.weight", "nvfp4.weight")));
INSTANTIATE_TEST_SUITE_P(Repacked, TensorReaderTypes,
                         testing::Combine(testing::Values("repacked-types"),
                                          testing::Values("q8_k.weight", "iq2_xxs.weight",
                                                          "iq2_xs.weight", "iq2_s.weight",
                                                          "iq3_xxs.weight", "iq3_s.weight",
                                                          "iq1_s.weight", "iq1_m.weight",
                                                          "tq1_0.weight", "tq2_0.weight")));

TEST(TensorReader, KnowsRepackedTypesByTheirBytes) {
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("repacked-types.gguf")));
  for (const TensorRef &tensor : gguf.tensors()) {
    SCOPED_TRACE(tensor.name);
    SLUICE_UNWRAP(reader, TensorReader::open(tensor, gguf.sharedFile()));
    ASSERT_TRUE(reader.blocks() && reader.blocks()->isRepacked());
    EXPECT_EQ(repackedStorage(reader.blocks()->encoding, tensor), tensor.type);
    EXPECT_EQ(repackedStorage(*formats::Encoding::fromName("q4_k"), tensor), std::nullopt);
  }
}

TEST(TensorReader, BlocksRebuildTheFile) {
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("types.gguf")));
  int count = 0;
  for (const TensorRef &tensor : gguf.tensors()) {
    SCOPED_TRACE(tensor.name);
    // The file's NVFP4 scales have signs, which ggml ignores and no encoding keeps.
    if (isPlainFloat(tensor.type) || tensor.type == StorageType::NVFP4)
      continue;
    SLUICE_UNWRAP(reader, TensorReader::open(tensor, gguf.sharedFile()));
    ASSERT_TRUE(reader.blocks());
    formats::EncodedRows numbers(reader.blocks()->encoding, reader.rows(), reader.columns());
    for (int64_t r = 0; r < reader.rows(); ++r) {
      reader.readNumbers(r, numbers, r);
      llvm::ArrayRef<uint8_t> raw = reader.rowBytes(r);
      std::vector<uint8_t> back(raw.size());
      reader.blocks()->write(numbers.row(r), back);
      EXPECT_EQ(back, std::vector<uint8_t>(raw)) << "row " << r;
    }
    ++count;
  }
  EXPECT_EQ(count, 13);
}

TEST(TensorReader, RefusesTypesAndBoundsThatItCannotRead) {
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("types.gguf")));
  TensorRef unusable = *gguf.findTensor("q6_k.weight");
  unusable.type = StorageType::Q8_1;
  EXPECT_NE(message(TensorReader::open(unusable, gguf.sharedFile()))
                .find("tensor 'q6_k.weight' has type Q8_1, expected F32, F16, BF16, Q4_0, Q4_1, "
                      "Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, "
                      "IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4 "
                      "or NVFP4"),
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

namespace {
/// A float32 tensor of a file of 0, 1, 2, ..., as a view.
struct ViewCase {
  std::vector<int64_t> shape;
  formats::RowView view;
  uint64_t first, elements;
  std::vector<std::vector<float>> rows;
};

llvm::Expected<TensorReader> openView(const ViewCase &view, const Folder &folder, int count = 64) {
  Bytes bytes;
  for (int i = 0; i < count; ++i)
    bytes.put(static_cast<float>(i));
  folder.write("numbers", bytes.data);
  TensorRef ref;
  ref.name = "w";
  ref.file = "numbers";
  ref.shape.assign(view.shape.begin(), view.shape.end());
  ref.offset = 4 * view.first;
  ref.bytes = 4 * view.elements;
  ref.view = view.view;
  FileSet files(folder.str());
  return TensorReader::open(ref, files);
}

class TensorViews : public testing::TestWithParam<ViewCase> {};
} // namespace

TEST_P(TensorViews, AreReadAsRows) {
  Folder folder;
  SLUICE_UNWRAP(reader, openView(GetParam(), folder));
  ASSERT_EQ(reader.rows(), static_cast<int64_t>(GetParam().rows.size()));
  std::vector<float> row(reader.columns());
  for (auto [number, expected] : llvm::enumerate(GetParam().rows)) {
    reader.readRow(number, row);
    EXPECT_EQ(row, expected) << "row " << number;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, TensorViews,
    testing::Values(
        // Two of four columns of a matrix [3, 4], transposed.
        ViewCase{{2, 3}, {.pitch = 4}, 1, 10, {{1, 5, 9}, {2, 6, 10}}},
        // The second of three parts of two heads of two rows.
        ViewCase{{4, 2}, {.block = 2, .stride = 6}, 4, 16, {{4, 5}, {6, 7}, {16, 17}, {18, 19}}},
        // A vector of such.
        ViewCase{{4}, {.block = 2, .stride = 6}, 2, 8, {{2, 3, 8, 9}}},
        // Heads of 6 whose first 4 are rotated: pairs (0, 2), (1, 3) and (4, 5) half a head apart.
        ViewCase{{12}, {.rotary = 4, .head = 6}, 0, 12, {{0, 1, 4, 2, 3, 5, 6, 7, 10, 8, 9, 11}}},
        // Rotary pairs side by side, of a vector.
        ViewCase{{4}, {.interleaved = 4}, 8, 4, {{8, 10, 9, 11}}}));

TEST(TensorReader, ChecksTheExtentOfViews) {
  Folder folder;
  EXPECT_NE(message(openView({{2, 3}, {.pitch = 4}, 1, 11, {}}, folder))
                .find("is declared with 44 bytes, which is not what F32"),
            std::string::npos);
  EXPECT_NE(message(openView({{4, 2}, {.block = 2, .stride = 6}, 50, 16, {}}, folder))
                .find("lies at byte 200 and has 64 bytes, but the file has 256"),
            std::string::npos);
}
