// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "DeviceBuilder.h"

using namespace mlir;
using namespace sluice::device;

Value DeviceBuilder::widen(Value x) {
  return x.getType().isF32() ? x : arith::ExtFOp::create(b, loc, f32(), x).getResult();
}

Value DeviceBuilder::narrow(Value x, Type element) {
  return element.isF32() ? x : arith::TruncFOp::create(b, loc, element, x).getResult();
}

Value DeviceBuilder::packPair(Value low, Value high, Type element) {
  return bitcast(vectorOf({narrow(low, element), narrow(high, element)}), i32());
}

DeviceBuilder::Values DeviceBuilder::decodeE4M3(Value word, bool mayBeNan) {
  // A sign, 4 bits of exponent with bias 7 and 3 of mantissa lie in an f16 as a number of 2^-8 of
  // its value, subnormal ones too. What would be 480 is NaN.
  Values result;
  for (int64_t selector : {0x1404, 0x3424}) {
    Value bytes = permute(word, constI32(0), constI32(selector));
    Value number = shr(bitAnd(bytes, 0x7F007F00), 1);
    if (mayBeNan) {
      Value nan = bitAnd(add(number, 0x40804080), int64_t(int32_t(0x80008000)));
      number = bitOr(number, sub(nan, shr(nan, 5)));
    }
    result.push_back(bitOr(number, bitAnd(bytes, int64_t(int32_t(0x80008000)))));
  }
  return result;
}

Value DeviceBuilder::lane(Value vector, int64_t lane) {
  return LLVM::ExtractElementOp::create(b, loc, vector, constI32(lane));
}

DeviceBuilder::Values DeviceBuilder::lanes(Value vector) {
  Values result;
  for (int64_t l = 0, e = cast<VectorType>(vector.getType()).getDimSize(0); l < e; ++l)
    result.push_back(lane(vector, l));
  return result;
}

Value DeviceBuilder::vectorOf(ValueRange lanes) {
  Value result = LLVM::UndefOp::create(
      b, loc, vec(static_cast<int64_t>(lanes.size()), lanes.front().getType()));
  for (auto [l, value] : llvm::enumerate(lanes))
    result = LLVM::InsertElementOp::create(b, loc, result, value, constI32(l));
  return result;
}

void DeviceBuilder::barrier(int64_t id, int64_t threads) {
  // nvvm.barrier with a number of threads cannot be read back where locations are printed: MLIR 22
  // takes `loc(...)` for its reduction.
  LLVM::CallIntrinsicOp::create(b, loc, b.getStringAttr("llvm.nvvm.barrier.cta.sync.aligned.count"),
                                ValueRange{constI32(id), constI32(threads)});
}

Value DeviceBuilder::shuffleXor(Value x, int64_t mask) {
  return NVVM::ShflOp::create(b, loc, x.getType(), constI32(-1), x, constI32(mask), constI32(31),
                              NVVM::ShflKind::bfly, UnitAttr());
}

Value DeviceBuilder::greatestOfWarp(Value x) {
  return NVVM::ReduxOp::create(b, loc, x.getType(), x, NVVM::ReduxKind::MAX, constI32(-1));
}

Value DeviceBuilder::sumOfWarp(Value x) {
  for (int64_t distance = kWarp / 2; distance; distance /= 2)
    x = addF(x, shuffleXor(x, distance));
  return x;
}

Value DeviceBuilder::shuffleFrom(Value x, Value source) {
  return NVVM::ShflOp::create(b, loc, x.getType(), constI32(-1), x, source, constI32(31),
                              NVVM::ShflKind::idx, UnitAttr());
}

Value DeviceBuilder::permute(Value low, Value high, Value selector) {
  return NVVM::PermuteOp::create(b, loc, i32(), low, high, selector, NVVM::PermuteMode::DEFAULT);
}

/// Pointers to the shared memory of any block of a cluster.
static Type clusterPointer(MLIRContext *context) {
  return LLVM::LLVMPointerType::get(context,
                                    static_cast<unsigned>(NVVM::NVVMMemorySpace::SharedCluster));
}

Value DeviceBuilder::ofBlock(Value place, Value rank) {
  return NVVM::MapaOp::create(b, loc, clusterPointer(b.getContext()), place, rank);
}

static constexpr StringLiteral kDeviceScope = "device";

Value DeviceBuilder::loadRelaxed(Value pointer) {
  return LLVM::LoadOp::create(b, loc, i64(), pointer, /*alignment=*/8, /*isVolatile=*/false,
                              /*isNonTemporal=*/false, /*isInvariant=*/false,
                              /*isInvariantGroup=*/false, LLVM::AtomicOrdering::monotonic,
                              kDeviceScope);
}

void DeviceBuilder::storeRelaxed(Value value, Value pointer) {
  LLVM::StoreOp::create(b, loc, value, pointer, bytesOf(value.getType()), /*isVolatile=*/false,
                        /*isNonTemporal=*/false, /*isInvariantGroup=*/false,
                        LLVM::AtomicOrdering::monotonic, kDeviceScope);
}

void DeviceBuilder::addRelaxed(Value pointer, Value increment) {
  LLVM::AtomicRMWOp::create(b, loc, LLVM::AtomicBinOp::add, pointer, increment,
                            LLVM::AtomicOrdering::monotonic, kDeviceScope);
}

void DeviceBuilder::fenceDevice(LLVM::AtomicOrdering ordering) {
  LLVM::FenceOp::create(b, loc, ordering, kDeviceScope);
}

void DeviceBuilder::sendToBlock(Value to, Value barrier, Value rank, ArrayRef<Value> words) {
  auto address = [&](Value place) -> Value {
    return LLVM::PtrToIntOp::create(b, loc, i32(), ofBlock(place, rank));
  };
  Values operands = {address(to)};
  llvm::append_range(operands, words);
  operands.push_back(address(barrier));
  LLVM::InlineAsmOp::create(b, loc, TypeRange(), operands, ptx::remoteStore(words.size()),
                            ptx::remoteStoreConstraints(words.size()), /*has_side_effects=*/true,
                            /*is_align_stack=*/false, LLVM::TailCallKind::None,
                            LLVM::AsmDialectAttr::get(b.getContext(), LLVM::AsmDialect::AD_ATT),
                            ArrayAttr());
}

void DeviceBuilder::waitOfCluster(Value barrier, Value parity) {
  whileLoop({}, [&](ValueRange) {
    Value done = NVVM::MBarrierTryWaitOp::create(b, loc, i1(), barrier, parity, Value(),
                                                 NVVM::MemScopeKind::CLUSTER, false);
    return std::pair(bitXor(done, integer(i1(), 1)), Values());
  });
}

DeviceBuilder::Nibbles DeviceBuilder::nibblesAtTop(ArrayRef<Value> words) {
  Nibbles nibbles;
  for (Value word : words) {
    nibbles.high.push_back(bitAnd(word, 0xF0F0F0F0));
    nibbles.low.push_back(bitAnd(shl(word, 4), 0xF0F0F0F0));
  }
  return nibbles;
}

void DeviceBuilder::arrive(Value barrier, Value count) {
  NVVM::MBarrierArriveOp::create(b, loc, i64(), barrier, count);
}

void DeviceBuilder::arriveWarp(Value barrier, Value lane, Value condition) {
  syncWarp();
  Value arrives = racecheck ? Value() : equal(lane, constI32(0));
  if (condition)
    arrives = arrives ? bitAnd(arrives, condition) : condition;
  if (arrives)
    ifThen(arrives, [&] { arrive(barrier); });
  else
    arrive(barrier);
}

void DeviceBuilder::wait(Value barrier, Value parity) {
  if (hasBulkCopies()) {
    // Nanoseconds after which the machine looks again.
    NVVM::MBarrierTryWaitParityOp::create(b, loc, barrier, parity, constI32(10'000'000));
    return;
  }
  scf::WhileOp::create(
      b, loc, TypeRange{}, ValueRange{},
      [&](OpBuilder &nested, Location, ValueRange) {
        Value done =
            NVVM::MBarrierTestWaitOp::create(nested, loc, nested.getI1Type(), barrier, parity);
        Value on = arith::ConstantOp::create(nested, loc, nested.getBoolAttr(true));
        Value again = arith::XOrIOp::create(nested, loc, done, on);
        scf::ConditionOp::create(nested, loc, again, ValueRange{});
      },
      [&](OpBuilder &nested, Location, ValueRange) { scf::YieldOp::create(nested, loc); });
}

void DeviceBuilder::expectBytes(Value barrier, Value bytes) {
  NVVM::MBarrierArriveExpectTxOp::create(b, loc, TypeRange{}, barrier, bytes,
                                         NVVM::MemScopeKind::CTA, false, Value());
}

void DeviceBuilder::bulkCopy(Value to, Value from, Value bytes, Value barrier) {
  // The instruction's destination is an address of the cluster's shared memory; a block's own
  // addresses are such, too.
  Value target = LLVM::AddrSpaceCastOp::create(b, loc, clusterPointer(b.getContext()), to);
  NVVM::CpAsyncBulkGlobalToSharedClusterOp::create(b, loc, target, from, barrier, bytes, Value(),
                                                   Value());
}

void DeviceBuilder::fenceAsync() {
  auto kind = NVVM::ProxyKindAttr::get(b.getContext(), NVVM::ProxyKind::async_global);
  NVVM::FenceProxyOp::create(b, loc, kind, NVVM::SharedSpaceAttr());
}

void DeviceBuilder::fenceAsyncShared() {
  auto kind = NVVM::ProxyKindAttr::get(b.getContext(), NVVM::ProxyKind::async_shared);
  auto space = NVVM::SharedSpaceAttr::get(b.getContext(), NVVM::SharedSpace::shared_cta);
  NVVM::FenceProxyOp::create(b, loc, kind, space);
}

void DeviceBuilder::copy16(Value to, Value from) {
  NVVM::CpAsyncOp::create(b, loc, to, from, 16, NVVM::LoadCacheModifierKind::CG, Value());
}

void DeviceBuilder::arriveAfterCopies(Value barrier) {
  NVVM::CpAsyncMBarrierArriveOp::create(b, loc, barrier, /*noinc=*/true);
}

void DeviceBuilder::waitForPredecessor() {
  if (hasBulkCopies())
    NVVM::GriddepcontrolOp::create(b, loc, NVVM::GridDepActionKind::wait);
}

void DeviceBuilder::launchDependents() {
  if (hasBulkCopies())
    NVVM::GriddepcontrolOp::create(b, loc, NVVM::GridDepActionKind::launch_dependents);
}

static DeviceBuilder::Values fieldsOf(DeviceBuilder &k, Value result) {
  DeviceBuilder::Values fields;
  for (int64_t field = 0; field < 4; ++field)
    fields.push_back(LLVM::ExtractValueOp::create(k.b, k.loc, result, field));
  return fields;
}

DeviceBuilder::Values DeviceBuilder::loadMatrices(Value row) {
  Type result = LLVM::LLVMStructType::getLiteral(b.getContext(), {i32(), i32(), i32(), i32()});
  MLIRContext *context = b.getContext();
  return fieldsOf(*this,
                  NVVM::LdMatrixOp::create(b, loc, result, row, /*num=*/4, NVVM::MMALayout::row,
                                           NVVM::LdStMatrixShapeAttr::get(context, 8, 8),
                                           NVVM::LdStMatrixEltType::B16));
}

DeviceBuilder::Values DeviceBuilder::mmaInt8(const Values &accumulators, ArrayRef<Value> aOperand,
                                             ArrayRef<Value> bOperand, bool unsignedA) {
  Type result = LLVM::LLVMStructType::getLiteral(b.getContext(), {i32(), i32(), i32(), i32()});
  Value product = NVVM::MmaOp::create(
      b, loc, result, aOperand, bOperand, accumulators, {16, 8, 32}, std::nullopt,
      NVVM::MMAIntOverflow::wrapped,
      std::array<NVVM::MMATypes, 2>{unsignedA ? NVVM::MMATypes::u8 : NVVM::MMATypes::s8,
                                    NVVM::MMATypes::s8},
      std::array<NVVM::MMALayout, 2>{NVVM::MMALayout::row, NVVM::MMALayout::col});
  return fieldsOf(*this, product);
}

DeviceBuilder::Values DeviceBuilder::mmaFloat(Type element, const Values &accumulators,
                                              ArrayRef<Value> aOperand, ArrayRef<Value> bOperand) {
  Type result = LLVM::LLVMStructType::getLiteral(b.getContext(), {f32(), f32(), f32(), f32()});
  // f16 operands are vectors of two, bf16 operands i32.
  bool bf16 = element.isBF16();
  auto operands = [&](ArrayRef<Value> words) {
    return llvm::map_to_vector(
        words, [&](Value word) { return bf16 ? word : bitcast(word, vec(2, f16())); });
  };
  NVVM::MMATypes type = bf16 ? NVVM::MMATypes::bf16 : NVVM::MMATypes::f16;
  Value product = NVVM::MmaOp::create(
      b, loc, result, operands(aOperand), operands(bOperand), accumulators, {16, 8, 16},
      std::nullopt, std::nullopt, std::array<NVVM::MMATypes, 2>{type, type},
      std::array<NVVM::MMALayout, 2>{NVVM::MMALayout::row, NVVM::MMALayout::col});
  return fieldsOf(*this, product);
}

static DeviceBuilder::Values inlineAssembly(DeviceBuilder &k, ValueRange operands, Type result,
                                            int64_t results, StringRef text,
                                            StringRef constraints) {
  MLIRContext *context = k.b.getContext();
  SmallVector<Type> types(results, result);
  auto op = LLVM::InlineAsmOp::create(
      k.b, k.loc, LLVM::LLVMStructType::getLiteral(context, types), operands, text, constraints,
      /*has_side_effects=*/true, /*is_align_stack=*/false, LLVM::TailCallKind::None,
      LLVM::AsmDialectAttr::get(context, LLVM::AsmDialect::AD_ATT), ArrayAttr());
  DeviceBuilder::Values fields;
  for (int64_t field = 0; field < results; ++field)
    fields.push_back(LLVM::ExtractValueOp::create(k.b, k.loc, op.getRes(), field));
  return fields;
}

DeviceBuilder::Values DeviceBuilder::startProducts(ptx::WarpgroupProducts products,
                                                   ArrayRef<Value> operands, Value descriptor,
                                                   Value adds, ValueRange sums) {
  products.accumulates = bool(adds);
  Values all(operands.begin(), operands.end());
  all.push_back(descriptor);
  if (adds)
    all.push_back(adds);
  Type type = products.isInteger() ? i32() : f32();
  llvm::append_range(all, sums);
  if (sums.empty())
    all.append(products.sums(), LLVM::UndefOp::create(b, loc, type));
  return inlineAssembly(*this, all, type, products.sums(), products.text(), products.constraints());
}

DeviceBuilder::Values DeviceBuilder::takeSums(ValueRange sums) {
  Type type = sums.front().getType();
  return inlineAssembly(*this, sums, type, sums.size(), ptx::takeSums,
                        ptx::takeSumsConstraints(sums.size(), type.isInteger()));
}

Value DeviceBuilder::operandDescriptor(Value address) {
  Value bytes = LLVM::PtrToIntOp::create(b, loc, i32(), address);
  Value place = shr(bitAnd(bytes, ptx::kDescriptorAddress), 4);
  return bitOr(toI64(place), integer(i64(), ptx::kOperandDescriptor));
}

DeviceBuilder::Values
DeviceBuilder::whileLoop(ValueRange carried,
                         llvm::function_ref<std::pair<Value, Values>(ValueRange)> body) {
  auto run = [&](OpBuilder &nested, Location, ValueRange values) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToEnd(nested.getInsertionBlock());
    auto [again, next] = body(values);
    scf::ConditionOp::create(b, loc, again, next);
  };
  auto goOn = [&](OpBuilder &nested, Location, ValueRange values) {
    scf::YieldOp::create(nested, loc, values);
  };
  ValueRange results =
      scf::WhileOp::create(b, loc, carried.getTypes(), carried, run, goOn).getResults();
  return Values(results.begin(), results.end());
}
