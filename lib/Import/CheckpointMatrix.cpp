// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/CheckpointMatrix.h"

#include "Diagnostics.h"

#include "sluice/Formats/CacheEncoding.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/bit.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/MathExtras.h"

#include <cmath>
#include <numeric>

using namespace llvm;
using namespace sluice;
using formats::Encoding;
using llvm::support::endian::read16le;
using llvm::support::endian::read32le;
using sluice::detail::fail;
using sluice::detail::quote;

/// Where AWQ keeps row r of eight, or of four of 8 bits, in an int32, counted in fields from its
/// low end.
static unsigned awqField(unsigned bits, int64_t r) {
  static constexpr unsigned four[8] = {0, 4, 1, 5, 2, 6, 3, 7}, eight[4] = {0, 2, 1, 3};
  return bits == 4 ? four[r % 8] : eight[r % 4];
}

static Error wrong(const TensorRef &tensor, StringRef path, const Twine &message) {
  return fail(path, "tensor " + quote(tensor.name) + " " + message);
}

Expected<CheckpointMatrix::Bytes> CheckpointMatrix::openTensor(const TensorRef &tensor,
                                                               FileSet &files) {
  auto file = files.get(tensor.file);
  if (!file)
    return file.takeError();
  std::optional<uint64_t> bytes = storageBytes(tensor.type, tensor.shape);
  if (!bytes || *bytes != tensor.bytes)
    return wrong(tensor, (*file)->path(),
                 "is declared with " + Twine(tensor.bytes) + " bytes, which is not what " +
                     tensor.typeText() + " " + shapeText(tensor.shape) + " takes");
  if (tensor.offset > (*file)->size() || tensor.bytes > (*file)->size() - tensor.offset)
    return wrong(tensor, (*file)->path(),
                 "lies at byte " + Twine(tensor.offset) + " and has " + Twine(tensor.bytes) +
                     " bytes, but the file has " + Twine((*file)->size()));
  return Bytes{*file, reinterpret_cast<const uint8_t *>((*file)->bytes().data()) + tensor.offset,
               tensor};
}

/// An error unless the tensor has one of these types and this shape.
template <typename BytesT>
static Error checkTensor(const BytesT &bytes, ArrayRef<StorageType> types,
                         ArrayRef<int64_t> shape) {
  const TensorRef &tensor = bytes.ref;
  if (!is_contained(types, tensor.type)) {
    auto names = map_range(types, [](StorageType type) { return storageName(type); });
    return wrong(tensor, bytes.file->path(),
                 "has type " + tensor.typeText() + ", expected " + join(names, " or "));
  }
  if (ArrayRef(tensor.shape) != shape)
    return wrong(tensor, bytes.file->path(),
                 "has shape " + shapeText(tensor.shape) + ", expected " + shapeText(shape));
  return Error::success();
}

Error CheckpointMatrix::load(const Weight &weight, FileSet &files) {
  const CheckpointParts &parts = *weight.parts;
  scheme = parts.scheme;
  numRows = matrixRows(weight);
  numColumns = parts.columns;
  auto openPart = [&](PartRole role, Bytes &to) -> Error {
    const TensorRef *tensor = parts.find(role);
    if (!tensor)
      return Error::success();
    Expected<Bytes> opened = openTensor(*tensor, files);
    if (!opened)
      return opened.takeError();
    to = std::move(*opened);
    return Error::success();
  };
  Expected<Bytes> opened = openTensor(weight.tensor, files);
  if (!opened)
    return opened.takeError();
  elements = std::move(*opened);
  Bytes columnIndex;
  if (Error error = openPart(PartRole::Scales, scales))
    return error;
  if (Error error = openPart(PartRole::Zeros, zeros))
    return error;
  if (Error error = openPart(PartRole::Groups, columnIndex))
    return error;
  if (!scales && !isVectorScheme(scheme))
    return wrong(weight.tensor, elements.file->path(), "has no scales");

  SmallVector<ElementForm, 2> forms = elementForms(scheme, numRows, numColumns);
  // The first one for the message where none fits.
  const ElementForm *form =
      llvm::find_if(forms, [&](const ElementForm &f) { return f.shape == elements.ref.shape; });
  if (form == forms.end())
    form = forms.begin();
  elementBits = form->bits;
  if (Error error = checkTensor(elements, {form->type}, form->shape))
    return error;
  if (scheme == CheckpointScheme::InverseFactor)
    return loadFactor();
  if (scheme == CheckpointScheme::ColumnOrder)
    return loadColumnGroups(elements);
  if (Error error =
          scheme == CheckpointScheme::AwqGemv ? loadGemvScales(parts.group) : loadScales())
    return error;
  if (zeros)
    if (Error error = loadZeros())
      return error;
  if (columnIndex)
    if (Error error = loadColumnGroups(columnIndex))
      return error;
  return Error::success();
}

Error CheckpointMatrix::loadFactor() {
  float factor = bit_cast<float>(read32le(elements.data));
  if (std::isfinite(factor) && factor != 0 && std::isfinite(1 / factor))
    return Error::success();
  return wrong(elements.ref, elements.file->path(),
               "is a divisor and " + Twine(factor == 0          ? "0"
                                           : std::isnan(factor) ? "NaN"
                                           : std::isinf(factor) ? "infinite"
                                                                : "has no inverse in float32"));
}

Error CheckpointMatrix::loadByteScales() {
  groupSize = scheme == CheckpointScheme::Nvfp4 ? 16 : 32;
  groups = static_cast<int64_t>(divideCeil(numColumns, groupSize));
  rowStride = groups;
  groupStride = 1;
  bool isE4M3 = scheme == CheckpointScheme::Nvfp4;
  if (Error error =
          checkTensor(scales, {isE4M3 ? StorageType::F8E4M3 : StorageType::U8}, {numRows, groups}))
    return error;
  // E4M3: a sign (also that of 0), and NaN. E8M0: NaN.
  unsigned most = isE4M3 ? 0x7e : 0xfe;
  for (int64_t i = 0; i < numRows * groups; ++i)
    if (scales.data[i] > most)
      return wrong(scales.ref, scales.file->path(),
                   "has byte " + Twine(unsigned(scales.data[i])) + " at " +
                       shapeText({i / groups, i % groups}) + ", which is no scale: expected 0 to " +
                       Twine(most));
  return Error::success();
}

Error CheckpointMatrix::loadGemvScales(std::optional<int64_t> group) {
  if (!group)
    return wrong(scales.ref, scales.file->path(), "does not tell the size of groups");
  groupSize = *group;
  groups = groupSize ? static_cast<int64_t>(divideCeil(numColumns, groupSize)) : 1;
  // Words of 8 groups, of small groups so many that a row has them for 1024 columns.
  int64_t multiple = groupSize == 32 ? 4 : groupSize == 64 ? 2 : 1;
  int64_t words = alignTo(divideCeil(groups, 8), multiple);
  rowStride = 8 * words;
  groupStride = 1;
  return checkTensor(scales, {StorageType::F16, StorageType::BF16, StorageType::F32},
                     {numRows, 8 * words});
}

Error CheckpointMatrix::loadScales() {
  if (hasByteScales())
    return loadByteScales();
  constexpr StorageType types[] = {StorageType::F16, StorageType::BF16, StorageType::F32};
  ArrayRef<int64_t> shape = scales.ref.shape;
  bool isPacked = scheme == CheckpointScheme::PackQuantized,
       isBytes = scheme == CheckpointScheme::IntQuantized || scheme == CheckpointScheme::Fp8;
  if (!isPacked && !isBytes)
    return loadIntegerScales(/*groupsFirst=*/true);
  groups = 1;
  // One for the whole matrix, or one for a row.
  if (elementCount(shape) == 1 && shape.size() <= 2) {
    rowsOfScale = numRows;
    return checkTensor(scales, types, shape);
  }
  if (isBytes && shape.size() == 1) {
    rowStride = 1;
    return checkTensor(scales, types, {numRows});
  }
  if (scheme != CheckpointScheme::Fp8 ||
      (shape.size() == 2 && shape[1] == 1 && shape[0] == numRows))
    return loadIntegerScales(/*groupsFirst=*/false);
  groupSize = rowsOfScale = 128;
  groups = static_cast<int64_t>(divideCeil(numColumns, 128));
  rowStride = groups;
  groupStride = 1;
  return checkTensor(scales, types, {static_cast<int64_t>(divideCeil(numRows, 128)), groups});
}

Error CheckpointMatrix::loadIntegerScales(bool groupsFirst) {
  ArrayRef<int64_t> shape = scales.ref.shape;
  constexpr StorageType types[] = {StorageType::F16, StorageType::BF16, StorageType::F32};
  groups = shape.size() == 2 ? shape[groupsFirst ? 0 : 1] : 1;
  if (groups > 1) {
    // No two of these sizes make equally many groups of more than one.
    for (int64_t size : {32, 64, 128, 256})
      if (static_cast<int64_t>(divideCeil(numColumns, size)) == groups)
        groupSize = size;
    if (!groupSize)
      return wrong(scales.ref, scales.file->path(),
                   "has shape " + shapeText(shape) + ", that is " + Twine(groups) + " groups of " +
                       Twine(numColumns) +
                       " columns, expected groups of 32, 64, 128 or 256 columns or a whole row");
  }
  rowStride = groupsFirst ? 1 : groups;
  groupStride = groupsFirst ? numRows : 1;
  if (groupsFirst)
    return checkTensor(scales, types, {groups, numRows});
  return checkTensor(scales, types, {numRows, groups});
}

Error CheckpointMatrix::loadZeros() {
  int64_t perWord = 32 / elementBits, words = divideCeil(numRows, perWord);
  if (scheme == CheckpointScheme::IntQuantized)
    return checkTensor(zeros, {StorageType::I8}, {numRows, groups});
  if (scheme == CheckpointScheme::AwqGemv)
    return checkTensor(zeros, {StorageType::I32}, {numRows, rowStride / 8});
  if (scheme != CheckpointScheme::PackQuantized)
    return checkTensor(zeros, {StorageType::I32}, {groups, words});
  if (zeros.ref.type == StorageType::I8) {
    if (Error error = checkTensor(zeros, {StorageType::I8}, {numRows, groups}))
      return error;
    int most = 1 << (elementBits - 1);
    for (int64_t i = 0; i < numRows * groups; ++i)
      if (int zero = static_cast<int8_t>(zeros.data[i]); zero < -most || zero >= most)
        return wrong(zeros.ref, zeros.file->path(),
                     "has zero point " + Twine(zero) + " at " +
                         shapeText({i / groups, i % groups}) + ", expected " + Twine(-most) +
                         " to " + Twine(most - 1));
    return Error::success();
  }
  return checkTensor(zeros, {StorageType::I32, StorageType::I8}, {words, groups});
}

Error CheckpointMatrix::loadColumnGroups(const Bytes &index) {
  if (Error error = checkTensor(index, {StorageType::I32}, {numColumns}))
    return error;
  // A vector does not know how many groups there are.
  bool isVector = isVectorScheme(scheme), inOrder = true;
  int64_t end = isVector ? numColumns : groups;
  columnGroups.resize(numColumns);
  for (int64_t column = 0; column < numColumns; ++column) {
    int32_t group = static_cast<int32_t>(read32le(index.data + 4 * column));
    if (group < 0 || group >= end)
      return wrong(index.ref, index.file->path(),
                   "has group " + Twine(group) + " for column " + Twine(column) +
                       ", expected 0 to " + Twine(end - 1));
    columnGroups[column] = group;
    inOrder &= group == (groupSize ? column / groupSize : 0);
  }
  if (inOrder && !isVector) {
    columnGroups.clear();
    return Error::success();
  }
  columnOrder.resize(numColumns);
  std::iota(columnOrder.begin(), columnOrder.end(), 0);
  llvm::sort(columnOrder, [&](int32_t x, int32_t y) {
    return std::pair(columnGroups[x], x) < std::pair(columnGroups[y], y);
  });
  return Error::success();
}

void CheckpointMatrix::chooseEncoding() {
  if (isVectorScheme(scheme))
    return;
  if (scheme == CheckpointScheme::Fp8) {
    enc = Encoding{Encoding::Element::E4M3, groupSize, Encoding::Offset::None,
                   scales.ref.type == StorageType::BF16 ? Encoding::Scale::BF16
                                                        : Encoding::Scale::F32};
    return;
  }
  if (hasByteScales()) {
    enc =
        Encoding{Encoding::Element::E2M1, groupSize, Encoding::Offset::None,
                 scheme == CheckpointScheme::Nvfp4 ? Encoding::Scale::E4M3 : Encoding::Scale::E8M0};
    return;
  }
  for (auto [place, column] : enumerate(columnOrder))
    if (columnGroups[column] != static_cast<int64_t>(place) / groupSize) {
      reason = "its groups do not all have " + std::to_string(groupSize) + " columns (act-order)";
      return;
    }
  Encoding encoding;
  encoding.element = elementBits == 8 ? Encoding::Element::I8 : Encoding::Element::I4;
  encoding.group = groupSize;
  bool isF16 = scales.ref.type == StorageType::F16;
  for (int64_t row = 0; row < numRows && !isF16; row += rowsOfScale)
    for (int64_t group = 0; group < groups; ++group) {
      float value = scale(row, group);
      // NaN and infinities are errors when rows are read.
      if (std::isfinite(value) && formats::f16ToFloat(formats::floatToF16(value)) != value)
        encoding.scale = Encoding::Scale::F32;
    }
  enc = encoding;
  if (!zeros)
    return;
  for (int64_t row = 0; row < numRows; ++row)
    for (int64_t group = 0; group < groups; ++group)
      if (zero(row, group)) {
        enc->offset = Encoding::Offset::ZeroPoint;
        return;
      }
}

Expected<std::shared_ptr<const CheckpointMatrix>> CheckpointMatrix::open(const Weight &weight,
                                                                         FileSet &files) {
  auto matrix = std::make_shared<CheckpointMatrix>();
  if (Error error = matrix->load(weight, files))
    return std::move(error);
  matrix->chooseEncoding();
  return matrix;
}

bool CheckpointMatrix::needs(PartRole role) const {
  switch (role) {
  case PartRole::Scales:
    return true;
  case PartRole::Zeros:
    return zeros && (!enc || enc->hasZeroPoint());
  case PartRole::Groups:
    return !columnGroups.empty();
  }
  llvm_unreachable("not a role");
}

int CheckpointMatrix::unpack(const uint8_t *words, int64_t word, unsigned field) const {
  int mask = (1 << elementBits) - 1;
  return static_cast<int>(read32le(words + 4 * word) >> (field * elementBits)) & mask;
}

int CheckpointMatrix::quantized(int64_t row, int64_t column) const {
  // An int32 has 4 or 8 elements; shifts, as this is done for every element of a model.
  unsigned log = elementBits == 4 ? 3 : 2, mask = (1u << log) - 1;
  auto wordsOf = [&](int64_t count) { return (count + mask) >> log; };
  int64_t word = 0;
  unsigned field = 0;
  switch (scheme) {
  case CheckpointScheme::Gptq:
  case CheckpointScheme::GptqV2:
    word = (column >> log) * numRows + row;
    field = column & mask;
    break;
  case CheckpointScheme::Awq:
    word = column * wordsOf(numRows) + (row >> log);
    field = awqField(elementBits, row);
    break;
  case CheckpointScheme::AwqGemv:
  case CheckpointScheme::PackQuantized:
    word = row * wordsOf(numColumns) + (column >> log);
    field = column & mask;
    break;
  case CheckpointScheme::IntQuantized:
    return static_cast<int8_t>(elements.data[row * numColumns + column]);
  case CheckpointScheme::Fp8:
    return elements.data[row * numColumns + column];
  case CheckpointScheme::Nvfp4:
  case CheckpointScheme::Mxfp4:
    return elements.data[row * ((numColumns + 1) >> 1) + (column >> 1)] >> (column & 1) * 4 & 15;
  case CheckpointScheme::Mxfp4Blocks:
    return elements.data[row * groups * 16 + (column >> 1)] >> (column & 1) * 4 & 15;
  case CheckpointScheme::InverseFactor:
  case CheckpointScheme::ColumnOrder:
    llvm_unreachable("has no integers");
  }
  return unpack(elements.data, word, field) - (1 << (elementBits - 1));
}

int CheckpointMatrix::zero(int64_t row, int64_t group) const {
  if (zeros.ref.type == StorageType::I8)
    return static_cast<int8_t>(zeros.data[row * groups + group]);
  unsigned log = elementBits == 4 ? 3 : 2, mask = (1u << log) - 1;
  unsigned field = row & mask;
  int64_t word = group * ((numRows + mask) >> log) + (row >> log);
  if (scheme == CheckpointScheme::PackQuantized) {
    word = (row >> log) * groups + group;
  } else if (scheme == CheckpointScheme::Awq) {
    field = awqField(elementBits, row);
  } else if (scheme == CheckpointScheme::AwqGemv) {
    word = row * (rowStride / 8) + (group >> 3);
    field = group & 7;
  }
  int stored = unpack(zeros.data, word, field);
  if (scheme == CheckpointScheme::Gptq)
    stored = (stored + 1) & ((1 << elementBits) - 1);
  return stored - (1 << (elementBits - 1));
}

float CheckpointMatrix::number(int64_t row, int64_t column) const {
  int q = quantized(row, column);
  if (scheme == CheckpointScheme::Fp8)
    return formats::e4m3ToFloat(static_cast<uint8_t>(q));
  return static_cast<float>(hasByteScales() ? enc->integerOf(static_cast<int8_t>(q)) : q);
}

uint32_t CheckpointMatrix::scaleCode(int64_t row, int64_t group) const {
  if (hasByteScales())
    return scales.data[row * groups + group];
  float value = scale(row, group);
  switch (enc->scale) {
  case Encoding::Scale::F32:
    return bit_cast<uint32_t>(value);
  case Encoding::Scale::BF16:
    return formats::floatToBf16(value);
  default:
    return formats::floatToF16(value);
  }
}

float CheckpointMatrix::scale(int64_t row, int64_t group) const {
  if (hasByteScales())
    return enc->scaleOf(scaleCode(row, group), 0);
  int64_t place = row / rowsOfScale * rowStride + group * groupStride;
  switch (scales.ref.type) {
  case StorageType::F16:
    return formats::f16ToFloat(read16le(scales.data + 2 * place));
  case StorageType::BF16:
    return formats::bf16ToFloat(read16le(scales.data + 2 * place));
  case StorageType::F32:
    return bit_cast<float>(read32le(scales.data + 4 * place));
  default:
    llvm_unreachable("open() admits no other type");
  }
}

void CheckpointMatrix::readNumbers(int64_t row, const formats::RowNumbers &to) const {
  assert(enc && "no encoding holds these numbers");
  for (int64_t column = 0; column < numColumns; ++column) {
    int64_t from = columnOrder.empty() ? column : columnOrder[column];
    to.q[column] = static_cast<int8_t>(quantized(row, from));
  }
  for (int64_t group = 0; group < groups; ++group) {
    to.scales[group] = scaleCode(row, group);
    if (enc->hasZeroPoint())
      to.zeros[group] = static_cast<int8_t>(zero(row, group));
  }
}

void CheckpointMatrix::readRow(int64_t row, MutableArrayRef<float> out) const {
  if (scheme == CheckpointScheme::InverseFactor) {
    llvm::fill(out, 1.0f / bit_cast<float>(read32le(elements.data)));
    return;
  }
  if (scheme == CheckpointScheme::ColumnOrder) {
    for (auto [place, column] : zip_equal(out, columnOrder))
      place = static_cast<float>(column);
    return;
  }
  for (int64_t column = 0; column < numColumns; ++column) {
    int64_t group = !columnGroups.empty() ? columnGroups[column]
                    : groupSize           ? column / groupSize
                                          : 0;
    float zeroPoint = zeros ? static_cast<float>(zero(row, group)) : 0.0f;
    out[column] = (number(row, column) - zeroPoint) * scale(row, group);
  }
}
