// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Packing.h"
#include "sluice/Formats/GgufBlocks.h"

#include "llvm/Support/Endian.h"
#include "llvm/Support/MathExtras.h"

#include <algorithm>
#include <cassert>
#include <cstring>

using namespace llvm;
using namespace sluice::formats;

using Element = Format::Element;
using Kind = Layout::Kind;

static constexpr int64_t fragmentBytes = 512;

StringRef Layout::name() const {
  switch (kind) {
  case Kind::Rows:
    return "rows";
  case Kind::BlocksQ8_0:
    return "q8_0";
  case Kind::BlocksQ4_0:
    return "q4_0";
  case Kind::Lanes:
    return "lanes";
  case Kind::Mma:
    return "mma";
  }
  llvm_unreachable("not a layout");
}

//===----------------------------------------------------------------------===//
// PackedShape
//===----------------------------------------------------------------------===//

/// Columns that a fragment of the mma layout holds; for int4 the pair of fragments that share
/// bytes.
static int64_t fragmentColumns(Element element) {
  return element == Element::I4 ? 64 : element == Element::I8 ? 32 : 16;
}

Expected<PackedShape> PackedShape::get(Format format, Layout layout, int64_t rows,
                                       int64_t columns) {
  auto fail = [&](const Twine &what) {
    return createStringError(inconvertibleErrorCode(),
                             "packed matrix of " + Twine(rows) + " x " + Twine(columns) + " in " +
                                 format.name() + ", layout " + layout.name() + ": " + what);
  };
  if (rows < 1 || columns < 1 || rows > maxExtent || columns > maxExtent)
    return fail("expected 1 to " + Twine(maxExtent) + " rows and columns");
  if (rows > maxElements / columns)
    return fail("expected at most " + Twine(maxElements) + " elements");
  if (!format.isInteger() && (format.group != Format::channel || format.zeroPoint))
    return fail("a float format has neither groups nor zero points");
  if (format.group != Format::channel && format.group != 32 && format.group != 64 &&
      format.group != 128 && format.group != 256)
    return fail("group is " + Twine(format.group) + ", expected 32, 64, 128, 256 or channel");

  PackedShape shape;
  shape.fmt = format;
  shape.lay = layout;
  shape.numRows = rows;
  shape.numColumns = shape.padded = columns;
  if (layout.kind != Kind::Mma && layout.columns != 0)
    return fail("the layout has no chunks, found chunks of " + Twine(layout.columns) + " columns");
  switch (layout.kind) {
  case Kind::Rows:
    shape.tile = shape.chunkZeros(0) + (format.zeroPoint ? shape.groups() : 0);
    if (format.isInteger())
      shape.tile = alignTo(shape.tile, 16);
    break;
  case Kind::BlocksQ8_0:
  case Kind::BlocksQ4_0: {
    bool eight = layout.kind == Kind::BlocksQ8_0;
    if (format != (eight ? q8_0Format : q4_0Format))
      return fail(Twine("the blocks hold ") + (eight ? "int8-g32" : "int4-g32"));
    if (columns % ggufBlockColumns)
      return fail("columns must be a multiple of 32");
    shape.tile = columns / ggufBlockColumns * (eight ? q8_0BlockBytes : q4_0BlockBytes);
    break;
  }
  case Kind::Lanes:
    shape.padded = alignTo(columns, 32);
    shape.tile =
        alignTo(shape.chunkZeros(0) + (format.zeroPoint ? shape.groups() * tileRows : 0), 64);
    break;
  case Kind::Mma: {
    if (format.element == Element::F32)
      return fail("the tensor cores' operand has no f32");
    if (layout.columns < 64 || layout.columns > maxExtent || layout.columns % 64)
      return fail("chunk columns are " + Twine(layout.columns) + ", expected a multiple of 64");
    if (format.group != Format::channel && layout.columns % format.group &&
        format.group % layout.columns)
      return fail("chunks of " + Twine(layout.columns) + " columns do not suit groups of " +
                  Twine(format.group));
    shape.padded = alignTo(columns, fragmentColumns(format.element));
    auto bytesOf = [&](int64_t chunk) {
      return alignTo(shape.chunkZeros(chunk) +
                         (format.zeroPoint ? shape.chunkGroups(chunk) * tileRows : 0),
                     16);
    };
    int64_t last = shape.chunks() - 1;
    shape.chunkStride = bytesOf(0); // of a full chunk whenever there is more than one
    shape.tile = last * shape.chunkStride + bytesOf(last);
    break;
  }
  }
  return shape;
}

int64_t PackedShape::chunks() const {
  return lay.kind == Kind::Mma ? (numColumns + lay.columns - 1) / lay.columns : 1;
}

int64_t PackedShape::chunkColumns(int64_t chunk) const {
  return lay.kind == Kind::Mma ? std::min(lay.columns, numColumns - chunk * lay.columns)
                               : numColumns;
}

int64_t PackedShape::chunkGroups(int64_t chunk) const {
  return fmt.groupsPerRow(chunkColumns(chunk));
}

int64_t PackedShape::chunkElements(int64_t chunk) const {
  switch (lay.kind) {
  case Kind::Rows:
  case Kind::BlocksQ8_0:
  case Kind::BlocksQ4_0:
    return (numColumns * fmt.bits() + 7) / 8;
  case Kind::Lanes:
    return padded * fmt.bits() * tileRows / 8;
  case Kind::Mma: {
    int64_t columns = fragmentColumns(fmt.element);
    return (chunkColumns(chunk) + columns - 1) / columns * fragmentBytes;
  }
  }
  llvm_unreachable("not a layout");
}

int64_t PackedShape::chunkScales(int64_t chunk) const {
  int64_t elements = chunkElements(chunk);
  return lay.kind == Kind::Rows && fmt.isInteger() ? alignTo(elements, 2) : elements;
}

int64_t PackedShape::chunkZeros(int64_t chunk) const {
  return chunkScales(chunk) + chunkGroups(chunk) * rowsPerTile() * 2;
}

/// The byte of an element of an mma fragment, r < 16.
static int64_t fragmentByte(Element element, int64_t r, int64_t k) {
  if (element == Element::I8 || element == Element::I4)
    return ((r % 8) * 4 + k % 16 / 4) * 16 + (r / 8 + 2 * (k / 16)) * 4 + k % 4;
  return ((r % 8) * 4 + k % 8 / 2) * 16 + (r / 8 + 2 * (k / 8)) * 4 + k % 2 * 2;
}

Position PackedShape::elementPosition(int64_t row, int64_t column) const {
  assert(row >= 0 && row < tiles() * rowsPerTile() && column >= 0 && column < numColumns &&
         "no such element");
  int64_t base = row / rowsPerTile() * tile, r = row % rowsPerTile(), bytes = fmt.bits() / 8;
  bool four = fmt.element == Element::I4;
  switch (lay.kind) {
  case Kind::Rows:
    if (four)
      return {base + column / 2, column % 2 ? 4u : 0u};
    return {base + column * bytes, 0};
  case Kind::BlocksQ8_0:
    return {base + column / 32 * q8_0BlockBytes + 2 + column % 32, 0};
  case Kind::BlocksQ4_0:
    return {base + column / 32 * q4_0BlockBytes + 2 + column % 16, column % 32 >= 16 ? 4u : 0u};
  case Kind::Lanes:
    if (four)
      return {base + column / 4 * 32 + r * 2 + column % 2, column % 4 >= 2 ? 4u : 0u};
    if (fmt.element == Element::I8)
      return {base + column / 2 * 32 + r * 2 + column % 2, 0};
    return {base + (column * tileRows + r) * bytes, 0};
  case Kind::Mma: {
    int64_t chunk = column / lay.columns, k = column % lay.columns;
    base += chunkOffset(chunk);
    if (four)
      return {base + k / 64 * fragmentBytes + fragmentByte(fmt.element, r, k % 32),
              k % 64 < 32 ? 4u : 0u};
    int64_t columns = fragmentColumns(fmt.element);
    return {base + k / columns * fragmentBytes + fragmentByte(fmt.element, r, k % columns), 0};
  }
  }
  llvm_unreachable("not a layout");
}

/// A row's place among the 16 scales (or zero points) of a group.
static int64_t scalePlace(Kind kind, int64_t r) {
  return kind == Kind::Mma ? r % 8 * 2 + r / 8 : r;
}

int64_t PackedShape::scalePosition(int64_t row, int64_t column) const {
  assert(fmt.isInteger() && row >= 0 && row < tiles() * rowsPerTile() && column >= 0 &&
         column < numColumns);
  int64_t base = row / rowsPerTile() * tile, r = row % rowsPerTile();
  if (lay.kind == Kind::BlocksQ8_0)
    return base + column / 32 * q8_0BlockBytes;
  if (lay.kind == Kind::BlocksQ4_0)
    return base + column / 32 * q4_0BlockBytes;
  int64_t chunk = lay.kind == Kind::Mma ? column / lay.columns : 0;
  int64_t group = groupOf(lay.kind == Kind::Mma ? column % lay.columns : column);
  return base + chunkOffset(chunk) + chunkScales(chunk) +
         (group * rowsPerTile() + scalePlace(lay.kind, r)) * 2;
}

int64_t PackedShape::zeroPosition(int64_t row, int64_t column) const {
  assert(fmt.zeroPoint && row >= 0 && row < tiles() * rowsPerTile() && column >= 0 &&
         column < numColumns);
  int64_t base = row / rowsPerTile() * tile, r = row % rowsPerTile();
  int64_t chunk = lay.kind == Kind::Mma ? column / lay.columns : 0;
  int64_t group = groupOf(lay.kind == Kind::Mma ? column % lay.columns : column);
  return base + chunkOffset(chunk) + chunkZeros(chunk) + group * rowsPerTile() +
         scalePlace(lay.kind, r);
}

Expected<int64_t> sluice::formats::packedBytes(Format format, Layout layout, int64_t rows,
                                               int64_t columns) {
  Expected<PackedShape> shape = PackedShape::get(format, layout, rows, columns);
  if (!shape)
    return shape.takeError();
  return shape->bytes();
}

//===----------------------------------------------------------------------===//
// Packing
//===----------------------------------------------------------------------===//

template <typename T> static T load(const void *from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T> static void save(void *to, T value) { std::memcpy(to, &value, sizeof(T)); }

static_assert(std::endian::native == std::endian::little,
              "packed numbers are moved as the host stores them");

namespace {
/// `width` columns of a row from a column on, with zeros beyond the row's end. Elements of type T.
template <typename T> class Columns {
public:
  const T *get(const void *elements, int64_t from, int64_t width, int64_t columns) {
    const T *row = static_cast<const T *>(elements) + from;
    if (from + width <= columns)
      return row;
    assert(width <= capacity);
    int64_t present = std::max<int64_t>(columns - from, 0);
    std::memcpy(buffer, row, static_cast<size_t>(present) * sizeof(T));
    std::memset(buffer + present, 0, static_cast<size_t>(width - present) * sizeof(T));
    return buffer;
  }

  static constexpr int64_t capacity = 512;

private:
  T buffer[capacity];
};
} // namespace

/// Cuts a tile's columns into pieces that stay in the first cache while all 16 rows pass over them,
/// and calls `body(row of tile, elements, first column, width)`; widths are multiples of 32.
template <typename T, typename Body>
static void forPieces(const PackedShape &shape, ArrayRef<PackRow> rows, Body body) {
  Columns<T> source;
  for (int64_t from = 0, end = alignTo(shape.columns(), 32); from < end; from += source.capacity) {
    int64_t width = std::min(source.capacity, end - from);
    for (size_t r = 0; r < rows.size(); ++r)
      if (rows[r].elements)
        body(static_cast<int64_t>(r), source.get(rows[r].elements, from, width, shape.columns()),
             from, width);
  }
}

/// Floats of the lanes layout.
template <typename T>
static void packFloatLanes(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  forPieces<T>(shape, rows, [&](int64_t r, const T *from, int64_t column, int64_t width) {
    T *to = reinterpret_cast<T *>(out) + column * tileRows + r;
    for (int64_t k = 0; k < width; ++k)
      save(to + k * tileRows, from[k]);
  });
}

static void packLanes(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  switch (shape.format().element) {
  case Element::F32:
    return packFloatLanes<uint32_t>(shape, rows, out);
  case Element::F16:
  case Element::BF16:
    return packFloatLanes<uint16_t>(shape, rows, out);
  case Element::I8:
    return forPieces<int8_t>(shape, rows,
                             [&](int64_t r, const int8_t *from, int64_t column, int64_t width) {
                               uint8_t *to = out + column * tileRows + 2 * r;
                               for (int64_t p = 0; p < width / 2; ++p)
                                 save(to + 32 * p, load<uint16_t>(from + 2 * p));
                             });
  case Element::I4:
    return forPieces<int8_t>(shape, rows,
                             [&](int64_t r, const int8_t *from, int64_t column, int64_t width) {
                               uint8_t *to = out + column * tileRows / 2 + 2 * r;
                               for (int64_t u = 0; u < width / 4; ++u) {
                                 uint32_t four = load<uint32_t>(from + 4 * u) & 0x0F0F0F0Fu;
                                 save(to + 32 * u, static_cast<uint16_t>(four | four >> 12));
                               }
                             });
  }
}

static void packMmaElements(const PackedShape &shape, ArrayRef<PackRow> rows, int64_t chunk,
                            uint8_t *out) {
  Element element = shape.format().element;
  int64_t begin = chunk * shape.layout().columns, width = fragmentColumns(element);
  int64_t fragments = shape.chunkElements(chunk) / fragmentBytes;
  Columns<int8_t> bytes;
  Columns<uint16_t> halves;
  for (int64_t f = 0; f < fragments; ++f, out += fragmentBytes)
    for (int64_t r = 0; r < static_cast<int64_t>(rows.size()); ++r) {
      const void *elements = rows[r].elements;
      if (!elements)
        continue;
      uint8_t *to = out + r % 8 * 64 + r / 8 * 4;
      int64_t column = begin + f * width;
      if (element == Element::I8) {
        const int8_t *from = bytes.get(elements, column, width, shape.columns());
        for (int64_t w = 0; w < 8; ++w) // 4 columns a word
          save(to + w % 4 * 16 + w / 4 * 8, load<uint32_t>(from + 4 * w));
      } else if (element == Element::I4) {
        const int8_t *from = bytes.get(elements, column, width, shape.columns());
        for (int64_t w = 0; w < 8; ++w)
          save(to + w % 4 * 16 + w / 4 * 8, (load<uint32_t>(from + 4 * w) & 0x0F0F0F0Fu) << 4 |
                                                (load<uint32_t>(from + 32 + 4 * w) & 0x0F0F0F0Fu));
      } else {
        const uint16_t *from = halves.get(elements, column, width, shape.columns());
        for (int64_t w = 0; w < 8; ++w) // 2 columns a word
          save(to + w % 4 * 16 + w / 4 * 8, load<uint32_t>(from + 2 * w));
      }
    }
}

/// Scales and zero points of a chunk of a tiled layout.
static void packScales(const PackedShape &shape, ArrayRef<PackRow> rows, int64_t chunk,
                       uint8_t *out) {
  if (!shape.format().isInteger())
    return;
  int64_t first =
      shape.layout().kind == Kind::Mma ? shape.groupOf(chunk * shape.layout().columns) : 0;
  uint8_t *scales = out + shape.chunkScales(chunk), *zeros = out + shape.chunkZeros(chunk);
  for (int64_t r = 0; r < static_cast<int64_t>(rows.size()); ++r) {
    if (!rows[r].elements)
      continue;
    int64_t place = scalePlace(shape.layout().kind, r);
    for (int64_t g = 0; g < shape.chunkGroups(chunk); ++g) {
      save(scales + (g * tileRows + place) * 2, rows[r].scales[first + g]);
      if (shape.format().zeroPoint)
        save(zeros + g * tileRows + place, rows[r].zeros[first + g]);
    }
  }
}

static void packRow(const PackedShape &shape, const PackRow &row, uint8_t *out) {
  size_t columns = static_cast<size_t>(shape.columns()),
         groups = static_cast<size_t>(shape.groups());
  const int8_t *q = static_cast<const int8_t *>(row.elements);
  switch (shape.format().element) {
  case Element::F32:
  case Element::F16:
  case Element::BF16:
    std::memcpy(out, row.elements, columns * shape.format().bits() / 8);
    return;
  case Element::I8:
    std::memcpy(out, q, columns);
    break;
  case Element::I4:
    for (size_t j = 0; j < columns / 2; ++j)
      out[j] = static_cast<uint8_t>((q[2 * j] & 15) | (q[2 * j + 1] & 15) << 4);
    if (columns % 2)
      out[columns / 2] = static_cast<uint8_t>(q[columns - 1] & 15);
    break;
  }
  std::memcpy(out + shape.chunkScales(0), row.scales, groups * 2);
  if (shape.format().zeroPoint)
    std::memcpy(out + shape.chunkZeros(0), row.zeros, groups);
}

void sluice::formats::packTile(const PackedShape &shape, ArrayRef<PackRow> rows,
                               MutableArrayRef<uint8_t> out) {
  assert(rows.size() <= static_cast<size_t>(shape.rowsPerTile()) && "more rows than a tile has");
  assert(out.size() == static_cast<size_t>(shape.tileBytes()) && "exactly one tile");
  std::memset(out.data(), 0, out.size());
  switch (shape.layout().kind) {
  case Kind::Rows:
    if (!rows.empty() && rows[0].elements)
      packRow(shape, rows[0], out.data());
    return;
  case Kind::BlocksQ8_0:
  case Kind::BlocksQ4_0: {
    bool eight = shape.layout().kind == Kind::BlocksQ8_0;
    // A row of zeros has nibbles of 8 in q4_0, like every 0.
    std::vector<int8_t> noElements;
    std::vector<uint16_t> noScales;
    ArrayRef<int8_t> q;
    ArrayRef<uint16_t> scales;
    if (!rows.empty() && rows[0].elements) {
      q = {static_cast<const int8_t *>(rows[0].elements), static_cast<size_t>(shape.columns())};
      scales = {rows[0].scales, static_cast<size_t>(shape.groups())};
    } else {
      q = noElements = std::vector<int8_t>(static_cast<size_t>(shape.columns()));
      scales = noScales = std::vector<uint16_t>(static_cast<size_t>(shape.groups()));
    }
    eight ? writeQ8_0(q, scales, out) : writeQ4_0(q, scales, out);
    return;
  }
  case Kind::Lanes:
    packLanes(shape, rows, out.data());
    packScales(shape, rows, 0, out.data());
    return;
  case Kind::Mma:
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk) {
      uint8_t *to = out.data() + shape.chunkOffset(chunk);
      packMmaElements(shape, rows, chunk, to);
      packScales(shape, rows, chunk, to);
    }
    return;
  }
}

//===----------------------------------------------------------------------===//
// Unpacking
//===----------------------------------------------------------------------===//

void sluice::formats::unpackRow(const PackedShape &shape, ArrayRef<uint8_t> packed, int64_t row,
                                MutableArrayRef<int8_t> q, MutableArrayRef<uint16_t> scales,
                                MutableArrayRef<int8_t> zeros) {
  Format format = shape.format();
  assert(format.isInteger() && packed.size() == static_cast<size_t>(shape.bytes()));
  assert(q.size() == static_cast<size_t>(shape.columns()) &&
         scales.size() == static_cast<size_t>(shape.groups()));
  for (int64_t column = 0; column < shape.columns(); ++column) {
    Position at = shape.elementPosition(row, column);
    uint8_t byte = packed[at.byte];
    if (format.element == Element::I8) {
      q[column] = static_cast<int8_t>(byte);
    } else {
      int nibble = byte >> at.shift & 15;
      q[column] = static_cast<int8_t>(shape.layout().kind == Kind::BlocksQ4_0 ? nibble - 8
                                                                              : (nibble ^ 8) - 8);
    }
  }
  int64_t group = format.groupColumns(shape.columns());
  for (int64_t g = 0; g < shape.groups(); ++g) {
    scales[g] =
        llvm::support::endian::read16le(packed.data() + shape.scalePosition(row, g * group));
    if (format.zeroPoint)
      zeros[g] = static_cast<int8_t>(packed[shape.zeroPosition(row, g * group)]);
  }
}

void sluice::formats::unpackRow(const PackedShape &shape, ArrayRef<uint8_t> packed, int64_t row,
                                MutableArrayRef<float> values) {
  Format format = shape.format();
  assert(packed.size() == static_cast<size_t>(shape.bytes()));
  assert(values.size() == static_cast<size_t>(shape.columns()) && "one value per column");
  for (int64_t column = 0; column < shape.columns(); ++column) {
    Position at = shape.elementPosition(row, column);
    const uint8_t *from = packed.data() + at.byte;
    switch (format.element) {
    case Element::F32:
      values[column] = std::bit_cast<float>(llvm::support::endian::read32le(from));
      break;
    case Element::F16:
      values[column] = f16ToFloat(llvm::support::endian::read16le(from));
      break;
    case Element::BF16:
      values[column] = bf16ToFloat(llvm::support::endian::read16le(from));
      break;
    case Element::I8:
    case Element::I4: {
      int q = static_cast<int8_t>(*from);
      if (format.element == Element::I4)
        q = shape.layout().kind == Kind::BlocksQ4_0 ? (*from >> at.shift & 15) - 8
                                                    : ((*from >> at.shift & 15) ^ 8) - 8;
      int zero =
          format.zeroPoint ? static_cast<int8_t>(packed[shape.zeroPosition(row, column)]) : 0;
      float scale = f16ToFloat(
          llvm::support::endian::read16le(packed.data() + shape.scalePosition(row, column)));
      values[column] = static_cast<float>(q - zero) * scale;
      break;
    }
    }
  }
}
