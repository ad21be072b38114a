// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "dialects/Model/Semantics.h"
#include "sluice/Formats/Packing.h"
#include "sluice/Formats/RowOrder.h"
#include "sluice/Target/LoadTarget.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/Support/DebugLog.h"
#include "llvm/Support/MathExtras.h"

#define DEBUG_TYPE "fused-pack-weights"

namespace sluice {
#define GEN_PASS_DEF_FUSEDPACKWEIGHTS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using quantized::EncodingAttr;
using quantized::LayoutAttr;
using quantized::LayoutKind;
using quantized::QuantizedTensorType;
using quantized::RowOrderAttr;

/// A weight of a model file and the format in which a kernel wants it.
struct Source {
  model::WeightOp weight;
  EncodingAttr format;
  StringRef decision, reason;
};

/// The name of what is packed of several weights: what they have in common, then what each has of
/// its own: blk.0.attn_q, _k and _v give blk.0.attn_qkv; blk.0.ffn_gate and _up give
/// blk.0.ffn_gate_up.
std::string jointName(ArrayRef<StringRef> names) {
  size_t common = names.front().size();
  for (StringRef name : names)
    while (!name.starts_with(names.front().take_front(common)))
      --common;
  StringRef prefix = names.front().take_front(common);
  prefix = prefix.take_front(prefix.find_last_of("._") + 1);
  SmallVector<StringRef> own =
      llvm::map_to_vector(names, [&](StringRef name) { return name.substr(prefix.size()); });
  bool letters = llvm::all_of(own, [](StringRef name) { return name.size() == 1; });
  return prefix.str() + llvm::join(own, letters ? "" : "_");
}

struct FusedPackWeights : impl::FusedPackWeightsBase<FusedPackWeights> {
  using FusedPackWeightsBase::FusedPackWeightsBase;
  void runOnOperation() override;

private:
  /// The weight behind `value` through quantize and dequantize; a null weight if it is packed
  /// already. Emits an error at `reader` if there is none.
  FailureOr<Source> trace(Value value, Operation *reader);
  /// The layout that kernels for GPUs read a format in fastest.
  LayoutKind gpuLayout(EncodingAttr format, fused::MatvecOp op);
  /// With the layout `kind` for a GPU.
  FailureOr<LayoutAttr> chooseLayout(EncodingAttr format, int64_t columns, LayoutKind kind,
                                     Operation *reader);
  /// Packs weights of one format; without a layout in the one that suits it.
  FailureOr<Value> packTogether(fused::MatvecOp op, ArrayRef<Source> sources,
                                ArrayRef<int64_t> rows, ArrayRef<Attribute> order,
                                LayoutAttr layout);
  LogicalResult pack(fused::MatvecOp op);
  LogicalResult pack(fused::EmbeddingOp op);
  LogicalResult packVector(model::ParameterOp parameter);
  /// A value of the packed weight with this recipe, made known before `point`.
  Value load(ArrayRef<Source> sources, ArrayAttr order, Type type, const Twine &name,
             Operation *point);

  bool gpu = false;
  std::optional<SymbolTable> symbols;
  llvm::DenseMap<std::tuple<Attribute, Attribute, Type>, quantized::PackedOp> recipes;
};

FailureOr<Source> FusedPackWeights::trace(Value value, Operation *reader) {
  Source source;
  if (auto type = dyn_cast<QuantizedTensorType>(value.getType()))
    source.format = type.getEncoding();
  else
    source.format = EncodingAttr::of(cast<RankedTensorType>(value.getType()).getElementType());
  // A recipe rounds once, from the file's numbers: parameter, perhaps dequantize (to float32),
  // perhaps quantize.
  bool quantized = false, dequantized = false;
  auto roundedTwice = [&] {
    return reader->emitOpError() << "reads a weight that is rounded twice, which cannot be packed";
  };
  while (Operation *op = value.getDefiningOp()) {
    if (auto decision = op->getAttrOfType<StringAttr>("sluice.decision");
        decision && source.decision.empty()) {
      source.decision = decision.getValue();
      if (auto reason = op->getAttrOfType<StringAttr>("sluice.reason"))
        source.reason = reason.getValue();
    }
    if (isa<quantized::QuantizeOp>(op)) {
      if (quantized || dequantized)
        return roundedTwice();
      quantized = true;
      value = op->getOperand(0);
    } else if (auto dequantize = dyn_cast<quantized::DequantizeOp>(op)) {
      bool exact = dequantize.getResult().getType().getElementType().isF32();
      if (dequantized || (quantized && !exact))
        return roundedTwice();
      dequantized = true;
      value = dequantize.getInput();
    } else if (auto parameter = dyn_cast<model::ParameterOp>(op)) {
      Operation *symbol = symbols->lookup(parameter.getWeight());
      source.weight = dyn_cast_or_null<model::WeightOp>(symbol);
      if (!source.weight && !isa_and_nonnull<quantized::PackedOp>(symbol))
        return reader->emitOpError()
               << "reads @" << parameter.getWeight() << ", which is not a weight";
      return source;
    } else {
      break;
    }
  }
  return reader->emitOpError() << "reads a weight that is computed, which cannot be packed";
}

LayoutKind FusedPackWeights::gpuLayout(EncodingAttr format, fused::MatvecOp op) {
  const formats::Encoding &encoding = format.getValue();
  if (!encoding.isInteger() || !formats::RecordShape::problem(encoding).empty())
    return LayoutKind::Mma;
  if (!encoding.isPlainInteger())
    return LayoutKind::Records;
  // What both hold: records scale the sums of four groups of 32 at once (docs/kernels.md has the
  // measurements); but they take few tokens, and pad rows.
  constexpr int64_t record = formats::RecordShape::columns;
  int64_t padding = llvm::alignTo(op.getColumns(), record) - op.getColumns();
  return encoding.group == 32 && op.getTokens() == 1 && padding * 16 <= op.getColumns()
             ? LayoutKind::Records
             : LayoutKind::Mma;
}

FailureOr<LayoutAttr> FusedPackWeights::chooseLayout(EncodingAttr format, int64_t width,
                                                     LayoutKind kind, Operation *reader) {
  if (!gpu)
    return LayoutAttr::get(&getContext(), LayoutKind::Lanes, 0);
  // A stage of about 16 KB: smaller bulk copies do not reach the memory's speed, larger ones make
  // every small access wait longer. 16 rows of 8 bits are 1024 columns.
  constexpr int64_t stageBits = 16 * 1024 * 8;
  int64_t multiple = std::max<int64_t>(128, format.getGroup());
  int64_t chunk = columns;
  if (!chunk && kind == LayoutKind::Records) {
    // Warps take records in turn: as many as fit, but a power of two, so that no warp is left over.
    constexpr int64_t record = formats::RecordShape::columns;
    int64_t most = stageBits * 5 / 4 / LayoutAttr::kTileRows / format.getBits();
    chunk = std::min<int64_t>(llvm::bit_floor(static_cast<uint64_t>(most)),
                              llvm::alignTo(width, record));
  } else if (!chunk) {
    int64_t most = stageBits / LayoutAttr::kTileRows / format.getBits();
    // Chunks of equal size, so that the last one of a tile is no stub.
    int64_t chunks = llvm::divideCeil(width, most);
    chunk = llvm::alignTo(llvm::divideCeil(width, chunks), multiple);
  }
  auto error = [&] {
    return reader->emitOpError() << "cannot be packed with columns = " << chunk << ": ";
  };
  LayoutAttr layout = LayoutAttr::getChecked(error, &getContext(), kind, chunk);
  if (!layout)
    return failure();
  return layout;
}

/// Which rows of a matvec's segments its epilogue combines: halves of heads that rotary embedding
/// turns, segments that are combined elementwise.
SmallVector<Attribute> chooseOrder(fused::MatvecOp op) {
  MLIRContext *context = op.getContext();
  int64_t count = op.getSegments().size();
  SmallVector<int64_t> headDim(count, 0), partner(count, -1);
  if (!op.getEpilogue().empty()) {
    Block &block = op.getEpilogue().front();
    // The one segment that a value is made of, or -1.
    DenseMap<Value, int64_t> segmentOf;
    for (BlockArgument argument : block.getArguments())
      segmentOf[argument] = argument.getArgNumber();
    for (Operation &inner : block) {
      llvm::SmallSetVector<int64_t, 2> from;
      for (Value operand : inner.getOperands())
        if (auto found = segmentOf.find(operand); found != segmentOf.end())
          from.insert(found->second);
      if (from.size() == 1 && from[0] >= 0)
        if (auto rotary = dyn_cast<model::RotaryOp>(inner))
          headDim[from[0]] = rotary.getHeadDim();
      // Each segment is zipped once, with the first segment that it is combined with.
      if (from.size() == 2 && from[0] >= 0 && from[1] >= 0 && !isa<fused::YieldOp>(inner) &&
          partner[from[0]] < 0 && partner[from[1]] < 0) {
        partner[from[0]] = from[1];
        partner[from[1]] = from[0];
      }
      for (Value result : inner.getResults())
        if (!from.empty())
          segmentOf[result] = from.size() == 1 ? from[0] : -1;
    }
  }
  SmallVector<Attribute> order;
  ArrayRef<int64_t> segments = op.getSegments();
  auto zips = [&](int64_t i) {
    int64_t j = partner[i];
    return j >= 0 && !headDim[i] && !headDim[j] && segments[i] == segments[j];
  };
  for (int64_t i = 0; i < count; ++i) {
    if (headDim[i] && segments[i] % headDim[i] == 0)
      order.push_back(RowOrderAttr::get(context, "pairs", i, headDim[i]));
    else if (!zips(i))
      order.push_back(RowOrderAttr::get(context, "natural", i, 0));
    else if (i < partner[i])
      order.push_back(RowOrderAttr::get(context, "zip", i, partner[i]));
  }
  return order;
}

Value FusedPackWeights::load(ArrayRef<Source> sources, ArrayAttr order, Type type,
                             const Twine &name, Operation *point) {
  OpBuilder builder(&getContext());
  SmallVector<Attribute> names = llvm::map_to_vector(sources, [](Source source) -> Attribute {
    return FlatSymbolRefAttr::get(source.weight.getSymNameAttr());
  });
  ArrayAttr references = builder.getArrayAttr(names);
  quantized::PackedOp &packed = recipes[{references, order, type}];
  if (!packed) {
    Operation *before = point;
    while (before->getParentOp() != getOperation())
      before = before->getParentOp();
    builder.setInsertionPoint(before);
    packed =
        quantized::PackedOp::create(builder, point->getLoc(), name.str(), references, order, type);
    symbols->insert(packed);
    bool decided =
        llvm::any_of(sources, [](const Source &source) { return !source.decision.empty(); });
    if (isa<QuantizedTensorType>(type) || decided) {
      EncodingAttr format = sources.front().format;
      SmallVector<Attribute> reasons;
      for (const Source &source : sources) {
        std::string kept = "as the model's file has it";
        if (model::WeightOp weight = source.weight; weight.getScheme())
          kept += (" (" + *weight.getScheme() + ")").str();
        reasons.push_back(
            builder.getStringAttr(source.reason.empty() ? StringRef(kept) : source.reason));
      }
      packed->setDiscardableAttr("sluice.decision", builder.getStringAttr(format.getName()));
      // One for all, or one for each.
      packed->setDiscardableAttr("sluice.reason", llvm::all_equal(reasons)
                                                      ? reasons.front()
                                                      : builder.getArrayAttr(reasons));
    }
    LDBG() << "made " << packed;
  }
  builder.setInsertionPoint(point);
  return model::ParameterOp::create(builder, point->getLoc(), type,
                                    FlatSymbolRefAttr::get(packed.getSymNameAttr()));
}

LogicalResult FusedPackWeights::pack(fused::MatvecOp op) {
  SmallVector<Source> sources;
  SmallVector<int64_t> rows;
  size_t packed = 0;
  for (Value weight : op.getWeights()) {
    FailureOr<Source> source = trace(weight, op);
    if (failed(source))
      return failure();
    packed += !source->weight;
    auto quantized = dyn_cast<QuantizedTensorType>(weight.getType());
    rows.push_back(quantized ? quantized.getRows()
                             : cast<RankedTensorType>(weight.getType()).getDimSize(0));
    sources.push_back(*source);
  }
  if (packed == sources.size())
    return success(); // by an earlier run
  if (packed)
    return op.emitOpError() << "reads packed and unpacked weights";
  // Weights of different formats are packed apart, for one kernel that reads them one after the
  // other.
  bool mixed = llvm::any_of(
      sources, [&](const Source &source) { return source.format != sources.front().format; });
  if (mixed && !gpu)
    return op.emitOpError() << "reads weights of different formats, which only kernels for GPUs do";

  SmallVector<Attribute> order = chooseOrder(op), sourceOrder = order;
  if (!llvm::equal(rows, op.getSegments())) {
    // A weight that holds several segments has its rows one after the other; every segment must
    // start a tile.
    if (mixed)
      return op.emitOpError() << "reads weights of different formats, of which one has several "
                                 "segments";
    order.clear();
    sourceOrder.clear();
    for (int64_t i = 0, e = op.getSegments().size(); i < e; ++i) {
      if (op.getSegments()[i] % LayoutAttr::kTileRows)
        return op.emitOpError() << "has a weight of several segments, of which one has "
                                << op.getSegments()[i] << " rows, not a multiple of "
                                << LayoutAttr::kTileRows;
      order.push_back(RowOrderAttr::get(&getContext(), "natural", i, 0));
    }
    for (int64_t i = 0, e = sources.size(); i < e; ++i)
      sourceOrder.push_back(RowOrderAttr::get(&getContext(), "natural", i, 0));
  }

  if (op.getColumns() < 1)
    return op.emitOpError() << "has an input of type " << op.getInput().getType()
                            << ", expected a positive width";
  LayoutAttr layout;
  if (mixed) {
    // Of the widest elements' size; all have as many columns in a chunk.
    EncodingAttr widest = sources.front().format;
    for (const Source &source : sources) {
      if (std::string problem = formats::RecordShape::problem(source.format.getValue());
          !problem.empty())
        return op.emitOpError() << "reads weights of different formats, one of them "
                                << source.format.getName()
                                << ", which needs its own kernel: " << problem;
      if (source.format.getBits() > widest.getBits())
        widest = source.format;
    }
    FailureOr<LayoutAttr> chosen = chooseLayout(widest, op.getColumns(), LayoutKind::Records, op);
    if (failed(chosen))
      return failure();
    layout = *chosen;
  }
  SmallVector<Value> packedWeights;
  for (size_t first = 0, end; first < sources.size(); first = end) {
    for (end = first + 1; end < sources.size() && sources[end].format == sources[first].format;)
      ++end;
    // The row orders of these weights, counted from the first of them.
    SmallVector<Attribute> own;
    auto isOwn = [&](int64_t source) { return source >= int64_t(first) && source < int64_t(end); };
    for (auto segment : llvm::map_range(sourceOrder, llvm::CastTo<RowOrderAttr>)) {
      int64_t shift = static_cast<int64_t>(first);
      if (segment.isZip() && isOwn(segment.getFirst()) != isOwn(segment.getSecond()))
        return op.emitOpError() << "combines rows of weights of different formats, "
                                << sources[segment.getFirst()].format.getName() << " and "
                                << sources[segment.getSecond()].format.getName();
      if (isOwn(segment.getFirst()))
        own.push_back(RowOrderAttr::get(&getContext(), segment.getKind(),
                                        segment.getFirst() - shift,
                                        segment.getSecond() - (segment.isZip() ? shift : 0)));
    }
    ArrayRef<int64_t> ownRows = ArrayRef(rows).slice(first, end - first);
    FailureOr<Value> value =
        packTogether(op, ArrayRef(sources).slice(first, end - first), ownRows, own, layout);
    if (failed(value))
      return failure();
    packedWeights.push_back(*value);
  }
  op.getWeightsMutable().assign(packedWeights);
  op.setOrderAttr(ArrayAttr::get(&getContext(), order));
  return success();
}

FailureOr<Value> FusedPackWeights::packTogether(fused::MatvecOp op, ArrayRef<Source> sources,
                                                ArrayRef<int64_t> rows,
                                                ArrayRef<Attribute> sourceOrder,
                                                LayoutAttr layout) {
  EncodingAttr format = sources.front().format;
  if (!layout) {
    FailureOr<LayoutAttr> chosen = chooseLayout(format, op.getColumns(), gpuLayout(format, op), op);
    if (failed(chosen))
      return failure();
    layout = *chosen;
  }
  ArrayAttr sourceOrders = ArrayAttr::get(&getContext(), sourceOrder);
  llvm::Expected<int64_t> packedRows = quantized::countPackedRows(sourceOrders, rows);
  if (!packedRows)
    return op.emitOpError() << "cannot be packed: " << llvm::toString(packedRows.takeError());
  llvm::Expected<int64_t> bytes =
      formats::packedBytes(format.getValue(), layout.toLayout(), *packedRows, op.getColumns());
  if (!bytes)
    return op.emitOpError() << "cannot be packed for target " << target << ": "
                            << llvm::toString(bytes.takeError());
  SmallVector<StringRef> names = llvm::map_to_vector(
      sources, [](Source source) { return StringRef(source.weight.getSymName()); });
  std::string name = names.size() == 1 ? (names[0] + ".packed").str() : jointName(names);
  int64_t shape[] = {llvm::sum_of(rows), op.getColumns()};
  auto type =
      QuantizedTensorType::getChecked([&] { return op.emitOpError() << "cannot be packed: "; },
                                      &getContext(), ArrayRef<int64_t>(shape), format, layout);
  if (!type)
    return failure();
  Value value = load(sources, sourceOrders, type, name, op);
  remark::passed(op.getLoc(), remark::RemarkOpts::name("packed").category(DEBUG_TYPE))
      << remark::reason("{0} of {1} weights, {2} bytes", name, sources.size(), *bytes);
  return value;
}

LogicalResult FusedPackWeights::pack(fused::EmbeddingOp op) {
  FailureOr<Source> source = trace(op.getTable(), op);
  if (failed(source))
    return failure();
  if (!source->weight)
    return success();
  Type type = op.getTable().getType();
  // Rows are looked up one by one: integers stay row after row, floats are a plain tensor.
  if (auto quantized = dyn_cast<QuantizedTensorType>(type)) {
    type = quantized.withLayout(LayoutAttr::get(&getContext(), LayoutKind::Rows, 0));
    if (!source->format.isScaled())
      type = RankedTensorType::get(quantized.getShape(), source->format.getElement());
  }
  ArrayAttr order = ArrayAttr::get(&getContext(), {});
  Value value = load(*source, order, type, source->weight.getSymName() + ".rows", op);
  op.getTableMutable().assign(value);
  return success();
}

LogicalResult FusedPackWeights::packVector(model::ParameterOp parameter) {
  Source source;
  source.weight = symbols->lookup<model::WeightOp>(parameter.getWeight());
  Type type = RankedTensorType::get(cast<RankedTensorType>(parameter.getType()).getShape(),
                                    Float32Type::get(&getContext()));
  ArrayAttr order = ArrayAttr::get(&getContext(), {});
  Value value = load(source, order, type, parameter.getWeight() + ".f32", parameter);
  parameter.replaceAllUsesWith(value);
  parameter.erase();
  return success();
}

void FusedPackWeights::runOnOperation() {
  ModuleOp module = getOperation();
  FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
  if (failed(description))
    return signalPassFailure();
  gpu = description->isGpu();
  if (columns < 0 || (columns && !gpu)) {
    emitError(module.getLoc()) << "columns must be 0 or, for a GPU, positive; found "
                               << int64_t(columns) << " for target " << target;
    return signalPassFailure();
  }
  symbols.emplace(module);
  recipes.clear();
  // Recipes that are there serve again.
  for (auto packed : module.getOps<quantized::PackedOp>())
    recipes.try_emplace({packed.getSourcesAttr(), packed.getOrderAttr(), packed.getType()}, packed);

  WalkResult walk = module.walk([&](Operation *op) {
    LogicalResult result = success();
    if (auto matvec = dyn_cast<fused::MatvecOp>(op))
      result = pack(matvec);
    else if (auto embedding = dyn_cast<fused::EmbeddingOp>(op))
      result = pack(embedding);
    return failed(result) ? WalkResult::interrupt() : WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();

  // Dead links between files and kernels, readers before what they read.
  SmallVector<Operation *> links;
  module.walk([&](Operation *op) {
    if (isa<model::ParameterOp, quantized::QuantizeOp, quantized::DequantizeOp>(op))
      links.push_back(op);
  });
  for (Operation *op : llvm::reverse(links))
    if (op->use_empty())
      op->erase();

  SmallVector<model::ParameterOp> parameters;
  module.walk([&](model::ParameterOp parameter) { parameters.push_back(parameter); });
  for (model::ParameterOp parameter : parameters) {
    if (!symbols->lookup<model::WeightOp>(parameter.getWeight()))
      continue;
    auto type = dyn_cast<RankedTensorType>(parameter.getType());
    bool vector = type && type.getRank() == 1 && isa<FloatType>(type.getElementType()) &&
                  llvm::all_of(parameter->getUsers(), [](Operation *user) {
                    return model::isNorm(user) ||
                           isa<model::AddBiasOp, model::ScaleChannelsOp, model::ReorderOp>(user);
                  });
    if (!vector) {
      parameter.emitOpError() << "loads @" << parameter.getWeight() << " for '"
                              << (*parameter->user_begin())->getName()
                              << "', which reads no packed weight";
      return signalPassFailure();
    }
    if (failed(packVector(parameter)))
      return signalPassFailure();
  }
}
} // namespace
} // namespace sluice
