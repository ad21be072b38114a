// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/GpuTarget.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Parser/Parser.h"

#include "gtest/gtest.h"

using namespace sluice;

namespace {
std::vector<nvidia::KernelResources> parsed(llvm::StringRef log) {
  llvm::Expected<std::vector<nvidia::KernelResources>> kernels = nvidia::parseResources(log);
  if (!kernels) {
    ADD_FAILURE() << llvm::toString(kernels.takeError());
    return {};
  }
  return *kernels;
}

/// The error that parsing or assembling ended in.
template <typename T> std::string errorOf(llvm::Expected<T> value) {
  return value ? "none" : llvm::toString(value.takeError());
}
std::string errorOf(llvm::Error error) { return error ? llvm::toString(std::move(error)) : "none"; }

constexpr char kPtx[] = R"(.version 8.3
.target sm_90
.address_size 64
.visible .entry twice(.param .u64 .ptr .global to)
{
  .reg .b32 %r<3>;
  .reg .b64 %rd<2>;
  ld.param.u64 %rd1, [to];
  ld.global.u32 %r1, [%rd1];
  add.s32 %r2, %r1, %r1;
  st.global.u32 [%rd1], %r2;
  ret;
}
)";
} // namespace

TEST(GpuResources, ReadsWhatPtxasPrints) {
  std::vector<nvidia::KernelResources> kernels = parsed(
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function 'matvec_1' for 'sm_90'\n"
      "ptxas info    : Function properties for matvec_1\n"
      "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
      "ptxas info    : Used 40 registers, used 2 barriers, 16 bytes cumulative stack size, 96 "
      "bytes smem\n"
      "ptxas info    : Compile time = 50.145 ms\n"
      "ptxas info    : Compiling entry function 'embedding_0' for 'sm_90'\n"
      "ptxas info    : Function properties for embedding_0\n"
      "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
      "ptxas info    : Used 10 registers, used 0 barriers\n");
  ASSERT_EQ(kernels.size(), 2u);
  EXPECT_EQ(kernels[0], (nvidia::KernelResources{"embedding_0", 10, 0, 0, 0, 0, 0}));
  EXPECT_EQ(kernels[1], (nvidia::KernelResources{"matvec_1", 40, 16, 8, 12, 96, 2}));
}

TEST(GpuResources, SaysWhenRegistersAreMissing) {
  EXPECT_EQ(errorOf(nvidia::parseResources(
                "ptxas info    : Compiling entry function 'matvec_1' for 'sm_90'\n")),
            "ptxas does not say how many registers kernel matvec_1 uses");
}

// scripts/setup brings ptxas, so a machine without one is an error.
TEST(GpuResources, AssemblesPtx) {
  llvm::Expected<std::string> ptxas = nvidia::findPtxas();
  ASSERT_TRUE(static_cast<bool>(ptxas)) << llvm::toString(ptxas.takeError());
  nvidia::GpuCode code;
  code.arch = "sm_90";
  code.ptx = kPtx;
  ASSERT_EQ(errorOf(nvidia::assemble(code, *ptxas)), "none");
  EXPECT_EQ(code.cubin.substr(0, 4), "\x7f"
                                     "ELF");
  ASSERT_EQ(code.resources.size(), 1u);
  EXPECT_EQ(code.resources[0].name, "twice");
  EXPECT_GT(code.resources[0].registers, 0);
  EXPECT_EQ(code.resources[0].spillStoreBytes, 0);
}

TEST(GpuResources, NamesWhatPtxasRejects) {
  llvm::Expected<std::string> ptxas = nvidia::findPtxas();
  ASSERT_TRUE(static_cast<bool>(ptxas)) << llvm::toString(ptxas.takeError());
  nvidia::GpuCode code;
  code.arch = "sm_90";
  code.ptx = ".version 8.3\n.target sm_90\nnonsense\n";
  std::string error = errorOf(nvidia::assemble(code, *ptxas));
  EXPECT_NE(error.find("cannot assemble GPU kernels for sm_90"), std::string::npos) << error;
  EXPECT_TRUE(code.cubin.empty());
  EXPECT_NE(errorOf(nvidia::assemble(code, "/no/such/ptxas")), "none");
}

TEST(GpuStores, FindsWhatPtxasWouldConvert) {
  auto found = [](llvm::StringRef body) {
    return nvidia::findConvertedStore((".visible .entry k(\n" + body).str()).value_or("none");
  };
  EXPECT_EQ(found("\tadd.rn.f32 \t%r150, %r149, 0f4B400000;\n"
                  "\tst.shared.b8 \t[%rd75+49792], %r150;\n"),
            "st.shared.b8 \t[%rd75+49792], %r150;");
  EXPECT_EQ(found("\t@%p1 max.f32 \t%r2, %r1, %r1;\n\tst.global.v2.b16 \t[%rd1], {%rs1, %r2};\n"),
            "st.global.v2.b16 \t[%rd1], {%rs1, %r2};");
  // Integers, whole registers, results of integers, and what another kernel has in a register.
  EXPECT_EQ(found("\tadd.s32 \t%r2, %r1, 128;\n\tst.shared.b8 \t[%rd1], %r2;\n"), "none");
  EXPECT_EQ(found("\tadd.rn.f32 \t%r2, %r1, %r1;\n\tst.shared.b32 \t[%rd1], %r2;\n"), "none");
  EXPECT_EQ(found("\tcvt.rni.s32.f32 \t%r2, %r1;\n\tst.shared.b8 \t[%rd1], %r2;\n"), "none");
  EXPECT_EQ(found("\tadd.rn.f32 \t%r2, %r1, %r1;\n.visible .entry l(\n\tst.shared.b8 \t[%rd1], "
                  "%r2;\n"),
            "none");
}

// Where a number was made an integer by adding 1.5 * 2^23, its low byte.
TEST(GpuStores, KeepLowBits) {
  std::string text = R"(gpu.module @kernels [#nvvm.target<chip = "sm_90">] {
  llvm.func @k(%x: f32, %to: !llvm.ptr<1>) attributes {nvvm.kernel} {
    %magic = llvm.mlir.constant(12582912.0 : f32) : f32
    %sum = llvm.fadd %x, %magic : f32
    %bits = llvm.bitcast %sum : f32 to i32
    %low = llvm.trunc %bits : i32 to i8
    llvm.store %low, %to : i8, !llvm.ptr<1>
    llvm.return
  }
})";
  mlir::DialectRegistry registry;
  nvidia::registerGpuTranslations(registry);
  mlir::MLIRContext context(registry);
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  ASSERT_TRUE(module);
  auto kernels = *module->getOps<mlir::gpu::GPUModuleOp>().begin();
  llvm::Expected<std::string> ptx = nvidia::emitPtx(kernels);
  ASSERT_TRUE(static_cast<bool>(ptx)) << llvm::toString(ptx.takeError());
  EXPECT_NE(ptx->find("cvt.u16.u32"), std::string::npos) << *ptx;
  EXPECT_EQ(nvidia::findConvertedStore(*ptx), std::nullopt);
}
