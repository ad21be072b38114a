// RUN: sluice-opt --canonicalize %s | FileCheck %s

model.cache @cache.k : !quantized.cache<1x16x2x64xf16>

// CHECK-LABEL: func.func @identity_regions
func.func @identity_regions(%x: tensor<1x256xf32>, %w: tensor<8x256xf16>) -> tensor<1x8xf32> {
  // CHECK-NEXT: fused.matvec
  // CHECK-NEXT: return
  %y = fused.matvec %x weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32> prologue {
  ^bb0(%in: tensor<1x256xf32>):
    fused.yield %in : tensor<1x256xf32>
  } epilogue {
  ^bb0(%s: tensor<1x8xf32>):
    fused.yield %s : tensor<1x8xf32>
  }
  return %y : tensor<1x8xf32>
}

// CHECK-LABEL: func.func @unread_result
func.func @unread_result(%x: tensor<1x256xf32>, %a: tensor<128x256xf16>, %p: tensor<1xi32>) -> tensor<1x128xf32> {
  // CHECK: %[[Y:.*]] = fused.matvec {{.*}} -> tensor<1x128xf32> epilogue
  // CHECK: %[[S:.*]] = model.silu
  // CHECK: model.cache_append
  // CHECK: fused.yield %[[S]] : tensor<1x128xf32>
  // CHECK: return %[[Y]]
  %y:2 = fused.matvec %x weights(%a) segments [128] : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32> epilogue {
  ^bb0(%s: tensor<1x128xf32>):
    %t = model.silu %s : tensor<1x128xf32>
    model.cache_append @cache.k, %s at %p : tensor<1x128xf32>, tensor<1xi32>
    fused.yield %s, %t : tensor<1x128xf32>, tensor<1x128xf32>
  }
  return %y#1 : tensor<1x128xf32>
}

// Regions that swap are not identities, and bare sums cannot be left out.
// CHECK-LABEL: func.func @kept
func.func @kept(%x: tensor<1x256xf32>, %w: tensor<8x256xf16>) -> (tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>) {
  // CHECK: fused.matvec
  // CHECK: fused.yield %{{.*}}, %{{.*}}
  // CHECK: fused.matvec {{.*}} -> tensor<1x8xf32>, tensor<1x8xf32>
  %y:2 = fused.matvec %x weights(%w, %w) segments [8, 8] : tensor<1x256xf32>, tensor<8x256xf16>, tensor<8x256xf16> -> tensor<1x8xf32>, tensor<1x8xf32> epilogue {
  ^bb0(%a: tensor<1x8xf32>, %b: tensor<1x8xf32>):
    fused.yield %b, %a : tensor<1x8xf32>, tensor<1x8xf32>
  }
  %z:2 = fused.matvec %x weights(%w, %w) segments [8, 8] : tensor<1x256xf32>, tensor<8x256xf16>, tensor<8x256xf16> -> tensor<1x8xf32>, tensor<1x8xf32>
  return %y#0, %y#1, %z#0 : tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>
}
