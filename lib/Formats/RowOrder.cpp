// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/RowOrder.h"
#include "sluice/Formats/Packing.h"

#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/MathExtras.h"

#include <algorithm>

using namespace llvm;
using namespace sluice::formats;

static Error orderError(const Twine &what) {
  return createStringError(inconvertibleErrorCode(), "row order: " + what);
}

int64_t RowSegment::tiles(int64_t rows) const {
  constexpr int64_t half = tileRows / 2;
  switch (kind) {
  case Kind::Natural:
    return divideCeil(rows, tileRows);
  case Kind::Pairs:
    return rows / second * divideCeil(second / 2, half);
  case Kind::Zip:
    return divideCeil(rows, half);
  }
  llvm_unreachable("not a kind of segment");
}

/// The segments that no segments mean.
static ArrayRef<RowSegment> orNatural(ArrayRef<RowSegment> segments, size_t sources,
                                      std::vector<RowSegment> &natural) {
  if (!segments.empty())
    return segments;
  for (size_t i = 0; i < sources; ++i)
    natural.push_back({RowSegment::Kind::Natural, static_cast<int64_t>(i), 0});
  return natural;
}

Expected<int64_t> RowOrder::count(ArrayRef<RowSegment> segments, ArrayRef<int64_t> sourceRows) {
  int64_t sources = static_cast<int64_t>(sourceRows.size());
  if (sources == 0)
    return orderError("there are no sources");
  for (int64_t i = 0; i < sources; ++i)
    if (sourceRows[i] < 1 || sourceRows[i] > maxExtent)
      return orderError("source " + Twine(i) + " has " + Twine(sourceRows[i]) +
                        " rows, expected 1 to " + Twine(maxExtent));

  std::vector<RowSegment> natural;
  segments = orNatural(segments, sourceRows.size(), natural);
  std::vector<bool> used(static_cast<size_t>(sources));
  auto use = [&](int64_t source) -> Error {
    if (source < 0 || source >= sources)
      return orderError("a segment names source " + Twine(source) + ", but there are " +
                        Twine(sources));
    if (used[source])
      return orderError("source " + Twine(source) + " is named twice");
    used[source] = true;
    return Error::success();
  };
  int64_t tiles = 0;
  for (const RowSegment &segment : segments) {
    if (Error error = use(segment.first))
      return error;
    int64_t rows = sourceRows[segment.first];
    switch (segment.kind) {
    case RowSegment::Kind::Natural:
      break;
    case RowSegment::Kind::Pairs:
      if (segment.second < 2 || segment.second % 2 || rows % segment.second)
        return orderError("heads of " + Twine(segment.second) + " rows do not suit source " +
                          Twine(segment.first) + " of " + Twine(rows) +
                          " rows, expected an even divisor");
      break;
    case RowSegment::Kind::Zip:
      if (Error error = use(segment.second))
        return error;
      if (sourceRows[segment.second] != rows)
        return orderError("zipped sources " + Twine(segment.first) + " and " +
                          Twine(segment.second) + " have " + Twine(rows) + " and " +
                          Twine(sourceRows[segment.second]) + " rows, expected the same number");
      break;
    }
    tiles += segment.tiles(rows);
  }
  for (int64_t i = 0; i < sources; ++i)
    if (!used[i])
      return orderError("source " + Twine(i) + " is in no segment");
  if (tiles > maxExtent / tileRows)
    return orderError("the packed matrix has " + Twine(tiles) +
                      " tiles of 16 rows, expected at most " + Twine(maxExtent / tileRows));
  return tiles * tileRows;
}

Expected<RowOrder> RowOrder::get(ArrayRef<RowSegment> segments, ArrayRef<int64_t> sourceRows) {
  constexpr int64_t half = tileRows / 2;
  // Everything is checked, and the size known, before a place is made.
  Expected<int64_t> places = count(segments, sourceRows);
  if (!places)
    return places.takeError();
  std::vector<RowSegment> natural;
  segments = orNatural(segments, sourceRows.size(), natural);

  RowOrder result;
  result.order.reserve(static_cast<size_t>(*places));
  for (int64_t rows : sourceRows)
    result.inverse.emplace_back(static_cast<size_t>(rows));
  auto place = [&](int64_t source, int64_t row, bool exists) {
    if (!exists) {
      result.order.emplace_back();
      return;
    }
    result.inverse[source][row] = static_cast<int64_t>(result.order.size());
    result.order.push_back({source, row});
  };
  for (const RowSegment &segment : segments) {
    int64_t first = segment.first, second = segment.second, rows = sourceRows[first];
    switch (segment.kind) {
    case RowSegment::Kind::Natural:
      for (int64_t r = 0; r < segment.tiles(rows) * tileRows; ++r)
        place(first, r, r < rows);
      break;
    case RowSegment::Kind::Pairs:
      for (int64_t head = 0; head < rows; head += second)
        for (int64_t r = 0; r < second / 2; r += half)
          for (int64_t offset : {int64_t(0), second / 2})
            for (int64_t i = 0; i < half; ++i)
              place(first, head + offset + r + i, r + i < second / 2);
      break;
    case RowSegment::Kind::Zip:
      for (int64_t r = 0; r < rows; r += half)
        for (int64_t source : {first, second})
          for (int64_t i = 0; i < half; ++i)
            place(source, r + i, r + i < rows);
      break;
    }
  }
  return result;
}

int64_t sluice::formats::RowView::fileRow(int64_t row) const {
  if (interleaved)
    return ggufRotaryRow(row, interleaved);
  if (head) {
    int64_t inHead = row % head, turned = rotary / 2, rest = (head - rotary) / 2;
    bool second = inHead >= head / 2;
    int64_t i = second ? inHead - head / 2 : inHead;
    int64_t place =
        i < turned ? i + (second ? turned : 0) : rotary + i - turned + (second ? rest : 0);
    row += place - inHead;
  }
  return first + (block ? row / block * stride + row % block : row);
}

int64_t sluice::formats::RowView::fileRows(int64_t rows) const {
  return block && rows ? (rows - 1) / block * stride + (rows - 1) % block + 1 : rows;
}
