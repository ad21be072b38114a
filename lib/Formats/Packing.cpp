// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Packing.h"
#include "sluice/Formats/GgufBlocks.h"
#include "sluice/Formats/Quantizer.h"

#include "llvm/Support/Endian.h"
#include "llvm/Support/MathExtras.h"

#include <algorithm>
#include <cassert>
#include <cstring>

using namespace llvm;
using namespace sluice::formats;

using Element = Encoding::Element;
using Offset = Encoding::Offset;
using Kind = Layout::Kind;

static constexpr int64_t fragmentBytes = 512;

StringRef Layout::name() const {
  switch (kind) {
  case Kind::Rows:
    return "rows";
  case Kind::Blocks:
    return "blocks";
  case Kind::Lanes:
    return "lanes";
  case Kind::Mma:
    return "mma";
  case Kind::Records:
    return "records";
  }
  llvm_unreachable("not a layout");
}

//===----------------------------------------------------------------------===//
// PackedShape
//===----------------------------------------------------------------------===//

/// Columns that a fragment of the mma layout holds; for int4 the pair of fragments that share
/// bytes.
static int64_t fragmentColumns(Element element) {
  return element == Element::I4 ? 64 : element == Element::I8 || element == Element::E4M3 ? 32 : 16;
}

/// Bytes of a group's scale, without offset, in all layouts but records. Fields have one for the
/// low bits of scale and offset.
static int64_t scaleBytes(const Encoding &format) {
  return std::max<int64_t>(format.scaleBits() / 8, 1);
}

Expected<PackedShape> PackedShape::get(Encoding format, Layout layout, int64_t rows,
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
  if (std::string problem = format.problem(); !problem.empty())
    return fail(problem);
  if (!format.fitsColumns(columns))
    return fail("columns must be a multiple of 256, a super-block");

  PackedShape shape;
  shape.fmt = format;
  shape.lay = layout;
  shape.numRows = rows;
  shape.numColumns = shape.padded = columns;
  if (!layout.hasChunks() && layout.columns != 0)
    return fail("the layout has no chunks, found chunks of " + Twine(layout.columns) + " columns");
  switch (layout.kind) {
  case Kind::Rows:
    shape.tile = shape.scalesEnd(0);
    if (format.isScaled())
      shape.tile = alignTo(shape.tile, 16);
    break;
  case Kind::Blocks: {
    const GgufBlock *block = GgufBlock::of(format);
    if (!block)
      return fail("GGUF has no such blocks");
    if (columns % block->columns)
      return fail("columns must be a multiple of " + Twine(block->columns));
    shape.tile = columns / block->columns * block->bytes;
    break;
  }
  case Kind::Lanes:
    shape.padded = alignTo(columns, 32);
    shape.tile = alignTo(shape.scalesEnd(0), 64);
    break;
  case Kind::Mma: {
    if (format.element == Element::F32)
      return fail("the tensor cores' operand has no f32");
    if (format.isInteger() && !format.isPlainInteger())
      return fail("only int8 and int4 with f16 scales are laid out for tensor cores");
    if (layout.columns < 64 || layout.columns > maxExtent || layout.columns % 64)
      return fail("chunk columns are " + Twine(layout.columns) + ", expected a multiple of 64");
    if (format.group != Encoding::channel && layout.columns % format.group &&
        format.group % layout.columns)
      return fail("chunks of " + Twine(layout.columns) + " columns do not suit groups of " +
                  Twine(format.group));
    shape.padded = alignTo(columns, fragmentColumns(format.element));
    auto bytesOf = [&](int64_t chunk) { return alignTo(shape.scalesEnd(chunk), 16); };
    int64_t last = shape.chunks() - 1;
    shape.chunkStride = bytesOf(0); // of a full chunk whenever there is more than one
    shape.tile = last * shape.chunkStride + bytesOf(last);
    break;
  }
  case Kind::Records: {
    if (std::string problem = RecordShape::problem(format); !problem.empty())
      return fail(problem);
    constexpr int64_t width = RecordShape::columns;
    if (layout.columns < width || layout.columns > maxExtent || layout.columns % width)
      return fail("chunk columns are " + Twine(layout.columns) + ", expected a multiple of " +
                  Twine(width));
    shape.padded = alignTo(columns, width);
    int64_t bytes = RecordShape(format).bytes();
    shape.tile = shape.padded / width * bytes;
    shape.chunkStride = std::min(layout.columns / width * bytes, shape.tile);
    break;
  }
  }
  return shape;
}

int64_t PackedShape::chunks() const {
  return lay.hasChunks() ? (numColumns + lay.columns - 1) / lay.columns : 1;
}

int64_t PackedShape::chunkColumns(int64_t chunk) const {
  return lay.hasChunks() ? std::min(lay.columns, numColumns - chunk * lay.columns) : numColumns;
}

int64_t PackedShape::groupInChunk(int64_t column) const {
  return groupOf(lay.kind == Kind::Mma ? column % lay.columns : column);
}

int64_t PackedShape::chunkGroups(int64_t chunk) const {
  return fmt.groupsPerRow(chunkColumns(chunk));
}

int64_t PackedShape::chunkElements(int64_t chunk) const {
  switch (lay.kind) {
  case Kind::Blocks:
  case Kind::Records:
    return tile;
  case Kind::Rows: {
    if (!fmt.isInteger())
      return numColumns * fmt.bits() / 8;
    int64_t bytes = 0;
    for (Encoding::Plane plane : fmt.planes())
      bytes += (numColumns * plane.width + 7) / 8;
    return bytes;
  }
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
  if (lay.kind != Kind::Rows || !fmt.isScaled())
    return elements;
  return alignTo(elements, std::max<int64_t>(scaleBytes(fmt), 2));
}

int64_t PackedShape::chunkOffsets(int64_t chunk) const {
  if (!fmt.isScaled())
    return chunkScales(chunk);
  return chunkScales(chunk) + chunkGroups(chunk) * rowsPerTile() * scaleBytes(fmt);
}

int64_t PackedShape::chunkSupers(int64_t chunk) const {
  int64_t groups = chunkGroups(chunk) * rowsPerTile(), start = chunkOffsets(chunk);
  switch (fmt.offset) {
  case Offset::None:
    break;
  case Offset::ZeroPoint:
    start += groups;
    break;
  case Offset::F16:
    start += 2 * groups;
    break;
  case Offset::Field:
    start += fmt.scale == Encoding::Scale::U6 ? groups / 2 : 0;
    break;
  }
  return fmt.superNumbers() ? alignTo(start, 2) : start;
}

int64_t PackedShape::scalesEnd(int64_t chunk) const {
  return chunkSupers(chunk) +
         fmt.supersPerRow(chunkColumns(chunk)) * fmt.superNumbers() * rowsPerTile() * 2;
}

/// The byte of an element of an mma fragment, r < 16.
static int64_t fragmentByte(Element element, int64_t r, int64_t k) {
  if (element != Element::F16 && element != Element::BF16)
    return ((r % 8) * 4 + k % 16 / 4) * 16 + (r / 8 + 2 * (k / 16)) * 4 + k % 4;
  return ((r % 8) * 4 + k % 8 / 2) * 16 + (r / 8 + 2 * (k / 8)) * 4 + k % 2 * 2;
}

/// Position of a bit in a tile.
static Position atBit(int64_t base, int64_t bit) {
  return {base + bit / 8, static_cast<unsigned>(bit % 8)};
}

Position PackedShape::elementPosition(int64_t row, int64_t column, size_t plane) const {
  assert(row >= 0 && row < tiles() * rowsPerTile() && column >= 0 && column < numColumns &&
         "no such element");
  int64_t base = row / rowsPerTile() * tile, r = row % rowsPerTile(), bytes = fmt.bits() / 8;
  bool four = fmt.element == Element::I4;
  // Bits of the planes before, and of this one.
  int64_t before = 0, width = 0;
  if (fmt.isInteger()) {
    for (Encoding::Plane earlier : fmt.planes().take_front(plane))
      before += earlier.width;
    width = fmt.planes()[plane].width;
  }
  switch (lay.kind) {
  case Kind::Blocks:
  case Kind::Records:
    break;
  case Kind::Rows:
    if (!fmt.isInteger())
      return {base + column * bytes, 0};
    for (Encoding::Plane earlier : fmt.planes().take_front(plane))
      base += (numColumns * earlier.width + 7) / 8;
    return atBit(base, column * width);
  case Kind::Lanes: {
    if (!fmt.isInteger())
      return {base + (column * tileRows + r) * bytes, 0};
    int64_t pair = column % 16 / 2 * width;
    return {base + column / 16 * 32 * fmt.bits() + 32 * before + pair / 8 * 32 + r * 2 + column % 2,
            static_cast<unsigned>(pair % 8)};
  }
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
  llvm_unreachable("blocks and records have no planes of elements");
}

/// A row's place among the 16 scales (or offsets) of a group.
static int64_t scalePlace(Kind kind, int64_t r) {
  return kind == Kind::Mma ? r % 8 * 2 + r / 8 : r;
}

int64_t PackedShape::chunkStart(int64_t row, int64_t column) const {
  assert(fmt.isScaled() && lay.kind != Kind::Blocks && row >= 0 && row < tiles() * rowsPerTile() &&
         column >= 0 && column < numColumns);
  return row / rowsPerTile() * tile + chunkOffset(chunkOf(column));
}

int64_t PackedShape::scalePosition(int64_t row, int64_t column) const {
  int64_t place = groupInChunk(column) * rowsPerTile() + scalePlace(lay.kind, row % rowsPerTile());
  return chunkStart(row, column) + chunkScales(chunkOf(column)) + place * scaleBytes(fmt);
}

Position PackedShape::offsetPosition(int64_t row, int64_t column) const {
  assert(fmt.offset != Offset::None && fmt.scale != Encoding::Scale::U4);
  int64_t group = groupInChunk(column), r = scalePlace(lay.kind, row % rowsPerTile());
  int64_t start = chunkStart(row, column) + chunkOffsets(chunkOf(column));
  if (fmt.offset == Offset::Field)
    return {start + group / 2 * rowsPerTile() + r, group % 2 ? 4u : 0u};
  return {start + (group * rowsPerTile() + r) * (fmt.offsetBits() / 8), 0};
}

int64_t PackedShape::recordStart(int64_t row, int64_t column) const {
  assert(row >= 0 && row < tiles() * tileRows && column >= 0 && column < numColumns);
  return row / tileRows * tile + column / RecordShape::columns * RecordShape(fmt).bytes();
}

/// Fields of a record, from the start of the matrix.
static BitFields inRecord(int64_t start, BitFields fields) {
  for (BitField &field : fields)
    field.byte += start;
  return fields;
}

BitFields PackedShape::elementBits(int64_t row, int64_t column) const {
  if (lay.kind == Kind::Records)
    return inRecord(recordStart(row, column),
                    RecordShape(fmt).element(row % tileRows, column % RecordShape::columns));
  if (!fmt.isInteger())
    return {{elementPosition(row, column).byte, 0, fmt.bits(), 0}};
  BitFields fields;
  for (auto [number, plane] : enumerate(fmt.planes())) {
    Position at = elementPosition(row, column, number);
    fields.push_back({at.byte, at.shift, plane.width, plane.low});
  }
  return fields;
}

BitFields PackedShape::scaleBits(int64_t row, int64_t column) const {
  if (lay.kind == Kind::Records)
    return inRecord(recordStart(row, column),
                    RecordShape(fmt).scale(row % tileRows, column % RecordShape::columns));
  int64_t low = scalePosition(row, column);
  if (!fmt.hasFields())
    return {{low, 0, fmt.scaleBits(), 0}};
  BitFields fields = {{low, 0, 4, 0}};
  if (fmt.scale == Encoding::Scale::U6) {
    Position high = offsetPosition(row, column);
    fields.push_back({high.byte, high.shift, 2, 4});
  }
  return fields;
}

BitFields PackedShape::offsetBits(int64_t row, int64_t column) const {
  if (lay.kind == Kind::Records)
    return inRecord(recordStart(row, column),
                    RecordShape(fmt).offset(row % tileRows, column % RecordShape::columns));
  if (!fmt.hasFields())
    return {{offsetPosition(row, column).byte, 0, fmt.offsetBits(), 0}};
  BitFields fields = {{scalePosition(row, column), 4, 4, 0}};
  if (fmt.scale == Encoding::Scale::U6) {
    Position high = offsetPosition(row, column);
    fields.push_back({high.byte, high.shift + 2, 2, 4});
  }
  return fields;
}

int64_t PackedShape::superPosition(int64_t row, int64_t column, int64_t number) const {
  if (lay.kind == Kind::Records)
    return recordStart(row, column) + RecordShape(fmt).super(row % tileRows, number);
  int64_t super = column / Encoding::superColumns * fmt.superNumbers() + number;
  return chunkStart(row, column) + chunkSupers(chunkOf(column)) +
         (super * rowsPerTile() + row % rowsPerTile()) * 2;
}

Expected<int64_t> sluice::formats::packedBytes(Encoding format, Layout layout, int64_t rows,
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

/// Integers of the lanes layout, of 8 bits and of 4 bits in one plane.
static void packLanes8(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  forPieces<int8_t>(shape, rows, [&](int64_t r, const int8_t *from, int64_t column, int64_t width) {
    uint8_t *to = out + column * tileRows + 2 * r;
    for (int64_t p = 0; p < width / 2; ++p)
      save(to + 32 * p, load<uint16_t>(from + 2 * p));
  });
}
static void packLanes4(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  forPieces<int8_t>(shape, rows, [&](int64_t r, const int8_t *from, int64_t column, int64_t width) {
    uint8_t *to = out + column * tileRows / 2 + 2 * r;
    for (int64_t u = 0; u < width / 4; ++u) {
      uint32_t four = load<uint32_t>(from + 4 * u) & 0x0F0F0F0Fu;
      save(to + 32 * u, static_cast<uint16_t>(four | four >> 12));
    }
  });
}
/// Of any width: pair after pair of columns, plane after plane.
static void packLanesPlanes(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  ArrayRef<Encoding::Plane> planes = shape.format().planes();
  int64_t bits = shape.format().bits();
  forPieces<int8_t>(shape, rows, [&](int64_t r, const int8_t *from, int64_t column, int64_t width) {
    for (int64_t p = 0; p < width / 2; ++p, from += 2) {
      uint8_t *to = out + (column / 16 + p / 8) * 32 * bits + 2 * r;
      uint16_t two = load<uint16_t>(from);
      for (Encoding::Plane plane : planes) {
        int64_t bit = p % 8 * plane.width;
        uint16_t mask = static_cast<uint16_t>(((1u << plane.width) - 1) * 0x0101u);
        uint16_t piece = static_cast<uint16_t>(two >> plane.low & mask);
        uint8_t *at = to + bit / 8 * 32;
        save(at, static_cast<uint16_t>(load<uint16_t>(at) | piece << bit % 8));
        to += 32 * plane.width;
      }
    }
  });
}

static void packLanes(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  const Encoding &format = shape.format();
  if (format.element == Element::F32)
    return packFloatLanes<uint32_t>(shape, rows, out);
  if (format.element == Element::E4M3)
    return packFloatLanes<uint8_t>(shape, rows, out);
  if (!format.isInteger())
    return packFloatLanes<uint16_t>(shape, rows, out);
  if (format.bits() == 8)
    return packLanes8(shape, rows, out);
  if (format.bits() == 4)
    return packLanes4(shape, rows, out);
  packLanesPlanes(shape, rows, out);
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
      if (element == Element::I8 || element == Element::E4M3) {
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

/// Scales and offsets of a chunk, and the numbers of its super-blocks.
static void packScales(const PackedShape &shape, ArrayRef<PackRow> rows, int64_t chunk,
                       uint8_t *out) {
  const Encoding &format = shape.format();
  if (!format.isScaled())
    return;
  int64_t first =
      shape.layout().kind == Kind::Mma ? shape.groupOf(chunk * shape.layout().columns) : 0;
  int64_t perTile = shape.rowsPerTile(), groups = shape.chunkGroups(chunk);
  uint8_t *scales = out + shape.chunkScales(chunk), *offsets = out + shape.chunkOffsets(chunk);
  uint8_t *supers = out + shape.chunkSupers(chunk);
  int64_t superCount = format.supersPerRow(shape.chunkColumns(chunk)) * format.superNumbers();
  for (int64_t r = 0; r < static_cast<int64_t>(rows.size()); ++r) {
    const PackRow &row = rows[r];
    if (!row.elements)
      continue;
    int64_t place = scalePlace(shape.layout().kind, r);
    for (int64_t g = 0; g < groups; ++g) {
      int64_t at = g * perTile + place;
      uint32_t scale = row.scales[first + g];
      if (format.hasFields()) {
        uint16_t offset = row.offsets[first + g];
        scales[at] = static_cast<uint8_t>((scale & 15) | offset << 4);
        if (format.scale == Encoding::Scale::U6)
          offsets[g / 2 * perTile + place] |=
              static_cast<uint8_t>((scale >> 4 | offset >> 4 << 2) << (g % 2 * 4));
        continue;
      }
      if (format.scaleBits() == 32)
        save(scales + 4 * at, scale);
      else if (format.scaleBits() == 16)
        save(scales + 2 * at, static_cast<uint16_t>(scale));
      else
        scales[at] = static_cast<uint8_t>(scale);
      if (format.hasZeroPoint())
        save(offsets + at, row.zeros[first + g]);
      else if (format.offset == Offset::F16)
        save(offsets + 2 * at, row.offsets[first + g]);
    }
    for (int64_t i = 0; i < superCount; ++i)
      save(supers + (i * perTile + place) * 2, row.supers[i]);
  }
}

/// ORs the bits of a number where they belong; what is there is 0.
static void writeBits(uint8_t *out, ArrayRef<BitField> fields, unsigned number) {
  for (BitField field : fields) {
    unsigned bits = number >> field.low & ((1u << field.width) - 1);
    out[field.byte] = static_cast<uint8_t>(out[field.byte] | bits << field.shift);
    if (field.width > 8)
      out[field.byte + 1] = static_cast<uint8_t>(bits >> 8);
  }
}

static unsigned readBits(const uint8_t *packed, ArrayRef<BitField> fields) {
  unsigned number = 0;
  for (BitField field : fields) {
    uint64_t bits = 0;
    for (unsigned bit = 0; bit < field.width; bit += 8)
      bits |= uint64_t(packed[field.byte + bit / 8]) << bit;
    number |= static_cast<unsigned>(bits >> field.shift & ((uint64_t(1) << field.width) - 1))
              << field.low;
  }
  return number;
}

static void packRecords(const PackedShape &shape, ArrayRef<PackRow> rows, uint8_t *out) {
  const Encoding &format = shape.format();
  RecordShape record(format);
  // Elements of row 0, one column after the other; another row's are `stride` bytes further.
  SmallVector<BitField, 0> elements;
  for (int64_t c = 0; c < RecordShape::columns; ++c)
    llvm::append_range(elements, record.element(0, c));
  SmallVector<unsigned, 0> counts;
  for (int64_t c = 0; c < RecordShape::columns; ++c)
    counts.push_back(record.element(0, c).size());
  for (int64_t r = 0; r < static_cast<int64_t>(rows.size()); ++r) {
    const PackRow &row = rows[r];
    if (!row.elements)
      continue;
    const int8_t *q = static_cast<const int8_t *>(row.elements);
    int64_t stride = record.element(r, 0).front().byte - record.element(0, 0).front().byte;
    for (int64_t first = 0; first < shape.columns(); first += RecordShape::columns) {
      uint8_t *to = out + first / RecordShape::columns * record.bytes();
      int64_t width = std::min(RecordShape::columns, shape.columns() - first);
      const BitField *field = elements.data();
      for (int64_t c = 0; c < width; ++c) {
        unsigned number = static_cast<uint8_t>(q[first + c]);
        for (const BitField *end = field + counts[c]; field != end; ++field) {
          unsigned bits = number >> field->low & ((1u << field->width) - 1);
          uint8_t &byte = to[field->byte + stride];
          byte = static_cast<uint8_t>(byte | bits << field->shift);
        }
      }
      for (int64_t c = 0; c < width; c += record.unit()) {
        int64_t group = shape.groupOf(first + c);
        writeBits(to, record.scale(r, c), row.scales[group]);
        if (format.hasOffset())
          writeBits(to, record.offset(r, c), row.offsets[group]);
      }
      for (int64_t i = 0; i < format.superNumbers(); ++i)
        save(to + record.super(r, i),
             row.supers[first / RecordShape::columns * format.superNumbers() + i]);
    }
  }
}

static void packRow(const PackedShape &shape, const PackRow &row, uint8_t *out) {
  size_t columns = static_cast<size_t>(shape.columns());
  const Encoding &format = shape.format();
  const int8_t *q = static_cast<const int8_t *>(row.elements);
  if (!format.isInteger() || format.bits() == 8) {
    std::memcpy(out, row.elements, columns * format.bits() / 8);
    return;
  }
  for (Encoding::Plane plane : format.planes()) {
    for (size_t j = 0; j < columns; ++j) {
      unsigned piece = static_cast<unsigned>(q[j]) >> plane.low & ((1u << plane.width) - 1);
      size_t bit = j * plane.width;
      out[bit / 8] = static_cast<uint8_t>(out[bit / 8] | piece << bit % 8);
    }
    out += (columns * plane.width + 7) / 8;
  }
}

void sluice::formats::packTile(const PackedShape &shape, ArrayRef<PackRow> rows,
                               MutableArrayRef<uint8_t> out) {
  assert(rows.size() <= static_cast<size_t>(shape.rowsPerTile()) && "more rows than a tile has");
  assert(out.size() == static_cast<size_t>(shape.tileBytes()) && "exactly one tile");
  std::memset(out.data(), 0, out.size());
  switch (shape.layout().kind) {
  case Kind::Rows:
    if (!rows.empty() && rows[0].elements) {
      packRow(shape, rows[0], out.data());
      packScales(shape, rows, 0, out.data());
    }
    return;
  case Kind::Blocks: {
    const Encoding &format = shape.format();
    // A row of zeros is not all zero bytes: a nibble of Q4_0 has q + 8.
    EncodedRows zeros(format, 1, shape.columns());
    EncodedRow row = zeros.row(0);
    if (!rows.empty() && rows[0].elements) {
      row.q = {static_cast<const int8_t *>(rows[0].elements), row.q.size()};
      row.scales = {rows[0].scales, row.scales.size()};
      row.offsets = {rows[0].offsets, row.offsets.size()};
      row.supers = {rows[0].supers, row.supers.size()};
    }
    GgufBlock::of(format)->write(row, out);
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
  case Kind::Records:
    packRecords(shape, rows, out.data());
    return;
  }
}

//===----------------------------------------------------------------------===//
// Unpacking
//===----------------------------------------------------------------------===//

EncodedRows sluice::formats::unpackRow(const PackedShape &shape, ArrayRef<uint8_t> packed,
                                       int64_t row) {
  const Encoding &format = shape.format();
  assert(format.isScaled() && packed.size() == static_cast<size_t>(shape.bytes()));
  EncodedRows result(format, 1, shape.columns());
  if (shape.layout().kind == Kind::Blocks) {
    GgufBlock::of(format)->read(packed.slice(static_cast<size_t>(row * shape.tileBytes()),
                                             static_cast<size_t>(shape.tileBytes())),
                                result.numbers(0));
    return result;
  }
  unsigned sign = format.code() == Encoding::Code::Signed ? 1u << (format.bits() - 1) : 0;
  for (int64_t column = 0; column < shape.columns(); ++column) {
    unsigned q = readBits(packed.data(), shape.elementBits(row, column));
    result.q[column] = static_cast<int8_t>((q ^ sign) - sign);
  }
  int64_t group = format.groupColumns(shape.columns());
  for (int64_t g = 0; g < shape.groups(); ++g) {
    int64_t column = g * group;
    result.scales[g] = readBits(packed.data(), shape.scaleBits(row, column));
    if (format.offset == Offset::None)
      continue;
    unsigned offset = readBits(packed.data(), shape.offsetBits(row, column));
    if (format.hasZeroPoint())
      result.zeros[g] = static_cast<int8_t>(offset);
    else
      result.offsets[g] = static_cast<uint16_t>(offset);
  }
  for (size_t i = 0; i < result.supers.size(); ++i)
    result.supers[i] = llvm::support::endian::read16le(
        packed.data() + shape.superPosition(row,
                                            static_cast<int64_t>(i) / format.superNumbers() *
                                                Encoding::superColumns,
                                            static_cast<int64_t>(i) % format.superNumbers()));
  return result;
}

void sluice::formats::unpackRow(const PackedShape &shape, ArrayRef<uint8_t> packed, int64_t row,
                                MutableArrayRef<float> values) {
  const Encoding &format = shape.format();
  assert(packed.size() == static_cast<size_t>(shape.bytes()));
  assert(values.size() == static_cast<size_t>(shape.columns()) && "one value per column");
  if (format.isScaled())
    return dequantizeRow(format, unpackRow(shape, packed, row).row(0), values);
  for (int64_t column = 0; column < shape.columns(); ++column) {
    const uint8_t *from = packed.data() + shape.elementPosition(row, column).byte;
    if (format.element == Element::F32)
      values[column] = std::bit_cast<float>(llvm::support::endian::read32le(from));
    else if (format.element == Element::F16)
      values[column] = f16ToFloat(llvm::support::endian::read16le(from));
    else
      values[column] = bf16ToFloat(llvm::support::endian::read16le(from));
  }
}
