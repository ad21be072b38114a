// RUN: sluice-opt %s --convert-fused-to-host --host-lower-kernels --split-input-file | FileCheck %s

// After lowering, kernels consist of the llvm dialect alone: neither vector nor scf operations, nor calls of functions
// (an exponential is arithmetic).

// CHECK-LABEL: func.func @gated
// CHECK: plan.dispatch @kernels::@matvec_0
func.func @gated(%x: tensor<1x64xf32>, %w: !quantized.tensor<64x64xi4, group = 32, zero_point, layout = lanes>) -> tensor<1x32xf16> {
  %y = fused.matvec %x weights(%w) segments [32, 32] order [zip(0, 1)] schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 2, positions = 0>)
      : tensor<1x64xf32>, !quantized.tensor<64x64xi4, group = 32, zero_point, layout = lanes> -> tensor<1x32xf16>
  epilogue {
  ^bb0(%g: tensor<1x32xf32>, %u: tensor<1x32xf32>):
    %s = model.silu %g : tensor<1x32xf32>
    %m = arith.mulf %s, %u : tensor<1x32xf32>
    %r = arith.truncf %m : tensor<1x32xf32> to tensor<1x32xf16>
    fused.yield %r : tensor<1x32xf16>
  }
  return %y : tensor<1x32xf16>
}

// CHECK: module @kernels
// CHECK: llvm.func @matvec_0
// CHECK-NOT: {{(vector|scf|arith|math|cf|builtin)\.[a-z_]+ }}
// CHECK-NOT: llvm.call @
// 32-byte loads of 16 rows x 4 columns, low nibbles, high nibbles.
// CHECK: llvm.load {{.*}} {alignment = 32 : i64} : !llvm.ptr -> vector<32xi8>
// CHECK: llvm.sext {{.*}} : vector<32xi8> to vector<32xi16>
// CHECK: llvm.and {{.*}} : vector<32xi16>
// CHECK: llvm.xor {{.*}} : vector<32xi16>
// CHECK: llvm.ashr {{.*}} : vector<32xi16>
// CHECK: llvm.call_intrinsic "llvm.x86.avx512.vpdpwssd.512"
// CHECK-NOT: {{(vector|scf|arith|math|cf|builtin)\.[a-z_]+ }}
// CHECK-NOT: llvm.call @
// CHECK: llvm.fptrunc {{.*}} : vector<8xf32> to vector<8xf16>
// CHECK-NOT: {{(vector|scf|arith|math|cf|builtin)\.[a-z_]+ }}

// -----

// Without VNNI: multiply and add.

// CHECK-LABEL: func.func @avx512
func.func @avx512(%x: tensor<1x64xf32>, %w: !quantized.tensor<16x64xi8, group = 64, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx512", accumulators = 2, positions = 0>)
      : tensor<1x64xf32>, !quantized.tensor<16x64xi8, group = 64, layout = lanes> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}
// CHECK: llvm.call_intrinsic "llvm.x86.avx512.pmaddw.d.512"
// CHECK: llvm.add {{.*}} : vector<16xi32>
// CHECK-NOT: vpdpwssd

// -----

// AVX2: the two halves of the rows.

// CHECK-LABEL: func.func @avx2
func.func @avx2(%x: tensor<1x64xf32>, %w: !quantized.tensor<16x64xi8, group = 64, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 2, positions = 0>)
      : tensor<1x64xf32>, !quantized.tensor<16x64xi8, group = 64, layout = lanes> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}
// CHECK: target_cpu = "x86-64-v3"
// CHECK: llvm.load {{.*}} {alignment = 16 : i64} : !llvm.ptr -> vector<16xi8>
// CHECK: llvm.call_intrinsic "llvm.x86.avx2.pmadd.wd"
// CHECK: llvm.add {{.*}} : vector<8xi32>
// CHECK-NOT: avx512

// -----

// Float weights: widened and multiplied by the rounded input.

// CHECK-LABEL: func.func @floats
func.func @floats(%x: tensor<1x32xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx512", accumulators = 2, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}
// CHECK: llvm.fptrunc {{.*}} : vector<16xf32> to vector<16xf16>
// CHECK: llvm.load {{.*}} {alignment = 32 : i64} : !llvm.ptr -> vector<16xf16>
// CHECK: llvm.fpext {{.*}} : vector<16xf16> to vector<16xf32>
// CHECK: llvm.intr.fma

// -----

// Attention: scores with a running maximum, weights rounded to f16.

model.cache @k : !quantized.cache<1x64x2x32xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<1x64x2x32xf16, layout = lanes_values>
// CHECK-LABEL: func.func @attention
func.func @attention(%q: tensor<1x128xf16>, %p: tensor<1xi32>) -> tensor<1x128xf16> {
  %y = fused.attention %q, @k, @v at %p scale 0.25 schedule (#fused.host_schedule<isa = "avx512", accumulators = 1, positions = 32>)
      : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}
// CHECK: llvm.func @attention_0
// CHECK-NOT: llvm.call @
// CHECK: llvm.intr.fma
// CHECK: llvm.intr.roundeven
// CHECK: llvm.fptrunc {{.*}} : vector<16xf32> to vector<16xf16>
// CHECK: llvm.fpext {{.*}} : vector<16xf16> to vector<16xf32>
// CHECK: llvm.fdiv {{.*}} : vector<16xf32>
// CHECK-NOT: {{(vector|scf|arith|math|cf|builtin)\.[a-z_]+ }}
