// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/HostTarget.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "llvm/TargetParser/Host.h"

using namespace sluice::host;
using llvm::StringRef;

// x86-64 psABI, "Micro-Architecture Levels"; what the baseline has is left out.
static constexpr StringRef kFeatures[] = {
    "avx",   "avx2",    "bmi",      "bmi2",     "f16c",     "fma",      "lzcnt",
    "movbe", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"};
static constexpr size_t kAvx2Features = 8, kAvx512Features = 13;

StringRef sluice::host::isaName(Isa isa) {
  switch (isa) {
  case Isa::Avx2:
    return "avx2";
  case Isa::Avx512:
    return "avx512";
  case Isa::Avx512Vnni:
    return "avx512_vnni";
  }
  llvm_unreachable("all instruction sets are named");
}

std::optional<Isa> sluice::host::isaFromName(StringRef name) {
  for (Isa isa : {Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni})
    if (isaName(isa) == name)
      return isa;
  return std::nullopt;
}

StringRef sluice::host::isaCpu(Isa isa) { return isa == Isa::Avx2 ? "x86-64-v3" : "x86-64-v4"; }

llvm::ArrayRef<StringRef> sluice::host::isaFeatures(Isa isa) {
  llvm::ArrayRef<StringRef> all(kFeatures);
  return isa == Isa::Avx2     ? all.take_front(kAvx2Features)
         : isa == Isa::Avx512 ? all.take_front(kAvx512Features)
                              : all;
}

std::optional<Isa> sluice::host::detectIsa() {
  llvm::StringMap<bool> present = llvm::sys::getHostCPUFeatures();
  for (Isa isa : {Isa::Avx512Vnni, Isa::Avx512, Isa::Avx2})
    if (llvm::all_of(isaFeatures(isa), [&](StringRef feature) { return present.lookup(feature); }))
      return isa;
  return std::nullopt;
}

llvm::Expected<Isa> sluice::host::kernelsIsa(mlir::ModuleOp kernels) {
  std::optional<Isa> highest;
  for (auto function : kernels.getOps<mlir::LLVM::LLVMFuncOp>()) {
    if (function.isExternal())
      continue;
    mlir::LLVM::TargetFeaturesAttr features = function.getTargetFeaturesAttr();
    auto has = [&](StringRef feature) {
      return features && llvm::any_of(features.getFeatures(), [&](mlir::StringAttr enabled) {
               return enabled.getValue().drop_front() == feature &&
                      enabled.getValue().starts_with("+");
             });
    };
    std::optional<Isa> isa;
    for (Isa candidate : {Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni})
      if (llvm::all_of(isaFeatures(candidate), has))
        isa = candidate;
    if (!isa)
      return llvm::createStringError(
          "kernel '" + function.getName() +
          "': target features name no instruction set that Sluice knows (avx2, avx512, "
          "avx512_vnni)");
    if (!highest || *isa > *highest)
      highest = isa;
  }
  if (!highest)
    return llvm::createStringError("module '" + kernels.getName().value_or("kernels") +
                                   "' holds no kernels");
  return *highest;
}
