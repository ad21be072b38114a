// RUN: sluice-opt --verify-roundtrip %s | FileCheck %s

model.cache @cache.k : !quantized.cache<1x16x2x64xf16>
model.cache @cache.v : !quantized.cache<1x16x2x64xf16>

model.weight @source : tensor<64x256xf16>
quantized.packed @packed of [@source] : !quantized.tensor<64x256xi8, group = 128, layout = mma, columns = 256>

// CHECK-LABEL: func.func @prefetch
func.func @prefetch(%x: tensor<1x256xf32>, %w: tensor<128x256xf16>) -> tensor<1x128xf32> {
  // CHECK: fused.matvec %{{.*}} weights(%{{.*}}) segments [128] prefetch(#fused.prefetch<@packed, blocks = 4, stride = 4160, bytes = 4160>) : tensor<1x256xf32>
  %y = fused.matvec %x weights(%w) segments [128] prefetch(#fused.prefetch<@packed, blocks = 4, stride = 4160, bytes = 4160>)
      : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  return %y : tensor<1x128xf32>
}

// CHECK-LABEL: func.func @embedding
func.func @embedding(%t: tensor<1xi32>, %w: !quantized.tensor<2048x256xi8, group = 32>) -> tensor<1x256xf32> {
  // CHECK: fused.embedding %{{.*}}, %{{.*}} traffic(#fused.traffic<weights = 256, scales = 16, activations = 4, keys = 0, values = 0, written = 1024, operations = 256, operations_per_position = 0>)
  // CHECK-SAME: schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>) : tensor<1xi32>, !quantized.tensor<2048x256xi8, group = 32> -> tensor<1x256xf32>
  %x = fused.embedding %t, %w
      traffic (#fused.traffic<weights = 256, scales = 16, activations = 4, keys = 0, values = 0, written = 1024, operations = 256, operations_per_position = 0>)
      schedule (#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>)
      : tensor<1xi32>, !quantized.tensor<2048x256xi8, group = 32> -> tensor<1x256xf32>
  return %x : tensor<1x256xf32>
}

// CHECK-LABEL: func.func @attention
func.func @attention(%q: tensor<1x256xf16>, %p: tensor<1xi32>) -> tensor<1x256xf16> {
  // CHECK: fused.attention %{{.*}}, @cache.k, @cache.v at %{{.*}} scale 1.250000e-01 schedule(#fused.gpu_schedule<blocks = 132, warps = 16, stages = 10, in_flight = 3, columns = 64, splits = 4, early = "cache", held = 2>)
  %y = fused.attention %q, @cache.k, @cache.v at %p scale 0.125
      schedule (#fused.gpu_schedule<blocks = 132, warps = 16, stages = 10, in_flight = 3, columns = 64, splits = 4, early = "cache", held = 2>)
      : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %y : tensor<1x256xf16>
}

// CHECK-LABEL: func.func @matvec
func.func @matvec(%x: tensor<1x256xf32>, %gain: tensor<256xf32>, %a: tensor<8x256xf16>, %b: tensor<4x256xf16>,
                  %p: !quantized.tensor<1536x256xi8, group = 128, layout = lanes>)
    -> (tensor<1x8xf32>, tensor<1x4xf32>, tensor<1x768xf16>) {
  // CHECK: fused.matvec %{{.*}} weights(%{{.*}}, %{{.*}}) segments [8, 4] : tensor<1x256xf32>, tensor<8x256xf16>, tensor<4x256xf16> -> tensor<1x8xf32>, tensor<1x4xf32>{{$}}
  %c, %d = fused.matvec %x weights(%a, %b) segments [8, 4]
      : tensor<1x256xf32>, tensor<8x256xf16>, tensor<4x256xf16> -> tensor<1x8xf32>, tensor<1x4xf32>
  // CHECK: fused.matvec %{{.*}} weights(%{{.*}}) segments [768, 768] order [zip(0, 1)] schedule(#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>)
  %e = fused.matvec %x weights(%p) segments [768, 768] order [zip(0, 1)]
      schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>)
      : tensor<1x256xf32>, !quantized.tensor<1536x256xi8, group = 128, layout = lanes> -> tensor<1x768xf16>
  // CHECK-SAME: prologue {
  // CHECK: fused.yield %{{.*}} : tensor<1x256xf32>
  // CHECK: } epilogue {
  // CHECK: fused.yield %{{.*}} : tensor<1x768xf16>
  prologue {
  ^bb0(%in: tensor<1x256xf32>):
    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%g: tensor<1x768xf32>, %u: tensor<1x768xf32>):
    %m = arith.mulf %g, %u : tensor<1x768xf32>
    %r = arith.truncf %m : tensor<1x768xf32> to tensor<1x768xf16>
    fused.yield %r : tensor<1x768xf16>
  }
  return %c, %d, %e : tensor<1x8xf32>, tensor<1x4xf32>, tensor<1x768xf16>
}

// An epilogue may store everything and yield nothing.
// CHECK-LABEL: func.func @no_result
func.func @no_result(%x: tensor<1x256xf32>, %w: tensor<128x256xf16>, %p: tensor<1xi32>) {
  fused.matvec %x weights(%w) segments [128] : tensor<1x256xf32>, tensor<128x256xf16> epilogue {
  ^bb0(%k: tensor<1x128xf32>):
    // CHECK: model.cache_append
    // CHECK-NEXT: fused.yield{{$}}
    model.cache_append @cache.k, %k at %p : tensor<1x128xf32>, tensor<1xi32>
    fused.yield
  }
  return
}

// CHECK-LABEL: func.func @sample
func.func @sample(%logits: tensor<1x2048xf32>, %options: tensor<1x8xi32>) -> tensor<1xi32> {
  // CHECK: fused.sample %{{.*}}, %{{.*}} schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 2048, splits = 1, early = "none">) : tensor<1x2048xf32>, tensor<1x8xi32> -> tensor<1xi32>
  %next = fused.sample %logits, %options schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 2048, splits = 1, early = "none", held = 0>)
      : tensor<1x2048xf32>, tensor<1x8xi32> -> tensor<1xi32>
  return %next : tensor<1xi32>
}

// CHECK-LABEL: func.func @rows
func.func @rows(%x: tensor<1x256xf32>, %o: tensor<1x256xf32>, %gain: tensor<256xf32>) -> tensor<1x256xf32> {
  // CHECK: fused.rows -> tensor<1x256xf32> body {
  // CHECK-NEXT: model.rms_norm
  // CHECK-NEXT: arith.addf
  // CHECK-NEXT: fused.yield
  %h = fused.rows -> tensor<1x256xf32> body {
    %n = model.rms_norm %o, %gain epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf32>
    %s = arith.addf %x, %n : tensor<1x256xf32>
    fused.yield %s : tensor<1x256xf32>
  }
  return %h : tensor<1x256xf32>
}

// CHECK-LABEL: func.func @rows_that_only_append
func.func @rows_that_only_append(%k: tensor<1x128xf32>, %gain: tensor<128xf32>, %p: tensor<1xi32>) {
  // CHECK: fused.rows schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>) body {
  fused.rows schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>) body {
    %n = model.rms_norm %k, %gain epsilon 1.0e-6 : tensor<1x128xf32>, tensor<128xf32>
    model.cache_append @cache.k, %n at %p : tensor<1x128xf32>, tensor<1xi32>
    fused.yield
  }
  return
}

// CHECK-LABEL: func.func @soft_cap
func.func @soft_cap(%q: tensor<1x256xf16>, %p: tensor<1xi32>) -> tensor<1x256xf16> {
  // CHECK: fused.attention %{{.*}}, @cache.k, @cache.v at %{{.*}} scale 1.250000e-01 window 8 soft_cap 5.000000e+01
  %y = fused.attention %q, @cache.k, @cache.v at %p scale 0.125 window 8 soft_cap 50.0 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %y : tensor<1x256xf16>
}
