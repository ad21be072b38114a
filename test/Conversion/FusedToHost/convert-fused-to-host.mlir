// RUN: sluice-opt %s --convert-fused-to-host --split-input-file | FileCheck %s

// Two layers: the same kernels on other weights and caches. Operands are the input, the weight and what the regions
// capture, in the order of first use; then come caches and results.

model.cache @cache.k.0 : !quantized.cache<1x128x2x16xf16, layout = lanes_keys>
model.cache @cache.v.0 : !quantized.cache<1x128x2x16xf16, layout = lanes_values>
model.cache @cache.k.1 : !quantized.cache<1x128x2x16xf16, layout = lanes_keys>
model.cache @cache.v.1 : !quantized.cache<1x128x2x16xf16, layout = lanes_values>
model.weight @blk.0.attn_qkv : !quantized.tensor<128x256xi8, group = 128, layout = lanes>
model.weight @blk.1.attn_qkv : !quantized.tensor<128x256xi8, group = 128, layout = lanes>

// CHECK-LABEL: func.func @decode
// CHECK-SAME: %[[X:.*]]: tensor<1x256xf32>, %[[P:.*]]: tensor<1xi32>, %[[GAIN:.*]]: tensor<256xf32>, %[[TABLE:.*]]: tensor<128x16xf32>
func.func @decode(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %gain: tensor<256xf32>, %table: tensor<128x16xf32>)
    -> (tensor<1x64xf16>, tensor<1x64xf16>) {
  // CHECK: %[[W0:.*]] = model.parameter @blk.0.attn_qkv
  // CHECK: %[[Q0:.*]] = plan.dispatch @kernels::@matvec_0(%[[X]], %[[W0]], %[[GAIN]], %[[P]], %[[TABLE]]) caches [@cache.k.0, @cache.v.0]
  // CHECK-SAME: launch <grid = 8, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_qkv" traffic
  %w0 = model.parameter @blk.0.attn_qkv : !quantized.tensor<128x256xi8, group = 128, layout = lanes>
  %q0 = fused.matvec %x weights(%w0) segments [64, 32, 32] order [pairs(0, 16), pairs(1, 16), natural(2)]
      traffic(#fused.traffic<weights = 32768, scales = 512, activations = 1024, keys = 0, values = 0, written = 256, operations = 65536, operations_per_position = 0>)
      schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>)
      : tensor<1x256xf32>, !quantized.tensor<128x256xi8, group = 128, layout = lanes> -> tensor<1x64xf16>
  prologue {
  ^bb0(%in: tensor<1x256xf32>):
    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%q: tensor<1x64xf32>, %k: tensor<1x32xf32>, %v: tensor<1x32xf32>):
    %qr = model.rotary %q at %p head_dim 16 <theta = 10000.0> table %table : tensor<1x64xf32>, tensor<1xi32>, tensor<128x16xf32>
    %kr = model.rotary %k at %p head_dim 16 <theta = 10000.0> table %table : tensor<1x32xf32>, tensor<1xi32>, tensor<128x16xf32>
    model.cache_append @cache.k.0, %kr at %p : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @cache.v.0, %v at %p : tensor<1x32xf32>, tensor<1xi32>
    %r = arith.truncf %qr : tensor<1x64xf32> to tensor<1x64xf16>
    fused.yield %r : tensor<1x64xf16>
  }
  // CHECK: %[[Y0:.*]] = plan.dispatch @kernels::@attention_0(%[[Q0]], %[[P]]) caches [@cache.k.0, @cache.v.0]
  // CHECK-SAME: launch <grid = 2, block = 0, shared = 0, cluster = 1, overlap = false> label "attention over cache.k.0, cache.v.0"
  %y0 = fused.attention %q0, @cache.k.0, @cache.v.0 at %p scale 0.25
      schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 32>) : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  // CHECK: plan.dispatch @kernels::@matvec_0({{.*}}) caches [@cache.k.1, @cache.v.1]
  // CHECK-SAME: label "blk.1.attn_qkv"
  %w1 = model.parameter @blk.1.attn_qkv : !quantized.tensor<128x256xi8, group = 128, layout = lanes>
  %q1 = fused.matvec %x weights(%w1) segments [64, 32, 32] order [pairs(0, 16), pairs(1, 16), natural(2)]
      schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>)
      : tensor<1x256xf32>, !quantized.tensor<128x256xi8, group = 128, layout = lanes> -> tensor<1x64xf16>
  prologue {
  ^bb0(%in: tensor<1x256xf32>):
    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%q: tensor<1x64xf32>, %k: tensor<1x32xf32>, %v: tensor<1x32xf32>):
    %qr = model.rotary %q at %p head_dim 16 <theta = 10000.0> table %table : tensor<1x64xf32>, tensor<1xi32>, tensor<128x16xf32>
    %kr = model.rotary %k at %p head_dim 16 <theta = 10000.0> table %table : tensor<1x32xf32>, tensor<1xi32>, tensor<128x16xf32>
    model.cache_append @cache.k.1, %kr at %p : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @cache.v.1, %v at %p : tensor<1x32xf32>, tensor<1xi32>
    %r = arith.truncf %qr : tensor<1x64xf32> to tensor<1x64xf16>
    fused.yield %r : tensor<1x64xf16>
  }
  // CHECK: plan.dispatch @kernels::@attention_0
  %y1 = fused.attention %q1, @cache.k.1, @cache.v.1 at %p scale 0.25
      schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 32>) : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
  return %y0, %y1 : tensor<1x64xf16>, tensor<1x64xf16>
}

// CHECK: module @kernels
// CHECK: llvm.func @matvec_0(%{{.*}}: !llvm.ptr, %[[BEGIN:.*]]: i64, %[[END:.*]]: i64) attributes
// CHECK-SAME: prefer_vector_width = "512", target_cpu = "x86-64-v4"
// CHECK-SAME: "+avx512vnni"
// The norm's factor, fixed point, tiles, dot products.
// CHECK: llvm.intr.sqrt
// CHECK: math.roundeven
// CHECK: scf.for %{{.*}} = %[[BEGIN]] to %[[END]]
// CHECK: llvm.call_intrinsic "llvm.x86.avx512.vpdpwssd.512"
// CHECK: llvm.func @attention_0
// CHECK-NOT: llvm.func

// -----

// What differs in anything but values and caches has its own kernel; here, in that the residual is the input.

// CHECK-LABEL: func.func @residuals
func.func @residuals(%x: tensor<1x32xf32>, %r: tensor<1x32xf32>, %w: !quantized.tensor<32x32xf16, layout = lanes>)
    -> (tensor<1x32xf32>, tensor<1x32xf32>) {
  // CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}, %{{.*}}, %{{.*}}) launch
  // CHECK-SAME: label "matvec_0"
  %a = fused.matvec %x weights(%w) segments [32] schedule (#fused.host_schedule<isa = "avx2", accumulators = 2, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<32x32xf16, layout = lanes> -> tensor<1x32xf32>
  epilogue {
  ^bb0(%s: tensor<1x32xf32>):
    %t = arith.addf %r, %s : tensor<1x32xf32>
    fused.yield %t : tensor<1x32xf32>
  }
  // CHECK: plan.dispatch @kernels::@matvec_1(%{{[^,]*}}, %{{[^,]*}}) launch
  %b = fused.matvec %x weights(%w) segments [32] schedule (#fused.host_schedule<isa = "avx2", accumulators = 2, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<32x32xf16, layout = lanes> -> tensor<1x32xf32>
  epilogue {
  ^bb0(%s: tensor<1x32xf32>):
    %t = arith.addf %x, %s : tensor<1x32xf32>
    fused.yield %t : tensor<1x32xf32>
  }
  return %a, %b : tensor<1x32xf32>, tensor<1x32xf32>
}

// -----

// CHECK-LABEL: func.func @embedding
func.func @embedding(%t: tensor<3xi32>, %w: !quantized.tensor<64x32xi4, group = 32>) -> tensor<3x32xf32> {
  // CHECK: plan.dispatch @kernels::@embedding_0(%{{.*}}, %{{.*}}) launch <grid = 3,
  %x = fused.embedding %t, %w schedule (#fused.host_schedule<isa = "avx512", accumulators = 1, positions = 0>)
      : tensor<3xi32>, !quantized.tensor<64x32xi4, group = 32> -> tensor<3x32xf32>
  return %x : tensor<3x32xf32>
}

// -----

// A module without fused operations stays as it is.

// CHECK-LABEL: func.func @nothing
// CHECK-NOT: module @kernels
func.func @nothing() {
  return
}

// -----

// Many tokens: a work item of the prologue is a token, one of the product two tiles of 16 rows.

// CHECK-LABEL: func.func @prefill
// CHECK-SAME: %[[X:.*]]: tensor<64x96xf32>, %[[N:.*]]: tensor<1xi32>, %[[GAIN:.*]]: tensor<96xf32>, %[[W:.*]]: !quantized.tensor
func.func @prefill(%x: tensor<64x96xf32>, %n: tensor<1xi32>, %gain: tensor<96xf32>, %w: !quantized.tensor<48x96xi4, group = 32, layout = lanes>)
    -> tensor<64x48xf32> {
  // CHECK: %[[P:.*]] = plan.dispatch @kernels::@prepare_0(%[[X]], %[[N]], %[[GAIN]])
  // CHECK-SAME: launch <grid = 64,
  %p = fused.prepare %x active(%n) schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>)
      : tensor<64x96xf32> -> !fused.prepared<64, 96, for = [#quantized.encoding<i4, group = 32>]>
  prologue {
  ^bb0(%in: tensor<64x96xf32>):
    %m = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<64x96xf32>, tensor<96xf32>
    fused.yield %m : tensor<64x96xf32>
  }
  // CHECK: plan.dispatch @kernels::@matmul_0(%[[P]], %[[N]], %[[W]])
  // CHECK-SAME: launch <grid = 2,
  %y = fused.matmul %p active(%n) weights(%w) segments [48] schedule (#fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>)
      : !fused.prepared<64, 96, for = [#quantized.encoding<i4, group = 32>]>, !quantized.tensor<48x96xi4, group = 32, layout = lanes> -> tensor<64x48xf32>
  return %y : tensor<64x48xf32>
}

// CHECK-DAG: llvm.func @prepare_0(%{{.*}}: !llvm.ptr, %{{.*}}: i64, %{{.*}}: i64)
// CHECK-DAG: llvm.func @matmul_0(%{{.*}}: !llvm.ptr, %{{.*}}: i64, %{{.*}}: i64)

// -----

// Steps of up to so many tokens: the grid is for all, kernels read how many there are.

model.cache @k : !quantized.cache<1x128x2x16xi8, layout = lanes_keys>
model.cache @v : !quantized.cache<1x128x2x16xf16, layout = lanes_values>

// CHECK-LABEL: func.func @prefill
// CHECK-SAME: %[[T:.*]]: tensor<64xi32>, %[[P:.*]]: tensor<64xi32>, %[[N:.*]]: tensor<1xi32>, %[[E:.*]]: tensor<9x40xf16>, %[[Q:.*]]: tensor<64x64xf32>, %[[X:.*]]: tensor<64x32xf32>
func.func @prefill(%t: tensor<64xi32>, %p: tensor<64xi32>, %n: tensor<1xi32>, %e: tensor<9x40xf16>, %q: tensor<64x64xf32>, %x: tensor<64x32xf32>)
    -> (tensor<64x40xf32>, tensor<1x64xf16>) {
  // CHECK: plan.dispatch @kernels::@embedding_0(%[[T]], %[[E]], %[[N]]) {{.*}}launch <grid = 64,
  %h = fused.embedding %t, %e active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<64xi32>, tensor<9x40xf16> -> tensor<64x40xf32>
  // CHECK: %[[A:.*]] = plan.dispatch @kernels::@append_0(%[[Q]], %[[X]], %[[P]], %[[N]]) caches [@k, @v] launch <grid = 128, {{.*}} label "append to k, v"
  %a = fused.append %q new(%x, %x), @k, @v at %p active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<64x64xf32> new(tensor<64x32xf32>, tensor<64x32xf32>), tensor<64xi32> -> tensor<64x64xf32>
  prologue {
  ^bb0(%q0: tensor<64x64xf32>, %k0: tensor<64x32xf32>, %v0: tensor<64x32xf32>):
    model.cache_append @v, %v0 at %p : tensor<64x32xf32>, tensor<64xi32>
    model.cache_append @k, %k0 at %p : tensor<64x32xf32>, tensor<64xi32>
    fused.yield %q0 : tensor<64x64xf32>
  }
  // CHECK: %[[Y:.*]] = plan.dispatch @kernels::@attention_0(%[[A]], %[[P]], %[[N]]) caches [@k, @v] launch <grid = 128,
  %y = fused.attention %a, @k, @v at %p scale 0.25 active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 64>)
      : tensor<64x64xf32>, tensor<64xi32> -> tensor<64x64xf16>
  // CHECK: plan.dispatch @kernels::@last_row_0(%[[Y]], %[[N]]) {{.*}}launch <grid = 4, {{.*}} label "last row"
  %l = fused.last_row %y active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>) : tensor<64x64xf16> -> tensor<1x64xf16>
  return %h, %l : tensor<64x40xf32>, tensor<1x64xf16>
}
