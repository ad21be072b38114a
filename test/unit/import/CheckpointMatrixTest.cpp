// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/CheckpointMatrix.h"

#include "TestFiles.h"

#include "sluice/Formats/CacheEncoding.h"
#include "sluice/Formats/Quantizer.h"
#include "sluice/Import/Safetensors.h"
#include "sluice/Import/TensorReader.h"

#include <cmath>
#include <numeric>
#include <random>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

namespace {

/// Tensors of random bits in a file, and a weight that consists of them.
class RandomCheckpoint {
public:
  RandomCheckpoint(CheckpointScheme scheme, int64_t rows, int64_t columns) {
    weight.parts.emplace(scheme, rows, columns);
  }

  void elements(const std::string &name, const std::string &dtype, std::vector<int64_t> shape) {
    elementsName = name;
    builder.add(name, shape, dtype, bytesOf(dtype));
    types.push_back({name, dtype});
  }
  void part(PartRole role, const std::string &name, const std::string &dtype,
            std::vector<int64_t> shape) {
    builder.add(name, shape, dtype, bytesOf(dtype));
    types.push_back({name, dtype});
    roles.push_back({role, name});
  }

  /// Writes the file and completes the weight; `edit` may change a tensor's bytes first.
  void write(const std::function<void(const std::string &, uint8_t *, size_t)> &edit = {}) {
    std::string bytes = builder.build();
    size_t start = bytes.size() - builder.dataBytes;
    for (const auto &[name, dtype] : types) {
      auto offsets = builder.header[name]["data_offsets"];
      size_t begin = offsets[0], end = offsets[1];
      auto *data = reinterpret_cast<uint8_t *>(bytes.data()) + start + begin;
      for (size_t i = 0; i < end - begin; ++i)
        data[i] = static_cast<uint8_t>(random());
      // Scales are finite, and bf16 ones f16 numbers: 2^-8 to 2^8.
      if (dtype == "F16")
        for (size_t i = 1; i < end - begin; i += 2)
          data[i] = (data[i] & 0x80) | (0x20 + data[i] % 0x20);
      if (dtype == "BF16")
        for (size_t i = 0; i < end - begin; i += 2) {
          uint16_t word =
              uint16_t(data[i + 1] & 0x80) << 8 | (119 + data[i + 1] % 16) << 7 | (data[i] & 0x7f);
          std::memcpy(data + i, &word, 2);
        }
      if (edit)
        edit(name, data, end - begin);
    }
    folder.write("model.safetensors", bytes);
    auto file = SafetensorsFile::open(folder / "model.safetensors");
    ASSERT_TRUE(static_cast<bool>(file)) << llvm::toString(file.takeError());
    auto find = [&](const std::string &name) {
      TensorRef ref = *file->find(name);
      ref.file = "model.safetensors";
      return ref;
    };
    weight.tensor = find(elementsName);
    weight.parts->parts.clear();
    for (const auto &[role, name] : roles)
      weight.parts->parts.emplace_back(role, find(name));
    data = llvm::ArrayRef(file->file().text().data(), file->file().text().size());
    shared = file->sharedFile();
  }

  llvm::Expected<std::shared_ptr<const CheckpointMatrix>> open() const {
    FileSet files(folder.str());
    return CheckpointMatrix::open(weight, files);
  }

  template <typename T> T read(const TensorRef &tensor, int64_t index) const {
    T value;
    std::memcpy(&value, data.data() + tensor.offset + index * sizeof(T), sizeof(T));
    return value;
  }
  int field(const TensorRef &tensor, int64_t word, int64_t number, int bits) const {
    return read<uint32_t>(tensor, word) >> number * bits & ((1 << bits) - 1);
  }
  float half(PartRole role, int64_t index) const {
    return formats::f16ToFloat(read<uint16_t>(*weight.parts->find(role), index));
  }

  std::string root() const { return folder.str(); }

  Weight weight;

private:
  static uint64_t bytesOf(const std::string &dtype) {
    return dtype == "I32" || dtype == "F32" ? 4 : dtype == "F16" || dtype == "BF16" ? 2 : 1;
  }

  Folder folder;
  SafetensorsBuilder builder;
  std::string elementsName;
  std::vector<std::pair<std::string, std::string>> types;
  std::vector<std::pair<PartRole, std::string>> roles;
  llvm::ArrayRef<char> data;
  std::shared_ptr<const support::MappedFile> shared;
  std::mt19937 random{1};
};

/// Both ways of reading against a definition. Numbers may be in another order of columns: `order`
/// gives the column of each.
void expectValues(const RandomCheckpoint &checkpoint, const Encoding *encoding,
                  const std::function<float(int64_t row, int64_t column)> &value,
                  const std::vector<int64_t> &order = {}) {
  SLUICE_UNWRAP(matrix, checkpoint.open());
  int64_t rows = matrix->rows(), columns = matrix->columns();
  ASSERT_EQ(matrix->encoding().has_value(), encoding != nullptr) << matrix->whyNoEncoding().str();
  if (encoding)
    EXPECT_EQ(*matrix->encoding(), *encoding) << matrix->encoding()->name();
  std::vector<float> read(columns), dequantized(columns);
  for (int64_t row = 0; row < rows; ++row) {
    matrix->readRow(row, read);
    for (int64_t column = 0; column < columns; ++column)
      ASSERT_EQ(read[column], value(row, column)) << "row " << row << ", column " << column;
    if (!encoding)
      continue;
    formats::EncodedRows numbers(*encoding, 1, columns);
    matrix->readNumbers(row, numbers.numbers(0));
    formats::dequantizeRow(*encoding, numbers.row(0), dequantized);
    for (auto [number, column] : llvm::enumerate(order))
      read[number] = value(row, column);
    ASSERT_EQ(read, dequantized) << "row " << row;
  }
}

constexpr int64_t N = 48, K = 192;

TEST(CheckpointMatrix, Gptq) {
  for (int bits : {4, 8})
    for (CheckpointScheme scheme : {CheckpointScheme::Gptq, CheckpointScheme::GptqV2}) {
      SCOPED_TRACE(schemeName(scheme).str() + " " + std::to_string(bits));
      RandomCheckpoint file(scheme, N, K);
      file.elements("w.qweight", "I32", {K * bits / 32, N});
      file.part(PartRole::Scales, "w.scales", "F16", {3, N});
      file.part(PartRole::Zeros, "w.qzeros", "I32", {3, N * bits / 32});
      file.write();
      Encoding encoding{bits == 4 ? Encoding::Element::I4 : Encoding::Element::I8, 64,
                        Encoding::Offset::ZeroPoint};
      int perWord = 32 / bits, less = scheme == CheckpointScheme::Gptq;
      expectValues(file, &encoding, [&](int64_t n, int64_t k) {
        int q = file.field(file.weight.tensor, k / perWord * N + n, k % perWord, bits);
        int zero = file.field(*file.weight.parts->find(PartRole::Zeros),
                              k / 64 * (N / perWord) + n / perWord, n % perWord, bits);
        zero = (zero + less) & ((1 << bits) - 1);
        return float(q - zero) * file.half(PartRole::Scales, k / 64 * N + n);
      });
    }
}

TEST(CheckpointMatrix, GptqColumnsInAnyOrder) {
  // In order; each group's columns all over the row; groups of other sizes.
  for (int kind : {0, 1, 2}) {
    bool inOrder = kind == 0, isRegular = kind != 2;
    RandomCheckpoint file(CheckpointScheme::GptqV2, N, K);
    file.elements("w.qweight", "I32", {K / 8, N});
    file.part(PartRole::Scales, "w.scales", "F16", {2, N});
    file.part(PartRole::Zeros, "w.qzeros", "I32", {2, N / 8});
    file.part(PartRole::Groups, "w.g_idx", "I32", {K});
    auto group = [&](int64_t k) {
      return static_cast<int>(inOrder ? k / 128 : isRegular ? k * 7 % K / 128 : k % 2);
    };
    file.write([&](const std::string &name, uint8_t *data, size_t) {
      for (int k = 0; name == "w.g_idx" && k < K; ++k) {
        int number = group(k);
        std::memcpy(data + 4 * k, &number, 4);
      }
      // Zero points that are all 0.
      if (name == "w.qzeros")
        std::memset(data, 0x88, 2 * N / 2);
    });
    Encoding encoding{Encoding::Element::I4, 128};
    std::vector<int64_t> order(K);
    std::iota(order.begin(), order.end(), 0);
    llvm::sort(order, [&](int64_t x, int64_t y) {
      return std::pair(group(x), x) < std::pair(group(y), y);
    });
    expectValues(
        file, isRegular ? &encoding : nullptr,
        [&](int64_t n, int64_t k) {
          int q = file.field(file.weight.tensor, k / 8 * N + n, k % 8, 4) - 8;
          return float(q) * file.half(PartRole::Scales, group(k) * N + n);
        },
        order);
    SLUICE_UNWRAP(matrix, file.open());
    EXPECT_EQ(matrix->needs(PartRole::Groups), !inOrder);
    EXPECT_EQ(matrix->needs(PartRole::Zeros), !isRegular);
    if (!isRegular)
      EXPECT_EQ(matrix->whyNoEncoding(), "its groups do not all have 128 columns (act-order)");

    // The order itself, as a vector.
    Weight columns;
    columns.tensor = *file.weight.parts->find(PartRole::Groups);
    columns.parts.emplace(CheckpointScheme::ColumnOrder, 1, K);
    FileSet files(file.root());
    SLUICE_UNWRAP(reader, TensorReader::open(columns, files));
    std::vector<float> numbers(K);
    reader.readRow(0, numbers);
    EXPECT_EQ(numbers, std::vector<float>(order.begin(), order.end()));
  }
}

TEST(CheckpointMatrix, Awq) {
  for (int bits : {4, 8}) {
    SCOPED_TRACE(bits);
    int64_t perWord = 32 / bits;
    RandomCheckpoint file(CheckpointScheme::Awq, N, K);
    file.elements("w.qweight", "I32", {K, N / perWord});
    file.part(PartRole::Scales, "w.scales", "F16", {6, N});
    file.part(PartRole::Zeros, "w.qzeros", "I32", {6, N / perWord});
    file.write();
    Encoding encoding{bits == 4 ? Encoding::Element::I4 : Encoding::Element::I8, 32,
                      Encoding::Offset::ZeroPoint};
    // Field f of an int32 has row order[f].
    const std::vector<int> order =
        bits == 4 ? std::vector{0, 2, 4, 6, 1, 3, 5, 7} : std::vector{0, 2, 1, 3};
    expectValues(file, &encoding, [&](int64_t n, int64_t k) {
      int64_t f = llvm::find(order, n % perWord) - order.begin();
      int q = file.field(file.weight.tensor, k * (N / perWord) + n / perWord, f, bits);
      int zero = file.field(*file.weight.parts->find(PartRole::Zeros),
                            k / 32 * (N / perWord) + n / perWord, f, bits);
      return float(q - zero) * file.half(PartRole::Scales, k / 32 * N + n);
    });
  }
}

// Rows of scales and zero points have room for groups that do not exist.
TEST(CheckpointMatrix, AwqGemv) {
  for (auto [group, words] : {std::pair(32, 4), {64, 2}, {128, 1}, {0, 1}}) {
    SCOPED_TRACE(group);
    RandomCheckpoint file(CheckpointScheme::AwqGemv, N, K);
    file.elements("w.qweight", "I32", {N, K / 8});
    file.part(PartRole::Scales, "w.scales", "F16", {N, 8 * words});
    file.part(PartRole::Zeros, "w.qzeros", "I32", {N, words});
    file.write();
    EXPECT_NE(message(file.open()).find("does not tell the size of groups"), std::string::npos);
    file.weight.parts->group = group;
    Encoding encoding{Encoding::Element::I4, group, Encoding::Offset::ZeroPoint};
    expectValues(file, &encoding, [&, group = group, words = words](int64_t n, int64_t k) {
      int64_t g = group ? k / group : 0;
      int q = file.field(file.weight.tensor, n * (K / 8) + k / 8, k % 8, 4);
      int zero = file.field(*file.weight.parts->find(PartRole::Zeros), n * words + g / 8, g % 8, 4);
      return float(q - zero) * file.half(PartRole::Scales, n * 8 * words + g);
    });
  }
}

TEST(CheckpointMatrix, PackQuantized) {
  for (int bits : {4, 8}) {
    int perWord = 32 / bits;
    RandomCheckpoint file(CheckpointScheme::PackQuantized, N, K);
    file.elements("w.weight_packed", "I32", {N, K / perWord});
    file.part(PartRole::Scales, "w.weight_scale", "BF16", {N, 3});
    file.part(PartRole::Zeros, "w.weight_zero_point", "I32", {N / perWord, 3});
    file.write();
    Encoding encoding{bits == 4 ? Encoding::Element::I4 : Encoding::Element::I8, 64,
                      Encoding::Offset::ZeroPoint};
    expectValues(file, &encoding, [&](int64_t n, int64_t k) {
      int q = file.field(file.weight.tensor, n * (K / perWord) + k / perWord, k % perWord, bits);
      int zero = file.field(*file.weight.parts->find(PartRole::Zeros), n / perWord * 3 + k / 64,
                            n % perWord, bits);
      const TensorRef &scales = *file.weight.parts->find(PartRole::Scales);
      return float(q - zero) * formats::bf16ToFloat(file.read<uint16_t>(scales, n * 3 + k / 64));
    });
  }
}

TEST(CheckpointMatrix, ScalesThatAreNoF16AreF32) {
  RandomCheckpoint file(CheckpointScheme::PackQuantized, N, K);
  file.elements("w.weight_packed", "I32", {N, K / 8});
  file.part(PartRole::Scales, "w.weight_scale", "F32", {N, 1});
  file.write([&](const std::string &name, uint8_t *data, size_t size) {
    float third = 1.0f / 3;
    for (size_t i = 0; name == "w.weight_scale" && i < size; i += 4)
      std::memcpy(data + i, &third, 4);
  });
  Encoding encoding{Encoding::Element::I4, Encoding::channel, Encoding::Offset::None,
                    Encoding::Scale::F32};
  expectValues(file, &encoding, [&](int64_t n, int64_t k) {
    return float(file.field(file.weight.tensor, n * (K / 8) + k / 8, k % 8, 4) - 8) * (1.0f / 3);
  });
}

TEST(CheckpointMatrix, IntQuantized) {
  RandomCheckpoint file(CheckpointScheme::IntQuantized, N, K);
  file.elements("w.weight", "I8", {N, K});
  file.part(PartRole::Scales, "w.weight_scale", "F16", {N, 1});
  file.write();
  Encoding encoding{Encoding::Element::I8};
  expectValues(file, &encoding, [&](int64_t n, int64_t k) {
    return float(file.read<int8_t>(file.weight.tensor, n * K + k)) * file.half(PartRole::Scales, n);
  });
}

TEST(CheckpointMatrix, Fp8) {
  // Of the matrix, of a row (two spellings), of blocks.
  constexpr int64_t rows = 160;
  using Scale = Encoding::Scale;
  for (auto [shape, type, scale] : {std::tuple(std::vector<int64_t>{1}, "F32", Scale::F32),
                                    {{rows}, "F16", Scale::F32},
                                    {{rows, 1}, "BF16", Scale::BF16},
                                    {{2, 2}, "BF16", Scale::BF16},
                                    {{2, 2}, "F32", Scale::F32}}) {
    SCOPED_TRACE(shapeText(shape) + " " + type);
    RandomCheckpoint file(CheckpointScheme::Fp8, rows, K);
    file.elements("w.weight", "F8_E4M3", {rows, K});
    file.part(PartRole::Scales, "w.weight_scale_inv", type, shape);
    file.write([&](const std::string &name, uint8_t *data, size_t size) {
      // No NaN.
      for (size_t i = 0; name == "w.weight" && i < size; ++i)
        if ((data[i] & 0x7f) == 0x7f)
          data[i] = 0;
      // Finite, and products with all numbers normal.
      for (size_t i = 3; name != "w.weight" && type == std::string("F32") && i < size; i += 4)
        data[i] = (data[i] & 0x80) | (0x34 + data[i] % 8);
    });
    const Encoding encoding{Encoding::Element::E4M3, shape == std::vector<int64_t>{2, 2} ? 128 : 0,
                            Encoding::Offset::None, scale};
    expectValues(file, &encoding, [&](int64_t n, int64_t k) {
      int64_t place = shape[0] == 1 ? 0 : shape[0] == rows ? n : n / 128 * 2 + k / 128;
      const TensorRef &scales = *file.weight.parts->find(PartRole::Scales);
      float scale = scales.type == StorageType::F32 ? file.read<float>(scales, place)
                    : scales.type == StorageType::F16
                        ? formats::f16ToFloat(file.read<uint16_t>(scales, place))
                        : formats::bf16ToFloat(file.read<uint16_t>(scales, place));
      // OCP 8-bit Floating Point: sign, 4 bits of exponent with bias 7, 3 of fraction.
      int code = file.read<uint8_t>(file.weight.tensor, n * K + k);
      int exponent = code >> 3 & 15, fraction = code & 7;
      float number =
          exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(float(fraction), -9);
      return (code & 0x80 ? -number : number) * scale;
    });
  }
}

/// The number of a nibble, by its bits: sign, 2 of exponent with bias 1, 1 of fraction.
float fp4(int code) {
  int exponent = code >> 1 & 3, fraction = code & 1;
  float number = exponent ? std::ldexp(2.0f + fraction, exponent - 2) : 0.5f * fraction;
  return code & 8 ? -number : number;
}

TEST(CheckpointMatrix, Nvfp4) {
  RandomCheckpoint file(CheckpointScheme::Nvfp4, N, K);
  file.elements("w.weight_packed", "U8", {N, K / 2});
  file.part(PartRole::Scales, "w.weight_scale", "F8_E4M3", {N, K / 16});
  file.write([&](const std::string &name, uint8_t *data, size_t size) {
    for (size_t i = 0; name == "w.weight_scale" && i < size; ++i)
      data[i] %= 0x7f;
  });
  Encoding encoding{Encoding::Element::E2M1, 16, Encoding::Offset::None, Encoding::Scale::E4M3};
  expectValues(file, &encoding, [&](int64_t n, int64_t k) {
    int byte = file.read<uint8_t>(file.weight.tensor, n * (K / 2) + k / 2);
    int scale =
        file.read<uint8_t>(*file.weight.parts->find(PartRole::Scales), n * (K / 16) + k / 16);
    return fp4(k % 2 ? byte >> 4 : byte & 15) * formats::e4m3ToFloat(static_cast<uint8_t>(scale));
  });
}

TEST(CheckpointMatrix, Mxfp4) {
  for (CheckpointScheme scheme : {CheckpointScheme::Mxfp4, CheckpointScheme::Mxfp4Blocks}) {
    bool blocks = scheme == CheckpointScheme::Mxfp4Blocks;
    RandomCheckpoint file(scheme, N, K);
    file.elements("w", "U8",
                  blocks ? std::vector<int64_t>{N, K / 32, 16} : std::vector<int64_t>{N, K / 2});
    file.part(PartRole::Scales, "s", "U8", {N, K / 32});
    file.write([&](const std::string &name, uint8_t *data, size_t size) {
      // 255 is NaN, and beyond 251 six times the scale is no float32.
      for (size_t i = 0; name == "s" && i < size; ++i)
        data[i] %= 251;
    });
    Encoding encoding{Encoding::Element::E2M1, 32, Encoding::Offset::None, Encoding::Scale::E8M0};
    expectValues(file, &encoding, [&](int64_t n, int64_t k) {
      int byte = file.read<uint8_t>(file.weight.tensor, n * (K / 2) + k / 2);
      int exponent =
          file.read<uint8_t>(*file.weight.parts->find(PartRole::Scales), n * (K / 32) + k / 32);
      return std::ldexp(fp4(k % 2 ? byte >> 4 : byte & 15), exponent - 127);
    });
  }
}

TEST(CheckpointMatrix, RefusesWhatIsWrong) {
  auto gptq = [](std::vector<int64_t> elements, std::vector<int64_t> scales,
                 std::vector<int64_t> zeros) {
    auto file = std::make_unique<RandomCheckpoint>(CheckpointScheme::Gptq, N, K);
    file->elements("w.qweight", "I32", elements);
    file->part(PartRole::Scales, "w.scales", "F16", scales);
    file->part(PartRole::Zeros, "w.qzeros", "I32", zeros);
    file->write();
    return file;
  };
  auto expectError = [](const RandomCheckpoint &file, const std::string &expected) {
    std::string found = message(file.open());
    EXPECT_NE(found.find(expected), std::string::npos) << found;
    EXPECT_EQ(found.find('\n'), std::string::npos) << found;
  };
  expectError(*gptq({K / 8, N}, {3, N}, {3, N / 8}), "success");
  expectError(*gptq({K / 8, N + 8}, {3, N}, {3, N / 8}),
              "tensor 'w.qweight' has shape [24, 56], expected [24, 48]");
  expectError(*gptq({K / 8, N}, {4, N}, {4, N / 8}),
              "tensor 'w.scales' has shape [4, 48], that is 4 groups of 192 columns, expected "
              "groups of 32, 64, 128 or 256 columns or a whole row");
  expectError(*gptq({K / 8, N}, {3, N + 1}, {3, N / 8}),
              "tensor 'w.scales' has shape [3, 49], expected [3, 48]");
  expectError(*gptq({K / 8, N}, {3, N}, {2, N / 8}),
              "tensor 'w.qzeros' has shape [2, 6], expected [3, 6]");
  auto truncated = gptq({K / 8, N}, {3, N}, {3, N / 8});
  truncated->weight.tensor.offset += 1 << 20;
  expectError(*truncated, "but the file has");

  RandomCheckpoint order(CheckpointScheme::Gptq, N, K);
  order.elements("w.qweight", "I32", {K / 8, N});
  order.part(PartRole::Scales, "w.scales", "F16", {3, N});
  order.part(PartRole::Groups, "w.g_idx", "I32", {K});
  order.write([](const std::string &name, uint8_t *data, size_t size) {
    if (name == "w.g_idx") {
      std::memset(data, 0, size);
      data[4 * 5] = 3;
    }
  });
  expectError(order, "tensor 'w.g_idx' has group 3 for column 5, expected 0 to 2");

  RandomCheckpoint nan(CheckpointScheme::Nvfp4, N, K);
  nan.elements("w.weight_packed", "U8", {N, K / 2});
  nan.part(PartRole::Scales, "w.weight_scale", "F8_E4M3", {N, K / 16});
  nan.write([](const std::string &name, uint8_t *data, size_t size) {
    if (name == "w.weight_scale") {
      std::memset(data, 0, size);
      data[K / 16 + 2] = 0x7f;
    }
  });
  expectError(nan, "tensor 'w.weight_scale' has byte 127 at [1, 2], which is no scale");

  RandomCheckpoint zero(CheckpointScheme::InverseFactor, 1, N);
  zero.elements("w.weight_global_scale", "F32", {1});
  zero.write([](const std::string &, uint8_t *data, size_t size) { std::memset(data, 0, size); });
  expectError(zero, "tensor 'w.weight_global_scale' is a divisor and 0");
}

TEST(CheckpointMatrix, DeclaredEncodingHasToBeTheFiles) {
  RandomCheckpoint file(CheckpointScheme::IntQuantized, N, K);
  file.elements("w.weight", "I8", {N, K});
  file.part(PartRole::Scales, "w.weight_scale", "F16", {N, 1});
  file.write();
  Weight weight = file.weight;
  weight.parts->encoding = Encoding{Encoding::Element::I8, 64};
  FileSet files(file.root());
  std::string found = message(TensorReader::open(weight, files));
  EXPECT_NE(found.find("is declared as int8-g64, but has int8-channel"), std::string::npos)
      << found;
}

/// A view gives the matrix's rows another order, both as numbers and as values.
TEST(CheckpointMatrix, IsReadInTheOrderOfItsView) {
  constexpr int64_t rows = 12, columns = 32;
  RandomCheckpoint file(CheckpointScheme::IntQuantized, rows, columns);
  file.elements("w.weight", "I8", {rows, columns});
  file.part(PartRole::Scales, "w.weight_scale", "F16", {rows, 1});
  file.write();
  FileSet files(file.root());
  SLUICE_UNWRAP(plain, TensorReader::open(file.weight, files));
  Weight weight = file.weight;
  const Encoding encoding{Encoding::Element::I8, 0};
  weight.parts->encoding = encoding;
  formats::EncodedRows numbers(encoding, 1, columns);
  std::vector<float> expected(columns), values(columns), kept(columns);
  const std::pair<formats::RowView, std::vector<int64_t>> views[] = {
      {{.rotary = 2, .head = 6}, {0, 2, 3, 1, 4, 5, 6, 8, 9, 7, 10, 11}},
      // Rows of a matrix that has those of other weights, too: together, and by heads of two.
      {{.first = 7, .total = rows}, {7, 8, 9}},
      {{.first = 11, .total = rows}, {11}},
      {{.block = 2, .stride = 6, .first = 2, .total = rows}, {2, 3, 8, 9}}};
  for (const auto &[view, order] : views) {
    weight.tensor.view = view;
    weight.parts->rows = static_cast<int64_t>(order.size());
    SLUICE_UNWRAP(viewed, TensorReader::open(weight, files));
    ASSERT_EQ(viewed.encoding(), encoding);
    ASSERT_EQ(viewed.rows(), weight.parts->rows);
    for (auto [row, fileRow] : llvm::enumerate(order)) {
      plain.readRow(fileRow, expected);
      viewed.readRow(row, values);
      EXPECT_EQ(values, expected) << "row " << row;
      viewed.readNumbers(row, numbers, 0);
      formats::dequantizeRow(encoding, numbers.row(0), kept);
      EXPECT_EQ(kept, expected) << "row " << row;
    }
  }
}

} // namespace
