// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "dialects/Fused/Weights.h"
#include "sluice/Target/LoadTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/IRMapping.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-derive-steps"

namespace sluice {
#define GEN_PASS_DEF_FUSEDDERIVESTEPS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

/// Rows that are better served by products of one token's kind, which read the weights at the
/// memory's speed.
constexpr int64_t few = 2;

/// What a step is for: the tokens of prompts, tokens whose logits are all wanted, or a token of
/// each of several sequences, which are the rows of @decode already.
enum class StepKind { Prefill, Verify, Batch };

/// Writes one step of many tokens from @decode.
class StepWriter {
public:
  StepWriter(func::FuncOp decode, int64_t rows, int64_t tokens, StepKind kind)
      : decode(decode), rows(rows), tokens(tokens), kind(kind), builder(decode.getContext()) {}

  LogicalResult write(StringRef name);

private:
  /// A matrix of activations with a row for each of @decode's tokens.
  bool isRow(Value value) {
    auto type = dyn_cast<RankedTensorType>(value.getType());
    Operation *definition = value.getDefiningOp();
    return type && type.getRank() == 2 && type.getDimSize(0) == rows &&
           !(definition && isa<model::ParameterOp>(definition));
  }
  RankedTensorType withTokens(RankedTensorType type) {
    return RankedTensorType::get({tokens, type.getDimSize(1)}, type.getElementType());
  }
  /// Gives the values of a region the step's rows.
  LogicalResult widen(Region &region);
  /// Clones a region into an operation of many tokens.
  LogicalResult cloneInto(Region &from, Region &to);
  /// Makes appends of a region know whose rows they have.
  void nameOwners(Region &region) {
    region.walk([&](model::CacheAppendOp append) {
      if (owners)
        append.getSequencesMutable().assign(owners);
    });
  }
  LogicalResult convert(Operation &op);
  LogicalResult convert(fused::MatvecOp op);
  LogicalResult convert(fused::AttentionOp op);
  /// The operation as it is, for all rows that are there.
  LogicalResult convertRows(Operation &op);
  /// Makes what comes from here on find the last row only.
  void keepLastRow(Block::iterator from, Block &body);
  void replace(ResultRange from, ValueRange to) {
    for (auto [value, other] : llvm::zip_equal(from, to))
      mapping.map(value, other);
  }

  func::FuncOp decode;
  /// Of @decode, and of the step.
  int64_t rows, tokens;
  StepKind kind;
  OpBuilder builder;
  IRMapping mapping;
  Value count; ///< null where all rows are there
  /// Of the tokens of several sequences: whose each is, and where those of each begin.
  Value owners, starts;
};

LogicalResult StepWriter::widen(Region &region) {
  for (BlockArgument argument : region.getArguments())
    argument.setType(withTokens(cast<RankedTensorType>(argument.getType())));
  WalkResult walk = region.walk([&](Operation *op) {
    if (op->hasTrait<OpTrait::ConstantLike>()) {
      op->emitOpError() << "in a region cannot be given " << tokens << " rows";
      return WalkResult::interrupt();
    }
    for (OpResult result : op->getResults())
      if (isRow(result))
        result.setType(withTokens(cast<RankedTensorType>(result.getType())));
    return WalkResult::advance();
  });
  return failure(walk.wasInterrupted());
}

LogicalResult StepWriter::cloneInto(Region &from, Region &to) {
  from.cloneInto(&to, mapping);
  nameOwners(to);
  return widen(to);
}

LogicalResult StepWriter::convert(fused::MatvecOp op) {
  SmallVector<quantized::EncodingAttr> encodings;
  bool image = false, records = false;
  for (Value weight : op.getWeights()) {
    auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType());
    if (!type || !type.getLayout().isTiled())
      return op.emitOpError() << "has a weight that is not packed, of type " << weight.getType();
    image = type.getLayout().isForGpu();
    records = type.getLayout().getKind() == quantized::LayoutKind::Records;
    if (!llvm::is_contained(encodings, type.getEncoding()))
      encodings.push_back(type.getEncoding());
  }
  auto prepared = fused::PreparedType::get(builder.getContext(), tokens, op.getColumns(), encodings,
                                           image, records);
  auto prepare = fused::PrepareOp::create(builder, op.getLoc(), prepared,
                                          mapping.lookup(Value(op.getInput())), count,
                                          /*traffic=*/nullptr, /*schedule=*/nullptr);
  if (failed(cloneInto(op.getPrologue(), prepare.getPrologue())))
    return failure();
  SmallVector<Value> weights =
      llvm::map_to_vector(op.getWeights(), [&](Value weight) { return mapping.lookup(weight); });
  SmallVector<Type> types = llvm::map_to_vector(op.getResultTypes(), [&](Type type) -> Type {
    return withTokens(cast<RankedTensorType>(type));
  });
  auto product = fused::MatmulOp::create(builder, op.getLoc(), types, prepare.getResult(), count,
                                         weights, op.getSegmentsAttr(), op.getOrderAttr(),
                                         /*traffic=*/nullptr, /*schedule=*/nullptr);
  if (failed(cloneInto(op.getEpilogue(), product.getEpilogue())))
    return failure();
  replace(op->getResults(), product.getResults());
  return success();
}

LogicalResult StepWriter::convert(fused::AttentionOp op) {
  // Of different sequences each attends to what is its own.
  if (kind == StepKind::Batch) {
    builder.clone(*op, mapping);
    return success();
  }
  Value query = mapping.lookup(Value(op.getQuery()));
  Value positions = mapping.lookup(Value(op.getPositions()));
  Value pages = op.getPages() ? mapping.lookup(Value(op.getPages())) : Value();
  if (!op.getPrologue().empty()) {
    auto yield = cast<fused::YieldOp>(op.getPrologue().front().getTerminator());
    auto type = cast<RankedTensorType>(yield.getValues().front().getType());
    auto append = fused::AppendOp::create(
        builder, op.getLoc(), withTokens(type), query, mapping.lookup(op.getAppended()[0]),
        mapping.lookup(op.getAppended()[1]), op.getKeysAttr(), op.getValuesAttr(), positions, pages,
        owners, count, /*traffic=*/nullptr, /*schedule=*/nullptr);
    if (failed(cloneInto(op.getPrologue(), append.getPrologue())))
      return failure();
    query = append.getResult();
  }
  auto attention = fused::AttentionOp::create(
      builder, op.getLoc(), withTokens(op.getType()), query, /*appended=*/ValueRange(),
      op.getKeysAttr(), op.getValuesAttr(), positions, pages, starts, count, op.getScaleAttr(),
      op.getWindowAttr(), op.getSoftCapAttr(), /*traffic=*/nullptr, /*schedule=*/nullptr);
  replace(op->getResults(), attention->getResults());
  return success();
}

LogicalResult StepWriter::convertRows(Operation &op) {
  Operation *clone = builder.clone(op, mapping);
  for (auto [result, old] : llvm::zip_equal(clone->getResults(), op.getResults()))
    if (isRow(old))
      result.setType(withTokens(cast<RankedTensorType>(old.getType())));
  for (Region &region : clone->getRegions()) {
    nameOwners(region);
    if (failed(widen(region)))
      return failure();
  }
  for (StringRef chosen : {"traffic", "schedule"})
    clone->removeAttr(chosen);
  if (kind == StepKind::Batch)
    return success();
  if (auto embedding = dyn_cast<fused::EmbeddingOp>(clone))
    embedding.getActiveMutable().assign(count);
  else if (auto rows = dyn_cast<fused::RowsOp>(clone))
    rows.getActiveMutable().assign(count);
  return success();
}

LogicalResult StepWriter::convert(Operation &op) {
  if (auto matvec = dyn_cast<fused::MatvecOp>(op))
    return convert(matvec);
  if (auto attention = dyn_cast<fused::AttentionOp>(op))
    return convert(attention);
  if (isa<fused::EmbeddingOp, fused::RowsOp>(op))
    return convertRows(op);
  if (isa<fused::SampleOp>(op))
    return kind == StepKind::Verify ? success() : convertRows(op);
  if (isa<func::ReturnOp>(op) && kind == StepKind::Verify) {
    func::ReturnOp::create(builder, op.getLoc(), mapping.lookup(op.getOperand(0)));
    return success();
  }
  if (isa<model::ParameterOp, func::ReturnOp>(op) || op.hasTrait<OpTrait::ConstantLike>()) {
    builder.clone(op, mapping);
    return success();
  }
  return op.emitOpError() << "cannot be part of a step of many tokens";
}

void StepWriter::keepLastRow(Block::iterator from, Block &body) {
  llvm::SetVector<Value> rows;
  for (Operation &op : llvm::make_range(from, body.end()))
    op.walk([&](Operation *inner) {
      for (Value operand : inner->getOperands())
        if (isRow(operand) && operand.getParentBlock() == &body && mapping.contains(operand) &&
            !isa<BlockArgument>(operand))
          rows.insert(operand);
    });
  for (Value row : rows) {
    auto last = fused::LastRowOp::create(builder, row.getLoc(), row.getType(), mapping.lookup(row),
                                         count, starts, /*traffic=*/nullptr,
                                         /*schedule=*/nullptr);
    mapping.map(row, last.getResult());
  }
}

LogicalResult StepWriter::write(StringRef name) {
  Block &body = decode.getBody().front();
  Location loc = NameLoc::get(builder.getStringAttr(name));
  Type perRow = RankedTensorType::get({tokens}, builder.getI32Type());
  SmallVector<Type> inputs = {perRow, perRow};
  if (kind != StepKind::Batch)
    inputs.push_back(RankedTensorType::get({1}, builder.getI32Type()));
  // Of prompts of several sequences, whose each token is, and where those of each begin.
  const bool isPacked = kind == StepKind::Prefill && rows > 1;
  if (isPacked)
    inputs.append({perRow, RankedTensorType::get({rows + 1}, builder.getI32Type())});
  const size_t own = inputs.size();
  SmallVector<Type> outputs(decode.getResultTypes());
  // The page table and the options of sampling; of all logits of a sequence the runtime chooses.
  auto others = body.getArguments().drop_front(2);
  if (kind == StepKind::Verify && !others.empty() && others.back() != model::pageTable(body))
    others = others.drop_back();
  for (BlockArgument argument : others)
    inputs.push_back(argument.getType());
  if (kind == StepKind::Verify)
    outputs = {withTokens(cast<RankedTensorType>(outputs[0]))};
  builder.setInsertionPointAfter(decode);
  auto step = func::FuncOp::create(builder, loc, name, builder.getFunctionType(inputs, outputs));
  SymbolTable::setSymbolVisibility(step, SymbolTable::getSymbolVisibility(decode));
  Block *block = step.addEntryBlock();
  builder.setInsertionPointToEnd(block);
  if (kind != StepKind::Batch)
    count = block->getArgument(2);
  if (isPacked) {
    owners = block->getArgument(3);
    starts = block->getArgument(4);
  }
  for (auto [number, argument] : llvm::enumerate(body.getArguments().take_front(2)))
    mapping.map(argument, block->getArgument(number));
  for (auto [number, argument] : llvm::enumerate(others))
    mapping.map(argument, block->getArgument(own + number));

  // Behind the last attention no row depends on another one, and only the last one's logits are
  // wanted.
  Operation *lastAttention = nullptr;
  if (kind == StepKind::Prefill)
    for (auto attention : body.getOps<fused::AttentionOp>())
      lastAttention = attention;
  for (Operation &op : body) {
    bool isBehind = lastAttention && lastAttention->isBeforeInBlock(&op);
    if (!isBehind) {
      if (failed(convert(op)))
        return failure();
      if (&op == lastAttention) {
        keepLastRow(std::next(op.getIterator()), body);
        // From here on it is the step of a token of each sequence.
        tokens = rows;
        kind = StepKind::Batch;
        count = owners = starts = Value();
      }
      continue;
    }
    WalkResult walk = op.walk([&](Operation *inner) {
      if (!llvm::is_contained(inner->getOperands(), body.getArgument(1)))
        return WalkResult::advance();
      inner->emitOpError() << "reads positions behind the last attention";
      return WalkResult::interrupt();
    });
    if (walk.wasInterrupted())
      return failure();
    if (rows <= few)
      builder.clone(op, mapping);
    else if (failed(convert(op)))
      return failure();
  }
  return success();
}

struct FusedDeriveSteps : impl::FusedDeriveStepsBase<FusedDeriveSteps> {
  using FusedDeriveStepsBase::FusedDeriveStepsBase;

  void runOnOperation() override {
    FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
    if (failed(description))
      return signalPassFailure();
    auto decode = getOperation().lookupSymbol<func::FuncOp>("decode");
    auto config = getOperation()->getAttrOfType<DictionaryAttr>("model.config");
    auto context = config ? config.getAs<IntegerAttr>("context_length") : IntegerAttr();
    // What is no step of decoding is the business of plan-assign-buffers.
    auto rows = decode && decode.getNumArguments() >= 2
                    ? dyn_cast<RankedTensorType>(decode.getArgumentTypes()[0])
                    : RankedTensorType();
    if (!rows || rows.getRank() != 1 || !context || !decode.getBody().hasOneBlock())
      return markAllAnalysesPreserved();
    SymbolTable symbols(getOperation());
    ArrayRef<int64_t> prompts =
        prefill.empty() ? ArrayRef(description->prefillTokens.value) : ArrayRef<int64_t>(prefill);
    int64_t sequences = rows.getDimSize(0);
    if (sequences == 1) {
      for (int64_t tokens : prompts)
        if (failed(derive(decode, "prefill", std::min(tokens, context.getInt()), StepKind::Prefill,
                          symbols)))
          return signalPassFailure();
      int64_t tokens = verify < 0 ? description->verifyTokens.value : verify;
      if (failed(derive(decode, "verify", std::min(tokens, context.getInt()), StepKind::Verify,
                        symbols)))
        signalPassFailure();
      return;
    }
    // A decode step that was rewritten has its steps for prompts already.
    if (model::pageTable(decode.getBody().front()) && !decode.getOps<fused::MatvecOp>().empty())
      for (int64_t tokens : prompts)
        if (failed(derive(decode, "prefill", std::min(tokens, sequences * context.getInt()),
                          StepKind::Prefill, symbols)))
          return signalPassFailure();
    if (failed(batch(decode, sequences, symbols)))
      signalPassFailure();
  }

private:
  /// Writes the step for up to `tokens` tokens, unless it is there already.
  LogicalResult derive(func::FuncOp decode, StringRef name, int64_t tokens, StepKind kind,
                       SymbolTable &symbols) {
    std::string symbol = (name + "_" + Twine(tokens)).str();
    if (tokens < 2 || symbols.lookup(symbol))
      return success();
    int64_t rows = cast<RankedTensorType>(decode.getArgumentTypes()[0]).getDimSize(0);
    if (failed(StepWriter(decode, rows, tokens, kind).write(symbol)))
      return failure();
    LDBG() << "@" << symbol;
    symbols.insert(decode->getNextNode());
    return success();
  }

  /// Gives a @decode of many sequences products of many tokens, if these are not few.
  LogicalResult batch(func::FuncOp decode, int64_t rows, SymbolTable &symbols) {
    if (rows <= few || decode.getOps<fused::MatvecOp>().empty())
      return success();
    if (failed(StepWriter(decode, rows, rows, StepKind::Batch).write("decode_batch")))
      return failure();
    auto step = cast<func::FuncOp>(decode->getNextNode());
    symbols.erase(decode);
    step.setSymName("decode");
    symbols.insert(step);
    return success();
  }
};
} // namespace
} // namespace sluice
