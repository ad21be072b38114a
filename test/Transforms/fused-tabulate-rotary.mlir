// RUN: sluice-opt %s --fused-tabulate-rotary --split-input-file -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --fused-tabulate-rotary --fused-tabulate-rotary --split-input-file -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --fused-tabulate-rotary=context=4096 --split-input-file | FileCheck %s --check-prefix=CONTEXT
// RUN: not sluice-opt %s --fused-tabulate-rotary=context=16 --split-input-file 2>&1 | FileCheck %s --check-prefix=SMALL
// RUN: not sluice-opt %s --fused-tabulate-rotary=context=4294967296 --split-input-file 2>&1 | FileCheck %s --check-prefix=LARGE

// LARGE: context must be at most 2147483647, found 4294967296
// SMALL: context must be at least the 2048 positions of @cache.k, found 16
model.cache @cache.k : !quantized.cache<1x2048x2x64xf16>
model.cache @small : !quantized.cache<1x16x2x64xf16>
func.func private @rope()

// One table for each frequencies and head size, under a name that is free.
// CHECK-DAG: model.rope_table @[[A:rope_[0-9]+]] <theta = 1.000000e+04> : tensor<2048x64xf32>
// CHECK-DAG: model.rope_table @[[B:rope_[0-9]+]] <theta = 1.000000e+04> : tensor<2048x32xf32>
// CHECK-DAG: model.rope_table @[[C:rope_[0-9]+]] <theta = 1.000000e+04, linear = [2.000000e+00]> : tensor<2048x64xf32>
// CHECK-NOT: model.rope_table
// CONTEXT: tensor<4096x64xf32>
// CHECK-LABEL: func.func @rotaries
func.func @rotaries(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %w: tensor<256x256xf16>) -> (tensor<1x256xf32>, tensor<1x256xf32>, tensor<1x256xf32>) {
  // CHECK-DAG: %[[TA:.*]] = model.parameter @[[A]] : tensor<2048x64xf32>
  // CHECK-DAG: %[[TB:.*]] = model.parameter @[[B]] : tensor<2048x32xf32>
  // CHECK-DAG: %[[TC:.*]] = model.parameter @[[C]] : tensor<2048x64xf32>
  // CHECK: model.rotary %{{.*}} at %{{.*}} head_dim 64 <theta = 1.000000e+04> table %[[TA]]
  %a = model.rotary %x at %p head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.rotary %{{.*}} table %[[TA]]
  %y = fused.matvec %x weights(%w) segments [256] : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32> epilogue {
  ^bb0(%s: tensor<1x256xf32>):
    %r = model.rotary %s at %p head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
    fused.yield %r : tensor<1x256xf32>
  }
  // CHECK: model.rotary %{{.*}} table %[[TB]]
  %b = model.rotary %x at %p head_dim 32 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.rotary %{{.*}} table %[[TC]]
  %c = model.rotary %b at %p head_dim 64 <theta = 10000.0, linear = [2.0]> : tensor<1x256xf32>, tensor<1xi32>
  return %a, %y, %c : tensor<1x256xf32>, tensor<1x256xf32>, tensor<1x256xf32>
}

// -----

// A table that exists serves; a rotary that has one keeps it.
model.cache @cache.k : !quantized.cache<1x2048x2x64xf16>
model.rope_table @table <theta = 10000.0> : tensor<2048x64xf32>
model.rope_table @longer <theta = 10000.0> : tensor<8192x64xf32>
// CHECK-LABEL: func.func @existing
func.func @existing(%x: tensor<1x64xf32>, %p: tensor<1xi32>) -> (tensor<1x64xf32>, tensor<1x64xf32>) {
  // CHECK: %[[T:.*]] = model.parameter @table
  // CHECK: model.rotary %{{.*}} table %[[T]]
  // CHECK: %[[L:.*]] = model.parameter @longer
  // CHECK: model.rotary %{{.*}} table %[[L]]
  %a = model.rotary %x at %p head_dim 64 <theta = 10000.0> : tensor<1x64xf32>, tensor<1xi32>
  %t = model.parameter @longer : tensor<8192x64xf32>
  %b = model.rotary %a at %p head_dim 64 <theta = 10000.0> table %t : tensor<1x64xf32>, tensor<1xi32>, tensor<8192x64xf32>
  return %a, %b : tensor<1x64xf32>, tensor<1x64xf32>
}

// -----

func.func @no_cache(%x: tensor<1x64xf32>, %p: tensor<1xi32>) -> tensor<1x64xf32> {
  // expected-error @+1 {{needs option context, as the module has no cache to take the positions from}}
  %a = model.rotary %x at %p head_dim 64 <theta = 10000.0> : tensor<1x64xf32>, tensor<1xi32>
  return %a : tensor<1x64xf32>
}
