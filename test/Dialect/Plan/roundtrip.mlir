// RUN: sluice-opt --verify-roundtrip %s | FileCheck %s

model.cache @cache.k.0 : !quantized.cache<1x16x2x64xf16>
model.cache @cache.v.0 : !quantized.cache<1x16x2x64xf16>
module @kernels {
  func.func private @matvec_0()
}

// CHECK: plan.buffer @token input : tensor<1xi32> bytes 4 fed_by @next
plan.buffer @token input : tensor<1xi32> bytes 4 fed_by @next
// CHECK: plan.buffer @next output : tensor<1xi32> bytes 4
plan.buffer @next output : tensor<1xi32> bytes 4
// CHECK: plan.buffer @x.0 arena : tensor<1x256xf32> bytes 1024 offset 64 alive 0 to 3
plan.buffer @x.0 arena : tensor<1x256xf32> bytes 1024 offset 64 alive 0 to 3
// CHECK: plan.buffer @qkv weights : !quantized.tensor<512x256xi8, group = 128, layout = lanes> bytes 135168
plan.buffer @qkv weights : !quantized.tensor<512x256xi8, group = 128, layout = lanes> bytes 135168
// CHECK: plan.buffer @k cache : !quantized.cache<1x16x2x64xf16> bytes 4096
plan.buffer @k cache : !quantized.cache<1x16x2x64xf16> bytes 4096
// CHECK: plan.buffer @logits output : tensor<1x2048xf32> bytes 8192
plan.buffer @logits output : tensor<1x2048xf32> bytes 8192

// CHECK: plan.step @decode arena 4096 {
plan.step @decode arena 4096 {
  // CHECK-NEXT: plan.launch @kernels::@matvec_0 [@x.0, @qkv, @logits] launch <grid = 32, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_qkv" traffic(#fused.traffic<weights = 131072, scales = 2048, activations = 1024, keys = 0, values = 0, written = 512, operations = 262144, operations_per_position = 0>)
  plan.launch @kernels::@matvec_0 [@x.0, @qkv, @logits]
      launch <grid = 32, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_qkv"
      traffic (#fused.traffic<weights = 131072, scales = 2048, activations = 1024, keys = 0, values = 0, written = 512, operations = 262144, operations_per_position = 0>)
  // CHECK-NEXT: plan.launch @kernels::@matvec_0 [@x.0] launch <grid = 132, block = 544, shared = 170000, cluster = 2, overlap = true> label "gpu"
  plan.launch @kernels::@matvec_0 [@x.0]
      launch <grid = 132, block = 544, shared = 170000, cluster = 2, overlap = true> label "gpu"
  // CHECK-NEXT: plan.launch @kernels::@matvec_0 [@x.0] launch <grid = 112, block = 544, shared = 231232, cluster = 8, overlap = true, cooperative = true> label "step"
  plan.launch @kernels::@matvec_0 [@x.0]
      launch <grid = 112, block = 544, shared = 231232, cluster = 8, overlap = true, cooperative = true> label "step"
}

// CHECK-LABEL: func.func @dispatch
func.func @dispatch(%x: tensor<1x256xf32>, %w: !quantized.tensor<512x256xi8, group = 128, layout = lanes>) -> tensor<1x256xf16> {
  // CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}, %{{.*}}) caches [@cache.k.0, @cache.v.0] launch <grid = 16, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_qkv"
  // CHECK-SAME: traffic(#fused.traffic<weights = 1, scales = 0, activations = 0, keys = 0, values = 0, written = 0, operations = 0, operations_per_position = 0>)
  // CHECK-SAME: : (tensor<1x256xf32>, !quantized.tensor<512x256xi8, group = 128, layout = lanes>) -> tensor<1x256xf16>
  %q = plan.dispatch @kernels::@matvec_0(%x, %w) caches [@cache.k.0, @cache.v.0]
      launch <grid = 16, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_qkv"
      traffic (#fused.traffic<weights = 1, scales = 0, activations = 0, keys = 0, values = 0, written = 0, operations = 0, operations_per_position = 0>)
      : (tensor<1x256xf32>, !quantized.tensor<512x256xi8, group = 128, layout = lanes>) -> tensor<1x256xf16>
  // CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}) launch
  plan.dispatch @kernels::@matvec_0(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "bare"
      : (tensor<1x256xf32>) -> ()
  return %q : tensor<1x256xf16>
}
