// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/GpuTarget.h"

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
