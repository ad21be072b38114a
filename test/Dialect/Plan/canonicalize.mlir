// RUN: sluice-opt --canonicalize --cse %s | FileCheck %s

module @kernels {
  func.func private @append()
}

// A kernel may write caches, so that a dispatch whose result nobody reads stays, and two equal ones stay two.
// CHECK-LABEL: func.func @unread
func.func @unread(%x: tensor<1x256xf32>) {
  // CHECK-COUNT-2: plan.dispatch
  // CHECK-NEXT: return
  %a = plan.dispatch @kernels::@append(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a"
      : (tensor<1x256xf32>) -> tensor<1x256xf32>
  %b = plan.dispatch @kernels::@append(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a"
      : (tensor<1x256xf32>) -> tensor<1x256xf32>
  return
}
