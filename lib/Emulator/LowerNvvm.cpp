// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Lowering.h"
#include "Operations.h"

#include "sluice/Target/InlinePtx.h"

#include "llvm/ADT/StringSwitch.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice::emulator;
using llvm::Error;

/// Fences that do nothing here: the emulator's memory is sequentially consistent.
static bool isFence(Operation *op) {
  return isa<NVVM::FenceScClusterOp, NVVM::FenceMbarrierInitOp, NVVM::FenceProxyOp,
             NVVM::FenceProxyAcquireOp, NVVM::FenceProxyReleaseOp, NVVM::FenceSyncRestrictOp,
             NVVM::FenceProxySyncRestrictOp>(op);
}

/// The special register that an operation reads; nothing if the emulator does not have it.
static std::optional<Register> registerOf(Operation *op) {
  return llvm::StringSwitch<std::optional<Register>>(
             op->getName().getStringRef().drop_front(StringRef("nvvm.read.ptx.sreg.").size()))
      .Case("tid.x", Register::ThreadIndex)
      .Case("ntid.x", Register::BlockThreads)
      .Case("ctaid.x", Register::BlockIndex)
      .Case("nctaid.x", Register::GridBlocks)
      .Case("laneid", Register::Lane)
      .Case("warpid", Register::WarpIndex)
      .Case("nwarpid", Register::Warps)
      .Case("clusterid.x", Register::ClusterIndex)
      .Case("nclusterid.x", Register::Clusters)
      .Cases({"cluster.ctarank", "cluster.ctaid.x"}, Register::ClusterRank)
      .Cases({"cluster.nctarank", "cluster.nctaid.x"}, Register::ClusterBlocks)
      .Cases({"dynamic.smem.size", "total.smem.size"}, Register::SharedBytes)
      .Case("lanemask.eq", Register::LanesEqual)
      .Case("lanemask.lt", Register::LanesLess)
      .Case("lanemask.le", Register::LanesLessEqual)
      .Case("lanemask.gt", Register::LanesGreater)
      .Case("lanemask.ge", Register::LanesGreaterEqual)
      .Default(std::nullopt);
}

/// LLVM's intrinsics that NVVM has no operation for.
Error Lowering::lowerIntrinsic(LLVM::CallIntrinsicOp op) {
  StringRef name = op.getIntrin();
  auto unary = [&](auto make) -> Error {
    replace(op, make(op.getArgs()[0])->getResults());
    return Error::success();
  };
  auto one = [&](Type type) {
    return LLVM::ConstantOp::create(builder, location, type, builder.getFloatAttr(type, 1.0));
  };
  auto isOneOf = [&](ArrayRef<StringRef> names) { return llvm::is_contained(names, name); };
  if (!name.consume_front("llvm.nvvm.") || op.getArgs().empty())
    return unsupported(op, "'" + op.getIntrin() + "'");
  if (name == "barrier.cta.sync.aligned.count" && op.getArgs().size() == 2) {
    call("barrier", Type(), {op.getArgs()[0], op.getArgs()[1], constant(1)}, op);
    op.erase();
    return Error::success();
  }
  if (name == "barrier.cta.sync.aligned.all" && op.getArgs().size() == 1) {
    call("barrier", Type(), {op.getArgs()[0], constant(0), constant(1)}, op);
    op.erase();
    return Error::success();
  }
  if (isOneOf({"ex2.approx.f", "ex2.approx.ftz.f", "ex2.approx.f32", "ex2.approx.ftz.f32",
               "ex2.approx", "ex2.approx.ftz"}))
    return unary([&](Value x) { return LLVM::Exp2Op::create(builder, location, x); });
  if (isOneOf({"lg2.approx.f", "lg2.approx.ftz.f"}))
    return unary([&](Value x) { return LLVM::Log2Op::create(builder, location, x); });
  if (isOneOf({"sqrt.approx.f", "sqrt.approx.ftz.f", "sqrt.rn.f", "sqrt.rn.ftz.f"}))
    return unary([&](Value x) { return LLVM::SqrtOp::create(builder, location, x); });
  if (isOneOf({"sin.approx.f", "sin.approx.ftz.f"}))
    return unary([&](Value x) { return LLVM::SinOp::create(builder, location, x); });
  if (isOneOf({"cos.approx.f", "cos.approx.ftz.f"}))
    return unary([&](Value x) { return LLVM::CosOp::create(builder, location, x); });
  if (isOneOf({"tanh.approx", "tanh.approx.f", "tanh.approx.f32"}))
    return unary([&](Value x) { return LLVM::TanhOp::create(builder, location, x); });
  if (isOneOf({"rcp.approx.f", "rcp.approx.ftz.f", "rcp.rn.f", "rcp.rn.ftz.f"}))
    return unary(
        [&](Value x) { return LLVM::FDivOp::create(builder, location, one(x.getType()), x); });
  if (isOneOf({"rsqrt.approx.f", "rsqrt.approx.ftz.f"}))
    return unary([&](Value x) {
      return LLVM::FDivOp::create(builder, location, one(x.getType()),
                                  LLVM::SqrtOp::create(builder, location, x));
    });
  if (isOneOf({"div.approx.f", "div.approx.ftz.f", "div.full", "div.full.ftz"}) &&
      op.getArgs().size() == 2)
    return unary(
        [&](Value x) { return LLVM::FDivOp::create(builder, location, x, op.getArgs()[1]); });
  if (isOneOf({"f2i.rn", "f2i.rn.ftz"}))
    return unary([&](Value x) {
      return LLVM::FPToSIOp::create(builder, location, i32(),
                                    LLVM::RoundEvenOp::create(builder, location, x));
    });
  return unsupported(op, "'" + op.getIntrin() + "'");
}

Error Lowering::lowerInlinePtx(NVVM::InlinePtxOp op) {
  if (op.getPtxCode() == sluice::ptx::moveMatrixTransposed && !op.getPredicate() &&
      op.getReadOnlyArgs().size() == 1 && op.getNumResults() == 1 &&
      op.getResult(0).getType().isInteger(32) && op.getReadOnlyArgs()[0].getType().isInteger(32)) {
    replace(op, call("movmatrix", i32(), {op.getReadOnlyArgs()[0]}, op));
    return Error::success();
  }
  return unsupported(op, "\"" + op.getPtxCode() + "\"");
}

/// The products that an assembly text stands for.
static std::optional<sluice::ptx::WarpgroupProducts> parseProducts(LLVM::InlineAsmOp op) {
  using sluice::ptx::WarpgroupProducts;
  auto result = dyn_cast_or_null<LLVM::LLVMStructType>(op.getRes().getType());
  if (!result)
    return std::nullopt;
  auto sums = static_cast<int64_t>(result.getBody().size());
  for (auto kind :
       {WarpgroupProducts::Kind::S8, WarpgroupProducts::Kind::F16, WarpgroupProducts::Kind::BF16})
    for (bool accumulates : {false, true})
      for (int64_t products = 1; products <= 4; ++products) {
        WarpgroupProducts candidate{kind, 2 * sums, products, accumulates};
        if (op.getAsmString() == candidate.text() && op.getConstraints() == candidate.constraints())
          return candidate;
      }
  return std::nullopt;
}

Error Lowering::lowerInlineAsm(LLVM::InlineAsmOp op) {
  if (op.getAsmString() == sluice::ptx::opaqueCopy &&
      op.getConstraints() == sluice::ptx::opaqueCopyConstraints) {
    replace(op, op.getOperands()[0]);
    return Error::success();
  }
  for (uint32_t words : {1, 2, 4})
    if (op.getAsmString() == sluice::ptx::remoteStore(words) &&
        op.getConstraints() == sluice::ptx::remoteStoreConstraints(words) &&
        op.getHasSideEffects()) {
      Value in = registers(words);
      for (uint32_t i = 0; i < words; ++i) {
        Value at = LLVM::GEPOp::create(builder, location, pointer(), i32(), in,
                                       ArrayRef<LLVM::GEPArg>{int32_t(i)});
        LLVM::StoreOp::create(builder, location, toI32(op.getOperands()[1 + i]), at);
      }
      // Pointers to shared memory have 32 bits.
      auto address = [&](Value bits) -> Value {
        Value wide = LLVM::ZExtOp::create(builder, location, i64(), bits);
        return LLVM::IntToPtrOp::create(builder, location, pointer(), wide);
      };
      call("remote_store", Type(),
           {address(op.getOperands().front()), address(op.getOperands().back()), in,
            constant(words)},
           op);
      op.erase();
      return Error::success();
    }
  auto result =
      op.getRes() ? dyn_cast<LLVM::LLVMStructType>(op.getRes().getType()) : LLVM::LLVMStructType();
  if (!result || !op.getHasSideEffects())
    return unsupported(op, "\"" + op.getAsmString() + "\"");
  auto words = [](Type type) { return type.isInteger(64) ? 2 : 1; };
  int64_t count = 0;
  for (Value operand : op.getOperands())
    count += words(operand.getType());
  Value in = registers(count);
  int32_t slot = 0;
  auto storeOperands = [&] {
    for (Value operand : op.getOperands()) {
      Value at = LLVM::GEPOp::create(builder, location, pointer(), i32(), in,
                                     ArrayRef<LLVM::GEPArg>{slot});
      slot += words(operand.getType());
      LLVM::StoreOp::create(builder, location,
                            operand.getType().isInteger(64) ? operand : toI32(operand), at,
                            /*alignment=*/4);
    }
  };
  if (op.getAsmString() == sluice::ptx::takeSums &&
      op.getConstraints() ==
          sluice::ptx::takeSumsConstraints(count, result.getBody().front().isInteger())) {
    storeOperands();
    call("take_sums", Type(), {constant(count), in}, op);
    replace(op, structOf(in, result));
    return Error::success();
  }
  std::optional<sluice::ptx::WarpgroupProducts> products = parseProducts(op);
  if (!products)
    return unsupported(op, "\"" + op.getAsmString() + "\"");
  storeOperands();
  Value out = registers(products->sums());
  call("start_products", Type(),
       {constant(int64_t(products->kind)), constant(products->columns),
        constant(products->products), constant(products->accumulates), in, out},
       op);
  replace(op, structOf(out, result));
  return Error::success();
}

Value Lowering::structOf(Value registers, LLVM::LLVMStructType type) {
  Value whole = LLVM::UndefOp::create(builder, location, type);
  for (int32_t i = 0, e = type.getBody().size(); i < e; ++i) {
    Value at = LLVM::GEPOp::create(builder, location, pointer(), i32(), registers,
                                   ArrayRef<LLVM::GEPArg>{i});
    Value bits = fromI32(LLVM::LoadOp::create(builder, location, i32(), at), type.getBody()[i]);
    whole = LLVM::InsertValueOp::create(builder, location, whole, bits, int64_t(i));
  }
  return whole;
}

Error Lowering::lowerMma(NVVM::MmaOp op) {
  NVVM::MMAShapeAttr shape = op.getShape();
  auto operandType = [&](std::optional<NVVM::MMATypes> declared, ValueRange operands) {
    return declared ? declared
                    : NVVM::MmaOp::inferOperandMMAType(
                          cast<VectorType>(operands[0].getType()).getElementType(), false);
  };
  std::optional<NVVM::MMATypes> a = op.getMultiplicandAPtxType(), b = op.getMultiplicandBPtxType();
  if (!a && isa<VectorType>(op.getOperandA()[0].getType()))
    a = operandType(a, op.getOperandA());
  if (!b && isa<VectorType>(op.getOperandB()[0].getType()))
    b = operandType(b, op.getOperandB());
  auto result = dyn_cast<LLVM::LLVMStructType>(op.getType());
  std::string form = ("m" + llvm::Twine(shape.getM()) + "n" + llvm::Twine(shape.getN()) + "k" +
                      llvm::Twine(shape.getK()) + "." + (a ? NVVM::stringifyMMATypes(*a) : "?") +
                      "." + (b ? NVVM::stringifyMMATypes(*b) : "?"))
                         .str();
  if (shape.getM() != 16 || shape.getN() != 8 || !a || !b || !result ||
      result.getBody().size() != 4 || op.getOperandC().size() != 4 ||
      op.getLayoutA() != NVVM::MMALayout::row || op.getLayoutB() != NVVM::MMALayout::col)
    return unsupported(op, form);
  bool wraps = op.getIntOverflowBehavior().value_or(NVVM::MMAIntOverflow::satfinite) ==
               NVVM::MMAIntOverflow::wrapped;
  std::optional<MmaKind> kind;
  Type sum = result.getBody()[0];
  if (*a == NVVM::MMATypes::u8 && *b == NVVM::MMATypes::s8 && sum.isInteger(32) &&
      shape.getK() == 32)
    kind = MmaKind::U8S8K32;
  else if (*a != *b)
    return unsupported(op, form);
  else if (*a == NVVM::MMATypes::s8 && sum.isInteger(32))
    kind = shape.getK() == 32   ? std::optional(MmaKind::S8K32)
           : shape.getK() == 16 ? std::optional(MmaKind::S8K16)
                                : std::nullopt;
  else if (*a == NVVM::MMATypes::u8 && sum.isInteger(32) && shape.getK() == 32)
    kind = MmaKind::U8K32;
  else if (*a == NVVM::MMATypes::f16 && sum.isF32())
    kind = shape.getK() == 16  ? std::optional(MmaKind::F16K16)
           : shape.getK() == 8 ? std::optional(MmaKind::F16K8)
                               : std::nullopt;
  else if (*a == NVVM::MMATypes::bf16 && sum.isF32())
    kind = shape.getK() == 16  ? std::optional(MmaKind::Bf16K16)
           : shape.getK() == 8 ? std::optional(MmaKind::Bf16K8)
                               : std::nullopt;
  if (!kind)
    return unsupported(op, form);
  if (sum.isInteger(32) && !wraps)
    return unsupported(op, form + " with saturation: only wrapped sums are known");

  Value in = registers(12), out = registers(4);
  int32_t slot = 0;
  for (ValueRange operands :
       {ValueRange(op.getOperandA()), ValueRange(op.getOperandB()), ValueRange(op.getOperandC())})
    for (Value operand : operands) {
      Value at = LLVM::GEPOp::create(builder, location, pointer(), i32(), in,
                                     ArrayRef<LLVM::GEPArg>{slot++});
      LLVM::StoreOp::create(builder, location, toI32(operand), at);
    }
  call("mma", Type(), {constant(int64_t(*kind)), in, out}, op);
  replace(op, structOf(out, result));
  return Error::success();
}

Error Lowering::lowerLdMatrix(NVVM::LdMatrixOp op) {
  NVVM::LdStMatrixShapeAttr shape = op.getShape();
  auto result = dyn_cast<LLVM::LLVMStructType>(op.getType());
  if (op.getNum() != 4 || op.getLayout() != NVVM::MMALayout::row || shape.getM() != 8 ||
      shape.getN() != 8 || op.getEltType() != NVVM::LdStMatrixEltType::B16 || !result)
    return unsupported(op, "in another form than four matrices of 8 x 8 16-bit elements, by rows");
  Value out = registers(4);
  call("ldmatrix", Type(), {generic(op.getPtr()), out}, op);
  replace(op, structOf(out, result));
  return Error::success();
}

Error Lowering::lowerNvvm(Operation *op) {
  auto done = [&](Value value = Value()) -> Error {
    if (op->getNumResults())
      replace(op, value);
    else
      op->erase();
    return Error::success();
  };
  auto predicated = [&](Value predicate) { return predicate ? true : false; };
  if (isFence(op))
    return done();
  if (op->getName().getStringRef().starts_with("nvvm.read.ptx.sreg.")) {
    if (isa<NVVM::Clock64Op>(op))
      return done(call("clock", i64(), {}, op));
    if (isa<NVVM::ClockOp>(op))
      return done(LLVM::TruncOp::create(builder, location, i32(), call("clock", i64(), {}, op)));
    if (isa<NVVM::GlobalTimerOp>(op))
      return done(call("clock", i64(), {}, op));
    if (isa<NVVM::WarpSizeOp>(op))
      return done(constant(warpSize));
    StringRef name = op->getName().getStringRef();
    if (name.ends_with("tid.y") || name.ends_with("tid.z") || name.ends_with("ctaid.y") ||
        name.ends_with("ctaid.z"))
      // Launches have one dimension; nctaid and ntid end in these, too.
      return done(constant(name.ends_with("ntid.y") || name.ends_with("ntid.z") ||
                                   name.ends_with("nctaid.y") || name.ends_with("nctaid.z")
                               ? 1
                               : 0));
    std::optional<Register> which = registerOf(op);
    if (!which)
      return unsupported(op);
    return done(call("register", i32(), {constant(int64_t(*which))}));
  }
  return llvm::TypeSwitch<Operation *, Error>(op)
      .Case([&](NVVM::MembarOp fence) -> Error {
        if (fence.getScope() != NVVM::MemScopeKind::CTA &&
            fence.getScope() != NVVM::MemScopeKind::CLUSTER)
          call("fence", Type(), {constant(Machine::Acquire | Machine::Release)}, op);
        return done();
      })
      .Case([&](NVVM::InlinePtxOp inlined) -> Error { return lowerInlinePtx(inlined); })
      .Case([&](NVVM::MmaOp mma) -> Error { return lowerMma(mma); })
      .Case([&](NVVM::LdMatrixOp load) -> Error { return lowerLdMatrix(load); })
      .Case([&](NVVM::WgmmaWaitGroupSyncOp wait) -> Error {
        call("wait_products", Type(), {constant(wait.getGroup())}, op);
        return done();
      })
      .Case([&](NVVM::SetMaxRegisterOp set) -> Error {
        call("set_registers", Type(),
             {constant(set.getRegCount()),
              constant(set.getAction() == NVVM::SetMaxRegisterAction::increase)},
             op);
        return done();
      })
      .Case([&](NVVM::RcpApproxFtzF32Op rcp) -> Error {
        Value one = LLVM::ConstantOp::create(builder, location, rcp.getType(),
                                             builder.getF32FloatAttr(1.0f));
        return done(LLVM::FDivOp::create(builder, location, one, rcp.getArg()));
      })
      .Case([&](NVVM::Barrier0Op) -> Error {
        call("barrier", Type(), {constant(0), constant(0), constant(1)}, op);
        return done();
      })
      .Case([&](NVVM::BarrierOp barrier) -> Error {
        if (barrier.getReductionOp())
          return unsupported(op, "with a reduction");
        call("barrier", Type(),
             {barrier.getBarrierId() ? barrier.getBarrierId() : constant(0),
              barrier.getNumberOfThreads() ? barrier.getNumberOfThreads() : constant(0),
              constant(1)},
             op);
        return done();
      })
      .Case([&](NVVM::BarrierArriveOp arrive) -> Error {
        call("barrier", Type(),
             {arrive.getBarrierId() ? arrive.getBarrierId() : constant(0),
              arrive.getNumberOfThreads(), constant(0)},
             op);
        return done();
      })
      .Case([&](NVVM::SyncWarpOp sync) -> Error {
        call("warp_sync", Type(), {sync.getMask()}, op);
        return done();
      })
      .Case([&](NVVM::ShflOp shuffle) -> Error {
        Value both = call("shuffle", i64(),
                          {shuffle.getThreadMask(), toI32(shuffle.getVal()), shuffle.getOffset(),
                           shuffle.getMaskAndClamp(), constant(int64_t(shuffle.getKind()))},
                          op);
        Value value = LLVM::TruncOp::create(builder, location, i32(), both);
        value = fromI32(value, shuffle.getVal().getType());
        if (!shuffle.getReturnValueAndIsValid())
          return done(value);
        Value valid =
            LLVM::TruncOp::create(builder, location, builder.getI1Type(),
                                  LLVM::LShrOp::create(builder, location, both, constant64(32)));
        Value whole = LLVM::UndefOp::create(builder, location, shuffle.getType());
        whole = LLVM::InsertValueOp::create(builder, location, whole, value, ArrayRef<int64_t>{0});
        return done(
            LLVM::InsertValueOp::create(builder, location, whole, valid, ArrayRef<int64_t>{1}));
      })
      .Case([&](NVVM::VoteSyncOp vote) -> Error {
        Value result =
            call("vote", i32(),
                 {vote.getMask(), toI32(vote.getPred()), constant(int64_t(vote.getKind()))}, op);
        return done(fromI32(result, vote.getType()));
      })
      .Case([&](NVVM::ReduxOp redux) -> Error {
        if (!redux.getType().isInteger(32))
          return unsupported(op, "of floats");
        return done(call(
            "redux", i32(),
            {redux.getMaskAndClamp(), redux.getVal(), constant(int64_t(redux.getKind()))}, op));
      })
      .Case([&](NVVM::ElectSyncOp elect) -> Error {
        Value mask = elect.getMembermask() ? elect.getMembermask() : constant(-1);
        return done(fromI32(call("elect", i32(), {mask}, op), elect.getType()));
      })
      .Case([&](NVVM::PermuteOp permute) -> Error {
        if (permute.getMode() != NVVM::PermuteMode::DEFAULT)
          return unsupported(op, "in a mode other than the default");
        return done(call("permute", i32(),
                         {permute.getLo(), permute.getHi(), permute.getSelector()}, nullptr,
                         /*thread=*/false));
      })
      .Case([&](NVVM::ConvertF32x2ToF16x2Op convert) -> Error {
        if (convert.getRandomBits() || convert.getRelu() ||
            convert.getSat() != NVVM::SaturationMode::NONE ||
            (convert.getRnd() != NVVM::FPRoundingMode::NONE &&
             convert.getRnd() != NVVM::FPRoundingMode::RN))
          return unsupported(op, "with another rounding than to nearest even");
        Type half = builder.getF16Type();
        Value whole = LLVM::UndefOp::create(builder, location, convert.getType());
        Value low = LLVM::FPTruncOp::create(builder, location, half, convert.getSrcLo()),
              high = LLVM::FPTruncOp::create(builder, location, half, convert.getSrcHi());
        whole = LLVM::InsertElementOp::create(builder, location, whole, low, constant(0));
        return done(LLVM::InsertElementOp::create(builder, location, whole, high, constant(1)));
      })
      .Case([&](NVVM::MBarrierInitOp init) -> Error {
        if (predicated(init.getPredicate()))
          return unsupported(op, "with a predicate");
        call("mbarrier_init", Type(), {generic(init.getAddr()), init.getCount()}, op);
        return done();
      })
      .Case([&](NVVM::MBarrierInvalOp invalidate) -> Error {
        call("mbarrier_invalidate", Type(), {generic(invalidate.getAddr())}, op);
        return done();
      })
      .Case([&](NVVM::MBarrierArriveOp arrive) -> Error {
        return done(
            call("mbarrier_arrive", i64(),
                 {generic(arrive.getAddr()), arrive.getCount() ? arrive.getCount() : constant(1),
                  constant(0), constant(!arrive.getRelaxed())},
                 op));
      })
      .Case([&](NVVM::MBarrierArriveExpectTxOp arrive) -> Error {
        if (predicated(arrive.getPredicate()))
          return unsupported(op, "with a predicate");
        return done(call("mbarrier_arrive", i64(),
                         {generic(arrive.getAddr()), constant(1), arrive.getTxcount(),
                          constant(!arrive.getRelaxed())},
                         op));
      })
      .Case([&](NVVM::MBarrierExpectTxOp expect) -> Error {
        call("mbarrier_expect", Type(), {generic(expect.getAddr()), expect.getTxcount()}, op);
        return done();
      })
      .Case([&](NVVM::MBarrierCompleteTxOp complete) -> Error {
        Value negative = LLVM::SubOp::create(builder, location, constant(0), complete.getTxcount());
        call("mbarrier_expect", Type(), {generic(complete.getAddr()), negative}, op);
        return done();
      })
      .Case([&](NVVM::MBarrierTryWaitParityOp wait) -> Error {
        // This operation stands for a loop: it ends when the phase is complete.
        Value parity = LLVM::ZExtOp::create(builder, location, i64(), wait.getPhase());
        call("mbarrier_wait", i32(),
             {generic(wait.getAddr()), parity, constant(0), constant(Machine::Wait), constant(0)},
             op);
        return done();
      })
      .Case<NVVM::MBarrierTestWaitOp, NVVM::MBarrierTryWaitOp>([&](auto wait) -> Error {
        Value value = wait.getStateOrPhase();
        bool isState = value.getType().isInteger(64);
        if (!isState)
          value = LLVM::ZExtOp::create(builder, location, i64(), value);
        constexpr auto mode =
            std::is_same_v<decltype(wait), NVVM::MBarrierTestWaitOp> ? Machine::Test : Machine::Try;
        Value result =
            call("mbarrier_wait", i32(),
                 {generic(wait.getAddr()), value, constant(isState), constant(mode),
                  constant(wait.getScope() == NVVM::MemScopeKind::CLUSTER && !wait.getRelaxed())},
                 op);
        return done(fromI32(result, builder.getI1Type()));
      })
      .Case([&](NVVM::CpAsyncBulkGlobalToSharedClusterOp copy) -> Error {
        if (copy.getMulticastMask())
          return unsupported(op, "to several blocks");
        call("bulk_copy", Type(),
             {generic(copy.getDstMem()), generic(copy.getSrcMem()), generic(copy.getMbar()),
              copy.getSize()},
             op);
        return done();
      })
      .Case([&](NVVM::CpAsyncBulkPrefetchOp prefetch) -> Error {
        call("bulk_prefetch", Type(), {generic(prefetch.getSrcMem()), prefetch.getSize()}, op);
        return done();
      })
      .Case([&](NVVM::PrefetchOp prefetch) -> Error { return done(); })
      .Case([&](NVVM::CpAsyncOp copy) -> Error {
        Value bytes = constant(copy.getSize());
        call("async_copy", Type(),
             {generic(copy.getDst()), generic(copy.getSrc()), bytes,
              copy.getCpSize() ? copy.getCpSize() : bytes},
             op);
        return done();
      })
      .Case([&](NVVM::CpAsyncCommitGroupOp) -> Error {
        call("async_commit", Type(), {}, op);
        return done();
      })
      .Case([&](NVVM::CpAsyncWaitGroupOp wait) -> Error {
        call("async_wait", Type(), {constant(wait.getN())}, op);
        return done();
      })
      .Case([&](NVVM::CpAsyncMBarrierArriveOp arrive) -> Error {
        call("async_arrive", Type(), {generic(arrive.getAddr()), constant(!arrive.getNoinc())}, op);
        return done();
      })
      .Case([&](NVVM::GriddepcontrolOp control) -> Error {
        call(control.getKind() == NVVM::GridDepActionKind::wait ? "grid_wait" : "grid_trigger",
             Type(), {}, op);
        return done();
      })
      .Case([&](NVVM::ClusterArriveOp) -> Error {
        call("cluster_arrive", Type(), {constant(1)}, op);
        return done();
      })
      .Case([&](NVVM::ClusterArriveRelaxedOp) -> Error {
        call("cluster_arrive", Type(), {constant(0)}, op);
        return done();
      })
      .Case([&](NVVM::ClusterWaitOp) -> Error {
        call("cluster_wait", Type(), {}, op);
        return done();
      })
      .Case([&](NVVM::MapaOp map) -> Error {
        Value mapped = call("map_to_rank", pointer(), {generic(map.getA()), map.getB()}, op);
        if (map.getType() == pointer())
          return done(mapped);
        return done(LLVM::AddrSpaceCastOp::create(builder, location, map.getType(), mapped));
      })
      .Case([&](NVVM::NanosleepOp) -> Error {
        call("sleep", Type(), {}, op);
        return done();
      })
      .Default([&](Operation *) -> Error { return unsupported(op); });
}
