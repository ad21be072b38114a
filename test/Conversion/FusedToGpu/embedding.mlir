// RUN: sluice-opt %s --convert-fused-to-gpu=target=h200 --canonicalize --cse --split-input-file --verify-diagnostics | FileCheck %s

// Two blocks a token; a wrong token reads the nearest row.

// CHECK-LABEL: func.func @int4
// CHECK: plan.dispatch @kernels::@embedding_0({{.*}}) launch <grid = 4, block = 256, shared = 0, cluster = 1, overlap = false> label "table"
// CHECK: llvm.func @embedding_0(%[[T:.*]]: !llvm.ptr<1>, %[[W:.*]]: !llvm.ptr<1>, %[[Y:.*]]: !llvm.ptr<1>)
// CHECK: nvvm.griddepcontrol launch_dependents
// CHECK-NOT: nvvm.griddepcontrol wait
// CHECK: %[[TOKEN:.*]] = llvm.load {{.*}} : !llvm.ptr<1> -> i32
// CHECK: %[[LOW:.*]] = arith.minsi %[[TOKEN]], %c2047_i32
// CHECK: arith.maxsi %[[LOW]], %c0_i32
// An int4 row: 1024 bytes of elements, 32 bytes of scales, 16 of zero points.
// CHECK: arith.muli {{.*}}, %c1072_i64
// CHECK: scf.for
// CHECK: llvm.load {{.*}} : !llvm.ptr<1> -> i8
// CHECK: llvm.load {{.*}} : !llvm.ptr<1> -> f16
// CHECK: llvm.load {{.*}} : !llvm.ptr<1> -> i8
// CHECK: llvm.store {{.*}} : vector<2xf32>, !llvm.ptr<1>
model.weight @table : !quantized.tensor<2048x2048xi4, group = 128, zero_point>
func.func @int4(%t: tensor<2xi32>) -> tensor<2x2048xf32> {
  %w = model.parameter @table : !quantized.tensor<2048x2048xi4, group = 128, zero_point>
  %x = fused.embedding %t, %w schedule (#fused.gpu_schedule<blocks = 4, warps = 8, stages = 1, in_flight = 1, columns = 512, splits = 1, early = "none">)
      : tensor<2xi32>, !quantized.tensor<2048x2048xi4, group = 128, zero_point> -> tensor<2x2048xf32>
  return %x : tensor<2x2048xf32>
}

// -----

func.func @odd(%t: tensor<1xi32>, %w: tensor<8x33xf16>) -> tensor<1x33xf32> {
  // expected-error @+1 {{has rows of 33 columns, GPU kernels need an even number}}
  %x = fused.embedding %t, %w schedule (#fused.gpu_schedule<blocks = 1, warps = 8, stages = 1, in_flight = 1, columns = 1024, splits = 1, early = "none">)
      : tensor<1xi32>, tensor<8x33xf16> -> tensor<1x33xf32>
  return %x : tensor<1x33xf32>
}

// -----

func.func @layout(%t: tensor<1xi32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x32xf32> {
  // expected-error @+1 {{table must have layout rows, found '!quantized.tensor<16x32xf16, layout = lanes>'}}
  %x = fused.embedding %t, %w schedule (#fused.gpu_schedule<blocks = 1, warps = 8, stages = 1, in_flight = 1, columns = 1024, splits = 1, early = "none">)
      : tensor<1xi32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x32xf32>
  return %x : tensor<1x32xf32>
}

// -----

func.func @uneven(%t: tensor<2xi32>, %w: tensor<16x32xf16>) -> tensor<2x32xf32> {
  // expected-error @+1 {{early = "none">: 2 tokens need as many blocks each}}
  %x = fused.embedding %t, %w schedule (#fused.gpu_schedule<blocks = 3, warps = 8, stages = 1, in_flight = 1, columns = 1024, splits = 1, early = "none">)
      : tensor<2xi32>, tensor<16x32xf16> -> tensor<2x32xf32>
  return %x : tensor<2x32xf32>
}
