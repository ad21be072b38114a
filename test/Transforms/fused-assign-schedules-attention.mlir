// What the time model chooses around attention: products that share multiprocessors with it, and a ring that leaves room for them.
// RUN: sluice-opt %s --fused-pack-weights=target=h100 --fused-assign-schedules=target=h100 | FileCheck %s
// RUN: sluice-opt %s --fused-pack-weights=target=h100 --fused-assign-schedules="target=h100 context=512" | FileCheck %s --check-prefix=CONTEXT

model.weight @w : tensor<4096x4096xf16>
model.weight @wide : tensor<8192x8192xf16>
model.cache @k : !quantized.cache<1x1024x8x128xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x1024x8x128xf16, layout = mma_values>
model.cache @k2 : !quantized.cache<1x2048x8x128xf16, layout = mma_keys>
model.cache @v2 : !quantized.cache<1x2048x8x128xf16, layout = mma_values>
model.cache @k8 : !quantized.cache<1x2048x8x128xi8, group = head, layout = mma_keys>
model.cache @v8 : !quantized.cache<1x2048x8x128xi8, group = head, layout = mma_values>
model.cache @k4 : !quantized.cache<1x2048x8x128xi4, group = head, layout = mma_keys>
model.cache @v4 : !quantized.cache<1x2048x8x128xi4, group = head, layout = mma_values>
model.cache @k64 : !quantized.cache<1x1024x64x128xf16, layout = mma_keys>
model.cache @v64 : !quantized.cache<1x1024x64x128xf16, layout = mma_values>

// A short ring holds all positions of a block.
// CHECK-LABEL: func.func @short
// CHECK: fused.attention {{.*}}stages = 2, {{.*}}"8 key/value heads in 8 parts; a short ring of 65536 bytes for 1024 positions"
// CHECK: fused.matvec {{.*}}resident = 2>
func.func @short(%q: tensor<1x4096xf16>, %position: tensor<1xi32>) -> tensor<1x4096xf32> {
  %a = fused.attention %q, @k, @v at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  %p = model.parameter @w : tensor<4096x4096xf16>
  %w = quantized.quantize %p : tensor<4096x4096xf16> to !quantized.tensor<4096x4096xi4, group = 32>
  %y = fused.matvec %a weights(%w) segments [4096] : tensor<1x4096xf16>, !quantized.tensor<4096x4096xi4, group = 32> -> tensor<1x4096xf32>
  return %y : tensor<1x4096xf32>
}

// Reading 1024 positions of f16, half of the cache, takes a short ring longer than it saves; 512 do not. Of int8 it holds all.
// CHECK-LABEL: func.func @half
// CHECK: fused.attention {{.*}}a long ring of 131072 bytes for 2048 positions
// CHECK: fused.attention {{.*}}a short ring of {{[0-9]+}} bytes for 2048 positions
// CONTEXT-LABEL: func.func @half
// CONTEXT: fused.attention {{.*}}a short ring of 65536 bytes for 2048 positions
func.func @half(%x: tensor<1x4096xf32>, %position: tensor<1xi32>) -> (tensor<1x4096xf32>, tensor<1x4096xf32>) {
  %p = model.parameter @w : tensor<4096x4096xf16>
  %w = quantized.quantize %p : tensor<4096x4096xf16> to !quantized.tensor<4096x4096xi4, group = 32>
  // Its ring leaves less than the long one takes.
  %h = fused.matvec %x weights(%w) segments [4096] : tensor<1x4096xf32>, !quantized.tensor<4096x4096xi4, group = 32> -> tensor<1x4096xf32>
  %q = arith.truncf %h : tensor<1x4096xf32> to tensor<1x4096xf16>
  %a = fused.attention %q, @k2, @v2 at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  %y = fused.matvec %a weights(%w) segments [4096] : tensor<1x4096xf16>, !quantized.tensor<4096x4096xi4, group = 32> -> tensor<1x4096xf32>
  %b = fused.attention %q, @k8, @v8 at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  %z = fused.matvec %b weights(%w) segments [4096] : tensor<1x4096xf16>, !quantized.tensor<4096x4096xi4, group = 32> -> tensor<1x4096xf32>
  return %y, %z : tensor<1x4096xf32>, tensor<1x4096xf32>
}

// Reading so many bytes with few registers would take longer than is saved.
// CHECK-LABEL: func.func @apart
// CHECK: fused.attention {{.*}}a long ring
// CHECK-NOT: resident
// CHECK: return
func.func @apart(%q: tensor<1x8192xf16>, %position: tensor<1xi32>) -> tensor<1x8192xf32> {
  %a = fused.attention %q, @k64, @v64 at %position scale 0.125 : tensor<1x8192xf16>, tensor<1xi32> -> tensor<1x8192xf16>
  %p = model.parameter @wide : tensor<8192x8192xf16>
  %w = quantized.quantize %p : tensor<8192x8192xf16> to !quantized.tensor<8192x8192xi4, group = 32>
  %y = fused.matvec %a weights(%w) segments [8192] : tensor<1x8192xf16>, !quantized.tensor<8192x8192xi4, group = 32> -> tensor<1x8192xf32>
  return %y : tensor<1x8192xf32>
}

// What few bytes take longer with fewer readers is less than what a cluster of fewer blocks saves: 4 bits at 512 positions, but not at 1024, half of the cache, and not 8 or 16 bits.
// CHECK-LABEL: func.func @parts
// CHECK: fused.attention {{.*}}@k4, {{.*}}8 key/value heads in 8 parts
// CONTEXT-LABEL: func.func @parts
// CONTEXT: fused.attention {{.*}}@k4, {{.*}}blocks = 32, {{.*}}8 key/value heads in 4 parts; a long ring of 135168 bytes for 2048 positions
// CONTEXT: fused.attention {{.*}}@k8, {{.*}}8 key/value heads in 8 parts
// CONTEXT: fused.attention {{.*}}@k2, {{.*}}8 key/value heads in 8 parts
func.func @parts(%q: tensor<1x4096xf16>, %position: tensor<1xi32>) -> (tensor<1x4096xf16>, tensor<1x4096xf16>, tensor<1x4096xf16>) {
  %a = fused.attention %q, @k4, @v4 at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  %b = fused.attention %q, @k8, @v8 at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  %c = fused.attention %q, @k2, @v2 at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  return %a, %b, %c : tensor<1x4096xf16>, tensor<1x4096xf16>, tensor<1x4096xf16>
}
