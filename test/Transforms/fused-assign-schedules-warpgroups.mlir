// Products of many tokens: by warpgroups where the target has them, the weights are integers or floats as they are, and there are 64 tokens;
// in tiles that are the fastest by the time model.
// RUN: sluice-opt %s --fused-assign-schedules=target=h200 | FileCheck %s
// RUN: sluice-opt %s --fused-assign-schedules=target=h200 --convert-fused-to-gpu=target=h200 | FileCheck %s --check-prefix=KERNEL
// RUN: sluice-opt %s --fused-assign-schedules=target=a100 | FileCheck %s --check-prefix=SM80

// Tiles that two blocks share, of half of the tokens.
// CHECK-LABEL: func.func @integers
// CHECK: fused.matmul {{.*}}<blocks = 128, warps = 8, stages = 3, in_flight = 3, columns = 256, splits = 2, early = "weights", rows = 128, tokens = 64, warpgroups = 2>) {sluice.schedule_reason = "64 tiles of 128 rows by 64 tokens, each by 2 blocks, the fastest of {{[0-9]+}} ways; a ring of 3 x {{[0-9]+}} bytes", sluice.time = {alone = {{.*}}, arithmetic = {{.*}}, boundary = {{.*}}, memory = {{.*}}}}
// KERNEL: llvm.func @matmul_0
// KERNEL: nvvm.setmaxregister increase 232
// KERNEL: wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8
// KERNEL: nvvm.wgmma.wait.group.sync.aligned 0
// KERNEL: nvvm.setmaxregister decrease 40
// SM80-LABEL: func.func @integers
// SM80: fused.matmul
// SM80-NOT: warpgroups
func.func @integers(%x: tensor<128x4096xf32>, %n: tensor<1xi32>, %w: !quantized.tensor<4096x4096xi8, group = 128, layout = mma, columns = 1024>) -> tensor<128x4096xf32> {
  %p = fused.prepare %x active(%n) : tensor<128x4096xf32> -> !fused.prepared<128, 4096, for = [#quantized.encoding<i8, group = 128>], image>
  %y = fused.matmul %p active(%n) weights(%w) segments [4096]
      : !fused.prepared<128, 4096, for = [#quantized.encoding<i8, group = 128>], image>, !quantized.tensor<4096x4096xi8, group = 128, layout = mma, columns = 1024> -> tensor<128x4096xf32>
  return %y : tensor<128x4096xf32>
}

// CHECK-LABEL: func.func @few
// CHECK-NOT: warpgroups
// CHECK-LABEL: func.func @floats
func.func @few(%x: tensor<16x4096xf32>, %n: tensor<1xi32>, %w: !quantized.tensor<4096x4096xi8, group = 128, layout = mma, columns = 1024>) -> tensor<16x4096xf32> {
  %p = fused.prepare %x active(%n) : tensor<16x4096xf32> -> !fused.prepared<16, 4096, for = [#quantized.encoding<i8, group = 128>], image>
  %y = fused.matmul %p active(%n) weights(%w) segments [4096]
      : !fused.prepared<16, 4096, for = [#quantized.encoding<i8, group = 128>], image>, !quantized.tensor<4096x4096xi8, group = 128, layout = mma, columns = 1024> -> tensor<16x4096xf32>
  return %y : tensor<16x4096xf32>
}

// CHECK: fused.matmul {{.*}}columns = 64, splits = 1, early = "weights", rows = 128, tokens = 256, warpgroups = 2>
// KERNEL: wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16
func.func @floats(%x: tensor<512x4096xf32>, %n: tensor<1xi32>, %w: !quantized.tensor<6144x4096xf16, layout = mma, columns = 512>) -> tensor<512x6144xf32> {
  %p = fused.prepare %x active(%n) : tensor<512x4096xf32> -> !fused.prepared<512, 4096, for = [#quantized.encoding<f16>], image>
  %y = fused.matmul %p active(%n) weights(%w) segments [6144]
      : !fused.prepared<512, 4096, for = [#quantized.encoding<f16>], image>, !quantized.tensor<6144x4096xf16, layout = mma, columns = 512> -> tensor<512x6144xf32>
  return %y : tensor<512x6144xf32>
}

// Few tokens: tiles of 16 rows would copy the input four times as often as those of 64, and of 128 rows there would be few.
// CHECK-LABEL: func.func @rows
// CHECK: fused.matmul {{.*}}<blocks = 96, warps = 8, stages = 4, in_flight = 4, columns = 512, splits = 1, early = "weights", rows = 64, tokens = 16>
func.func @rows(%x: tensor<16x4096xf32>, %n: tensor<1xi32>, %w: !quantized.tensor<6144x4096xi8, group = 128, layout = mma, columns = 1024>) -> tensor<16x6144xf32> {
  %p = fused.prepare %x active(%n) : tensor<16x4096xf32> -> !fused.prepared<16, 4096, for = [#quantized.encoding<i8, group = 128>], image>
  %y = fused.matmul %p active(%n) weights(%w) segments [6144]
      : !fused.prepared<16, 4096, for = [#quantized.encoding<i8, group = 128>], image>, !quantized.tensor<6144x4096xi8, group = 128, layout = mma, columns = 1024> -> tensor<16x6144xf32>
  return %y : tensor<16x6144xf32>
}
