// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Model/Model.h"
#include "dialects/Plan/Plan.h"
#include "dialects/Quantized/Quantized.h"
#include "sluice/Calibration/Statistics.h"
#include "sluice/Formats/Quantizer.h"
#include "sluice/Formats/RopeTable.h"
#include "sluice/Formats/Rounding.h"
#include "sluice/Formats/Synthetic.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Import/Safetensors.h"
#include "sluice/Import/TensorReader.h"
#include "sluice/Target/Artifact.h"

#include "llvm/Support/Parallel.h"
#include "llvm/Support/xxhash.h"

#include <mutex>

using namespace llvm;
using namespace mlir;
using namespace sluice;
using formats::Encoding;

namespace {

/// Room for about this many bytes of packed tiles is filled in parallel before it is written.
constexpr int64_t kBatchBytes = int64_t(16) << 20;

/// A source of a packed weight.
struct Source {
  TensorReader reader;
  std::string name;
  /// How its rows become integers.
  std::shared_ptr<const formats::Rounder> rounder;
};

/// Scratch for rows.
struct Rows {
  SmallVector<float> values;
  SmallVector<uint16_t> bits;
  formats::EncodedRows numbers;

  Rows(const formats::PackedShape &shape, int64_t count)
      : values(count * shape.columns()), numbers(shape.format(), count, shape.columns()) {
    if (!shape.format().isScaled() && shape.format().element != Encoding::Element::F32)
      bits.resize(values.size());
  }
};

class Writer {
public:
  Writer(ModuleOp module, const std::function<void(double)> &progress)
      : module(module), symbols(module), progress(progress) {}

  Error write(StringRef path);

private:
  Expected<Source> openSource(StringRef name);
  /// What rounds a weight: by the statistics, if there are any of it.
  /// What rounds a weight to `format`; only integers are rounded by statistics.
  Expected<std::shared_ptr<const formats::Rounder>>
  rounderOf(StringRef weight, const Encoding &format, int64_t columns);
  Error writeSymbol(Operation *symbol, SafetensorsWriter &out, size_t index);
  Error writePacked(quantized::PackedOp packed, quantized::QuantizedTensorType type,
                    SafetensorsWriter &out, size_t index);
  Error writePlain(quantized::PackedOp packed, RankedTensorType type, SafetensorsWriter &out,
                   size_t index);
  Error writeRopeTable(model::RopeTableOp table, SafetensorsWriter &out, size_t index);
  /// Fills the tiles that `places` have the rows of.
  Error fillTiles(const formats::PackedShape &shape, ArrayRef<formats::RowPlace> places,
                  ArrayRef<Source> sources, MutableArrayRef<uint8_t> out);
  Error append(SafetensorsWriter &out, size_t index, ArrayRef<uint8_t> data);

  ModuleOp module;
  SymbolTable symbols;
  const std::function<void(double)> &progress;
  std::unique_ptr<FileSet> files;
  std::string statisticsPath;
  std::optional<calibration::Statistics> statistics;
  /// The last rounder, and the input that it is of: weights that read one input follow each other.
  const calibration::InputStatistics *lastInput = nullptr;
  std::shared_ptr<const formats::Rounder> lastRounder;
  int64_t written = 0, total = 0;
};

} // namespace

static Error prefixed(const Twine &prefix, Error error) {
  return createStringError(prefix + ": " + toString(std::move(error)));
}

/// The weight, packed or computed, that a buffer holds; null if there is none.
static Operation *recipeOf(plan::BufferOp buffer, const SymbolTable &symbols) {
  auto source = buffer->getAttrOfType<FlatSymbolRefAttr>("source");
  Operation *recipe = symbols.lookup(source ? source.getValue() : buffer.getSymName());
  return isa_and_nonnull<model::RopeTableOp, quantized::PackedOp>(recipe) ? recipe : nullptr;
}

Expected<std::optional<synthetic::SyntheticPattern>>
sluice::syntheticPattern(Operation *op, const SymbolTable &symbols) {
  auto buffer = cast<plan::BufferOp>(op);
  Operation *recipe = recipeOf(buffer, symbols);
  if (!recipe)
    return createStringError(buffer.getSymName() + ": no packed weight has this name");
  auto packed = dyn_cast<quantized::PackedOp>(recipe);
  if (!packed)
    return std::nullopt;
  bool isSynthetic = true;
  for (auto source : packed.getSources().getAsRange<FlatSymbolRefAttr>()) {
    auto weight = symbols.lookup<model::WeightOp>(source.getValue());
    isSynthetic &= weight && weight.isSynthetic();
  }
  if (!isSynthetic)
    return std::nullopt;
  StringRef name = buffer.getSymName();
  uint64_t seed = xxh3_64bits(name);
  // Patterns repeat from tile to tile, so that the number of rows does not matter.
  auto patternOf = [&](Encoding format, formats::Layout layout,
                       int64_t columns) -> Expected<std::optional<synthetic::SyntheticPattern>> {
    Expected<formats::PackedShape> shape = formats::PackedShape::get(format, layout, 1, columns);
    if (!shape)
      return createStringError(name + ": " + toString(shape.takeError()));
    return formats::SyntheticTensor(*shape, seed).pattern();
  };
  if (auto type = dyn_cast<quantized::QuantizedTensorType>(packed.getType()))
    return patternOf(type.getEncoding().getValue(), type.getLayout().toLayout(), type.getColumns());
  auto type = cast<RankedTensorType>(packed.getType());
  mlir::Type element = type.getElementType();
  Encoding format;
  format.element = element.isF32()   ? Encoding::Element::F32
                   : element.isF16() ? Encoding::Element::F16
                                     : Encoding::Element::BF16;
  if (type.getRank() < 2)
    return formats::syntheticVector(format.element, seed);
  return patternOf(format, {}, type.getDimSize(type.getRank() - 1));
}

Error Writer::append(SafetensorsWriter &out, size_t index, ArrayRef<uint8_t> data) {
  written += data.size();
  if (progress)
    progress(static_cast<double>(written) / total);
  return out.append(index, data);
}

Expected<Source> Writer::openSource(StringRef name) {
  auto weight = symbols.lookup<model::WeightOp>(name);
  if (!weight)
    return createStringError(name + ": is not a weight of a model file");
  Expected<Weight> located = weightInFile(weight);
  if (!located)
    return located.takeError();
  const TensorRef &ref = located->tensor;
  Source source;
  Expected<TensorReader> reader = TensorReader::open(*located, *files);
  if (!reader)
    return reader.takeError();
  source.reader = std::move(*reader);
  source.name = ref.file + ": tensor '" + ref.name + "'";
  return source;
}

Expected<std::shared_ptr<const formats::Rounder>>
Writer::rounderOf(StringRef weight, const Encoding &format, int64_t columns) {
  using formats::Rounder;
  const calibration::InputStatistics *input =
      statistics && format.isInteger() ? statistics->inputOf(weight) : nullptr;
  if (input && input->columns() != columns)
    return createStringError(statisticsPath + ": weight " + weight + " has " + Twine(columns) +
                             " columns, its statistics have " + Twine(input->columns()));
  if (input && input == lastInput)
    return lastRounder;
  lastRounder.reset(); // Two Hessians of a large model may not fit.
  Expected<Rounder> rounder = calibration::makeRounder(input, columns);
  if (!rounder)
    return prefixed(statisticsPath + ": input of weight " + weight, rounder.takeError());
  lastInput = input;
  lastRounder = std::make_shared<const Rounder>(std::move(*rounder));
  return lastRounder;
}

Error Writer::fillTiles(const formats::PackedShape &shape, ArrayRef<formats::RowPlace> places,
                        ArrayRef<Source> sources, MutableArrayRef<uint8_t> out) {
  Encoding format = shape.format();
  int64_t columns = shape.columns();
  Rows tile(shape, static_cast<int64_t>(places.size()));
  SmallVector<formats::PackRow> rows(places.size());
  // Of each source, what has to become integers.
  SmallVector<std::vector<formats::Rounder::Row>> toRound(sources.size());
  for (auto [i, place] : enumerate(places)) {
    if (place.empty())
      continue;
    const Source &source = sources[place.source];
    // What errors name is the file's.
    int64_t row = place.row, fileRow = source.reader.fileRow(row);
    MutableArrayRef<float> values = MutableArrayRef(tile.values).slice(i * columns, columns);
    if (!format.isScaled()) {
      source.reader.readRow(row, values);
      if (format.element == Encoding::Element::F32) {
        if (Error error = formats::checkFinite(values, fileRow))
          return prefixed(source.name, std::move(error));
        rows[i].elements = values.data();
        continue;
      }
      MutableArrayRef<uint16_t> bits = MutableArrayRef(tile.bits).slice(i * columns, columns);
      if (Error error = formats::convertRow(values, format.element, bits, fileRow))
        return prefixed(source.name, std::move(error));
      rows[i].elements = bits.data();
      continue;
    }
    if (source.reader.encoding() == format) {
      source.reader.readNumbers(row, tile.numbers, i);
      if (Error error = formats::checkFiniteNumbers(format, tile.numbers.row(i), columns, fileRow))
        return prefixed(source.name, std::move(error));
    } else {
      source.reader.readRow(row, values);
      toRound[place.source].push_back({values, tile.numbers.numbers(i), fileRow});
    }
    rows[i] = tile.numbers.row(i);
  }
  for (auto [source, sourceRows] : zip_equal(sources, toRound))
    if (!sourceRows.empty())
      if (Error error = source.rounder->round(format, sourceRows))
        return prefixed(source.name, std::move(error));
  for (size_t first = 0, at = 0; first < rows.size(); first += shape.rowsPerTile()) {
    size_t count = std::min<size_t>(shape.rowsPerTile(), rows.size() - first);
    formats::packTile(shape, ArrayRef(rows).slice(first, count), out.slice(at, shape.tileBytes()));
    at += shape.tileBytes();
  }
  return Error::success();
}

Error Writer::writePacked(quantized::PackedOp packed, quantized::QuantizedTensorType type,
                          SafetensorsWriter &out, size_t index) {
  std::vector<Source> sources;
  SmallVector<int64_t> sourceRows;
  for (auto ref : packed.getSources().getAsRange<FlatSymbolRefAttr>()) {
    Expected<Source> source = openSource(ref.getValue());
    if (!source)
      return source.takeError();
    if (source->reader.columns() != type.getColumns())
      return createStringError(packed.getSymName() + ": has " + Twine(type.getColumns()) +
                               " columns, its source " + ref.getValue() + " has " +
                               Twine(source->reader.columns()));
    sourceRows.push_back(source->reader.rows());
    Expected<std::shared_ptr<const formats::Rounder>> rounder =
        rounderOf(ref.getValue(), type.getEncoding().getValue(), type.getColumns());
    if (!rounder)
      return rounder.takeError();
    source->rounder = *rounder;
    sources.push_back(std::move(*source));
  }
  if (sum_of(sourceRows) != type.getRows())
    return createStringError(packed.getSymName() + ": has " + Twine(type.getRows()) +
                             " rows, its sources " + Twine(sum_of(sourceRows)));
  Expected<formats::RowOrder> order = quantized::expandRowOrder(packed.getOrder(), sourceRows);
  if (!order)
    return prefixed(packed.getSymName(), order.takeError());
  formats::Layout layout = type.getLayout().toLayout();
  // Only tiles have empty places; without them rows follow each other.
  int64_t packedRows = layout.isTiled() ? order->rows() : type.getRows();
  Expected<formats::PackedShape> shape = formats::PackedShape::get(
      type.getEncoding().getValue(), layout, packedRows, type.getColumns());
  if (!shape)
    return prefixed(packed.getSymName(), shape.takeError());

  // Tiles that one thread fills at a time: as many rows as are rounded at full speed.
  bool rounds = any_of(sources, [](const Source &source) {
    return source.rounder && source.rounder->basis() != formats::Rounder::Basis::Nothing;
  });
  int64_t together =
      rounds ? static_cast<int64_t>(formats::Rounder::rowsAtOnce) / shape->rowsPerTile() : 1;
  int64_t batch = std::max<int64_t>(1, kBatchBytes / shape->tileBytes() / together) * together;
  std::vector<uint8_t> buffer(std::min(batch, shape->tiles()) * shape->tileBytes());
  std::mutex mutex;
  for (int64_t first = 0; first < shape->tiles(); first += batch) {
    int64_t count = std::min(batch, shape->tiles() - first);
    Error failed = Error::success();
    parallelFor(0, divideCeil(count, together), [&](size_t i) {
      int64_t begin = static_cast<int64_t>(i) * together;
      int64_t tiles = std::min(together, count - begin);
      int64_t row = (first + begin) * shape->rowsPerTile();
      Error error = fillTiles(
          *shape,
          order->places().slice(row, std::min(tiles * shape->rowsPerTile(), packedRows - row)),
          sources,
          MutableArrayRef(buffer).slice(begin * shape->tileBytes(), tiles * shape->tileBytes()));
      if (!error)
        return;
      std::lock_guard lock(mutex);
      // One of them is enough to know.
      if (failed)
        consumeError(std::move(error));
      else
        failed = std::move(error);
    });
    if (failed)
      return failed;
    if (Error error = append(out, index, ArrayRef(buffer).take_front(count * shape->tileBytes())))
      return error;
  }
  return Error::success();
}

Error Writer::writePlain(quantized::PackedOp packed, RankedTensorType type, SafetensorsWriter &out,
                         size_t index) {
  Expected<Source> source = openSource(cast<FlatSymbolRefAttr>(packed.getSources()[0]).getValue());
  if (!source)
    return source.takeError();
  const TensorReader &reader = source->reader;
  if (reader.rows() * reader.columns() != type.getNumElements())
    return createStringError(packed.getSymName() + ": has " + Twine(type.getNumElements()) +
                             " elements, its source " + Twine(reader.rows() * reader.columns()));
  mlir::Type element = type.getElementType();
  SmallVector<float> values(reader.columns());
  SmallVector<uint16_t> bits(reader.columns());
  for (int64_t row = 0; row < reader.rows(); ++row) {
    reader.readRow(row, values);
    if (Error error = formats::checkFinite(values, row))
      return prefixed(source->name, std::move(error));
    ArrayRef<uint8_t> bytes(reinterpret_cast<const uint8_t *>(values.data()), 4 * values.size());
    if (!element.isF32()) {
      Encoding::Element kind = element.isF16() ? Encoding::Element::F16 : Encoding::Element::BF16;
      if (Error error = formats::convertRow(values, kind, bits, row))
        return prefixed(source->name, std::move(error));
      bytes = ArrayRef(reinterpret_cast<const uint8_t *>(bits.data()), 2 * bits.size());
    }
    if (Error error = append(out, index, bytes))
      return error;
  }
  return Error::success();
}

Error Writer::writeRopeTable(model::RopeTableOp table, SafetensorsWriter &out, size_t index) {
  auto type = cast<RankedTensorType>(table.getType());
  int64_t half = type.getDimSize(1) / 2;
  SmallVector<double> frequencies = table.getRope().getFrequencies(type.getDimSize(1));
  SmallVector<float> row(2 * half);
  for (int64_t position = 0; position < type.getDimSize(0); ++position) {
    formats::ropeTableRow(frequencies, table.getRope().getFactor(), position,
                          MutableArrayRef(row).take_front(half),
                          MutableArrayRef(row).drop_front(half));
    if (Error error = append(
            out, index,
            ArrayRef(reinterpret_cast<const uint8_t *>(row.data()), row.size() * sizeof(float))))
      return error;
  }
  return Error::success();
}

Error Writer::writeSymbol(Operation *symbol, SafetensorsWriter &out, size_t index) {
  if (auto table = dyn_cast<model::RopeTableOp>(symbol))
    return writeRopeTable(table, out, index);
  auto packed = cast<quantized::PackedOp>(symbol);
  if (auto type = dyn_cast<quantized::QuantizedTensorType>(packed.getType()))
    return writePacked(packed, type, out, index);
  return writePlain(packed, cast<RankedTensorType>(packed.getType()), out, index);
}

Error Writer::write(StringRef path) {
  std::vector<SafetensorsWriter::Declaration> declarations;
  SmallVector<Operation *> recipes;
  for (auto buffer : module.getOps<plan::BufferOp>()) {
    if (buffer.getKind() != plan::BufferKind::Weights)
      continue;
    Expected<std::optional<synthetic::SyntheticPattern>> pattern =
        syntheticPattern(buffer, symbols);
    if (!pattern)
      return pattern.takeError();
    if (*pattern)
      continue;
    Operation *recipe = recipeOf(buffer, symbols);
    if (isa<quantized::PackedOp>(recipe) && !files) {
      Expected<std::string> root = weightRoot(module);
      if (!root)
        return root.takeError();
      files = std::make_unique<FileSet>(*root);
    }
    declarations.push_back(
        {buffer.getSymName().str(), StorageType::U8, {static_cast<int64_t>(buffer.getBytes())}});
    recipes.push_back(recipe);
    total += buffer.getBytes();
  }
  auto options = module->getAttrOfType<DictionaryAttr>("sluice.options");
  if (auto stats = options ? options.getAs<StringAttr>("stats") : StringAttr()) {
    statisticsPath = stats.str();
    Expected<calibration::Statistics> read = calibration::Statistics::read(statisticsPath);
    if (!read)
      return read.takeError();
    statistics = std::move(*read);
  }
  Expected<SafetensorsWriter> out = SafetensorsWriter::create(path, declarations);
  if (!out)
    return out.takeError();
  for (auto [index, recipe] : enumerate(recipes))
    if (Error error = writeSymbol(recipe, *out, index))
      return error;
  return out->finish();
}

Error sluice::writeWeights(ModuleOp module, StringRef path,
                           const std::function<void(double)> &progress) {
  return Writer(module, progress).write(path);
}
