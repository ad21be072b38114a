// RUN: sluice-opt %s --convert-fused-to-gpu -split-input-file -verify-diagnostics

func.func @unscheduled(%x: tensor<1x256xf32>, %w: !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256>) -> tensor<1x16xf32> {
  // expected-error@+1 {{has no GPU schedule (fused-assign-schedules gives it one)}}
  %y = fused.matvec %x weights(%w) segments [16] : tensor<1x256xf32>, !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}

// -----

func.func @layout(%x: tensor<1x256xf32>, %w: !quantized.tensor<16x256xi8, group = 128, layout = lanes>) -> tensor<1x16xf32> {
  // expected-error@+1 {{weight must be packed in layout mma or records, found '!quantized.tensor<16x256xi8, group = 128, layout = lanes>'}}
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
      : tensor<1x256xf32>, !quantized.tensor<16x256xi8, group = 128, layout = lanes> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}

// -----

func.func @blocks(%x: tensor<1x256xf32>, %w: !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256>) -> tensor<1x16xf32> {
  // expected-error@+1 {{its weight has 1 tiles of 16 rows, one for each block at most}}
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.gpu_schedule<blocks = 2, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
      : tensor<1x256xf32>, !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}

// -----

func.func @warps(%x: tensor<1x1024xf32>, %w: !quantized.tensor<16x1024xi8, group = 128, layout = mma, columns = 1024>) -> tensor<1x16xf32> {
  // expected-error@+1 {{a chunk of 1024 columns needs 8 warps}}
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.gpu_schedule<blocks = 1, warps = 4, stages = 1, in_flight = 1, columns = 1024, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<16x1024xi8, group = 128, layout = mma, columns = 1024> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}

// -----

func.func @shared(%x: tensor<1x1024xf32>, %w: !quantized.tensor<512x1024xi8, group = 128, layout = mma, columns = 1024>) -> tensor<1x512xf32> {
  // expected-error@+1 {{bytes of shared memory, the target has 232448 a block}}
  %y = fused.matvec %x weights(%w) segments [512] schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 20, in_flight = 3, columns = 1024, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<512x1024xi8, group = 128, layout = mma, columns = 1024> -> tensor<1x512xf32>
  return %y : tensor<1x512xf32>
}

// -----

func.func @tokens(%x: tensor<5x256xf32>, %w: !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256>) -> tensor<5x16xf32> {
  // expected-error@+1 {{has 5 tokens, GPU kernels of int8-g128 weights take at most 4}}
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
      : tensor<5x256xf32>, !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256> -> tensor<5x16xf32>
  return %y : tensor<5x16xf32>
}

// -----

model.cache @k : !quantized.cache<1x50x1x32xf16>
model.cache @v : !quantized.cache<1x50x1x32xf16>
func.func @cache(%x: tensor<1x256xf32>, %q: tensor<1x32xf16>, %w: !quantized.tensor<32x256xi8, group = 128, layout = mma, columns = 256>, %position: tensor<1xi32>) -> tensor<1x32xf16> {
  fused.matvec %x weights(%w) segments [32] schedule(#fused.gpu_schedule<blocks = 2, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
      : tensor<1x256xf32>, !quantized.tensor<32x256xi8, group = 128, layout = mma, columns = 256>
  epilogue {
  ^bb0(%b: tensor<1x32xf32>):
    // expected-error@+1 {{to cache @k of type '!quantized.cache<1x50x1x32xf16>', an epilogue on a GPU stores f16 or bf16 in layout mma_keys or mma_values}}
    model.cache_append @k, %b at %position : tensor<1x32xf32>, tensor<1xi32>
    fused.yield
  }
  %y = fused.attention %q, @k, @v at %position scale 0.25 schedule(#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 32, splits = 2, early = "cache">)
      : tensor<1x32xf16>, tensor<1xi32> -> tensor<1x32xf16>
  return %y : tensor<1x32xf16>
}

// -----

func.func @otherChunks(%x: tensor<1x1024xf32>, %w: !quantized.tensor<16x1024xi8, group = 128, layout = mma, columns = 1024>) -> tensor<1x16xf32> {
  // expected-error@+1 {{columns = 512, splits = 1, early = "weights">: its weight is packed in chunks of 1024 columns}}
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 512, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<16x1024xi8, group = 128, layout = mma, columns = 1024> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}

// -----

func.func @rounding(%x: tensor<1x256xf32>, %w: !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256>) -> tensor<1x16xf16> {
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
      : tensor<1x256xf32>, !quantized.tensor<16x256xi8, group = 128, layout = mma, columns = 256> -> tensor<1x16xf16>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error@+1 {{'arith.truncf' op in an epilogue cannot be converted to GPU code}}
    %r = arith.truncf %a downward : tensor<1x16xf32> to tensor<1x16xf16>
    fused.yield %r : tensor<1x16xf16>
  }
  return %y : tensor<1x16xf16>
}

// -----

func.func @f(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  // expected-error @+1 {{2 tokens need as many blocks}}
  %y = fused.rows schedule(#fused.gpu_schedule<blocks = 1, warps = 1, stages = 1, in_flight = 1, columns = 8, splits = 1, early = "none">) -> tensor<2x8xf32> body {
    %s = model.silu %x : tensor<2x8xf32>
    fused.yield %s : tensor<2x8xf32>
  }
  return %y : tensor<2x8xf32>
}

// -----

func.func @f(%x: tensor<1x8xf32>, %p: tensor<1xi32>) -> tensor<1x8xf32> {
  %y = fused.rows schedule(#fused.gpu_schedule<blocks = 1, warps = 1, stages = 1, in_flight = 1, columns = 8, splits = 1, early = "none">) -> tensor<1x8xf32> body {
    // expected-error @+1 {{'model.rotary' op needs a table (fused-tabulate-rotary makes one)}}
    %t = model.rotary %x at %p head_dim 4 <theta = 1.0> : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %t : tensor<1x8xf32>
  }
  return %y : tensor<1x8xf32>
}
