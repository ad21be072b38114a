// RUN: sluice-opt %s --convert-fused-to-gpu=target=h200 --split-input-file --verify-diagnostics

model.cache @k : !quantized.cache<1x64x2x16xf32>
model.cache @v : !quantized.cache<1x64x2x16xf32>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{reads cache @k of 'f32', GPU kernels have caches of f16}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x24xf16>
model.cache @v : !quantized.cache<1x64x2x24xf16>
func.func @f(%q: tensor<1x48xf16>, %p: tensor<1xi32>) -> tensor<1x48xf16> {
  // expected-error @+1 {{reads cache @k: a GPU's cache needs heads of a multiple of 16 elements, at most 256, found 24}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x48xf16>, tensor<1xi32> -> tensor<1x48xf16>
  return %y : tensor<1x48xf16>
}

// -----

model.cache @k : !quantized.cache<1x100x2x16xf16>
model.cache @v : !quantized.cache<1x100x2x16xf16>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{reads cache @k: a GPU's cache needs a multiple of 32 positions, found 100}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : tensor<64x1x16xf16>
model.cache @v : tensor<64x1x16xf16>
func.func @f(%q: tensor<1x1936xf16>, %p: tensor<1xi32>) -> tensor<1x1936xf16> {
  // expected-error @+1 {{has 121 query heads for a key/value head, GPU kernels take 1 to 120}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 1, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x1936xf16>, tensor<1xi32> -> tensor<1x1936xf16>
  return %y : tensor<1x1936xf16>
}

// -----

model.cache @k : tensor<64x1x16xf16>
model.cache @v : tensor<64x1x16xf16>
func.func @f(%q: tensor<1x272xf16>, %p: tensor<1xi32>) -> tensor<1x272xf16> {
  // expected-error @+1 {{17 query heads for a key/value head need at least 6 warps}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 1, warps = 5, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x272xf16>, tensor<1xi32> -> tensor<1x272xf16>
  return %y : tensor<1x272xf16>
}

// -----

model.cache @k head_dim 15 : tensor<64x1x16xf16>
model.cache @v head_dim 15 : tensor<64x1x16xf16>
func.func @f(%q: tensor<1x30xf16>, %p: tensor<1xi32>) -> tensor<1x30xf16> {
  // expected-error @+1 {{reads cache @k with heads of 15 elements, GPU kernels need an even number}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 1, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x30xf16>, tensor<1xi32> -> tensor<1x30xf16>
  return %y : tensor<1x30xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16>
model.cache @v : !quantized.cache<1x64x2x16xf16>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{warps = 1, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">: 2 query heads for a key/value head need at least 2 warps}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 1, stages = 2, in_flight = 2, columns = 32, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16>
model.cache @v : !quantized.cache<1x64x2x16xf16>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{columns = 64, splits = 1, early = "cache">: a stage holds 32 positions}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16>
model.cache @v : !quantized.cache<1x64x2x16xf16>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{splits = 16, early = "cache">: a cluster has 1 to 8 blocks}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 32, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 16, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16>
model.cache @v : !quantized.cache<1x64x2x16xf16>
func.func @f(%q: tensor<1x64xf16>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  // expected-error @+1 {{splits = 4, early = "cache">: 2 key/value heads and 1 tokens need 8 blocks}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 4, early = "cache">)
      : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x4096x2x256xf16>
model.cache @v : !quantized.cache<1x4096x2x256xf16>
func.func @f(%q: tensor<1x1024xf16>, %p: tensor<1xi32>) -> tensor<1x1024xf16> {
  // expected-error @+1 {{needs 262400 bytes of shared memory, the target has 232448 a block}}
  %y = fused.attention %q, @k, @v at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 2, warps = 8, stages = 8, in_flight = 3, columns = 32, splits = 1, early = "cache">)
      : tensor<1x1024xf16>, tensor<1xi32> -> tensor<1x1024xf16>
  return %y : tensor<1x1024xf16>
}
