// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/Fused.h"

#include "dialects/Model/Semantics.h"
#include "sluice-runtime/SamplingWords.h"
#include "sluice/Formats/Packing.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "mlir/IR/PatternMatch.h"
#include "llvm/ADT/StringSwitch.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::fused;
// The assembly directives of the dialects below.
using sluice::model::parseDouble;
using sluice::model::printDouble;
using sluice::quantized::parseRowOrders;
using sluice::quantized::printRowOrders;

/// `, held = 14, rows = 128`: those that are not what they are without being named.
static ParseResult parseGpuScheduleOptions(AsmParser &parser, int64_t &held, int64_t &resident,
                                           int64_t &rows, int64_t &tokens, int64_t &warpgroups) {
  held = rows = tokens = warpgroups = 0;
  resident = 1;
  while (succeeded(parser.parseOptionalComma())) {
    StringRef name;
    SMLoc place = parser.getCurrentLocation();
    if (parser.parseKeyword(&name))
      return failure();
    int64_t *option = llvm::StringSwitch<int64_t *>(name)
                          .Case("held", &held)
                          .Case("resident", &resident)
                          .Case("rows", &rows)
                          .Case("tokens", &tokens)
                          .Case("warpgroups", &warpgroups)
                          .Default(nullptr);
    if (!option)
      return parser.emitError(place) << "expected held, resident, rows, tokens or warpgroups";
    if (parser.parseEqual() || parser.parseInteger(*option))
      return failure();
  }
  return success();
}
static void printGpuScheduleOptions(AsmPrinter &printer, int64_t held, int64_t resident,
                                    int64_t rows, int64_t tokens, int64_t warpgroups) {
  auto print = [&](StringRef name, int64_t value, int64_t usual) {
    if (value != usual)
      printer << ", " << name << " = " << value;
  };
  print("held", held, 0);
  print("resident", resident, 1);
  print("rows", rows, 0);
  print("tokens", tokens, 0);
  print("warpgroups", warpgroups, 0);
}

#include "dialects/Fused/FusedDialect.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Fused/FusedAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "dialects/Fused/FusedInterfaces.cpp.inc"
#include "dialects/Fused/FusedTypes.cpp.inc"

void FusedDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialects/Fused/FusedAttrs.cpp.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialects/Fused/FusedTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/Fused/FusedOps.cpp.inc"
      >();
}

LogicalResult HostScheduleAttr::verify(function_ref<InFlightDiagnostic()> emitError, StringRef isa,
                                       int64_t accumulators, int64_t positions) {
  if (isa != "avx2" && isa != "avx512" && isa != "avx512_vnni")
    return emitError() << "isa must be avx2, avx512 or avx512_vnni, found '" << isa << "'";
  if (accumulators < 1 || accumulators > 8)
    return emitError() << "accumulators must be 1 to 8, found " << accumulators;
  if (positions < 0 || positions > 1024)
    return emitError() << "positions must be 0 to 1024, found " << positions;
  return success();
}

LogicalResult GpuScheduleAttr::verify(function_ref<InFlightDiagnostic()> emitError, int64_t blocks,
                                      int64_t warps, int64_t stages, int64_t inFlight,
                                      int64_t columns, int64_t splits, StringRef early,
                                      int64_t held, int64_t resident, int64_t rows, int64_t tokens,
                                      int64_t warpgroups) {
  if (blocks < 1 || warps < 1 || warps > 31 || stages < 1 || columns < 1 || splits < 1)
    return emitError() << "blocks, warps (at most 31), stages, columns and splits must be positive";
  // What kernels compute with, and more than any shared memory holds.
  constexpr int64_t most = std::numeric_limits<int32_t>::max(), mostStages = 1 << 16;
  if (blocks > most || columns > most || splits > most || stages > mostStages)
    return emitError() << "blocks, columns and splits must be at most " << most
                       << ", stages at most " << mostStages;
  if (inFlight < 1 || inFlight > stages)
    return emitError() << "in_flight must be 1 to stages (" << stages << "), found " << inFlight;
  if (early != "none" && early != "weights" && early != "cache")
    return emitError() << "early must be none, weights or cache, found '" << early << "'";
  if (held < 0)
    return emitError() << "held must not be negative, found " << held;
  if (resident < 1 || resident > 2)
    return emitError() << "resident must be 1 or 2, found " << resident;
  if (warpgroups && warps != 4 * warpgroups)
    return emitError() << "a warpgroup has 4 warps, found " << warpgroups << " of " << warps
                       << " warps";
  if (rows < 0 || tokens < 0 || rows > most || tokens > most)
    return emitError() << "rows and tokens must be 0 to " << most << ", found " << rows << " and "
                       << tokens;
  return success();
}

LogicalResult PrefetchAttr::verify(function_ref<InFlightDiagnostic()> emitError,
                                   FlatSymbolRefAttr weight, int64_t blocks, int64_t stride,
                                   int64_t bytes) {
  // Products of these must not overflow.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (blocks < 1 || stride < 16 || bytes < 16 || blocks > most || stride > most || bytes > stride)
    return emitError() << "blocks, stride and bytes must be positive, at most " << most
                       << ", and bytes at most stride";
  if (stride % 16 || bytes % 16)
    return emitError() << "stride and bytes must be multiples of 16, found " << stride << " and "
                       << bytes;
  return success();
}

Type PreparedType::parse(AsmParser &parser) {
  int64_t tokens = 0, columns = 0;
  SmallVector<quantized::EncodingAttr> encodings;
  auto parseEncoding = [&] { return parser.parseAttribute(encodings.emplace_back()); };
  if (parser.parseLess() || parser.parseInteger(tokens) || parser.parseComma() ||
      parser.parseInteger(columns) || parser.parseComma() || parser.parseKeyword("for") ||
      parser.parseEqual() ||
      parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseEncoding))
    return {};
  bool image = succeeded(parser.parseOptionalComma());
  if (image && parser.parseKeyword("image"))
    return {};
  bool records = image && succeeded(parser.parseOptionalComma());
  if ((records && parser.parseKeyword("records")) || parser.parseGreater())
    return {};
  return parser.getChecked<PreparedType>(parser.getContext(), tokens, columns, encodings, image,
                                         records);
}

void PreparedType::print(AsmPrinter &printer) const {
  printer << "<" << getTokens() << ", " << getColumns() << ", for = [";
  llvm::interleaveComma(getEncodings(), printer,
                        [&](quantized::EncodingAttr encoding) { printer << encoding; });
  printer << "]" << (getImage() ? ", image" : "") << (getRecords() ? ", records" : "") << ">";
}

LogicalResult PreparedType::verify(function_ref<InFlightDiagnostic()> emitError, int64_t tokens,
                                   int64_t columns, ArrayRef<quantized::EncodingAttr> encodings,
                                   bool image, bool records) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (tokens < 1 || columns < 1 || tokens > most || columns > most)
    return emitError() << "tokens and columns must be 1 to " << most << ", found " << tokens
                       << " and " << columns;
  if (encodings.empty())
    return emitError() << "names no encoding that it is for";
  if (records && !image)
    return emitError() << "is for records, which hosts do not have";
  return success();
}

/// [rows, columns] of a builtin or quantized weight.
static std::pair<int64_t, int64_t> weightShape(Type type) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(type))
    return {quantized.getRows(), quantized.getColumns()};
  auto plain = cast<RankedTensorType>(type);
  return {plain.getDimSize(0), plain.getDimSize(1)};
}

LogicalResult fused::verifySchedule(Operation *op) {
  std::optional<Attribute> schedule = cast<KernelOp>(op).getSchedule();
  if (schedule && !isa<HostScheduleAttr, GpuScheduleAttr>(*schedule))
    return op->emitOpError() << "schedule must be a host_schedule or a gpu_schedule, found "
                             << *schedule;
  return success();
}

LogicalResult EmbeddingOp::verify() {
  auto [rows, width] = weightShape(getTable().getType());
  auto result = getResult().getType();
  if (width != result.getDimSize(1) || getTokens().getType().getDimSize(0) != result.getDimSize(0))
    return emitOpError() << "result must be [tokens, table's width], found " << result;
  return success();
}

ArrayRef<int64_t> RowsOp::getRowsShape() {
  return cast<RankedTensorType>(getBody().front().front().getOperand(0).getType()).getShape();
}

int64_t RowsOp::getHeadDim() {
  for (auto rotary : getBody().getOps<model::RotaryOp>())
    return rotary.getHeadDim();
  return 0;
}

/// The operands of an operation in a kernel's body that are rows like its result's: not gains,
/// positions and tables.
static ValueRange rowOperands(Operation *op) {
  if (model::isNorm(op) || isa<model::RotaryOp, model::CacheAppendOp, model::AddBiasOp,
                               model::ScaleChannelsOp, model::ReorderOp>(op))
    return op->getOperands().take_front();
  return op->getOperands();
}

LogicalResult RowsOp::verify() {
  Block &block = getBody().front();
  auto yield = dyn_cast<YieldOp>(block.back());
  if (!yield)
    return emitOpError() << "must end in fused.yield";
  if (yield.getValues().getTypes() != getResultTypes())
    return emitOpError() << "must yield (" << getResultTypes() << "), found ("
                         << yield.getValues().getTypes() << ")";
  if (block.getNumArguments())
    return emitOpError() << "takes no arguments";
  if (isa<YieldOp>(block.front()))
    return emitOpError() << "computes nothing";
  int64_t headDim = getHeadDim();
  ArrayRef<int64_t> shape;
  for (Operation &op : block) {
    auto turned = dyn_cast<model::RotaryOp>(op);
    bool isKnown = model::isRowNorm(&op) || model::isElementwise(&op) ||
                   (turned && !turned.getInterleaved()) || isa<model::CacheAppendOp, YieldOp>(op);
    if (!isKnown)
      return emitOpError() << "cannot compute '" << op.getName() << "'";
    if (auto rotary = dyn_cast<model::RotaryOp>(op);
        rotary && static_cast<int64_t>(rotary.getHeadDim()) != headDim)
      return emitOpError() << "rotates heads of " << headDim << " and of " << rotary.getHeadDim()
                           << " elements";
    for (Value operand : rowOperands(&op)) {
      auto type = dyn_cast<RankedTensorType>(operand.getType());
      if (!type || type.getRank() != 2)
        return emitOpError() << "must compute on matrices, found " << operand.getType();
      if (shape.empty())
        shape = type.getShape();
      if (type.getShape() != shape)
        return emitOpError() << "has matrices of different shapes, found " << operand.getType();
    }
  }
  return success();
}

Value AttentionOp::getSource(Value value) {
  auto argument = dyn_cast<BlockArgument>(value);
  if (!argument || argument.getParentRegion() != &getPrologue())
    return value;
  return argument.getArgNumber() ? getAppended()[argument.getArgNumber() - 1] : Value(getQuery());
}

Value AppendOp::getSource(Value value) {
  auto argument = dyn_cast<BlockArgument>(value);
  if (!argument || argument.getParentRegion() != &getPrologue())
    return value;
  Value sources[] = {getQuery(), getNewKeys(), getNewValues()};
  return sources[argument.getArgNumber()];
}

/// Checks the region that maps a step's query, keys and values to the query that is attended with.
static LogicalResult verifyAttentionPrologue(Operation *op, Region &prologue,
                                             ArrayRef<Type> arguments) {
  if (!llvm::equal(prologue.getArgumentTypes(), arguments))
    return op->emitOpError() << "prologue must take (" << arguments << "), found ("
                             << prologue.getArgumentTypes() << ")";
  auto yield = dyn_cast<YieldOp>(prologue.front().getTerminator());
  auto type = yield && yield.getValues().size() == 1
                  ? dyn_cast<RankedTensorType>(yield.getValues().front().getType())
                  : RankedTensorType();
  if (!type || type.getShape() != cast<RankedTensorType>(arguments.front()).getShape())
    return op->emitOpError() << "prologue must end in fused.yield of a query";
  return success();
}

LogicalResult AppendOp::verify() {
  if (getQuery().getType().getShape() != getResult().getType().getShape())
    return emitOpError() << "query and result differ in shape";
  return verifyAttentionPrologue(
      *this, getPrologue(),
      {getQuery().getType(), getNewKeys().getType(), getNewValues().getType()});
}

LogicalResult AttentionOp::verify() {
  if (getQuery().getType().getShape() != getResult().getType().getShape())
    return emitOpError() << "query and result differ in shape";
  if (!getAppended().empty() && getAppended().size() != 2)
    return emitOpError() << "new values are keys and values, found " << getAppended().size();
  if (getPrologue().empty() != getAppended().empty())
    return emitOpError() << "new keys and values come with a prologue";
  if (getActive() && !getPrologue().empty())
    return emitOpError()
           << "of one sequence's tokens cannot append them: they attend to each other";
  if (getStarts()) {
    if (!getActive() || !getPages())
      return emitOpError() << "of packed sequences needs active and pages";
    int64_t sequences = getPages().getType().getDimSize(0);
    if (getStarts().getType().getDimSize(0) != sequences + 1)
      return emitOpError() << "of " << sequences << " packed sequences needs as many starts and an "
                           << "end, found " << getStarts().getType();
  }
  if (!getPrologue().empty()) {
    SmallVector<Type> arguments = {getQuery().getType()};
    llvm::append_range(arguments, getAppended().getTypes());
    return verifyAttentionPrologue(*this, getPrologue(), arguments);
  }
  return success();
}

/// The size of the heads that an operation of a prologue works on: 0 for whole rows, nothing for
/// single elements.
static std::optional<int64_t> headDimOf(Operation *op) {
  return TypeSwitch<Operation *, std::optional<int64_t>>(op)
      .Case<model::HadamardOp, model::RotaryOp>(
          [](auto inner) { return static_cast<int64_t>(inner.getHeadDim()); })
      .Case(
          [](model::RmsNormOp norm) { return static_cast<int64_t>(norm.getHeadDim().value_or(0)); })
      .Default(std::nullopt);
}

/// Checks that a prologue appends to the pages that attention reads, of the same sequences.
static LogicalResult verifyProloguePages(Operation *op, Region &prologue, Value pages,
                                         Value sequences) {
  for (auto append : prologue.getOps<model::CacheAppendOp>()) {
    if (append.getPages() != pages)
      return op->emitOpError() << "prologue appends to " << append.getCacheAttr()
                               << " through another page table";
    if (append.getSequences() != sequences)
      return op->emitOpError() << "prologue appends to " << append.getCacheAttr()
                               << " for other sequences";
  }
  return success();
}

/// Checks that a prologue works on heads of the caches' size.
static LogicalResult verifyPrologueHeads(Operation *op, Region &prologue, FlatSymbolRefAttr keys,
                                         SymbolTableCollection &symbols) {
  int64_t dim =
      symbols.lookupNearestSymbolFrom<model::CacheOp>(op, keys).getCacheType().getHeadDim();
  for (Operation &inner : prologue.front())
    if (std::optional<int64_t> other = headDimOf(&inner); other && *other != dim)
      return op->emitOpError() << "prologue works on heads of " << dim << " elements, '"
                               << inner.getName() << "' on "
                               << (*other ? "heads of " + std::to_string(*other) : "whole rows");
  return success();
}

LogicalResult AttentionOp::verifySymbolUses(SymbolTableCollection &symbols) {
  if (failed(model::verifySoftCap(*this, getSoftCap())) ||
      failed(model::verifyAttention(*this, getQuery().getType(), getPositions().getType(),
                                    getKeysAttr(), getValuesAttr(), getPages(),
                                    /*packed=*/getStarts() != nullptr, symbols)) ||
      failed(verifyProloguePages(*this, getPrologue(), getPages(), /*sequences=*/Value())))
    return failure();
  return getPrologue().empty() ? success()
                               : verifyPrologueHeads(*this, getPrologue(), getKeysAttr(), symbols);
}

LogicalResult AppendOp::verifySymbolUses(SymbolTableCollection &symbols) {
  if (failed(model::verifyOwners(*this, getTokens(), getPages(), getSequences())) ||
      failed(model::verifyAttention(*this, getQuery().getType(), getPositions().getType(),
                                    getKeysAttr(), getValuesAttr(), getPages(),
                                    /*packed=*/getSequences() != nullptr, symbols)) ||
      failed(verifyProloguePages(*this, getPrologue(), getPages(), getSequences())))
    return failure();
  return verifyPrologueHeads(*this, getPrologue(), getKeysAttr(), symbols);
}

LogicalResult PrepareOp::verify() {
  ArrayRef<int64_t> shape = getInput().getType().getShape();
  if (shape != ArrayRef<int64_t>({getType().getTokens(), getType().getColumns()}))
    return emitOpError() << "input and result differ in shape";
  if (getPrologue().empty())
    return success();
  auto rows = RankedTensorType::get(shape, Float32Type::get(getContext()));
  auto yield = dyn_cast<YieldOp>(getPrologue().front().getTerminator());
  if (!llvm::equal(getPrologue().getArgumentTypes(), ArrayRef<Type>({getInput().getType()})) ||
      !yield || yield.getValues().getTypes() != TypeRange(ArrayRef<Type>({rows})))
    return emitOpError() << "prologue must map " << getInput().getType() << " to " << rows;
  return success();
}

LogicalResult LastRowOp::verify() {
  RankedTensorType input = getInput().getType(), result = getType();
  int64_t rows = getStarts() ? getStarts().getType().getDimSize(0) - 1 : 1;
  if (input.getElementType() != result.getElementType() || result.getDimSize(0) != rows ||
      input.getDimSize(1) != result.getDimSize(1)) {
    InFlightDiagnostic error = emitOpError() << "result must be ";
    if (getStarts())
      error << "a row of the input for each of " << rows << " sequences";
    else
      error << "one row of the input";
    return error << ", found " << result;
  }
  return success();
}

LogicalResult MatvecOp::verifySymbolUses(SymbolTableCollection &symbols) {
  std::optional<PrefetchAttr> ahead = getPrefetch();
  if (!ahead)
    return success();
  auto packed = symbols.lookupNearestSymbolFrom<quantized::PackedOp>(*this, ahead->getWeight());
  if (!packed)
    return emitOpError() << "prefetches " << ahead->getWeight() << ", which is no packed weight";
  auto type = dyn_cast<quantized::QuantizedTensorType>(packed.getType());
  if (!type || !type.getLayout().isForGpu())
    return emitOpError() << "prefetches " << ahead->getWeight()
                         << ", expected a weight of layout mma or records, found "
                         << packed.getType();
  SmallVector<int64_t> rows;
  for (auto source : packed.getSources().getAsRange<FlatSymbolRefAttr>()) {
    auto weight = symbols.lookupNearestSymbolFrom<model::WeightOp>(*this, source);
    if (!weight)
      return emitOpError() << "prefetches " << ahead->getWeight() << ", which is made of " << source
                           << ", which is no model.weight";
    rows.push_back(weightShape(weight.getType()).first);
  }
  llvm::Expected<int64_t> count = quantized::countPackedRows(packed.getOrder(), rows);
  if (!count)
    return emitOpError() << "prefetches " << ahead->getWeight() << ": "
                         << llvm::toString(count.takeError());
  llvm::Expected<int64_t> bytes = formats::packedBytes(
      type.getEncoding().getValue(), type.getLayout().toLayout(), *count, type.getColumns());
  if (!bytes)
    return emitOpError() << "prefetches " << ahead->getWeight() << ": "
                         << llvm::toString(bytes.takeError());
  int64_t end = (ahead->getBlocks() - 1) * ahead->getStride() + ahead->getBytes();
  if (end > *bytes)
    return emitOpError() << "prefetches " << ahead->getWeight() << " up to byte " << end
                         << ", it has " << *bytes;
  return success();
}

LogicalResult SampleOp::verify() {
  int64_t tokens = getLogits().getType().getDimSize(0);
  if (getOptions().getType().getShape() != ArrayRef<int64_t>({tokens, sampling::kWords}))
    return emitOpError() << "options must be [" << tokens << ", " << sampling::kWords << "], found "
                         << getOptions().getType();
  if (getResult().getType().getDimSize(0) != tokens)
    return emitOpError() << "result must have a token for each of " << tokens
                         << " rows of logits, found " << getResult().getType();
  return success();
}

/// The symbol of a weight.
static std::string weightLabel(Value weight) {
  auto parameter = weight.getDefiningOp<model::ParameterOp>();
  return parameter ? parameter.getWeight().str() : std::string();
}

std::string EmbeddingOp::getLabel() { return weightLabel(getTable()); }
std::string MatvecOp::getLabel() {
  SmallVector<std::string> labels = llvm::map_to_vector(getWeights(), weightLabel);
  llvm::erase_if(labels, [](const std::string &label) { return label.empty(); });
  return llvm::join(labels, " + ");
}
std::string MatmulOp::getLabel() {
  return llvm::join(llvm::map_range(getWeights(), weightLabel), " + ");
}
std::string PrepareOp::getLabel() {
  for (Operation *user : getResult().getUsers())
    if (auto product = dyn_cast<MatmulOp>(user))
      return "input of " + product.getLabel();
  return "input of a product";
}
std::string AppendOp::getLabel() { return ("append to " + getKeys() + ", " + getValues()).str(); }
std::string LastRowOp::getLabel() { return "last row"; }
std::string AttentionOp::getLabel() {
  std::string label = ("attention over " + getKeys() + ", " + getValues()).str();
  if (std::optional<uint64_t> window = getWindow())
    label += ", last " + std::to_string(*window) + " positions";
  return label;
}
std::string SampleOp::getLabel() { return "sampling"; }
std::string RowsOp::getLabel() {
  auto name = getBody().front().front().getLoc()->findInstanceOf<NameLoc>();
  return name ? name.getName().str() : "rows";
}

/// Checks that `region` has one block with these argument types that ends in a yield of these
/// types.
static LogicalResult verifyRegion(Operation *op, Region &region, StringRef name,
                                  ArrayRef<Type> arguments, TypeRange results) {
  if (!llvm::equal(region.getArgumentTypes(), arguments))
    return op->emitOpError() << name << " must take (" << arguments << "), found ("
                             << region.getArgumentTypes() << ")";
  auto yield = dyn_cast<YieldOp>(region.front().getTerminator());
  if (!yield)
    return op->emitOpError() << name << " must end in fused.yield";
  if (yield.getValues().getTypes() != results)
    return op->emitOpError() << name << " must yield (" << results << "), found ("
                             << yield.getValues().getTypes() << ")";
  return success();
}

/// Checks that the row order of `op` arranges every segment once.
static LogicalResult verifyOrder(ProductOp op) {
  ArrayRef<int64_t> segments = op.getSegments();
  int64_t count = segments.size();
  SmallVector<int64_t> seen;
  for (auto order : op.getOrder()->getAsRange<quantized::RowOrderAttr>()) {
    int64_t first = order.getFirst(), second = order.getSecond();
    seen.push_back(first);
    if (order.isZip())
      seen.push_back(second);
    if (llvm::any_of(seen, [&](int64_t segment) { return segment >= count; }))
      return op->emitOpError() << "order names a segment that does not exist (there are " << count
                               << ")";
    if (order.isZip() && segments[first] != segments[second])
      return op->emitOpError() << "order zips segments of different lengths: " << segments[first]
                               << " and " << segments[second];
    if (order.isPairs() && segments[first] % second)
      return op->emitOpError() << "order has heads of " << second << " rows, but segment " << first
                               << " has " << segments[first];
  }
  llvm::sort(seen);
  if (!llvm::equal(seen, llvm::seq<int64_t>(0, count)))
    return op->emitOpError() << "order must name every segment once";
  return success();
}

/// Checks weights, segments, order and epilogue of a product.
static LogicalResult verifyProduct(ProductOp op) {
  if (op.getWeights().empty())
    return op->emitOpError() << "needs at least one weight";
  int64_t tokens = op.getTokens(), columns = op.getColumns();
  uint64_t rows = 0, segmentRows = 0;
  for (Value weight : op.getWeights()) {
    auto [weightRows, weightColumns] = weightShape(weight.getType());
    if (weightColumns != columns)
      return op->emitOpError() << "input is " << columns << " wide, a weight has " << weightColumns
                               << " columns";
    if (ShapedType::isDynamic(weightRows))
      return op->emitOpError() << "weights must have a static shape";
    rows = llvm::SaturatingAdd(rows, static_cast<uint64_t>(weightRows));
  }
  for (int64_t segment : op.getSegments()) {
    if (segment <= 0)
      return op->emitOpError() << "segments must be positive";
    segmentRows = llvm::SaturatingAdd(segmentRows, static_cast<uint64_t>(segment));
  }
  if (segmentRows != rows)
    return op->emitOpError() << "segments must sum to the " << rows
                             << " rows of the weights, found "
                             << DenseI64ArrayAttr::get(op->getContext(), op.getSegments());
  if (op.getOrder() && failed(verifyOrder(op)))
    return failure();

  MLIRContext *context = op->getContext();
  auto activation = [&](int64_t width) -> Type {
    return RankedTensorType::get({tokens, width}, Float32Type::get(context));
  };
  SmallVector<Type> sums = llvm::map_to_vector(op.getSegments(), activation);
  if (!op.getEpilogue().empty())
    return verifyRegion(op, op.getEpilogue(), "epilogue", sums, op->getResultTypes());
  if (TypeRange(sums) != op->getResultTypes())
    return op->emitOpError() << "without an epilogue must return (" << sums << "), found ("
                             << op->getResultTypes() << ")";
  return success();
}

LogicalResult MatvecOp::verify() {
  if (failed(verifyProduct(*this)))
    return failure();
  if (getPrologue().empty())
    return success();
  auto rows = RankedTensorType::get({getTokens(), getColumns()}, Float32Type::get(getContext()));
  return verifyRegion(*this, getPrologue(), "prologue", {getInput().getType()}, {rows});
}

LogicalResult MatmulOp::verify() { return verifyProduct(*this); }

/// Whether `region` yields its arguments and does nothing else.
static bool isIdentity(Region &region) {
  if (region.empty())
    return false;
  auto yield = dyn_cast<YieldOp>(region.front().front());
  return yield && llvm::equal(yield.getValues(), region.getArguments());
}

/// A region that changes nothing is left out.
static LogicalResult dropIdentityRegions(MatvecOp op, PatternRewriter &rewriter) {
  bool changed = false;
  for (Region *region : {&op.getPrologue(), &op.getEpilogue()})
    if (isIdentity(*region)) {
      rewriter.modifyOpInPlace(op, [&] { rewriter.eraseBlock(&region->front()); });
      changed = true;
    }
  return success(changed);
}

/// Results of an epilogue that nobody reads are not written.
static LogicalResult dropUnreadResults(MatvecOp op, PatternRewriter &rewriter) {
  if (op.getEpilogue().empty() ||
      llvm::none_of(op.getResults(), [](Value result) { return result.use_empty(); }))
    return failure();
  auto yield = cast<YieldOp>(op.getEpilogue().front().getTerminator());
  SmallVector<Value> results, yielded;
  for (auto [result, value] : llvm::zip_equal(op.getResults(), yield.getValues()))
    if (!result.use_empty()) {
      results.push_back(result);
      yielded.push_back(value);
    }
  // Traffic, schedule and prefetch were chosen for what was written before.
  auto narrower = MatvecOp::create(rewriter, op.getLoc(), TypeRange(ValueRange(results)),
                                   op.getInput(), op.getWeights(), op.getSegmentsAttr(),
                                   op.getOrderAttr(), /*traffic=*/nullptr,
                                   /*schedule=*/nullptr, /*prefetch=*/nullptr);
  narrower->setDiscardableAttrs(op->getDiscardableAttrDictionary());
  rewriter.modifyOpInPlace(yield, [&] { yield.getValuesMutable().assign(yielded); });
  rewriter.inlineRegionBefore(op.getPrologue(), narrower.getPrologue(),
                              narrower.getPrologue().end());
  rewriter.inlineRegionBefore(op.getEpilogue(), narrower.getEpilogue(),
                              narrower.getEpilogue().end());
  for (auto [result, replacement] : llvm::zip_equal(results, narrower.getResults()))
    rewriter.replaceAllUsesWith(result, replacement);
  rewriter.eraseOp(op);
  return success();
}

void MatvecOp::getCanonicalizationPatterns(RewritePatternSet &patterns, MLIRContext *) {
  patterns.add(dropIdentityRegions);
  patterns.add(dropUnreadResults);
}

#define GET_OP_CLASSES
#include "dialects/Fused/FusedOps.cpp.inc"
