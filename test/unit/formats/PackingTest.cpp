// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Packing.h"
#include "sluice/Formats/Quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

using namespace sluice::formats;
using Element = Encoding::Element;
using Kind = Layout::Kind;

namespace {

PackedShape shapeOf(Encoding format, Layout layout, int64_t rows, int64_t columns) {
  llvm::Expected<PackedShape> shape = PackedShape::get(format, layout, rows, columns);
  if (!shape) {
    ADD_FAILURE() << toString(shape.takeError());
    std::abort();
  }
  return *shape;
}

std::string failure(Encoding format, Layout layout, int64_t rows, int64_t columns) {
  llvm::Expected<PackedShape> shape = PackedShape::get(format, layout, rows, columns);
  return shape ? "no error" : toString(shape.takeError());
}

/// Random numbers of a format, and some empty rows.
struct Matrix {
  Matrix(const Encoding &format, int64_t rows, int64_t columns, unsigned seed)
      : format(format), rows(rows), columns(columns), groups(format.groupsPerRow(columns)),
        numbers(format, rows, columns) {
    std::mt19937 random(seed);
    auto integer = [&](int low, int high) {
      return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
    };
    auto code = [&](unsigned bits) { // of a finite number
      return static_cast<uint32_t>(bits >= 16 ? random() & 0x3FFFBFFFu & ((uint64_t(1) << bits) - 1)
                                              : random() % (1u << bits));
    };
    if (format.isScaled()) {
      for (int8_t &q : numbers.q)
        q = static_cast<int8_t>(format.isInteger() ? integer(format.qMin(), format.qMax())
                                                   : integer(0, 126) | integer(0, 1) << 7);
      for (uint32_t &scale : numbers.scales)
        scale = code(format.scale == Encoding::Scale::E4M3 ? 7 : format.scaleBits());
      for (int8_t &zero : numbers.zeros)
        zero = static_cast<int8_t>(integer(format.qMin(), format.qMax()));
      for (uint16_t &offset : numbers.offsets)
        offset = static_cast<uint16_t>(code(format.offsetBits()));
      for (uint16_t &super : numbers.supers)
        super = static_cast<uint16_t>(code(16));
    } else {
      for (int64_t i = 0; i < rows * columns; ++i) {
        halves.push_back(static_cast<uint16_t>(code(16)));
        floats.push_back(static_cast<float>(random()) / 1e6f + 1);
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      empty.push_back(rows > 2 && random() % 5 == 0);
  }

  PackRow row(int64_t r) const {
    if (empty[r])
      return {};
    if (format.isScaled())
      return numbers.row(r);
    if (format.element == Element::F32)
      return floats.data() + r * columns;
    return halves.data() + r * columns;
  }

  std::vector<uint8_t> pack(const PackedShape &shape) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(shape.bytes()),
                               0xAA); // every byte must be written
    for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
      std::vector<PackRow> rowsOfTile;
      for (int64_t r = tile * shape.rowsPerTile();
           r < std::min(rows, (tile + 1) * shape.rowsPerTile()); ++r)
        rowsOfTile.push_back(row(r));
      packTile(
          shape, rowsOfTile,
          llvm::MutableArrayRef<uint8_t>(bytes).slice(static_cast<size_t>(tile * shape.tileBytes()),
                                                      static_cast<size_t>(shape.tileBytes())));
    }
    return bytes;
  }

  Encoding format;
  int64_t rows, columns, groups;
  EncodedRows numbers;
  std::vector<uint16_t> halves;
  std::vector<float> floats;
  std::vector<bool> empty;
};

std::vector<Encoding> allFormats() {
  std::vector<Encoding> formats{{Element::F32}, {Element::F16}, {Element::BF16}};
  for (Element element : {Element::I8, Element::I4})
    for (int64_t group : {int64_t(32), int64_t(64), int64_t(128), int64_t(256), Encoding::channel})
      for (bool zeroPoint : {false, true})
        formats.push_back(
            {element, group, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None});
  for (const Encoding &encoding : Encoding::all())
    if (encoding.element == Element::E4M3 ||
        (encoding.isInteger() && encoding.scale == Encoding::Scale::F32))
      formats.push_back(encoding);
  formats.push_back({Element::I4, 64, Encoding::Offset::ZeroPoint, Encoding::Scale::F32});
  return formats;
}

/// The encodings of integers that plainFormats lacks.
std::vector<Encoding> blockFormats() {
  std::vector<Encoding> formats;
  for (const Encoding &encoding : Encoding::all())
    if (encoding.isInteger() && !encoding.isPlainInteger())
      formats.push_back(encoding);
  return formats;
}

/// Whether two rows have the same numbers.
testing::AssertionResult sameNumbers(const EncodedRow &x, const EncodedRow &y) {
  if (x.q != y.q)
    return testing::AssertionFailure() << "elements differ";
  if (x.scales != y.scales)
    return testing::AssertionFailure() << "scales differ";
  if (x.zeros != y.zeros || x.offsets != y.offsets)
    return testing::AssertionFailure() << "offsets differ";
  if (x.supers != y.supers)
    return testing::AssertionFailure() << "super-blocks differ";
  return testing::AssertionSuccess();
}

/// Packs, reads every number back by position, and checks that no two share a place and nothing
/// else is written.
void roundTrip(const Encoding &format, Layout layout, int64_t rows, int64_t columns) {
  SCOPED_TRACE(format.name() + " " + layout.name().str() + " " + std::to_string(layout.columns) +
               ": " + std::to_string(rows) + " x " + std::to_string(columns));
  PackedShape shape = shapeOf(format, layout, rows, columns);
  Matrix matrix(format, rows, columns, static_cast<unsigned>(rows * 1000 + columns));
  std::vector<uint8_t> packed = matrix.pack(shape);

  std::vector<uint8_t> used(packed.size()); // one bit a bit
  bool overlap = false;
  auto use = [&](int64_t byte, int64_t bytes, unsigned mask) {
    ASSERT_GE(byte, 0);
    ASSERT_LE(byte + bytes, shape.bytes());
    for (int64_t i = byte; i < byte + bytes; ++i) {
      overlap |= (used[i] & mask) != 0;
      used[i] |= mask;
    }
  };
  auto useAll = [&](BitFields fields) {
    for (BitField field : fields)
      if (field.width > 8)
        use(field.byte, field.width / 8, 0xFF);
      else
        use(field.byte, 1, ((1u << field.width) - 1) << field.shift);
  };
  // Chunks of mma, and units of records, have scales of their own.
  int64_t group = format.isScaled() ? format.groupColumns(columns) : columns;
  int64_t chunkColumns = layout.kind == Kind::Mma ? layout.columns : columns;
  if (layout.kind == Kind::Records)
    group = std::min(group, RecordShape(format).unit());
  for (int64_t r = 0; r < shape.tiles() * shape.rowsPerTile() && layout.kind != Kind::Blocks; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      useAll(shape.elementBits(r, c));
      if (!format.isScaled())
        continue;
      // A chunk's and a group's first column introduces a scale; other columns share it.
      int64_t inChunk = c % chunkColumns;
      int64_t lead = c - inChunk + inChunk / group * group;
      bool hasOffsets = format.offset != Encoding::Offset::None;
      if (lead == c) {
        useAll(shape.scaleBits(r, c));
        if (hasOffsets)
          useAll(shape.offsetBits(r, c));
      } else {
        ASSERT_EQ(shape.scaleBits(r, c), shape.scaleBits(r, lead));
        if (hasOffsets) {
          ASSERT_EQ(shape.offsetBits(r, c), shape.offsetBits(r, lead));
        }
      }
      if (c % Encoding::superColumns == 0)
        for (int64_t number = 0; number < format.superNumbers(); ++number)
          use(shape.superPosition(r, c, number), 2, 0xFF);
    }
  EXPECT_FALSE(overlap);
  for (size_t i = 0; i < packed.size() && layout.kind != Kind::Blocks; ++i)
    ASSERT_EQ(packed[i] & ~used[i] & 0xFF, 0) << "padding at byte " << i;

  size_t n = static_cast<size_t>(columns);
  std::vector<float> values(n), expected(n);
  EncodedRows none(format, 1, columns);
  for (int64_t r = 0; r < rows; ++r) {
    unpackRow(shape, packed, r, values);
    std::fill(expected.begin(), expected.end(), 0.0f);
    if (format.isScaled()) {
      EncodedRows found = unpackRow(shape, packed, r);
      ASSERT_TRUE(sameNumbers(found.row(0), matrix.empty[r] ? none.row(0) : matrix.numbers.row(r)))
          << "row " << r;
      dequantizeRow(format, found.row(0), expected);
      // Repeated scales and zero points agree too.
      for (int64_t c = 0; c < columns && format.isPlainInteger() && layout.kind != Kind::Blocks;
           ++c) {
        int64_t at = shape.scaleBits(r, c).front().byte;
        uint32_t scale = 0;
        for (unsigned byte = 0; byte < format.scaleBits() / 8; ++byte)
          scale |= uint32_t(packed[at + byte]) << (8 * byte);
        ASSERT_EQ(scale, found.scales[c / format.groupColumns(columns)]);
        if (format.hasZeroPoint()) {
          ASSERT_EQ(static_cast<int8_t>(packed[shape.offsetBits(r, c).front().byte]),
                    found.zeros[c / format.groupColumns(columns)]);
        }
      }
    } else if (!matrix.empty[r]) {
      for (size_t c = 0; c < n; ++c)
        expected[c] = format.element == Element::F32   ? matrix.floats[r * n + c]
                      : format.element == Element::F16 ? f16ToFloat(matrix.halves[r * n + c])
                                                       : bf16ToFloat(matrix.halves[r * n + c]);
    }
    ASSERT_EQ(values, expected) << "row " << r;
  }
}

const int64_t manyRows[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 40};

} // namespace

TEST(Packing, RoundTripRows) {
  for (Encoding format : allFormats())
    for (int64_t rows : manyRows)
      for (int64_t columns : {1, 31, 32, 33, 96, 256, 300})
        roundTrip(format, {Kind::Rows, 0}, rows, columns);
}

TEST(Packing, RoundTripLanes) {
  for (Encoding format : allFormats()) {
    for (int64_t rows : manyRows)
      for (int64_t columns : {32, 96, 160, 320})
        roundTrip(format, {Kind::Lanes, 0}, rows, columns);
    for (int64_t columns : {1, 2, 3, 33, 100, 511, 512, 513, 544, 1100})
      roundTrip(format, {Kind::Lanes, 0}, 17, columns);
  }
}

TEST(Packing, RoundTripMma) {
  for (Encoding format : allFormats()) {
    if (format.element == Element::F32)
      continue;
    for (int64_t rows : manyRows)
      for (int64_t columns : {32, 96, 160, 320})
        roundTrip(format, {Kind::Mma, 128}, rows, columns);
    for (int64_t chunk : {64, 128, 256, 512, 1024, 2048})
      for (int64_t columns : {1, 15, 16, 17, 31, 33, 64, 100, 256, 320, 512, 768, 1056, 1100})
        roundTrip(format, {Kind::Mma, chunk}, 17, columns);
  }
  roundTrip({Element::I4, Encoding::channel, Encoding::Offset::ZeroPoint}, {Kind::Mma, 192}, 20,
            1000);
  roundTrip({Element::I4, 32, Encoding::Offset::ZeroPoint}, {Kind::Mma, 192}, 20, 1000);
}

TEST(Packing, RoundTripOfGgufEncodings) {
  for (const Encoding &format : blockFormats())
    for (int64_t rows : {1, 7, 19})
      for (int64_t columns : {256, 768, 40, 300, 576})
        for (Kind kind : {Kind::Rows, Kind::Lanes})
          if (format.fitsColumns(columns))
            roundTrip(format, {kind, 0}, rows, columns);
}

TEST(Packing, RoundTripRecords) {
  for (const Encoding &format : allFormats()) {
    if (!RecordShape::problem(format).empty())
      continue;
    for (int64_t rows : {1, 7, 8, 16, 19})
      for (int64_t columns : {1, 31, 40, 127, 256, 300})
        roundTrip(format, {Kind::Records, 256}, rows, columns);
    roundTrip(format, {Kind::Records, 512}, 17, 1300);
  }
  for (const Encoding &format : blockFormats())
    for (int64_t rows : {1, 8, 19})
      for (int64_t columns : {256, 768, 40, 300, 576})
        if (format.fitsColumns(columns) && RecordShape::problem(format).empty())
          roundTrip(format, {Kind::Records, 512}, rows, columns);
}

TEST(Packing, RecordsOfPieces) {
  // Every bit of every plane belongs to one operand.
  for (const char *name :
       {"q2_k", "q3_k", "q4_k", "int4-g32", "q5_k", "q5_0", "q6_k", "int8-g32"}) {
    RecordShape shape(*Encoding::fromName(name));
    unsigned bits = shape.encoding().bits(), used[8] = {};
    for (unsigned operand = 0; operand < RecordShape::operands; ++operand) {
      unsigned covered = 0;
      for (RecordShape::Piece piece : shape.pieces(operand)) {
        ASSERT_LT(piece.plane, bits) << name;
        unsigned ones = (1u << piece.width) - 1;
        EXPECT_EQ(used[piece.plane] & ones << piece.from, 0u) << name;
        EXPECT_EQ(covered & ones << piece.to, 0u) << name;
        used[piece.plane] |= ones << piece.from;
        covered |= ones << piece.to;
      }
      EXPECT_EQ(covered, ((1u << bits) - 1) << shape.fraction(operand)) << name;
      // What only needs a mask.
      if (operand < bits) {
        EXPECT_EQ(shape.pieces(operand).size(), 1u) << name;
      }
    }
    for (unsigned plane = 0; plane < bits; ++plane)
      EXPECT_EQ(used[plane], 0xFFu) << name;
  }
}

TEST(Packing, LookupTables) {
  for (const char *name :
       {"iq4_nl", "mxfp4", "iq1-g16-n8", "iq2-g16-n8", "iq3xxs-g32-n8", "iq3s-g32-n8"}) {
    Encoding encoding = *Encoding::fromName(name);
    LookupTable table = LookupTable::of(encoding);
    for (int i = 0; i < 8; ++i) {
      EXPECT_EQ(table.a[i] - (table.b[i] < 0), encoding.table()[i]) << name;
      EXPECT_EQ(table.b[i] - (table.a[i] < 0), encoding.table()[8 + i]) << name;
    }
  }
}

TEST(Packing, SizesOfGgufEncodings) {
  // A row of lanes or records takes what GGUF's blocks do, but for 6-bit scales that are bytes
  // here.
  for (auto [name, bytes] : {std::pair("q4_1", 160),
                             {"q5_0", 176},
                             {"q5_1", 192},
                             {"q2_k", 84},
                             {"q3_k", 114},
                             {"q4_k", 144},
                             {"q5_k", 176},
                             {"q6_k", 210},
                             {"iq4_nl", 144},
                             {"iq4_xs", 138},
                             {"mxfp4", 136},
                             {"nvfp4", 144},
                             {"iq1-g16-n8", 146},
                             {"iq3s-g32-n8", 138},
                             {"int4-g32", 144},
                             {"int8-g32", 272}}) {
    Encoding format = *Encoding::fromName(name);
    EXPECT_EQ(format.bytesPerRow(256), bytes) << name;
    EXPECT_EQ(*packedBytes(format, {Kind::Lanes, 0}, 16, 256), (16 * bytes + 63) / 64 * 64) << name;
    EXPECT_EQ(*packedBytes(format, {Kind::Records, 512}, 32, 1024), int64_t(32) * 4 * bytes)
        << name;
  }
}

TEST(Packing, RoundTripBlocks) {
  for (int64_t rows : {1, 2, 5})
    for (int64_t columns : {32, 96, 320})
      for (Element element : {Element::I8, Element::I4})
        roundTrip({element, 32}, {Kind::Blocks, 0}, rows, columns);
  PackedShape shape = shapeOf({Element::I4, 32}, {Kind::Blocks, 0}, 1, 32);
  std::vector<uint8_t> bytes(18);
  packTile(shape, {PackRow()}, bytes);
  std::vector<uint8_t> expected(18, 0x88);
  expected[0] = expected[1] = 0;
  EXPECT_EQ(bytes, expected);
}

//===----------------------------------------------------------------------===//
// Known positions
//===----------------------------------------------------------------------===//

TEST(Packing, RowsByHand) {
  PackedShape shape =
      shapeOf({Element::I4, 32, Encoding::Offset::ZeroPoint}, {Kind::Rows, 0}, 3, 64);
  // 32 bytes of elements, 2 scales, 2 zero points: 38, padded to 48.
  EXPECT_EQ(shape.tileBytes(), 48);
  EXPECT_EQ(shape.bytes(), 144);
  EXPECT_EQ(shape.elementPosition(1, 6), (Position{48 + 3, 0}));
  EXPECT_EQ(shape.elementPosition(1, 7), (Position{48 + 3, 4}));
  EXPECT_EQ(shape.scalePosition(2, 33), 96 + 34);
  EXPECT_EQ(shape.offsetPosition(2, 33).byte, 96 + 37);
  EXPECT_EQ(shapeOf({Element::F16}, {Kind::Rows, 0}, 3, 5).bytes(), 30); // floats are not padded
  EXPECT_EQ(shapeOf({Element::F32}, {Kind::Rows, 0}, 2, 5).elementPosition(1, 2).byte, 28);
  EXPECT_EQ(shapeOf({Element::I8, Encoding::channel}, {Kind::Rows, 0}, 2, 5).scalePosition(0, 0),
            6);
}

TEST(Packing, LanesByHand) {
  PackedShape eight = shapeOf({Element::I8, 128}, {Kind::Lanes, 0}, 512, 256);
  EXPECT_EQ(eight.tileBytes(), 16 * 256 + 2 * 16 * 2);
  EXPECT_EQ(eight.elementPosition(19, 7), (Position{4160 + 3 * 32 + 7, 0}));
  EXPECT_EQ(eight.scalePosition(19, 128), 4160 + 4096 + 32 + 6);
  PackedShape four =
      shapeOf({Element::I4, 64, Encoding::Offset::ZeroPoint}, {Kind::Lanes, 0}, 16, 100);
  EXPECT_EQ(four.paddedColumns(), 128);
  EXPECT_EQ(four.tileBytes(), 1024 + 2 * 32 + 2 * 16 + 32); // padded to a multiple of 64
  EXPECT_EQ(four.elementPosition(3, 9), (Position{2 * 32 + 7, 0}));
  EXPECT_EQ(four.elementPosition(3, 10), (Position{2 * 32 + 6, 4}));
  EXPECT_EQ(four.elementPosition(3, 11), (Position{2 * 32 + 7, 4}));
  EXPECT_EQ(four.offsetPosition(3, 64).byte, 1024 + 64 + 16 + 3);
  PackedShape half = shapeOf({Element::F16}, {Kind::Lanes, 0}, 16, 32);
  EXPECT_EQ(half.elementPosition(5, 3), (Position{3 * 32 + 10, 0}));
  EXPECT_EQ(shapeOf({Element::F32}, {Kind::Lanes, 0}, 16, 32).elementPosition(5, 3).byte,
            3 * 64 + 20);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k32" with .s8: a thread holds 16 elements a0..a15 in four
// registers; row = groupID for a0..a3 and a8..a11, else groupID + 8; column = threadID_in_group * 4
// + (i & 3), + 16 for i >= 8.
TEST(Packing, MmaIntegersAreThePtxOperand) {
  PackedShape eight = shapeOf({Element::I8, 128}, {Kind::Mma, 1024}, 16, 1024);
  PackedShape four = shapeOf({Element::I4, 128}, {Kind::Mma, 1024}, 16, 1024);
  for (int64_t fragment = 0; fragment < 32; ++fragment)
    for (int64_t lane = 0; lane < 32; ++lane)
      for (int64_t i = 0; i < 16; ++i) {
        int64_t row = lane / 4 + (i < 4 || (i >= 8 && i < 12) ? 0 : 8);
        int64_t column = lane % 4 * 4 + (i & 3) + (i < 8 ? 0 : 16) + fragment * 32;
        EXPECT_EQ(eight.elementPosition(row, column),
                  (Position{fragment * 512 + lane * 16 + i, 0}));
        EXPECT_EQ(four.elementPosition(row, column),
                  (Position{fragment / 2 * 512 + lane * 16 + i, fragment % 2 ? 0u : 4u}));
      }
  EXPECT_EQ(eight.scalePosition(0, 0), 16384);
  EXPECT_EQ(eight.scalePosition(8, 0), 16384 + 2); // a lane's two rows are neighbours
  EXPECT_EQ(eight.scalePosition(1, 0), 16384 + 4);
  EXPECT_EQ(eight.scalePosition(15, 300), 16384 + 2 * 32 + 30);
}

// "Matrix Fragments for mma.m16n8k16 with floating point type": row = groupID for a0, a1, a4, a5,
// else groupID + 8; column = threadID_in_group * 2 + (i & 1), + 8 for i >= 4; a register holds a
// pair.
TEST(Packing, MmaFloatsAreThePtxOperand) {
  PackedShape shape = shapeOf({Element::BF16}, {Kind::Mma, 128}, 16, 128);
  EXPECT_EQ(shape.bytes(), 16 * 128 * 2);
  for (int64_t fragment = 0; fragment < 8; ++fragment)
    for (int64_t lane = 0; lane < 32; ++lane)
      for (int64_t i = 0; i < 8; ++i) {
        int64_t row = lane / 4 + (i % 4 < 2 ? 0 : 8);
        int64_t column = lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8) + fragment * 16;
        EXPECT_EQ(shape.elementPosition(row, column),
                  (Position{fragment * 512 + lane * 16 + i * 2, 0}));
      }
}

TEST(Packing, MmaChunks) {
  // A stage of a Llama-3-8B product: 16 rows x 1024 (int8) or 2048 (int4) columns, then the scales.
  PackedShape eight = shapeOf({Element::I8, 128}, {Kind::Mma, 1024}, 6144, 4096);
  EXPECT_EQ(eight.chunkBytes(0), 16640);
  EXPECT_EQ(eight.tileBytes(), 4 * 16640);
  EXPECT_EQ(eight.bytes(), 384 * 4 * 16640);
  PackedShape four = shapeOf({Element::I4, 128}, {Kind::Mma, 2048}, 4096, 14336);
  EXPECT_EQ(four.chunkBytes(6), 16384 + 512);
  EXPECT_EQ(four.tileBytes(), 7 * 16896);
  EXPECT_EQ(four.elementPosition(16, 2048 + 33).byte, 7 * 16896 + 16896 + 1);
  // A shorter last chunk: 1024 + 160 columns, groups of 64.
  PackedShape odd =
      shapeOf({Element::I4, 64, Encoding::Offset::ZeroPoint}, {Kind::Mma, 1024}, 16, 1184);
  EXPECT_EQ(odd.chunks(), 2);
  EXPECT_EQ(odd.chunkBytes(0), 8192 + 16 * 32 + 16 * 16);
  EXPECT_EQ(odd.chunkColumns(1), 160);
  EXPECT_EQ(odd.chunkElements(1), 3 * 512);
  EXPECT_EQ(odd.chunkGroups(1), 3);
  EXPECT_EQ(odd.chunkBytes(1), 1536 + 3 * 32 + 3 * 16);
  EXPECT_EQ(odd.tileBytes(), odd.chunkOffset(1) + odd.chunkBytes(1));
  EXPECT_EQ(odd.offsetPosition(9, 1024 + 128).byte, odd.chunkOffset(1) + 1536 + 96 + 32 + 3);
  // Groups longer than a chunk: one scale a chunk.
  PackedShape channel = shapeOf({Element::I8, Encoding::channel}, {Kind::Mma, 256}, 16, 600);
  EXPECT_EQ(channel.chunkGroups(0), 1);
  EXPECT_EQ(channel.chunkBytes(0), 4096 + 32);
  EXPECT_EQ(channel.scalePosition(0, 599), 2 * 4128 + 3 * 512);
}

TEST(Packing, PackedBytesKnown) {
  EXPECT_EQ(*packedBytes({Element::I8, 128}, {Kind::Mma, 1024}, 128256, 4096),
            int64_t(8016) * 4 * 16640);
  EXPECT_EQ(*packedBytes({Element::I8, 32}, {Kind::Blocks, 0}, 4, 64), 4 * 2 * 34);
  EXPECT_EQ(*packedBytes({Element::I4, 32}, {Kind::Blocks, 0}, 4, 64), 4 * 2 * 18);
  // No overflow at the greatest extent.
  EXPECT_EQ(*packedBytes({Element::F32}, {Kind::Rows, 0}, maxExtent, maxElements / maxExtent),
            maxElements * 4);
  EXPECT_EQ(*packedBytes({Element::F32}, {Kind::Lanes, 0}, maxExtent, 1), maxExtent * 32 * 4);
}

TEST(Packing, Errors) {
  Encoding g128{Element::I8, 128}, f16{Element::F16};
  EXPECT_EQ(failure(g128, {Kind::Lanes, 0}, 0, 4),
            "packed matrix of 0 x 4 in int8-g128, layout lanes: expected 1 to "
            "2147483648 rows and columns");
  EXPECT_EQ(failure(g128, {Kind::Lanes, 0}, 4, maxExtent + 1).substr(0, 33),
            "packed matrix of 4 x 2147483649 i");
  EXPECT_EQ(failure(g128, {Kind::Lanes, 0}, maxExtent, maxExtent),
            "packed matrix of 2147483648 x 2147483648 in int8-g128, layout lanes: expected at most "
            "72057594037927936 "
            "elements");
  EXPECT_EQ(failure(g128, {Kind::Rows, 64}, 1, 4),
            "packed matrix of 1 x 4 in int8-g128, layout rows: the layout has no chunks, found "
            "chunks of 64 columns");
  EXPECT_EQ(failure({Element::I8, 96}, {Kind::Rows, 0}, 1, 4),
            "packed matrix of 1 x 4 in int8-g96, layout rows: group is 96, expected 16, 32, 64, "
            "128, 256 or channel");
  EXPECT_EQ(failure(Encoding{Element::F16, 32}, {Kind::Rows, 0}, 1, 4),
            "packed matrix of 1 x 4 in f16, layout rows: a float format has neither groups nor "
            "zero points");
  EXPECT_EQ(failure({Element::F32}, {Kind::Mma, 64}, 1, 4),
            "packed matrix of 1 x 4 in f32, layout mma: the tensor cores' operand has no f32");
  for (int64_t columns : {0, -64, 32, 100})
    EXPECT_EQ(failure(f16, {Kind::Mma, columns}, 1, 4),
              "packed matrix of 1 x 4 in f16, layout mma: chunk columns are " +
                  std::to_string(columns) + ", expected a multiple of 64");
  EXPECT_EQ(failure(g128, {Kind::Mma, 192}, 1, 4),
            "packed matrix of 1 x 4 in int8-g128, layout mma: chunks of 192 columns do not suit "
            "groups of 128");
  EXPECT_EQ(failure(g128, {Kind::Blocks, 0}, 1, 32),
            "packed matrix of 1 x 32 in int8-g128, layout blocks: GGUF has no such blocks");
  EXPECT_EQ(failure({Element::I4, 32, Encoding::Offset::ZeroPoint}, {Kind::Blocks, 0}, 1, 32),
            "packed matrix of 1 x 32 in int4-g32-zp, layout blocks: GGUF has no such blocks");
  EXPECT_EQ(failure({Element::I4, 32}, {Kind::Blocks, 0}, 1, 33),
            "packed matrix of 1 x 33 in int4-g32, layout blocks: columns must be a multiple of 32");
  EXPECT_EQ(failure(*Encoding::fromName("q4_k"), {Kind::Lanes, 0}, 1, 128),
            "packed matrix of 1 x 128 in q4_k, layout lanes: columns must be a multiple of 256, a "
            "super-block");
  EXPECT_EQ(failure(*Encoding::fromName("q4_1"), {Kind::Mma, 128}, 1, 128),
            "packed matrix of 1 x 128 in q4_1, layout mma: only int8 and int4 with f16 scales are "
            "laid out for tensor cores");
  llvm::Expected<int64_t> bytes = packedBytes(g128, {Kind::Mma, 0}, 1, 4);
  ASSERT_FALSE(bool(bytes));
  EXPECT_NE(toString(bytes.takeError()).find("chunk columns are 0"), std::string::npos);
}
