// RUN: sluice-opt %s --fused-merge-matvecs --remarks-filter=fused-merge-matvecs -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --fused-merge-matvecs --fused-merge-matvecs | FileCheck %s
// RUN: sluice-opt %s --fused-merge-matvecs=target=h100 | FileCheck %s --check-prefixes=CHECK,GPU
// RUN: not sluice-opt %s --fused-merge-matvecs=target=h2000 2>&1 | FileCheck %s --check-prefix=UNKNOWN
// UNKNOWN: error: unknown target 'h2000', expected host, a100,

model.weight @a : tensor<8x256xf16>
model.weight @b : tensor<4x256xf16>
model.weight @blocks : !quantized.tensor<4x256xi8, group = 32, layout = blocks>

// Weights named later are named earlier, with what prepares them.
// CHECK-LABEL: func.func @merged
func.func @merged(%x: tensor<2x256xf32>) -> (tensor<2x8xf32>, tensor<2x4xf32>) {
  // CHECK: %[[A:.*]] = model.parameter @a
  // CHECK: %[[P:.*]] = quantized.quantize %[[A]]
  // CHECK: %[[B:.*]] = model.parameter @b
  // CHECK: %[[Q:.*]] = quantized.quantize %[[B]]
  // CHECK: %[[Y:.*]]:2 = fused.matvec %{{.*}} weights(%[[P]], %[[Q]]) segments [8, 4] : tensor<2x256xf32>, !quantized.tensor<8x256xi8, group = 32>, !quantized.tensor<4x256xi8, group = 32> -> tensor<2x8xf32>, tensor<2x4xf32>
  // CHECK: model.silu %[[Y]]#0
  // CHECK-NOT: fused.matvec
  // CHECK: return %{{.*}}, %[[Y]]#1
  %a = model.parameter @a : tensor<8x256xf16>
  %p = quantized.quantize %a : tensor<8x256xf16> to !quantized.tensor<8x256xi8, group = 32>
  %y = fused.matvec %x weights(%p) segments [8] : tensor<2x256xf32>, !quantized.tensor<8x256xi8, group = 32> -> tensor<2x8xf32>
  %s = model.silu %y : tensor<2x8xf32>
  %b = model.parameter @b : tensor<4x256xf16>
  %q = quantized.quantize %b : tensor<4x256xf16> to !quantized.tensor<4x256xi8, group = 32>
  %z = fused.matvec %x weights(%q) segments [4] : tensor<2x256xf32>, !quantized.tensor<4x256xi8, group = 32> -> tensor<2x4xf32>
  return %s, %z : tensor<2x8xf32>, tensor<2x4xf32>
}

// CHECK-LABEL: func.func @formats
func.func @formats(%x: tensor<1x256xf32>) -> (tensor<1x8xf32>, tensor<1x4xf32>, tensor<1x4xf32>) {
  // CHECK: fused.matvec %{{.*}} weights(%{{.*}}, %{{.*}}) segments [8, 4] : tensor<1x256xf32>, tensor<8x256xf16>, tensor<4x256xf16>
  // CHECK: fused.matvec {{.*}} segments [4] : tensor<1x256xf32>, !quantized.tensor
  %a = model.parameter @a : tensor<8x256xf16>
  %q = model.parameter @blocks : !quantized.tensor<4x256xi8, group = 32, layout = blocks>
  %b = model.parameter @b : tensor<4x256xf16>
  %y = fused.matvec %x weights(%a) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  // expected-remark @+1 {{its weight differs in format from those of other readers of the same input}}
  %z = fused.matvec %x weights(%q) segments [4] : tensor<1x256xf32>, !quantized.tensor<4x256xi8, group = 32, layout = blocks> -> tensor<1x4xf32>
  %u = fused.matvec %x weights(%b) segments [4] : tensor<1x256xf32>, tensor<4x256xf16> -> tensor<1x4xf32>
  return %y, %z, %u : tensor<1x8xf32>, tensor<1x4xf32>, tensor<1x4xf32>
}

// CHECK-LABEL: func.func @apart
func.func @apart(%x: tensor<1x8xf32>, %w: tensor<8x8xf16>, %v: tensor<1x8xf32>, %w32: tensor<8x8xf32>) -> (tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>) {
  // CHECK-COUNT-4: fused.matvec {{.*}} segments [8] :
  %y = fused.matvec %x weights(%w) segments [8] : tensor<1x8xf32>, tensor<8x8xf16> -> tensor<1x8xf32>
  // Another input.
  %z = fused.matvec %v weights(%w) segments [8] : tensor<1x8xf32>, tensor<8x8xf16> -> tensor<1x8xf32>
  // A weight that is computed between.
  %c = tensor.insert_slice %y into %w32[0, 0] [1, 8] [1, 1] : tensor<1x8xf32> into tensor<8x8xf32>
  %d = arith.truncf %c : tensor<8x8xf32> to tensor<8x8xf16>
  // expected-remark @+1 {{its weight is computed after another reader of the same input}}
  %u = fused.matvec %x weights(%d) segments [8] : tensor<1x8xf32>, tensor<8x8xf16> -> tensor<1x8xf32>
  // An epilogue of its own.
  %t = fused.matvec %x weights(%w) segments [8] : tensor<1x8xf32>, tensor<8x8xf16> -> tensor<1x8xf32> epilogue {
  ^bb0(%s: tensor<1x8xf32>):
    %r = model.silu %s : tensor<1x8xf32>
    fused.yield %r : tensor<1x8xf32>
  }
  return %y, %z, %u, %t : tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>
}

model.weight @q4 : !quantized.tensor<16x256xui4, group = 32, scale = u6, offset = field, layout = blocks>
model.weight @q6 : !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks>

// Kernels for GPUs read weights of several encodings of integers, those of one encoding side by side.
// GPU-LABEL: func.func @mixed
func.func @mixed(%x: tensor<1x256xf32>) -> (tensor<1x16xf32>, tensor<1x32xf32>, tensor<1x16xf32>) {
  // GPU: %[[A:.*]] = model.parameter @q4
  // GPU: %[[B:.*]] = model.parameter @q6
  // GPU: %[[Y:.*]]:3 = fused.matvec %{{.*}} weights(%[[A]], %[[A]], %[[B]]) segments [16, 16, 32]
  // GPU-NOT: fused.matvec
  // GPU: return %[[Y]]#0, %[[Y]]#2, %[[Y]]#1
  %a = model.parameter @q4 : !quantized.tensor<16x256xui4, group = 32, scale = u6, offset = field, layout = blocks>
  %b = model.parameter @q6 : !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks>
  %y = fused.matvec %x weights(%a) segments [16] : tensor<1x256xf32>, !quantized.tensor<16x256xui4, group = 32, scale = u6, offset = field, layout = blocks> -> tensor<1x16xf32>
  // expected-remark @+1 {{its weight differs in format from those of other readers of the same input}}
  %z = fused.matvec %x weights(%b) segments [32] : tensor<1x256xf32>, !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks> -> tensor<1x32xf32>
  %u = fused.matvec %x weights(%a) segments [16] : tensor<1x256xf32>, !quantized.tensor<16x256xui4, group = 32, scale = u6, offset = field, layout = blocks> -> tensor<1x16xf32>
  return %y, %z, %u : tensor<1x16xf32>, tensor<1x32xf32>, tensor<1x16xf32>
}

model.weight @gate : !quantized.tensor<32x256xui4, group = 32, scale = u6, offset = field, layout = blocks>

// But not if their rows are combined: a tile has one encoding.
// GPU-LABEL: func.func @combined
func.func @combined(%x: tensor<1x256xf32>) -> tensor<1x32xf32> {
  // GPU-COUNT-2: fused.matvec {{.*}} segments [32] :
  %a = model.parameter @gate : !quantized.tensor<32x256xui4, group = 32, scale = u6, offset = field, layout = blocks>
  %b = model.parameter @q6 : !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks>
  %y = fused.matvec %x weights(%a) segments [32] : tensor<1x256xf32>, !quantized.tensor<32x256xui4, group = 32, scale = u6, offset = field, layout = blocks> -> tensor<1x32xf32>
  // expected-remark @+1 {{its weight differs in format from those of other readers of the same input}}
  %z = fused.matvec %x weights(%b) segments [32] : tensor<1x256xf32>, !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks> -> tensor<1x32xf32>
  %s = model.silu %y : tensor<1x32xf32>
  %m = arith.mulf %s, %z : tensor<1x32xf32>
  return %m : tensor<1x32xf32>
}
