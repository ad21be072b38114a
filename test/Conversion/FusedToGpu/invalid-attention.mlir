// RUN: sluice-opt %s --convert-fused-to-gpu=target=h200 --split-input-file --verify-diagnostics

model.cache @k : !quantized.cache<1x64x2x16xf32, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf32, layout = mma_values>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{reads cache @k: GPU kernels have no caches of f32}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x264xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x264xf16, layout = mma_values>
func.func @f(%q: tensor<1x528xf16>, %p: tensor<1xi32>) -> tensor<1x528xf16> {
  // expected-error @+1 {{reads cache @k: a GPU's cache needs heads of 1 to 256 elements, found 264}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x528xf16>, tensor<1xi32> -> tensor<1x528xf16>
  return %y : tensor<1x528xf16>
}

// -----

model.cache @k : !quantized.cache<1x100x2x16xf16>
model.cache @v : !quantized.cache<1x100x2x16xf16>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{reads cache @k as mma_keys, but it is '!quantized.cache<1x100x2x16xf16>'}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x1x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x1x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x7952xf16>, %p: tensor<1xi32>) -> tensor<1x7952xf16> {
  // expected-error @+1 {{has 497 query heads for a key/value head, GPU kernels take 1 to 496}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 1, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x7952xf16>, tensor<1xi32> -> tensor<1x7952xf16>
  return %y : tensor<1x7952xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x1x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x1x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x272xf16>, %p: tensor<1xi32>) -> tensor<1x272xf16> {
  // expected-error @+1 {{17 query heads for a key/value head and stages of 64 positions need at least 4 warps}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 1, warps = 1, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x272xf16>, tensor<1xi32> -> tensor<1x272xf16>
  return %y : tensor<1x272xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{2 query heads for a key/value head and stages of 128 positions need at least 4 warps}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 1, stages = 2, in_flight = 2, columns = 128, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{columns = 48, splits = 1, early = "cache">: a stage holds a multiple of 32 positions}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 48, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xi8, group = head, layout = mma_values>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{columns = 96, splits = 1, early = "cache">: a stage holds a multiple of 64 positions}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 96, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{splits = 16, early = "cache">: a cluster has 1 to 8 blocks}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 32, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 16, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{splits = 4, early = "cache">: 2 key/value heads and 1 tokens need 8 blocks}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 4, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x4096x2x256xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x4096x2x256xf16, layout = mma_values>
func.func @f(%q: tensor<1x1024xf16>, %p: tensor<1xi32>) -> tensor<1x1024xf16> {
  // expected-error @+1 {{needs 526864 bytes of shared memory, the target has 232448 a block}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 8, in_flight = 3, columns = 64, splits = 1, early = "cache">)
      : tensor<1x1024xf16>, tensor<1xi32> -> tensor<1x1024xf16>
  return %y : tensor<1x1024xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x64xf32>, %n: tensor<1x32xf32>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x64xf32> new(tensor<1x32xf32>, tensor<1x32xf32>), tensor<1xi32> -> tensor<1x64xf16>
  prologue {
  ^bb0(%q0: tensor<1x64xf32>, %k0: tensor<1x32xf32>, %v0: tensor<1x32xf32>):
    // expected-error @+1 {{'model.rotary' op needs a table (fused-tabulate-rotary makes one)}}
    %k1 = model.rotary %k0 at %p head_dim 16 <theta = 10000.0> : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @k, %k1 at %p : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x32xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x64xf32>
  }
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = mma_values>
func.func @f(%q: tensor<1x64xf32>, %n: tensor<1x32xf32>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x64xf32> new(tensor<1x32xf32>, tensor<1x32xf32>), tensor<1xi32> -> tensor<1x64xf16>
  prologue {
  ^bb0(%q0: tensor<1x64xf32>, %k0: tensor<1x32xf32>, %v0: tensor<1x32xf32>):
    // expected-error @+1 {{'math.absf' op in a prologue cannot be converted to GPU code}}
    %k1 = math.absf %k0 : tensor<1x32xf32>
    model.cache_append @k, %k1 at %p : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x32xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x64xf32>
  }
  return %y : tensor<1x64xf16>
}
