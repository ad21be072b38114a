// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Quantized/Quantized.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "sluice/Formats/GgufBlocks.h"

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
// EncodingAttr
//===----------------------------------------------------------------------===//

using sluice::formats::Encoding;
using Element = Encoding::Element;
using Offset = Encoding::Offset;
using Scale = Encoding::Scale;

/// How assembly writes an element: its type, and the table of an index.
struct ElementSpelling {
  Element element;
  llvm::StringLiteral type, table;
};
static constexpr ElementSpelling elementSpellings[] = {
    {Element::F32, "f32", ""},
    {Element::F16, "f16", ""},
    {Element::BF16, "bf16", ""},
    {Element::I8, "i8", ""},
    {Element::I4, "i4", ""},
    {Element::I6, "i6", ""},
    {Element::I5, "i5", ""},
    {Element::I3, "i3", ""},
    {Element::U5, "ui5", ""},
    {Element::U4, "ui4", ""},
    {Element::U2, "ui2", ""},
    {Element::IQ4NL, "i4", "iq4_nl"},
    {Element::E2M1, "i4", "e2m1"},
    {Element::E4M3, "f8E4M3FN", ""},
    {Element::IQ1, "i4", "iq1"},
    {Element::IQ2, "i4", "iq2"},
    {Element::IQ3XXS, "i4", "iq3_xxs"},
    {Element::IQ3S, "i4", "iq3_s"},
};
static constexpr std::pair<Scale, llvm::StringLiteral> scaleSpellings[] = {
    {Scale::F16, "f16"},   {Scale::I8, "i8"},     {Scale::U6, "u6"},     {Scale::U4, "u4"},
    {Scale::E8M0, "e8m0"}, {Scale::E4M3, "e4m3"}, {Scale::BF16, "bf16"}, {Scale::F32, "f32"},
};

static std::string textOf(Type type) {
  std::string text;
  llvm::raw_string_ostream(text) << type;
  return text;
}

/// The element that an element type and a table ("" for none) stand for.
static std::optional<Element> elementOf(Type type, StringRef table) {
  std::string text = textOf(type);
  for (const ElementSpelling &known : elementSpellings)
    if (known.type == text && known.table == table)
      return known.element;
  return std::nullopt;
}

/// Parses an element type and what follows it: `i8, group = 128, zero_point`, and leaves other
/// keywords to `other`, which returns false for an unknown one. Checks no combinations.
static ParseResult parseEncoding(AsmParser &parser, Encoding &encoding,
                                 function_ref<FailureOr<bool>(StringRef)> other) {
  Type type;
  SMLoc typeLoc = parser.getCurrentLocation();
  std::string table;
  if (parser.parseType(type))
    return failure();
  // Integers without a group have one per row, as floats are written.
  encoding = {};
  auto parseWord = [&](std::string &word) -> ParseResult {
    StringRef parsed;
    if (parser.parseEqual() || parser.parseKeyword(&parsed))
      return failure();
    word = parsed.str();
    return success();
  };
  while (succeeded(parser.parseOptionalComma())) {
    SMLoc loc = parser.getCurrentLocation();
    StringRef keyword;
    if (parser.parseKeyword(&keyword))
      return failure();
    if (keyword == "group") {
      if (parser.parseEqual())
        return failure();
      if (failed(parser.parseOptionalKeyword("channel")) && parser.parseInteger(encoding.group))
        return failure();
    } else if (keyword == "zero_point") {
      encoding.offset = Offset::ZeroPoint;
    } else if (keyword == "table") {
      if (parseWord(table))
        return failure();
      if (llvm::none_of(elementSpellings, [&](auto &known) { return known.table == table; }))
        return parser.emitError(loc, "unknown table '")
               << table << "': expected iq4_nl, e2m1, iq1, iq2, iq3_xxs or iq3_s";
    } else if (keyword == "offset") {
      std::string word;
      if (parseWord(word))
        return failure();
      if (word != "f16" && word != "field")
        return parser.emitError(loc, "unknown offset '") << word << "': expected f16 or field";
      encoding.offset = word == "f16" ? Offset::F16 : Offset::Field;
    } else if (keyword == "scale") {
      std::string word;
      if (parseWord(word))
        return failure();
      const auto *found = llvm::find_if(scaleSpellings, [&](auto &s) { return s.second == word; });
      if (found == std::end(scaleSpellings))
        return parser.emitError(loc, "unknown scale '")
               << word << "': expected f16, bf16, f32, i8, u6, u4, e8m0 or e4m3";
      encoding.scale = found->first;
    } else {
      FailureOr<bool> known = other(keyword);
      if (failed(known))
        return failure();
      if (!*known)
        return parser.emitError(loc, "unknown keyword '") << keyword << "'";
    }
  }
  std::optional<Element> element = elementOf(type, table);
  if (!element)
    return parser.emitError(typeLoc)
           << (table.empty()
                   ? "element type must be i3, i4, i5, i6, i8, ui2, ui4, ui5, f8E4M3FN, f16, "
                     "bf16 or f32, found "
                   : "an index into a table has element type i4, found ")
           << type;
  encoding.element = *element;
  return success();
}

Attribute EncodingAttr::parse(AsmParser &parser, Type) {
  Encoding encoding;
  if (parser.parseLess() ||
      parseEncoding(parser, encoding, [](StringRef) { return FailureOr<bool>(false); }) ||
      parser.parseGreater())
    return {};
  return parser.getChecked<EncodingAttr>(parser.getContext(), encoding);
}

void EncodingAttr::print(AsmPrinter &printer) const {
  printer << '<';
  printBody(printer);
  printer << '>';
}

void EncodingAttr::printBody(AsmPrinter &printer) const {
  const Encoding &encoding = getValue();
  const ElementSpelling &spelling = elementSpellings[static_cast<size_t>(encoding.element)];
  assert(spelling.element == encoding.element && "the table is in the order of the enumeration");
  printer << spelling.type;
  if (!isScaled())
    return;
  if (!spelling.table.empty())
    printer << ", table = " << spelling.table;
  printer << ", group = ";
  if (encoding.group == Encoding::channel)
    printer << "channel";
  else
    printer << encoding.group;
  for (auto &[scale, word] : scaleSpellings)
    if (scale == encoding.scale && scale != Scale::F16)
      printer << ", scale = " << word;
  if (encoding.hasZeroPoint())
    printer << ", zero_point";
  if (encoding.hasOffset())
    printer << ", offset = " << (encoding.offset == Offset::F16 ? "f16" : "field");
}

LogicalResult EncodingAttr::verify(function_ref<InFlightDiagnostic()> emitError,
                                   Encoding encoding) {
  if (std::string problem = encoding.problem(); !problem.empty())
    return emitError() << problem;
  return success();
}

EncodingAttr EncodingAttr::of(Type element, int64_t group, bool zeroPoint) {
  std::optional<Element> known = elementOf(element, "");
  assert(known && "no such element");
  return get(element.getContext(),
             Encoding{*known, group, zeroPoint ? Offset::ZeroPoint : Offset::None});
}

Type EncodingAttr::getElement() const {
  MLIRContext *context = getContext();
  switch (getValue().element) {
  case Element::F32:
    return Float32Type::get(context);
  case Element::F16:
    return Float16Type::get(context);
  case Element::BF16:
    return BFloat16Type::get(context);
  case Element::E4M3:
    return Float8E4M3FNType::get(context);
  default:
    return IntegerType::get(context, getBits(),
                            getValue().code() == Encoding::Code::Unsigned ? IntegerType::Unsigned
                                                                          : IntegerType::Signless);
  }
}

EncodingAttr EncodingAttr::fromName(MLIRContext *context, StringRef name) {
  std::optional<Encoding> encoding = Encoding::fromName(name);
  return encoding ? get(context, *encoding) : EncodingAttr();
}

Encoding sluice::quantized::encodingOf(Type weight) {
  if (auto quantized = dyn_cast<QuantizedTensorType>(weight))
    return quantized.getEncoding().getValue();
  return EncodingAttr::of(cast<RankedTensorType>(weight).getElementType()).getValue();
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
         << keyword << "': expected rows, blocks, lanes, mma or records";
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
  if (kind == LayoutKind::Records && (columns <= 0 || columns % 256 != 0))
    return emitError() << "layout records needs columns, a positive multiple of 256, found "
                       << columns;
  if (kind != LayoutKind::Mma && kind != LayoutKind::Records && columns != 0)
    return emitError() << "layout " << stringifyLayoutKind(kind) << " has no columns";
  return success();
}

sluice::formats::Layout LayoutAttr::toLayout() const {
  using Kind = sluice::formats::Layout::Kind;
  switch (getKind()) {
  case LayoutKind::Rows:
    return {Kind::Rows, 0};
  case LayoutKind::Blocks:
    return {Kind::Blocks, 0};
  case LayoutKind::Lanes:
    return {Kind::Lanes, 0};
  case LayoutKind::Mma:
    return {Kind::Mma, getColumns()};
  case LayoutKind::Records:
    return {Kind::Records, getColumns()};
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

static SmallVector<sluice::formats::RowSegment> segmentsOf(ArrayAttr orders) {
  SmallVector<sluice::formats::RowSegment> segments;
  if (orders)
    for (auto order : orders.getAsRange<RowOrderAttr>())
      segments.push_back(order.toSegment());
  return segments;
}

llvm::Expected<sluice::formats::RowOrder>
sluice::quantized::expandRowOrder(ArrayAttr orders, ArrayRef<int64_t> sourceRows) {
  return sluice::formats::RowOrder::get(segmentsOf(orders), sourceRows);
}

llvm::Expected<int64_t> sluice::quantized::countPackedRows(ArrayAttr orders,
                                                           ArrayRef<int64_t> sourceRows) {
  return sluice::formats::RowOrder::count(segmentsOf(orders), sourceRows);
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
  Encoding value;
  int64_t columns = 0;
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
      parseEncoding(parser, value, parseLayout) || parser.parseGreater())
    return {};
  auto emitError = [&] { return parser.emitError(loc); };
  auto encoding = EncodingAttr::getChecked(emitError, parser.getContext(), value);
  auto layout = LayoutAttr::getChecked(emitError, parser.getContext(), kind, columns);
  if (!encoding || !layout)
    return {};
  return QuantizedTensorType::getChecked(emitError, parser.getContext(), shape, encoding, layout);
}

void QuantizedTensorType::print(AsmPrinter &printer) const {
  printer << '<' << getRows() << 'x' << getColumns() << 'x';
  getEncoding().printBody(printer);
  if (getLayout().getKind() != LayoutKind::Rows)
    printer << ", layout = " << stringifyLayoutKind(getLayout().getKind());
  if (getLayout().getColumns())
    printer << ", columns = " << getLayout().getColumns();
  printer << '>';
}

LogicalResult QuantizedTensorType::verify(function_ref<InFlightDiagnostic()> emitError,
                                          ArrayRef<int64_t> shape, EncodingAttr encoding,
                                          LayoutAttr layout) {
  if (shape.size() != 2 || shape[0] <= 0 || shape[1] <= 0)
    return emitError() << "a quantized tensor has two positive dimensions";
  // Keeps every count of bytes well inside 64 bits.
  if (shape[0] > (int64_t(1) << 46) / shape[1])
    return emitError() << "a quantized tensor has at most 2^46 elements";
  const Encoding &value = encoding.getValue();
  if (!value.fitsColumns(shape[1]))
    return emitError() << value.name() << " needs columns in whole super-blocks of "
                       << Encoding::superColumns << ", found " << shape[1];
  if (layout.getKind() != LayoutKind::Blocks)
    return success();
  const sluice::formats::GgufBlock *block = sluice::formats::GgufBlock::of(value);
  if (!block)
    return emitError() << "layout blocks holds what GGUF has blocks of, found " << encoding;
  if (shape[1] % block->columns)
    return emitError() << "layout blocks needs columns in whole blocks of " << block->columns
                       << ", found " << shape[1];
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
