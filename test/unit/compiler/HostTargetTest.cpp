// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "HostKernels.h"

#include "sluice/Conversion/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Object/ELFObjectFile.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

static std::string attentionText(host::Isa isa) {
  return "model.cache @k : !quantized.cache<1x64x2x64xf16, layout = lanes_keys>\n"
         "model.cache @v : !quantized.cache<1x64x2x64xf16, layout = lanes_values>\n"
         "func.func @f(%q: tensor<1x256xf16>, %p: tensor<1xi32>) -> tensor<1x256xf16> {\n"
         "  %y = fused.attention %q, @k, @v at %p scale 0.125 " +
         schedule(isa, 4, 32) +
         " : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>\n  return %y : "
         "tensor<1x256xf16>\n}\n";
}

/// The module at stage device, in `context`.
static mlir::OwningOpRef<mlir::ModuleOp> lowered(mlir::MLIRContext &context,
                                                 const std::string &text) {
  context.loadDialect<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                      plan::PlanDialect, mlir::func::FuncDialect, mlir::LLVM::LLVMDialect>();
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  mlir::PassManager pm(&context);
  buildHostCodePipeline(pm);
  if (!module || failed(pm.run(*module)))
    return nullptr;
  return module;
}

TEST(HostTarget, Names) {
  for (host::Isa isa : {host::Isa::Avx2, host::Isa::Avx512, host::Isa::Avx512Vnni})
    EXPECT_EQ(host::isaFromName(host::isaName(isa)), isa);
  EXPECT_EQ(host::isaFromName("sse2"), std::nullopt);
  EXPECT_TRUE(llvm::is_contained(host::isaFeatures(host::Isa::Avx512Vnni), "avx512vnni"));
  EXPECT_FALSE(llvm::is_contained(host::isaFeatures(host::Isa::Avx2), "avx512f"));
}

TEST(HostTarget, SharedObjectsAreRepeatableAndDependOnNothing) {
  std::string objects[2];
  for (std::string &object : objects) {
    mlir::MLIRContext context;
    mlir::OwningOpRef<mlir::ModuleOp> module = lowered(context, attentionText(host::Isa::Avx512));
    ASSERT_TRUE(module);
    auto kernels = module->lookupSymbol<mlir::ModuleOp>(kKernelsModule);
    llvm::Expected<host::Isa> isa = host::kernelsIsa(kernels);
    ASSERT_TRUE(bool(isa)) << llvm::toString(isa.takeError());
    EXPECT_EQ(*isa, host::Isa::Avx512);
    llvm::Expected<std::string> compiled = host::compileKernels(kernels);
    ASSERT_TRUE(bool(compiled)) << llvm::toString(compiled.takeError());
    object = *compiled;
  }
  EXPECT_EQ(objects[0], objects[1]);

  auto parsed = llvm::object::ObjectFile::createELFObjectFile(
      llvm::MemoryBufferRef(objects[0], "kernels.so"));
  ASSERT_TRUE(bool(parsed)) << llvm::toString(parsed.takeError());
  auto *elf = llvm::cast<llvm::object::ELF64LEObjectFile>(parsed->get());
  std::vector<std::string> exported;
  for (const llvm::object::ELFSymbolRef &symbol : elf->getDynamicSymbolIterators()) {
    uint32_t flags = llvm::cantFail(symbol.getFlags());
    EXPECT_FALSE(flags & llvm::object::SymbolRef::SF_Undefined)
        << llvm::cantFail(symbol.getName()).str();
    exported.push_back(llvm::cantFail(symbol.getName()).str());
  }
  EXPECT_EQ(exported, std::vector<std::string>{"attention_0"});
  auto entries = elf->getELFFile().dynamicEntries();
  ASSERT_TRUE(bool(entries));
  for (const auto &entry : *entries)
    EXPECT_NE(entry.getTag(), llvm::ELF::DT_NEEDED);
}

TEST(HostTarget, UnknownCallsAreAnError) {
  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> module = lowered(context, attentionText(host::Isa::Avx2));
  ASSERT_TRUE(module);
  auto kernels = module->lookupSymbol<mlir::ModuleOp>(kKernelsModule);
  mlir::OpBuilder b = mlir::OpBuilder::atBlockBegin(kernels.getBody());
  auto type = mlir::LLVM::LLVMFunctionType::get(mlir::LLVM::LLVMVoidType::get(&context), {});
  auto missing = mlir::LLVM::LLVMFuncOp::create(b, b.getUnknownLoc(), "not_there", type);
  auto function = kernels.lookupSymbol<mlir::LLVM::LLVMFuncOp>("attention_0");
  b.setInsertionPointToStart(&function.front());
  mlir::LLVM::CallOp::create(b, b.getUnknownLoc(), missing, mlir::ValueRange{});
  llvm::Expected<std::string> object = host::compileKernels(kernels);
  ASSERT_FALSE(bool(object));
  std::string message = llvm::toString(object.takeError());
  EXPECT_NE(message.find("not_there"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(HostTarget, ModulesWithoutKernelsAreAnError) {
  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::ModuleOp::create(mlir::UnknownLoc::get(&context), "kernels");
  llvm::Expected<std::string> object = host::compileKernels(*module);
  ASSERT_FALSE(bool(object));
  EXPECT_EQ(llvm::toString(object.takeError()), "module 'kernels' holds no kernels");
}
