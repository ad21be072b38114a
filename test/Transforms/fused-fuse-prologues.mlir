// RUN: sluice-opt %s --fused-fuse-prologues --remarks-filter=fused-fuse-prologues -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --fused-fuse-prologues --fused-fuse-prologues | FileCheck %s

// CHECK-LABEL: func.func @norm
// CHECK-SAME: %[[X:.*]]: tensor<2x256xf32>, %[[G:.*]]: tensor<256xf16>
func.func @norm(%x: tensor<2x256xf32>, %g: tensor<256xf16>, %w: tensor<8x256xf16>) -> tensor<2x8xf32> {
  // CHECK-NEXT: fused.matvec %[[X]] weights
  // CHECK-SAME: prologue {
  // CHECK-NEXT: ^bb0(%[[IN:.*]]: tensor<2x256xf32>):
  // CHECK-NEXT: %[[N:.*]] = model.rms_norm %[[IN]], %[[G]] epsilon 1.000000e-05
  // CHECK-NEXT: fused.yield %[[N]] : tensor<2x256xf32>
  // CHECK-NEXT: }
  // CHECK-NEXT: return
  %n = model.rms_norm %x, %g epsilon 1.0e-5 : tensor<2x256xf32>, tensor<256xf16>
  %y = fused.matvec %n weights(%w) segments [8] : tensor<2x256xf32>, tensor<8x256xf16> -> tensor<2x8xf32>
  return %y : tensor<2x8xf32>
}

// CHECK-LABEL: func.func @two_readers
func.func @two_readers(%x: tensor<1x256xf32>, %g: tensor<256xf16>, %w: tensor<8x256xf16>, %v: tensor<8x256xf32>) -> (tensor<1x8xf32>, tensor<1x8xf32>) {
  // CHECK-NEXT: fused.matvec %arg0
  // CHECK: model.rms_norm
  // CHECK: fused.matvec %arg0
  // CHECK: model.rms_norm
  %n = model.rms_norm %x, %g epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %y = fused.matvec %n weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  // expected-remark @+1 {{the norm is computed again in each product that reads it}}
  %z = fused.matvec %n weights(%v) segments [8] : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  return %y, %z : tensor<1x8xf32>, tensor<1x8xf32>
}

// CHECK-LABEL: func.func @other_reader
func.func @other_reader(%x: tensor<1x256xf32>, %g: tensor<256xf16>, %w: tensor<8x256xf16>) -> (tensor<1x256xf32>, tensor<1x8xf32>) {
  // CHECK-NEXT: %[[N:.*]] = model.rms_norm
  // CHECK-NEXT: fused.matvec %arg0 {{.*}} prologue
  // CHECK: return %[[N]]
  // expected-remark @+1 {{'func.return' reads the norm too}}
  %n = model.rms_norm %x, %g epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %y = fused.matvec %n weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %n, %y : tensor<1x256xf32>, tensor<1x8xf32>
}

// A matvec that has a prologue, and one whose input is no norm, stay.
// CHECK-LABEL: func.func @kept
func.func @kept(%x: tensor<1x256xf32>, %g: tensor<256xf16>, %w: tensor<8x256xf16>) -> (tensor<1x8xf32>, tensor<1x8xf32>) {
  // CHECK: %[[N:.*]] = model.rms_norm
  // CHECK: fused.matvec %[[N]]
  // CHECK: model.silu
  // CHECK: %[[S:.*]] = model.silu %arg0
  // CHECK: fused.matvec %[[S]] weights(%{{.*}}) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>{{$}}
  %n = model.rms_norm %x, %g epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %y = fused.matvec %n weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32> prologue {
  ^bb0(%in: tensor<1x256xf32>):
    %t = model.silu %in : tensor<1x256xf32>
    fused.yield %t : tensor<1x256xf32>
  }
  %s = model.silu %x : tensor<1x256xf32>
  %z = fused.matvec %s weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y, %z : tensor<1x8xf32>, tensor<1x8xf32>
}

// CHECK-LABEL: func.func @layer_norm
// CHECK-NEXT: fused.matvec %arg0 weights
// CHECK-SAME: prologue {
// CHECK-NEXT: ^bb0(%[[IN:.*]]: tensor<1x256xf32>):
// CHECK-NEXT: %[[N:.*]] = model.layer_norm %[[IN]], %arg1 bias %arg2 epsilon 1.000000e-05
// CHECK-NEXT: fused.yield %[[N]] : tensor<1x256xf32>
func.func @layer_norm(%x: tensor<1x256xf32>, %g: tensor<256xf16>, %b: tensor<256xf16>, %w: tensor<8x256xf16>) -> tensor<1x8xf32> {
  %n = model.layer_norm %x, %g bias %b epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>, tensor<256xf16>
  %y = fused.matvec %n weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}


// A norm of heads has more factors than a product's prologue.
// CHECK-LABEL: func.func @heads
func.func @heads(%x: tensor<1x256xf32>, %g: tensor<64xf16>, %w: tensor<8x256xf16>) -> tensor<1x8xf32> {
  // CHECK-NEXT: %[[N:.*]] = model.rms_norm
  // CHECK-NEXT: fused.matvec %[[N]] {{.*}} -> tensor<1x8xf32>{{$}}
  %n = model.rms_norm %x, %g epsilon 1.0e-5 head_dim 64 : tensor<1x256xf32>, tensor<64xf16>
  %y = fused.matvec %n weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// Where an order of columns is between a norm and its readers, both are in the prologue.
// CHECK-LABEL: func.func @reorder
// CHECK-NEXT: fused.matvec %arg0 weights
// CHECK-SAME: prologue {
// CHECK-NEXT: ^bb0(%[[IN:.*]]: tensor<1x256xf32>):
// CHECK-NEXT: %[[N:.*]] = model.rms_norm %[[IN]], %arg1
// CHECK-NEXT: %[[R:.*]] = model.reorder %[[N]] by %arg2
// CHECK-NEXT: fused.yield %[[R]] : tensor<1x256xf32>
// CHECK: fused.matvec %arg0 weights
// CHECK-SAME: prologue {
// CHECK-NEXT: ^bb0(%[[IN:.*]]: tensor<1x256xf32>):
// CHECK-NEXT: %[[N:.*]] = model.rms_norm %[[IN]], %arg1
// CHECK-NEXT: fused.yield %[[N]] : tensor<1x256xf32>
// CHECK: fused.matvec %arg0 weights
// CHECK-SAME: prologue {
// CHECK-NEXT: ^bb0(%[[IN:.*]]: tensor<1x256xf32>):
// CHECK-NEXT: %[[R:.*]] = model.reorder %[[IN]] by %arg2
// CHECK-NEXT: fused.yield %[[R]] : tensor<1x256xf32>
// CHECK-NOT: model.
func.func @reorder(%x: tensor<1x256xf32>, %g: tensor<256xf16>, %order: tensor<256xf32>, %w: tensor<8x256xf16>)
    -> (tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>) {
  %n = model.rms_norm %x, %g epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %r = model.reorder %n by %order : tensor<1x256xf32>, tensor<256xf32>
  %y = fused.matvec %r weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  // expected-remark @+1 {{the norm is computed again in each product that reads it}}
  %z = fused.matvec %n weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  %s = model.reorder %x by %order : tensor<1x256xf32>, tensor<256xf32>
  %t = fused.matvec %s weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y, %z, %t : tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>
}

// CHECK-LABEL: func.func @reorder_of_f16
// CHECK-NEXT: fused.matvec %arg0 weights
// CHECK-SAME: prologue {
// CHECK-NEXT: ^bb0(%[[IN:.*]]: tensor<1x256xf16>):
// CHECK-NEXT: %[[W:.*]] = arith.extf %[[IN]]
// CHECK-NEXT: %[[R:.*]] = model.reorder %[[W]] by %arg1
// CHECK-NEXT: fused.yield %[[R]] : tensor<1x256xf32>
func.func @reorder_of_f16(%x: tensor<1x256xf16>, %order: tensor<256xf32>, %w: tensor<8x256xf16>) -> tensor<1x8xf32> {
  %e = arith.extf %x : tensor<1x256xf16> to tensor<1x256xf32>
  %r = model.reorder %e by %order : tensor<1x256xf32>, tensor<256xf32>
  %y = fused.matvec %r weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}
