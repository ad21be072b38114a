// RUN: sluice-opt %s --fused-pack-weights=target=host-avx2 --fused-assign-schedules=target=host-avx2 | FileCheck %s --check-prefix=HOST
// RUN: sluice-opt %s --fused-pack-weights=target=h200 --fused-assign-schedules=target=h200 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-pack-weights=target=l40s --fused-assign-schedules=target=%sluice_src/targets/l40s.json | FileCheck %s --check-prefix=SMALL
// RUN: not sluice-opt %s --fused-pack-weights=target=h200 --fused-assign-schedules=target=host-avx2 2>&1 | FileCheck %s --check-prefix=MMA
// RUN: not sluice-opt %s --fused-pack-weights=target=host-avx2 --fused-assign-schedules=target=h200 2>&1 | FileCheck %s --check-prefix=LANES
// RUN: not sluice-opt %s --fused-pack-weights=target=h200 --fused-assign-schedules=target=h200 --fused-assign-schedules=target=host-avx2 2>&1 | FileCheck %s --check-prefix=OTHER
// RUN: sluice-opt %s --fused-pack-weights=target=h200 --fused-assign-schedules=target=h200 --fused-assign-schedules=target=a100 | FileCheck %s --check-prefix=GPU
// RUN: not sluice-opt %s --fused-assign-schedules=target=%s 2>&1 | FileCheck %s --check-prefix=BAD
// MMA: error: 'fused.matvec' op reads weights packed for a GPU ({{.*}}layout = mma, columns = 1024>{{.*}}), target host-avx2 is a CPU
// LANES: error: 'fused.matvec' op reads weights that are not packed for a GPU ({{.*}}layout = lanes>{{.*}}), target h200 is one
// OTHER: error: 'fused.embedding' op has the schedule #fused.gpu_schedule<{{.*}}>, but target host-avx2 is a CPU
// BAD: fused-assign-schedules.mlir: not valid JSON

model.weight @table : tensor<2048x4096xf16>
model.weight @w : tensor<4096x4096xf16>
model.weight @down : tensor<4096x14336xf16>
model.weight @small : tensor<64x256xf16>
model.cache @short.k : !quantized.cache<1x1024x8x128xf16, layout = mma_keys>
model.cache @short.v : !quantized.cache<1x1024x8x128xf16, layout = mma_values>
model.cache @long.k : !quantized.cache<1x32768x8x128xf16, layout = mma_keys>
model.cache @long.v : !quantized.cache<1x32768x8x128xf16, layout = mma_values>

// HOST-LABEL: func.func @decode
// GPU-LABEL: func.func @decode
// SMALL-LABEL: func.func @decode
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %q: tensor<1x4096xf16>, %in: tensor<1x14336xf16>, %tiny: tensor<1x256xf32>)
    -> (tensor<1x4096xf16>, tensor<1x4096xf16>, tensor<1x4096xf32>, tensor<1x4096xf32>, tensor<1x64xf32>) {
  %t = model.parameter @table : tensor<2048x4096xf16>
  // HOST: fused.embedding {{.*}}schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>) {sluice.schedule_reason = "avx2 is what target host-avx2 has", sluice.time = {boundary = {{.*}}}}
  // GPU: fused.embedding {{.*}}schedule(#fused.gpu_schedule<blocks = 4, warps = 8, stages = 1, in_flight = 1, columns = 1024, splits = 1, early = "none">)
  %x = fused.embedding %token, %t : tensor<1xi32>, tensor<2048x4096xf16> -> tensor<1x4096xf32>

  %p = model.parameter @w : tensor<4096x4096xf16>
  %w = quantized.quantize %p : tensor<4096x4096xf16> to !quantized.tensor<4096x4096xi8, group = 128>
  // HOST: fused.matvec {{.*}}schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
  // 256 tiles of 4 chunks on 132 blocks: a block reads 8 stages.
  // The next product's tiles have 16 rows of 14336 f16.
  // GPU: fused.matvec {{.*}}schedule(#fused.gpu_schedule<blocks = 132, warps = 16, stages = 8, in_flight = 3, columns = 1024, splits = 1, early = "weights">) prefetch(#fused.prefetch<@{{.*}}, blocks = 132, stride = 458752, bytes = 32768>) {sluice.prefetch_reason = "32768 of the 458752 bytes of a block's first tile in the next product, for the time between two kernels", sluice.schedule_reason = "256 tiles on 132 multiprocessors; a ring of 8 x 16640 bytes, all that a block reads", sluice.time = {alone = {{.*}}, boundary = {{.*}}, memory = {{.*}}}}
  // SMALL: fused.matvec {{.*}}schedule(#fused.gpu_schedule<blocks = 142, warps = 16, stages = 5, in_flight = 3, columns = 1024, splits = 1, early = "weights">) {sluice.schedule_reason = "{{.*}}what fits in shared memory"
  %y = fused.matvec %x weights(%w) segments [4096] : tensor<1x4096xf32>, !quantized.tensor<4096x4096xi8, group = 128> -> tensor<1x4096xf32>

  %d = model.parameter @down : tensor<4096x14336xf16>
  // GPU: fused.matvec {{.*}}schedule(#fused.gpu_schedule<blocks = 132, warps = 16, stages = 10, in_flight = 3, columns = 512, splits = 1, early = "weights">) prefetch(#fused.prefetch<@{{.*}}, blocks = 4, stride = 8192, bytes = 8192>) {sluice.prefetch_reason = {{.*}}, sluice.schedule_reason = "{{.*}}enough to bridge two kernels"
  %z = fused.matvec %in weights(%d) segments [4096] : tensor<1x14336xf16>, tensor<4096x14336xf16> -> tensor<1x4096xf32>

  %s = model.parameter @small : tensor<64x256xf16>
  // GPU: fused.matvec {{.*}}schedule(#fused.gpu_schedule<blocks = 4, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">) {sluice.schedule_reason
  %m = fused.matvec %tiny weights(%s) segments [64] : tensor<1x256xf32>, tensor<64x256xf16> -> tensor<1x64xf32>

  // HOST: fused.attention {{.*}}schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 64>)
  // A stage is 64 positions for two warps of 32. No product has room beside attention.
  // GPU: fused.attention {{.*}}schedule(#fused.gpu_schedule<blocks = 64, warps = 4, stages = 4, in_flight = 4, columns = 64, splits = 8, early = "cache">) {sluice.schedule_reason = "8 key/value heads in 8 parts; a long ring of 131072 bytes for 1024 positions", sluice.time = {alone = {{.*}}, boundary = {{.*}}, memory_per_position = {{.*}}}}
  %a = fused.attention %q, @short.k, @short.v at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  // GPU: fused.attention {{.*}}schedule(#fused.gpu_schedule<blocks = 64, warps = 4, stages = 4, in_flight = 4, columns = 64, splits = 8, early = "cache">) {sluice.schedule_reason = "8 key/value heads in 8 parts; a long ring of 131072 bytes for 32768 positions"
  // No clusters, and less shared memory.
  // SMALL: fused.attention {{.*}}schedule(#fused.gpu_schedule<blocks = 8, warps = 4, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
  %b = fused.attention %a, @long.k, @long.v at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  return %a, %b, %y, %z, %m : tensor<1x4096xf16>, tensor<1x4096xf16>, tensor<1x4096xf32>, tensor<1x4096xf32>, tensor<1x64xf32>
}

// The product behind attention has few bits, in records: the ring leaves room for it.
// GPU-LABEL: func.func @beside
func.func @beside(%q: tensor<1x4096xf16>, %position: tensor<1xi32>) -> tensor<1x4096xf32> {
  // GPU: fused.attention {{.*}}sluice.schedule_reason = "8 key/value heads in 8 parts; a short ring of 65536 bytes for 1024 positions"
  %a = fused.attention %q, @short.k, @short.v at %position scale 0.125 : tensor<1x4096xf16>, tensor<1xi32> -> tensor<1x4096xf16>
  %p = model.parameter @w : tensor<4096x4096xf16>
  %w = quantized.quantize %p : tensor<4096x4096xf16> to !quantized.tensor<4096x4096xi4, group = 32>
  %y = fused.matvec %a weights(%w) segments [4096] : tensor<1x4096xf16>, !quantized.tensor<4096x4096xi4, group = 32> -> tensor<1x4096xf32>
  return %y : tensor<1x4096xf32>
}
