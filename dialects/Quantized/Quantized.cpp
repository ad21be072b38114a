// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Quantized/Quantized.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice::quantized;

#include "dialects/Quantized/QuantizedDialect.cpp.inc"
#include "dialects/Quantized/QuantizedEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Quantized/QuantizedAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "dialects/Quantized/QuantizedTypes.cpp.inc"

void QuantizedDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialects/Quantized/QuantizedAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialects/Quantized/QuantizedTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/Quantized/QuantizedOps.cpp.inc"
      >();
}

//===----------------------------------------------------------------------===//
// FormatAttr
//===----------------------------------------------------------------------===//

/// Parses what follows the element type: `, group = 128, zero_point`, and leaves other keywords to
/// `other`, which returns false for an unknown one.
static ParseResult parseFormatOptions(AsmParser &parser, int64_t &group, bool &zeroPoint,
                                      function_ref<FailureOr<bool>(StringRef)> other) {
  group = FormatAttr::kChannel;
  zeroPoint = false;
  while (succeeded(parser.parseOptionalComma())) {
    SMLoc loc = parser.getCurrentLocation();
    StringRef keyword;
    if (parser.parseKeyword(&keyword))
      return failure();
    if (keyword == "group") {
      if (parser.parseEqual())
        return failure();
      if (failed(parser.parseOptionalKeyword("channel")) && parser.parseInteger(group))
        return failure();
    } else if (keyword == "zero_point") {
      zeroPoint = true;
    } else {
      FailureOr<bool> known = other(keyword);
      if (failed(known))
        return failure();
      if (!*known)
        return parser.emitError(loc, "unknown keyword '") << keyword << "'";
    }
  }
  return success();
}

Attribute FormatAttr::parse(AsmParser &parser, Type) {
  Type element;
  int64_t group;
  bool zeroPoint;
  if (parser.parseLess() || parser.parseType(element) ||
      parseFormatOptions(parser, group, zeroPoint,
                         [](StringRef) { return FailureOr<bool>(false); }) ||
      parser.parseGreater())
    return {};
  return parser.getChecked<FormatAttr>(parser.getContext(), element, group, zeroPoint);
}

void FormatAttr::print(AsmPrinter &printer) const {
  printer << '<';
  printBody(printer);
  printer << '>';
}

void FormatAttr::printBody(AsmPrinter &printer) const {
  printer << getElement();
  if (!isInteger())
    return;
  printer << ", group = ";
  if (getGroup() == kChannel)
    printer << "channel";
  else
    printer << getGroup();
  if (getZeroPoint())
    printer << ", zero_point";
}

LogicalResult FormatAttr::verify(function_ref<InFlightDiagnostic()> emitError, Type element,
                                 int64_t group, bool zeroPoint) {
  if (isa<Float16Type, BFloat16Type, Float32Type>(element)) {
    if (group != kChannel || zeroPoint)
      return emitError() << "a float format has neither groups nor zero points";
    return success();
  }
  if (!element.isSignlessInteger(4) && !element.isSignlessInteger(8))
    return emitError() << "element type must be i4, i8, f16, bf16 or f32, found " << element;
  if (group != kChannel && group != 32 && group != 64 && group != 128 && group != 256)
    return emitError() << "group must be 32, 64, 128, 256 or channel, found " << group;
  return success();
}

std::string FormatAttr::getName() const { return toFormat().name(); }

FormatAttr FormatAttr::fromName(MLIRContext *context, StringRef name) {
  using Element = sluice::formats::Format::Element;
  std::optional<sluice::formats::Format> format = sluice::formats::Format::fromName(name);
  if (!format)
    return {};
  Builder b(context);
  auto elementType = [&]() -> Type {
    switch (format->element) {
    case Element::F32:
      return b.getF32Type();
    case Element::F16:
      return b.getF16Type();
    case Element::BF16:
      return b.getBF16Type();
    case Element::I8:
      return b.getIntegerType(8);
    case Element::I4:
      return b.getIntegerType(4);
    }
    llvm_unreachable("not an element type");
  };
  return get(context, elementType(), format->group, format->zeroPoint);
}

sluice::formats::Format FormatAttr::toFormat() const {
  using Element = sluice::formats::Format::Element;
  Element element = TypeSwitch<Type, Element>(getElement())
                        .Case<Float16Type>([](Type) { return Element::F16; })
                        .Case<BFloat16Type>([](Type) { return Element::BF16; })
                        .Case<Float32Type>([](Type) { return Element::F32; })
                        .Default([](Type t) { return t.isInteger(8) ? Element::I8 : Element::I4; });
  return {element, getGroup(), getZeroPoint()};
}

sluice::formats::Format sluice::quantized::formatOf(Type weight) {
  if (auto quantized = dyn_cast<QuantizedTensorType>(weight))
    return quantized.getFormat().toFormat();
  Type element = cast<RankedTensorType>(weight).getElementType();
  return FormatAttr::get(weight.getContext(), element, FormatAttr::kChannel, false).toFormat();
}

//===----------------------------------------------------------------------===//
// LayoutAttr
//===----------------------------------------------------------------------===//

static FailureOr<LayoutKind> parseLayoutKind(AsmParser &parser) {
  SMLoc loc = parser.getCurrentLocation();
  StringRef keyword;
  if (parser.parseKeyword(&keyword))
    return failure();
  if (std::optional<LayoutKind> kind = symbolizeLayoutKind(keyword))
    return *kind;
  return parser.emitError(loc, "unknown layout '")
         << keyword << "': expected rows, q8_0, q4_0, lanes or mma";
}

Attribute LayoutAttr::parse(AsmParser &parser, Type) {
  if (parser.parseLess())
    return {};
  FailureOr<LayoutKind> kind = parseLayoutKind(parser);
  int64_t columns = 0;
  if (failed(kind))
    return {};
  if (succeeded(parser.parseOptionalComma()) &&
      (parser.parseKeyword("columns") || parser.parseEqual() || parser.parseInteger(columns)))
    return {};
  if (parser.parseGreater())
    return {};
  return parser.getChecked<LayoutAttr>(parser.getContext(), *kind, columns);
}

void LayoutAttr::print(AsmPrinter &printer) const {
  printer << '<' << stringifyLayoutKind(getKind());
  if (getColumns())
    printer << ", columns = " << getColumns();
  printer << '>';
}

LogicalResult LayoutAttr::verify(function_ref<InFlightDiagnostic()> emitError, LayoutKind kind,
                                 int64_t columns) {
  if (kind == LayoutKind::Mma && (columns <= 0 || columns % 128 != 0))
    return emitError() << "layout mma needs columns, a positive multiple of 128, found " << columns;
  if (kind != LayoutKind::Mma && columns != 0)
    return emitError() << "layout " << stringifyLayoutKind(kind) << " has no columns";
  return success();
}

sluice::formats::Layout LayoutAttr::toLayout() const {
  using Kind = sluice::formats::Layout::Kind;
  switch (getKind()) {
  case LayoutKind::Rows:
    return {Kind::Rows, 0};
  case LayoutKind::BlocksQ8_0:
    return {Kind::BlocksQ8_0, 0};
  case LayoutKind::BlocksQ4_0:
    return {Kind::BlocksQ4_0, 0};
  case LayoutKind::Lanes:
    return {Kind::Lanes, 0};
  case LayoutKind::Mma:
    return {Kind::Mma, getColumns()};
  }
  llvm_unreachable("unknown layout");
}

//===----------------------------------------------------------------------===//
// RowOrderAttr
//===----------------------------------------------------------------------===//

Attribute RowOrderAttr::parse(AsmParser &parser, Type) {
  StringRef kind;
  int64_t first = 0, second = 0;
  if (parser.parseLess() || parser.parseKeyword(&kind) || parser.parseLParen() ||
      parser.parseInteger(first))
    return {};
  std::string kindCopy = kind.str();
  if (kindCopy != "natural" && (parser.parseComma() || parser.parseInteger(second)))
    return {};
  if (parser.parseRParen() || parser.parseGreater())
    return {};
  return parser.getChecked<RowOrderAttr>(parser.getContext(), kindCopy, first, second);
}

static void printRowOrder(AsmPrinter &printer, RowOrderAttr order) {
  printer << order.getKind() << '(' << order.getFirst();
  if (!order.isNatural())
    printer << ", " << order.getSecond();
  printer << ')';
}

void RowOrderAttr::print(AsmPrinter &printer) const {
  printer << '<';
  printRowOrder(printer, *this);
  printer << '>';
}

LogicalResult RowOrderAttr::verify(function_ref<InFlightDiagnostic()> emitError, StringRef kind,
                                   int64_t first, int64_t second) {
  if (kind != "natural" && kind != "pairs" && kind != "zip")
    return emitError() << "row order must be natural, pairs or zip, found '" << kind << "'";
  if (first < 0 || second < 0)
    return emitError() << "row order has a negative operand";
  if (kind == "natural" && second != 0)
    return emitError() << "natural has one operand";
  if (kind == "pairs" && (second <= 0 || second % 2))
    return emitError() << "pairs needs an even, positive head size, found " << second;
  if (kind == "zip" && first == second)
    return emitError() << "zip needs two different sources";
  return success();
}

sluice::formats::RowSegment RowOrderAttr::toSegment() const {
  using Kind = sluice::formats::RowSegment::Kind;
  Kind kind = isPairs() ? Kind::Pairs : isZip() ? Kind::Zip : Kind::Natural;
  return {kind, getFirst(), getSecond()};
}

llvm::Expected<sluice::formats::RowOrder>
sluice::quantized::expandRowOrder(ArrayAttr orders, ArrayRef<int64_t> sourceRows) {
  SmallVector<sluice::formats::RowSegment> segments;
  if (orders)
    for (auto order : orders.getAsRange<RowOrderAttr>())
      segments.push_back(order.toSegment());
  return sluice::formats::RowOrder::get(segments, sourceRows);
}

ParseResult sluice::quantized::parseRowOrders(AsmParser &parser, ArrayAttr &orders) {
  SmallVector<Attribute> list;
  auto parseOne = [&]() -> ParseResult {
    SMLoc loc = parser.getCurrentLocation();
    StringRef kind;
    int64_t first = 0, second = 0;
    if (parser.parseKeyword(&kind))
      return failure();
    std::string kindCopy = kind.str();
    if (parser.parseLParen() || parser.parseInteger(first))
      return failure();
    if (kindCopy != "natural" && (parser.parseComma() || parser.parseInteger(second)))
      return failure();
    if (parser.parseRParen())
      return failure();
    RowOrderAttr order = RowOrderAttr::getChecked([&] { return parser.emitError(loc); },
                                                  parser.getContext(), kindCopy, first, second);
    if (!order)
      return failure();
    list.push_back(order);
    return success();
  };
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseOne))
    return failure();
  orders = ArrayAttr::get(parser.getContext(), list);
  return success();
}

void sluice::quantized::printRowOrders(AsmPrinter &printer, Operation *, ArrayAttr orders) {
  printer << '[';
  llvm::interleaveComma(orders.getAsRange<RowOrderAttr>(), printer,
                        [&](RowOrderAttr order) { printRowOrder(printer, order); });
  printer << ']';
}

//===----------------------------------------------------------------------===//
// QuantizedTensorType
//===----------------------------------------------------------------------===//

Type QuantizedTensorType::parse(AsmParser &parser) {
  SmallVector<int64_t> shape;
  Type element;
  int64_t group, columns = 0;
  bool zeroPoint;
  LayoutKind kind = LayoutKind::Rows;
  SMLoc loc = parser.getCurrentLocation();
  auto parseLayout = [&](StringRef keyword) -> FailureOr<bool> {
    if (keyword == "layout") {
      if (parser.parseEqual())
        return failure();
      FailureOr<LayoutKind> parsed = parseLayoutKind(parser);
      if (failed(parsed))
        return failure();
      kind = *parsed;
      return true;
    }
    if (keyword == "columns") {
      if (parser.parseEqual() || parser.parseInteger(columns))
        return failure();
      return true;
    }
    return false;
  };
  if (parser.parseLess() || parser.parseDimensionList(shape, /*allowDynamic=*/false) ||
      parser.parseType(element) || parseFormatOptions(parser, group, zeroPoint, parseLayout) ||
      parser.parseGreater())
    return {};
  auto emitError = [&] { return parser.emitError(loc); };
  auto format = FormatAttr::getChecked(emitError, parser.getContext(), element, group, zeroPoint);
  auto layout = LayoutAttr::getChecked(emitError, parser.getContext(), kind, columns);
  if (!format || !layout)
    return {};
  return QuantizedTensorType::getChecked(emitError, parser.getContext(), shape, format, layout);
}

void QuantizedTensorType::print(AsmPrinter &printer) const {
  printer << '<' << getRows() << 'x' << getColumns() << 'x';
  getFormat().printBody(printer);
  if (getLayout().getKind() != LayoutKind::Rows)
    printer << ", layout = " << stringifyLayoutKind(getLayout().getKind());
  if (getLayout().getColumns())
    printer << ", columns = " << getLayout().getColumns();
  printer << '>';
}

LogicalResult QuantizedTensorType::verify(function_ref<InFlightDiagnostic()> emitError,
                                          ArrayRef<int64_t> shape, FormatAttr format,
                                          LayoutAttr layout) {
  if (shape.size() != 2 || shape[0] <= 0 || shape[1] <= 0)
    return emitError() << "a quantized tensor has two positive dimensions";
  // Keeps every count of bytes well inside 64 bits.
  if (shape[0] > (int64_t(1) << 46) / shape[1])
    return emitError() << "a quantized tensor has at most 2^46 elements";
  LayoutKind kind = layout.getKind();
  unsigned blockBits = kind == LayoutKind::BlocksQ8_0 ? 8 : kind == LayoutKind::BlocksQ4_0 ? 4 : 0;
  if (blockBits && (!format.isInteger() || format.getBits() != blockBits ||
                    format.getGroup() != 32 || format.getZeroPoint()))
    return emitError() << "layout " << stringifyLayoutKind(kind) << " holds symmetric i"
                       << blockBits << " elements in groups of 32, found " << format;
  if (blockBits && shape[1] % 32 != 0)
    return emitError() << "layout " << stringifyLayoutKind(kind)
                       << " needs columns in whole blocks of 32, found " << shape[1];
  return success();
}

//===----------------------------------------------------------------------===//
// CacheType
//===----------------------------------------------------------------------===//

Type CacheType::parse(AsmParser &parser) {
  SmallVector<int64_t> shape;
  Type element;
  int64_t group = kHead;
  CacheLayout layout = CacheLayout::Rows;
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseLess() || parser.parseDimensionList(shape, /*allowDynamic=*/false) ||
      parser.parseType(element))
    return {};
  while (succeeded(parser.parseOptionalComma())) {
    SMLoc keywordLoc = parser.getCurrentLocation();
    StringRef keyword;
    if (parser.parseKeyword(&keyword) || parser.parseEqual())
      return {};
    if (keyword == "group") {
      if (failed(parser.parseOptionalKeyword("head")) && parser.parseInteger(group))
        return {};
      continue;
    }
    if (keyword != "layout") {
      parser.emitError(keywordLoc, "unknown keyword '") << keyword << "'";
      return {};
    }
    SMLoc layoutLoc = parser.getCurrentLocation();
    if (parser.parseKeyword(&keyword))
      return {};
    std::optional<CacheLayout> parsed = symbolizeCacheLayout(keyword);
    if (!parsed) {
      parser.emitError(layoutLoc, "unknown layout '")
          << keyword << "': expected rows, lanes_keys, lanes_values, mma_keys or mma_values";
      return {};
    }
    layout = *parsed;
  }
  if (parser.parseGreater())
    return {};
  return getChecked([&] { return parser.emitError(loc); }, parser.getContext(), shape, element,
                    group, layout);
}

void CacheType::print(AsmPrinter &printer) const {
  printer << '<';
  for (int64_t size : getShape())
    printer << size << 'x';
  printer << getElement();
  if (getElement().isInteger()) {
    printer << ", group = ";
    if (getGroup() == kHead)
      printer << "head";
    else
      printer << getGroup();
  }
  if (isTiled())
    printer << ", layout = " << stringifyCacheLayout(getLayout());
  printer << '>';
}

LogicalResult CacheType::verify(function_ref<InFlightDiagnostic()> emitError,
                                ArrayRef<int64_t> shape, Type element, int64_t group,
                                CacheLayout layout) {
  if (shape.size() != 4 || llvm::any_of(shape, [](int64_t size) { return size <= 0; }))
    return emitError()
           << "a cache has four positive dimensions: sequences, positions, heads, head size";
  // Keeps every count of bytes well inside 64 bits.
  int64_t elements = 1;
  for (int64_t size : shape)
    if (size > (int64_t(1) << 46) / elements)
      return emitError() << "a cache has at most 2^46 elements";
    else
      elements *= size;
  if (!isa<Float32Type, Float16Type, BFloat16Type, Float8E4M3FNType>(element) &&
      !element.isSignlessInteger(8) && !element.isSignlessInteger(4))
    return emitError() << "a cache's elements are f32, f16, bf16, f8E4M3FN, i8 or i4, found "
                       << element;
  if (!element.isInteger() && group != kHead)
    return emitError() << "a float cache has no groups";
  if (group != kHead && group != 32 && group != 64)
    return emitError() << "group must be head, 64 or 32, found " << group;
  if (layout != CacheLayout::Rows && shape[1] % kTilePositions)
    return emitError() << "layout " << stringifyCacheLayout(layout) << " needs a multiple of "
                       << kTilePositions << " positions, found " << shape[1];
  return success();
}

CacheType CacheType::get(MLIRContext *context, ArrayRef<int64_t> shape,
                         sluice::formats::CacheEncoding encoding, CacheLayout layout) {
  using Element = sluice::formats::CacheEncoding::Element;
  Builder b(context);
  auto element = [&]() -> Type {
    switch (encoding.element) {
    case Element::F32:
      return b.getF32Type();
    case Element::F16:
      return b.getF16Type();
    case Element::BF16:
      return b.getBF16Type();
    case Element::E4M3:
      return Float8E4M3FNType::get(context);
    case Element::I8:
      return b.getIntegerType(8);
    case Element::I4:
      return b.getIntegerType(4);
    }
    llvm_unreachable("not an element type");
  };
  return get(context, shape, element(), encoding.group, layout);
}

sluice::formats::CacheShape CacheType::getShapeInfo() const {
  using Order = sluice::formats::CacheOrder;
  auto order = [&] {
    switch (getLayout()) {
    case CacheLayout::Rows:
      return Order::Rows;
    case CacheLayout::LanesKeys:
      return Order::LanesKeys;
    case CacheLayout::LanesValues:
      return Order::LanesValues;
    case CacheLayout::MmaKeys:
      return Order::MmaKeys;
    case CacheLayout::MmaValues:
      return Order::MmaValues;
    }
    llvm_unreachable("not a layout");
  };
  return {getSequences(), getPositions(), getHeads(), getHeadDim(), getEncoding(), order()};
}

sluice::formats::CacheEncoding CacheType::getEncoding() const {
  using Element = sluice::formats::CacheEncoding::Element;
  Element element = TypeSwitch<Type, Element>(getElement())
                        .Case<Float32Type>([](Type) { return Element::F32; })
                        .Case<Float16Type>([](Type) { return Element::F16; })
                        .Case<BFloat16Type>([](Type) { return Element::BF16; })
                        .Case<Float8E4M3FNType>([](Type) { return Element::E4M3; })
                        .Default([](Type t) { return t.isInteger(8) ? Element::I8 : Element::I4; });
  return {element, getGroup()};
}

//===----------------------------------------------------------------------===//
// Operations
//===----------------------------------------------------------------------===//

static LogicalResult verifySameShape(Operation *op, RankedTensorType plain,
                                     QuantizedTensorType quantized) {
  if (plain.getShape() != quantized.getShape())
    return op->emitOpError() << "shapes differ: " << plain << " and " << quantized;
  return success();
}

LogicalResult QuantizeOp::verify() {
  if (getResult().getType().getLayout().getKind() != LayoutKind::Rows)
    return emitOpError() << "result must have layout rows, found " << getResult().getType();
  return verifySameShape(*this, getInput().getType(), getResult().getType());
}

OpFoldResult QuantizeOp::fold(FoldAdaptor) {
  // Quantizing what a matrix of the same format stands for gives that matrix, unless it was rounded
  // on the way.
  if (auto source = getInput().getDefiningOp<DequantizeOp>())
    if (source.getInput().getType() == getType() && getInput().getType().getElementType().isF32())
      return source.getInput();
  return {};
}

LogicalResult DequantizeOp::verify() {
  return verifySameShape(*this, getResult().getType(), getInput().getType());
}

LogicalResult PackedOp::verify() {
  if (getSources().empty())
    return emitOpError() << "needs at least one source";
  if (!isa<QuantizedTensorType, RankedTensorType>(getType()))
    return emitOpError() << "type must be a quantized or builtin tensor, found " << getType();
  if (isa<RankedTensorType>(getType()) && (getSources().size() != 1 || !getOrder().empty()))
    return emitOpError() << "a builtin tensor is made of one source in its own order";
  int64_t sources = getSources().size();
  SmallVector<int64_t> seen;
  for (auto order : getOrder().getAsRange<RowOrderAttr>()) {
    seen.push_back(order.getFirst());
    if (order.isZip())
      seen.push_back(order.getSecond());
  }
  llvm::sort(seen);
  if (!seen.empty() && seen.back() >= sources)
    return emitOpError() << "row order names a source that does not exist (there are " << sources
                         << ")";
  if (!seen.empty() && !llvm::equal(seen, llvm::seq<int64_t>(0, sources)))
    return emitOpError() << "row order must name every source once";
  return success();
}

#define GET_OP_CLASSES
#include "dialects/Quantized/QuantizedOps.cpp.inc"
