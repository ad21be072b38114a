// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Lowering.h"

#include "mlir/IR/IRMapping.h"
#include "mlir/IR/Matchers.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/Path.h"

using namespace mlir;
using namespace sluice::emulator;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;

namespace {

/// Operations that mean the same on the host and on the device.
const llvm::StringSet<> &plainOperations() {
  static const llvm::StringSet<> names = {
      "llvm.add",
      "llvm.sub",
      "llvm.mul",
      "llvm.sdiv",
      "llvm.udiv",
      "llvm.srem",
      "llvm.urem",
      "llvm.and",
      "llvm.or",
      "llvm.xor",
      "llvm.shl",
      "llvm.lshr",
      "llvm.ashr",
      "llvm.fadd",
      "llvm.fsub",
      "llvm.fmul",
      "llvm.fdiv",
      "llvm.frem",
      "llvm.fneg",
      "llvm.fcmp",
      "llvm.icmp",
      "llvm.select",
      "llvm.zext",
      "llvm.sext",
      "llvm.trunc",
      "llvm.bitcast",
      "llvm.fpext",
      "llvm.fptrunc",
      "llvm.sitofp",
      "llvm.uitofp",
      "llvm.fptosi",
      "llvm.fptoui",
      "llvm.ptrtoint",
      "llvm.inttoptr",
      "llvm.getelementptr",
      "llvm.extractelement",
      "llvm.insertelement",
      "llvm.shufflevector",
      "llvm.extractvalue",
      "llvm.insertvalue",
      "llvm.mlir.constant",
      "llvm.mlir.zero",
      "llvm.mlir.undef",
      "llvm.mlir.poison",
      "llvm.freeze",
      "llvm.br",
      "llvm.cond_br",
      "llvm.switch",
      "llvm.return",
      "llvm.addrspacecast",
      "llvm.alloca",
      "llvm.intr.fma",
      "llvm.intr.fmuladd",
      "llvm.intr.exp",
      "llvm.intr.exp2",
      "llvm.intr.log",
      "llvm.intr.log2",
      "llvm.intr.sqrt",
      "llvm.intr.fabs",
      "llvm.intr.maxnum",
      "llvm.intr.minnum",
      "llvm.intr.maximum",
      "llvm.intr.minimum",
      "llvm.intr.rint",
      "llvm.intr.nearbyint",
      "llvm.intr.round",
      "llvm.intr.roundeven",
      "llvm.intr.floor",
      "llvm.intr.ceil",
      "llvm.intr.trunc",
      "llvm.intr.copysign",
      "llvm.intr.sin",
      "llvm.intr.cos",
      "llvm.intr.pow",
      "llvm.intr.tanh",
      "llvm.intr.smax",
      "llvm.intr.smin",
      "llvm.intr.umax",
      "llvm.intr.umin",
      "llvm.intr.abs",
      "llvm.intr.bswap",
      "llvm.intr.ctpop",
      "llvm.intr.ctlz",
      "llvm.intr.cttz",
      "llvm.intr.fshl",
      "llvm.intr.fshr",
      "llvm.intr.assume",
      "llvm.intr.bitreverse",
      "llvm.intr.vector.reduce.add",
      "llvm.intr.vector.reduce.fadd",
      "llvm.intr.vector.reduce.fmax",
      "llvm.intr.vector.reduce.smax",
      "llvm.intr.lifetime.start",
      "llvm.intr.lifetime.end",
      "llvm.intr.expect",
  };
  return names;
}

std::string placeOf(Location location) {
  if (auto file = dyn_cast<FileLineColLoc>(location))
    return (llvm::sys::path::filename(file.getFilename().getValue()) + ":" +
            std::to_string(file.getLine()) + ":" + std::to_string(file.getColumn()))
        .str();
  if (auto name = dyn_cast<NameLoc>(location))
    return placeOf(name.getChildLoc());
  if (auto call = dyn_cast<CallSiteLoc>(location))
    return placeOf(call.getCallee());
  if (auto fused = dyn_cast<FusedLoc>(location))
    for (Location part : fused.getLocations())
      if (std::string place = placeOf(part); !place.empty())
        return place;
  return "";
}

} // namespace

/// What an atomic access orders, and between whom.
static uint32_t flagsOf(LLVM::AtomicOrdering ordering, std::optional<StringRef> scope) {
  using enum LLVM::AtomicOrdering;
  if (ordering == not_atomic)
    return 0;
  uint32_t flags = Machine::AtomicAccess;
  if (ordering == acquire || ordering == acq_rel || ordering == seq_cst)
    flags |= Machine::Acquire;
  if (ordering == release || ordering == acq_rel || ordering == seq_cst)
    flags |= Machine::Release;
  if (scope && *scope == "block")
    flags |= Machine::BlockScope;
  return flags;
}

std::string sluice::emulator::describe(Operation *op) {
  std::string place = placeOf(op->getLoc());
  return op->getName().getStringRef().str() + (place.empty() ? "" : " at " + place);
}

Value Lowering::call(StringRef name, Type result, ArrayRef<Value> arguments, Operation *op,
                     bool withThread) {
  SmallVector<Value> all;
  if (withThread)
    all.push_back(thread);
  if (op)
    all.push_back(constant(idOf(op)));
  llvm::append_range(all, arguments);
  std::string symbol = ("sluice_emu_" + name).str();
  auto declared = target.lookupSymbol<LLVM::LLVMFuncOp>(symbol);
  if (!declared) {
    SmallVector<Type> types;
    for (Value value : all)
      types.push_back(value.getType());
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToEnd(target.getBody());
    Type returned = result ? result : LLVM::LLVMVoidType::get(builder.getContext());
    declared = LLVM::LLVMFuncOp::create(builder, builder.getUnknownLoc(), symbol,
                                        LLVM::LLVMFunctionType::get(returned, types));
  }
  auto made = LLVM::CallOp::create(builder, location, declared, all);
  return result ? made.getResult() : Value();
}

void Lowering::checkAccess(Operation *op, Value address, Type type, uint64_t alignment,
                           uint32_t flags) {
  uint64_t bytes = layout.getTypeSize(type);
  if (!alignment)
    alignment = layout.getTypeABIAlignment(type);
  // The device's rule, not the host's: the natural alignment of a vector is its size.
  unsigned space = cast<LLVM::LLVMPointerType>(address.getType()).getAddressSpace();
  if (space == kShared || space == kSharedCluster)
    flags |= Machine::InShared;
  else if (space == kGlobal || space == kConstant)
    flags |= Machine::InGlobal;
  call("access", Type(), {generic(address), constant(bytes), constant(alignment), constant(flags)},
       op);
}

Error Lowering::lowerOperation(Operation *op) {
  location = op->getLoc();
  builder.setInsertionPoint(op);
  if (op->getDialect() && op->getDialect()->getNamespace() == "nvvm")
    return lowerNvvm(op);
  if (auto load = dyn_cast<LLVM::LoadOp>(op)) {
    // No other thread has access to the function's own stack.
    if (load.getAddr().getDefiningOp<LLVM::AllocaOp>())
      return Error::success();
    checkAccess(op, load.getAddr(), load.getType(), load.getAlignment().value_or(0),
                flagsOf(load.getOrdering(), load.getSyncscope()) |
                    (load.getVolatile_() ? Machine::VolatileAccess : 0));
    return Error::success();
  }
  if (auto store = dyn_cast<LLVM::StoreOp>(op)) {
    if (store.getAddr().getDefiningOp<LLVM::AllocaOp>())
      return Error::success();
    checkAccess(op, store.getAddr(), store.getValue().getType(), store.getAlignment().value_or(0),
                Machine::Write | flagsOf(store.getOrdering(), store.getSyncscope()));
    return Error::success();
  }
  if (auto update = dyn_cast<LLVM::AtomicRMWOp>(op)) {
    checkAccess(op, update.getPtr(), update.getVal().getType(), update.getAlignment().value_or(0),
                Machine::ReadWrite | flagsOf(update.getOrdering(), update.getSyncscope()));
    return Error::success();
  }
  if (auto exchange = dyn_cast<LLVM::AtomicCmpXchgOp>(op)) {
    checkAccess(
        op, exchange.getPtr(), exchange.getVal().getType(), exchange.getAlignment().value_or(0),
        Machine::ReadWrite | flagsOf(exchange.getSuccessOrdering(), exchange.getSyncscope()));
    return Error::success();
  }
  if (auto fence = dyn_cast<LLVM::FenceOp>(op)) {
    uint32_t flags = flagsOf(fence.getOrdering(), fence.getSyncscope());
    if (!(flags & Machine::BlockScope))
      call("fence", Type(), {constant(flags)}, op);
    return Error::success();
  }
  if (auto address = dyn_cast<LLVM::AddressOfOp>(op)) {
    auto global = target.lookupSymbol<LLVM::GlobalOp>(address.getGlobalName());
    if (!global)
      return unsupported(op, "'" + address.getGlobalName() + "' is no variable");
    if (global.getAddrSpace() != kShared)
      return Error::success();
    Value shared = call("shared", pointer(), {});
    replace(
        op,
        LLVM::AddrSpaceCastOp::create(builder, location, address.getType(), shared)->getResults());
    return Error::success();
  }
  if (auto called = dyn_cast<LLVM::CallOp>(op)) {
    std::optional<StringRef> callee = called.getCallee();
    auto known = callee ? target.lookupSymbol<LLVM::LLVMFuncOp>(*callee) : LLVM::LLVMFuncOp();
    if (!known || known.isExternal())
      return unsupported(op, callee ? "'" + *callee + "' is not defined in the module"
                                    : llvm::Twine("the callee is not known"));
    SmallVector<Value> arguments = {thread};
    llvm::append_range(arguments, called.getArgOperands());
    auto made =
        LLVM::CallOp::create(builder, location, called->getResultTypes(),
                             FlatSymbolRefAttr::get(builder.getContext(), *callee), arguments);
    replace(op, made->getResults());
    return Error::success();
  }
  if (auto intrinsic = dyn_cast<LLVM::CallIntrinsicOp>(op))
    return lowerIntrinsic(intrinsic);
  if (auto assembly = dyn_cast<LLVM::InlineAsmOp>(op))
    return lowerInlineAsm(assembly);
  if (isa<LLVM::UnreachableOp>(op)) {
    call("trap", Type(), {}, op);
    return Error::success();
  }
  if (auto alloca = dyn_cast<LLVM::AllocaOp>(op)) {
    llvm::APInt count;
    if (!matchPattern(alloca.getArraySize(), m_ConstantInt(&count)) ||
        op->getBlock() != &function.getBody().front() ||
        count.getLimitedValue() * layout.getTypeSize(alloca.getElemType()) >
            StackPool::stackBytes / 4)
      return unsupported(op, "only fixed amounts up to 16384 bytes at a function's start");
    return Error::success();
  }
  if (plainOperations().contains(op->getName().getStringRef()))
    return Error::success();
  return unsupported(op);
}

/// Recursion is an error: stacks have a fixed size, here and, smaller still, on the device.
Error Lowering::checkRecursion() {
  llvm::StringMap<unsigned> state; // 1: being visited, 2: done
  std::function<Error(LLVM::LLVMFuncOp)> visit = [&](LLVM::LLVMFuncOp at) -> Error {
    unsigned &mine = state[at.getName()];
    if (mine == 2)
      return Error::success();
    if (mine == 1)
      return createStringError("kernels: function '" + at.getName() + "' calls itself");
    mine = 1;
    Error error = Error::success();
    at.walk([&](LLVM::CallOp call) {
      std::optional<StringRef> callee = call.getCallee();
      if (error || !callee)
        return;
      if (auto next = target.lookupSymbol<LLVM::LLVMFuncOp>(*callee); next && !next.isExternal())
        error = visit(next);
    });
    state[at.getName()] = 2;
    return error;
  };
  for (auto function : target.getOps<LLVM::LLVMFuncOp>())
    if (Error error = visit(function))
      return error;
  return Error::success();
}

/// `void entry.<kernel>(thread, pointers)`.
void Lowering::addEntry(LLVM::LLVMFuncOp kernel) {
  builder.setInsertionPointToEnd(target.getBody());
  location = builder.getUnknownLoc();
  Type none = LLVM::LLVMVoidType::get(builder.getContext());
  auto entry = LLVM::LLVMFuncOp::create(builder, location, entryName(kernel.getName()),
                                        LLVM::LLVMFunctionType::get(none, {pointer(), pointer()}));
  builder.setInsertionPointToStart(entry.addEntryBlock(builder));
  SmallVector<Value> arguments = {entry.getArgument(0)};
  for (auto [index, type] : llvm::enumerate(kernel.getArgumentTypes().drop_front())) {
    Value at = LLVM::GEPOp::create(builder, location, pointer(), pointer(), entry.getArgument(1),
                                   ArrayRef<LLVM::GEPArg>{int32_t(index)});
    arguments.push_back(LLVM::LoadOp::create(builder, location, type, at));
  }
  LLVM::CallOp::create(builder, location, kernel, arguments);
  LLVM::ReturnOp::create(builder, location, ValueRange());
}

Error Lowering::lowerFunction(LLVM::LLVMFuncOp lowered) {
  function = lowered;
  current = lowered.getName().str();
  thread = lowered.getArgument(0);
  SmallVector<Operation *> operations;
  lowered.walk([&](Operation *op) {
    if (op != lowered.getOperation())
      operations.push_back(op);
  });
  for (Operation *op : operations)
    if (Error error = lowerOperation(op))
      return error;
  return Error::success();
}

Expected<Lowered> Lowering::run() {
  current = source.getName().str();
  Lowered result;

  SmallVector<LLVM::LLVMFuncOp> functions, entries;
  for (Operation &op : *source.getBody()) {
    builder.setInsertionPointToEnd(target.getBody());
    if (auto global = dyn_cast<LLVM::GlobalOp>(op)) {
      if (global.getAddrSpace() == kShared) {
        if (global.getName() != "shared" || layout.getTypeSize(global.getGlobalType()) != 0)
          return createStringError("kernels: " + describe(&op) + ": '" + global.getName() +
                                   "': the only variable in shared memory may be the dynamic "
                                   "array @shared");
      } else {
        if (!global.getConstant())
          return createStringError("kernels: " + describe(&op) + ": '" + global.getName() +
                                   "': variables in global memory must be constant");
        result.constants.push_back(
            {global.getName().str(), layout.getTypeSize(global.getGlobalType())});
      }
      auto copy = cast<LLVM::GlobalOp>(builder.clone(op));
      if (global.getAddrSpace() != kShared)
        copy.setLinkage(LLVM::Linkage::External);
      continue;
    }
    auto original = dyn_cast<LLVM::LLVMFuncOp>(op);
    if (!original)
      return unsupported(&op);
    if (original.isExternal())
      continue; // A call of it is an error.
    // Attributes are not copied: they state what holds on the device.
    LLVM::LLVMFunctionType type = original.getFunctionType();
    SmallVector<Type> types = {pointer()};
    llvm::append_range(types, type.getParams());
    auto copy = LLVM::LLVMFuncOp::create(builder, op.getLoc(), original.getName(),
                                         LLVM::LLVMFunctionType::get(type.getReturnType(), types));
    IRMapping mapping;
    original.getBody().cloneInto(&copy.getBody(), mapping);
    copy.getBody().front().insertArgument(0u, pointer(), op.getLoc());
    functions.push_back(copy);
    if (!op.hasAttr("gpu.kernel") && !op.hasAttr("nvvm.kernel"))
      continue;
    entries.push_back(copy);
    Kernel kernel;
    kernel.name = original.getName().str();
    kernel.arguments = type.getNumParams();
    for (Type parameter : type.getParams()) {
      auto isPointer = dyn_cast<LLVM::LLVMPointerType>(parameter);
      if (!isPointer ||
          (isPointer.getAddressSpace() != kGlobal && isPointer.getAddressSpace() != 0))
        return createStringError("kernel '" + kernel.name +
                                 "': arguments must be pointers to global memory");
    }
    auto first = [&](StringRef name) -> uint32_t {
      auto values = op.getAttrOfType<DenseI32ArrayAttr>(name);
      if (!values)
        return 0;
      uint32_t product = 1;
      for (int32_t value : values.asArrayRef())
        product *= value;
      return product;
    };
    kernel.maxThreads = first("nvvm.maxntid") ? first("nvvm.maxntid") : first("nvvm.reqntid");
    kernel.cluster = first("nvvm.cluster_dim");
    if (auto resident = op.getAttrOfType<IntegerAttr>("nvvm.minctasm"))
      kernel.residentBlocks = resident.getInt();
    kernels.push_back(kernel);
  }
  if (kernels.empty())
    return createStringError("gpu.module '" + source.getName() + "' holds no kernels");
  if (Error error = checkRecursion())
    return error;
  for (LLVM::LLVMFuncOp lowered : functions)
    if (Error error = lowerFunction(lowered))
      return error;
  for (LLVM::LLVMFuncOp entry : entries)
    addEntry(entry);
  for (auto global : llvm::make_early_inc_range(target.getOps<LLVM::GlobalOp>()))
    if (global.getAddrSpace() == kShared)
      global.erase();
  result.module = std::move(owned);
  result.kernels = std::move(kernels);
  result.locations = std::move(locations);
  return result;
}

Expected<Lowered> sluice::emulator::lower(gpu::GPUModuleOp module) {
  return Lowering(module).run();
}
