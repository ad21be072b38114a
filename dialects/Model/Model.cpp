// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Model/Model.h"

#include "sluice/Formats/RopeTable.h"
#include "sluice/Formats/RowOrder.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

using namespace mlir;
using namespace sluice;
using namespace sluice::model;

#include "dialects/Model/ModelDialect.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Model/ModelAttrs.cpp.inc"

void ModelDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialects/Model/ModelAttrs.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/Model/ModelOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// RopeAttr
//===----------------------------------------------------------------------===//

Attribute RopeAttr::parse(AsmParser &parser, Type) {
  double theta, magnitude = 0;
  int64_t dims = 0;
  std::string scaling = "none";
  SmallVector<double> values;
  if (parser.parseLess() || parser.parseKeyword("theta") || parser.parseEqual() ||
      parser.parseFloat(theta))
    return {};
  while (succeeded(parser.parseOptionalComma())) {
    StringRef keyword;
    if (parser.parseKeyword(&keyword) || parser.parseEqual())
      return {};
    if (keyword == "dims") {
      if (parser.parseInteger(dims))
        return {};
    } else if (keyword == "magnitude") {
      if (parser.parseFloat(magnitude))
        return {};
    } else {
      scaling = keyword.str();
      if (parser.parseCommaSeparatedList(AsmParser::Delimiter::Square,
                                         [&] { return parser.parseFloat(values.emplace_back()); }))
        return {};
    }
  }
  if (parser.parseGreater())
    return {};
  Builder b(parser.getContext());
  return parser.getChecked<RopeAttr>(parser.getContext(), b.getF64FloatAttr(theta), scaling,
                                     b.getDenseF64ArrayAttr(values), dims,
                                     magnitude ? b.getF64FloatAttr(magnitude) : FloatAttr());
}

void RopeAttr::print(AsmPrinter &printer) const {
  printer << "<theta = ";
  printer.printFloat(getTheta().getValue());
  if (getDims())
    printer << ", dims = " << getDims();
  if (getScaling() != "none") {
    printer << ", " << getScaling() << " = [";
    llvm::interleaveComma(getValues().asArrayRef(), printer,
                          [&](double v) { printer.printFloat(APFloat(v)); });
    printer << "]";
  }
  if (getMagnitude()) {
    printer << ", magnitude = ";
    printer.printFloat(getMagnitude().getValue());
  }
  printer << ">";
}

LogicalResult RopeAttr::verify(function_ref<InFlightDiagnostic()> emitError, FloatAttr theta,
                               StringRef scaling, DenseF64ArrayAttr values, int64_t dims,
                               FloatAttr magnitude) {
  if (!(theta.getValueAsDouble() > 0) || !std::isfinite(theta.getValueAsDouble()))
    return emitError() << "theta must be positive";
  std::optional<size_t> count = llvm::StringSwitch<std::optional<size_t>>(scaling)
                                    .Case("none", 0)
                                    .Case("linear", 1)
                                    .Case("llama3", 4)
                                    .Case("yarn", 4)
                                    .Default(std::nullopt);
  if (!count && scaling != "factors")
    return emitError() << "scaling must be linear, llama3, factors or yarn, found '" << scaling
                       << "'";
  if (count && values.size() != static_cast<int64_t>(*count))
    return emitError() << "scaling " << scaling << " has " << *count << " values, found "
                       << values.size();
  for (double v : values.asArrayRef())
    if (!(v > 0) || !std::isfinite(v))
      return emitError() << "values of a scaling must be positive";
  if (scaling == "llama3" && !(values[1] < values[2]))
    return emitError() << "scaling llama3 needs its second value (low) below its third (high)";
  if (scaling == "yarn" && !(values[2] < values[1]))
    return emitError() << "scaling yarn needs its third value (slow) below its second (fast)";
  if (dims < 0 || dims % 2)
    return emitError() << "dims must be even and not negative, found " << dims;
  if (magnitude && !(magnitude.getValueAsDouble() > 0 && magnitude.getValue().isFinite()))
    return emitError() << "magnitude must be positive";
  return success();
}

LogicalResult PartAttr::verify(function_ref<InFlightDiagnostic()> emitError, StringRef, StringRef,
                               StringRef, StringRef, ArrayRef<int64_t> shape, int64_t offset,
                               int64_t length) {
  if (offset < 0 || length < 0 || llvm::any_of(shape, [](int64_t size) { return size < 0; }))
    return emitError() << "shape, offset and size of a part must not be negative";
  return success();
}

/// The greatest head size whose rotary frequencies the formats library computes.
static constexpr int64_t maxHeadDim = 65536;

SmallVector<double> RopeAttr::getFrequencies(int64_t headDim) const {
  // The verifiers of this attribute and of the operations that carry it exclude every error.
  SmallVector<double> frequencies =
      llvm::cantFail(formats::ropeFrequencies(getTheta().getValueAsDouble(), 2 * getPairs(headDim),
                                              getScaling(), getValues().asArrayRef()));
  frequencies.resize(headDim / 2, 0.0);
  return frequencies;
}

/// Checks what `rope` demands of heads of `headDim` elements.
static LogicalResult verifyRope(Operation *op, RopeAttr rope, int64_t headDim) {
  if (rope.getDims() > headDim)
    return op->emitOpError() << "rotates " << rope.getDims() << " elements of a head of "
                             << headDim;
  if (rope.getScaling() == "factors" && rope.getValues().size() != rope.getPairs(headDim))
    return op->emitOpError() << "needs " << rope.getPairs(headDim) << " factors, found "
                             << rope.getValues().size();
  return success();
}

//===----------------------------------------------------------------------===//
// ViewAttr
//===----------------------------------------------------------------------===//

Attribute ViewAttr::parse(AsmParser &parser, Type) {
  int64_t block = 0, stride = 0, rotary = 0, head = 0, pitch = 0, first = 0, total = 0;
  auto parseEntry = [&]() -> ParseResult {
    StringRef keyword;
    SMLoc at = parser.getCurrentLocation();
    if (parser.parseKeyword(&keyword) || parser.parseEqual())
      return failure();
    if (keyword == "rotary")
      return failure(parser.parseInteger(rotary) || parser.parseKeyword("of") ||
                     parser.parseInteger(head));
    if (keyword == "first")
      return failure(parser.parseInteger(first) || parser.parseKeyword("of") ||
                     parser.parseInteger(total));
    for (auto [name, value] :
         {std::pair("block", &block), std::pair("stride", &stride), std::pair("pitch", &pitch)})
      if (keyword == name)
        return parser.parseInteger(*value);
    return parser.emitError(at) << "expected block, stride, rotary, pitch or first";
  };
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::LessGreater, parseEntry))
    return {};
  return parser.getChecked<ViewAttr>(parser.getContext(), block, stride, rotary, head, pitch, first,
                                     total);
}

void ViewAttr::print(AsmPrinter &printer) const {
  SmallVector<std::string> entries;
  auto add = [&](const Twine &text) { entries.push_back(text.str()); };
  if (getBlock()) {
    add("block = " + Twine(getBlock()));
    add("stride = " + Twine(getStride()));
  }
  if (getHead())
    add("rotary = " + Twine(getRotary()) + " of " + Twine(getHead()));
  if (getPitch())
    add("pitch = " + Twine(getPitch()));
  if (getTotal())
    add("first = " + Twine(getFirst()) + " of " + Twine(getTotal()));
  printer << "<" << llvm::join(entries, ", ") << ">";
}

LogicalResult ViewAttr::verify(function_ref<InFlightDiagnostic()> emitError, int64_t block,
                               int64_t stride, int64_t rotary, int64_t head, int64_t pitch,
                               int64_t first, int64_t total) {
  constexpr int64_t most = int64_t(1) << 32;
  if (block < 0 || stride > most || (block ? stride < block : stride != 0))
    return emitError() << "stride must be at least block, found " << stride << " and " << block;
  if (head < 0 || head > most || head % 2 || rotary < 0 || rotary % 2 || rotary > head)
    return emitError() << "rotary must be even and at most the head's even size, found " << rotary
                       << " of " << head;
  if (pitch < 0 || pitch > most)
    return emitError() << "pitch must not be negative, found " << pitch;
  if (first < 0 || total > most || (total ? first >= total : first != 0))
    return emitError() << "first must be one of the matrix's rows, found " << first << " of "
                       << total;
  return success();
}

formats::RowView ViewAttr::toView() const {
  return {.block = getBlock(),
          .stride = getStride(),
          .rotary = getRotary(),
          .head = getHead(),
          .pitch = getPitch(),
          .first = getFirst(),
          .total = getTotal()};
}

//===----------------------------------------------------------------------===//
// Symbols
//===----------------------------------------------------------------------===//

LogicalResult WeightOp::verify() {
  auto plain = dyn_cast<RankedTensorType>(getType());
  auto quantized = dyn_cast<quantized::QuantizedTensorType>(getType());
  if (!quantized && !(plain && plain.hasStaticShape() && plain.getRank() > 0))
    return emitOpError()
           << "type must be a builtin tensor of static shape or a quantized tensor, found "
           << getType();
  bool from = getFile().has_value();
  if (getTensor().has_value() != from || getOffset().has_value() != from ||
      getLength().has_value() != from)
    return emitOpError() << "file, tensor, offset and length come together";
  // Accessors of signless attributes are unsigned.
  if (from && (static_cast<int64_t>(*getOffset()) < 0 || static_cast<int64_t>(*getLength()) < 0))
    return emitOpError() << "offset and length must not be negative";
  if (getScheme().has_value() != getParts().has_value())
    return emitOpError() << "scheme and parts come together";
  if (getScheme()) {
    if (!from)
      return emitOpError() << "a scheme needs a file";
    if (!quantized && !(plain.getRank() <= 2 && plain.getElementType().isF32()))
      return emitOpError()
             << "a scheme has a quantized tensor, or a float32 matrix or vector, found "
             << getType();
    if (std::optional<ViewAttr> view = getView()) {
      formats::RowView rows = view->toView();
      int64_t count = quantized ? quantized.getRows() : plain.getDimSize(0);
      if (rows.pitch || (rows.block && !rows.total) ||
          (rows.total && rows.first + rows.fileRows(count) > rows.total))
        return emitOpError() << "a scheme's view is of rows of the matrix, found " << *view
                             << " for " << count << " rows";
    }
  } else if (getView() && getView()->getTotal()) {
    return emitOpError() << "only a scheme's matrix has rows of other weights in front";
  }
  if (std::optional<int64_t> dim = getInterleaved()) {
    int64_t rows = quantized ? quantized.getRows() : plain.getDimSize(0);
    if (*dim <= 0 || *dim % 2 || rows % *dim)
      return emitOpError() << "interleaved needs an even head size that divides the rows (" << rows
                           << "), found " << *dim;
  }
  if (std::optional<ViewAttr> view = getView()) {
    int64_t rows = quantized ? quantized.getRows() : plain.getDimSize(0);
    if (getInterleaved())
      return emitOpError() << "interleaved and view exclude each other";
    if ((view->getBlock() && rows % view->getBlock()) ||
        (view->getHead() && rows % view->getHead()))
      return emitOpError() << "view has blocks of " << view->getBlock() << " and heads of "
                           << view->getHead() << " rows, which must divide the rows (" << rows
                           << ")";
    if (view->getPitch() &&
        (quantized || plain.getRank() != 2 || view->getPitch() < view->toView().fileRows(rows)))
      return emitOpError() << "pitch needs a matrix of floats with at most so many rows, found "
                           << getType() << " and " << view->getPitch();
  }
  return success();
}

formats::RowView WeightOp::getRowView() {
  formats::RowView rows = getView() ? getView()->toView() : formats::RowView();
  rows.interleaved = getInterleaved().value_or(0);
  return rows;
}

LogicalResult RopeTableOp::verify() {
  auto type = dyn_cast<RankedTensorType>(getType());
  if (!type || type.getRank() != 2 || !type.hasStaticShape() || !type.getElementType().isF32() ||
      type.getDimSize(1) % 2)
    return emitOpError() << "type must be a float32 matrix [positions, head size], found "
                         << getType();
  if (type.getDimSize(0) <= 0 || type.getDimSize(1) <= 0 || type.getDimSize(1) > maxHeadDim)
    return emitOpError() << "needs positions and a head size of at most " << maxHeadDim
                         << ", found " << type;
  return verifyRope(*this, getRope(), type.getDimSize(1));
}

LogicalResult CacheOp::verify() {
  if (!isa<quantized::CacheType>(getType()))
    return emitOpError() << "type must be a !quantized.cache, found " << getType();
  return success();
}

LogicalResult ParameterOp::verifySymbolUses(SymbolTableCollection &symbols) {
  Operation *target = symbols.lookupNearestSymbolFrom(*this, getWeightAttr());
  if (!target)
    return emitOpError() << "names an unknown weight " << getWeightAttr();
  TypeAttr type = target->getAttrOfType<TypeAttr>("type");
  if (!isa<WeightOp, RopeTableOp, quantized::PackedOp>(target) || !type)
    return emitOpError() << getWeightAttr() << " is not a weight";
  if (type.getValue() != getResult().getType())
    return emitOpError() << "has type " << getResult().getType() << " but " << getWeightAttr()
                         << " is " << type.getValue();
  return success();
}

/// The cache that `op` names by `ref`; emits an error and returns null if there is none.
static CacheOp lookupCache(Operation *op, FlatSymbolRefAttr ref, SymbolTableCollection &symbols) {
  auto cache = symbols.lookupNearestSymbolFrom<CacheOp>(op, ref);
  if (!cache)
    op->emitOpError() << "names an unknown cache " << ref;
  return cache;
}

formats::CacheShape sluice::model::cacheShape(quantized::CacheType type, Value pages) {
  formats::CacheShape shape = type.getShapeInfo();
  if (!pages)
    return shape;
  auto table = cast<RankedTensorType>(pages.getType());
  return shape.asPages(table.getDimSize(0), table.getDimSize(1));
}

BlockArgument sluice::model::pageTable(Block &step) {
  for (BlockArgument argument : step.getArguments())
    if (auto type = dyn_cast<RankedTensorType>(argument.getType());
        type && type.getRank() == 2 && type.getElementType().isUnsignedInteger(32))
      return argument;
  return BlockArgument();
}

/// Rows of a step belong to a sequence each, or all to the only one; `packed`: to any.
static LogicalResult verifySequences(Operation *op, int64_t rows, quantized::CacheType type,
                                     Value pages, bool packed) {
  if (pages) {
    if (!cast<RankedTensorType>(pages.getType()).hasStaticShape())
      return op->emitOpError() << "needs a page table of static shape, found " << pages.getType();
    if (!type.isTiled() || type.getPositions() != formats::cacheTile)
      return op->emitOpError() << "with a page table needs a cache of tiled pages of "
                               << formats::cacheTile << " positions, found " << type;
  }
  int64_t sequences =
      pages ? cast<RankedTensorType>(pages.getType()).getDimSize(0) : type.getSequences();
  if (!packed && sequences != 1 && sequences != rows)
    return op->emitOpError() << "has " << rows << " rows for a " << (pages ? "page table" : "cache")
                             << " of " << sequences << " sequences";
  return success();
}

LogicalResult sluice::model::verifyOwners(Operation *op, int64_t rows, Value pages,
                                          Value sequences) {
  if (!sequences)
    return success();
  if (!pages)
    return op->emitOpError() << "has rows of several sequences, whose caches must be in pages";
  if (cast<RankedTensorType>(sequences.getType()).getDimSize(0) != rows)
    return op->emitOpError() << "needs one sequence per row, found " << sequences.getType()
                             << " for " << rows;
  return success();
}

LogicalResult CacheAppendOp::verifySymbolUses(SymbolTableCollection &symbols) {
  CacheOp cache = lookupCache(*this, getCacheAttr(), symbols);
  if (!cache)
    return failure();
  if (getPositions().getType().getDimSize(0) != getInput().getType().getDimSize(0))
    return emitOpError() << "needs one position per row";
  quantized::CacheType type = cache.getCacheType();
  int64_t rows = getInput().getType().getDimSize(0), width = getInput().getType().getDimSize(1);
  if (type.getWidth() != width)
    return emitOpError() << "stores " << width << " numbers but a position of " << getCacheAttr()
                         << " has " << type.getWidth();
  if (failed(verifyOwners(*this, rows, getPages(), getSequences())))
    return failure();
  return verifySequences(*this, rows, type, getPages(), getSequences() != nullptr);
}

LogicalResult sluice::model::verifyAttention(Operation *op, RankedTensorType query,
                                             RankedTensorType positions, FlatSymbolRefAttr keys,
                                             FlatSymbolRefAttr values, Value pages, bool packed,
                                             SymbolTableCollection &symbols) {
  if (positions.getDimSize(0) != query.getDimSize(0))
    return op->emitOpError() << "needs one position per row";
  CacheOp k = lookupCache(op, keys, symbols), v = k ? lookupCache(op, values, symbols) : CacheOp();
  if (!k || !v)
    return failure();
  quantized::CacheType type = k.getCacheType();
  if (type.getShape() != v.getCacheType().getShape())
    return op->emitOpError() << "keys and values differ in shape: " << type << " and "
                             << v.getCacheType();
  int64_t width = query.getDimSize(1);
  if (width % type.getWidth() != 0)
    return op->emitOpError() << "query width " << width << " must be a multiple of the keys' width "
                             << type.getWidth();
  if (pages && failed(verifySequences(op, query.getDimSize(0), v.getCacheType(), pages, packed)))
    return failure();
  return verifySequences(op, query.getDimSize(0), type, pages, packed);
}

LogicalResult sluice::model::verifySoftCap(Operation *op, std::optional<APFloat> cap) {
  if (cap && !(cap->isFinite() && cap->convertToDouble() > 0))
    return op->emitOpError() << "soft cap must be positive";
  return success();
}

LogicalResult AttentionOp::verifySymbolUses(SymbolTableCollection &symbols) {
  if (failed(verifySoftCap(*this, getSoftCap())))
    return failure();
  return verifyAttention(*this, getQuery().getType(), getPositions().getType(), getKeysAttr(),
                         getValuesAttr(), /*pages=*/Value(), /*packed=*/false, symbols);
}

//===----------------------------------------------------------------------===//
// Layers
//===----------------------------------------------------------------------===//

LogicalResult EmbeddingOp::verify() {
  auto table = getTable().getType(), result = getResult().getType();
  if (table.getDimSize(1) != result.getDimSize(1) ||
      getTokens().getType().getDimSize(0) != result.getDimSize(0))
    return emitOpError() << "result must be [tokens, table's width], found " << result;
  return success();
}

LogicalResult RmsNormOp::verify() {
  int64_t width = getInput().getType().getDimSize(1);
  if (std::optional<int64_t> dim = getHeadDim()) {
    if (*dim <= 0 || width % *dim)
      return emitOpError() << "head_dim must divide the width " << width << ", found " << *dim;
    if (getWidth() != *dim)
      return emitOpError() << "gain has " << getWidth() << " elements, a head has " << *dim;
  } else if (getWidth() != width) {
    return emitOpError() << "gain has " << getWidth() << " elements, input is " << width << " wide";
  }
  if (!(getEpsilon().convertToDouble() >= 0))
    return emitOpError() << "epsilon must not be negative";
  return success();
}

LogicalResult LayerNormOp::verify() {
  int64_t width = getInput().getType().getDimSize(1);
  if (getGain().getType().getDimSize(0) != width)
    return emitOpError() << "gain has " << getGain().getType().getDimSize(0)
                         << " elements, input is " << width << " wide";
  if (getBias() && getBias().getType().getDimSize(0) != width)
    return emitOpError() << "bias has " << getBias().getType().getDimSize(0)
                         << " elements, input is " << width << " wide";
  if (!(getEpsilon().convertToDouble() >= 0))
    return emitOpError() << "epsilon must not be negative";
  return success();
}

LogicalResult ScaleOp::verify() {
  if (!getFactor().isFinite())
    return emitOpError() << "factor must be finite";
  return success();
}

LogicalResult SoftCapOp::verify() { return verifySoftCap(*this, getCap()); }

LogicalResult LinearOp::verify() {
  auto in = getInput().getType(), w = getWeight().getType(), out = getResult().getType();
  if (in.getDimSize(1) != w.getDimSize(1))
    return emitOpError() << "input is " << in.getDimSize(1) << " wide, weight has "
                         << w.getDimSize(1) << " columns";
  if (out.getDimSize(1) != w.getDimSize(0) || out.getDimSize(0) != in.getDimSize(0))
    return emitOpError() << "result must be [" << in.getDimSize(0) << ", " << w.getDimSize(0)
                         << "], found " << out;
  if (getBias() && getBias().getType().getDimSize(0) != w.getDimSize(0))
    return emitOpError() << "bias has " << getBias().getType().getDimSize(0)
                         << " elements, weight has " << w.getDimSize(0) << " rows";
  return success();
}

LogicalResult AddBiasOp::verify() {
  if (getBias().getType().getDimSize(0) != getInput().getType().getDimSize(1))
    return emitOpError() << "bias has " << getBias().getType().getDimSize(0)
                         << " elements, input is " << getInput().getType().getDimSize(1) << " wide";
  return success();
}

LogicalResult ScaleChannelsOp::verify() {
  if (getFactor().getType().getDimSize(0) != getInput().getType().getDimSize(1))
    return emitOpError() << "factor has " << getFactor().getType().getDimSize(0)
                         << " elements, input is " << getInput().getType().getDimSize(1) << " wide";
  return success();
}

LogicalResult ReorderOp::verify() {
  if (getOrder().getType().getDimSize(0) != getInput().getType().getDimSize(1))
    return emitOpError() << "order has " << getOrder().getType().getDimSize(0)
                         << " elements, input is " << getInput().getType().getDimSize(1) << " wide";
  return success();
}

LogicalResult RotaryOp::verify() {
  int64_t dim = getHeadDim(), width = getInput().getType().getDimSize(1);
  if (dim <= 0 || dim % 2 || width % dim)
    return emitOpError() << "head_dim must be even and divide the width " << width << ", found "
                         << dim;
  if (dim > maxHeadDim)
    return emitOpError() << "head_dim must be at most " << maxHeadDim << ", found " << dim;
  if (getPositions().getType().getDimSize(0) != getInput().getType().getDimSize(0))
    return emitOpError() << "needs one position per row";
  if (failed(verifyRope(*this, getRope(), dim)))
    return failure();
  if (getTable() && getTable().getType().getDimSize(1) != dim)
    return emitOpError() << "table is " << getTable().getType().getDimSize(1) << " wide, expected "
                         << dim;
  return success();
}

LogicalResult HadamardOp::verify() {
  int64_t dim = getHeadDim(), width = getInput().getType().getDimSize(1);
  if (dim <= 0 || width % dim)
    return emitOpError() << "head_dim must divide the width " << width << ", found " << dim;
  return success();
}

ParseResult sluice::model::parseDouble(AsmParser &parser, FloatAttr &value) {
  double number;
  if (parser.parseFloat(number))
    return failure();
  value = Builder(parser.getContext()).getF64FloatAttr(number);
  return success();
}

void sluice::model::printDouble(AsmPrinter &printer, Operation *, FloatAttr value) {
  printer.printFloat(value.getValue());
}

#define GET_OP_CLASSES
#include "dialects/Model/ModelOps.cpp.inc"
