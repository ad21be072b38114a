// RUN: sluice-opt %s --fused-fuse-epilogues=target=h100 | FileCheck %s
// RUN: sluice-opt %s --fused-fuse-epilogues=placement=prologue | FileCheck %s --check-prefix=PROLOGUE
// RUN: sluice-opt %s --fused-fuse-epilogues=placement=epilogue | FileCheck %s --check-prefix=EPILOGUE
// RUN: sluice-opt %s --fused-fuse-epilogues=placement=prologue --fused-fuse-epilogues | FileCheck %s --check-prefix=PROLOGUE
// RUN: not sluice-opt %s --fused-fuse-epilogues=placement=both 2>&1 | FileCheck %s --check-prefix=BOTH
// BOTH: error: placement must be auto, epilogue or prologue, found 'both'

// Where rotary embeddings and appends are computed.

model.cache @k64 : !quantized.cache<1x16x2x64xf16>
model.cache @v64 : !quantized.cache<1x16x2x64xf16>
model.cache @k100 : !quantized.cache<1x16x40x100xf16>
model.cache @v100 : !quantized.cache<1x16x40x100xf16>
model.cache @k8 : !quantized.cache<1x16x2x64xi8, group = head>
model.cache @v8 : !quantized.cache<1x16x2x64xi8, group = head>
model.cache @kn : !quantized.cache<1x16x2x64xf16>
model.cache @vn : !quantized.cache<1x16x2x64xf16>
model.cache @ki : !quantized.cache<1x16x2x64xf16>
model.cache @vi : !quantized.cache<1x16x2x64xf16>
model.cache @kh : !quantized.cache<1x16x2x64xf16>
model.cache @vh : !quantized.cache<1x16x2x64xf16>
model.cache @kb : !quantized.cache<1x16x2x64xf16>
model.cache @vb : !quantized.cache<1x16x2x64xf16>

// Both places can do it, and the epilogue costs nothing. In the prologue, it costs time.
// CHECK-LABEL: func.func @free
// CHECK: epilogue {
// CHECK: model.rotary
// CHECK: model.rotary
// CHECK: model.cache_append @k64
// CHECK: model.cache_append @v64
// CHECK: }
// CHECK: fused.attention {{.*}} {sluice.decision = "epilogue", sluice.reason = "halves of heads as rows of a product pad it by 0 rows, 0.00 us; a prologue takes 0.32 us"}
// PROLOGUE-LABEL: func.func @free
// PROLOGUE: %[[A:.*]]:3 = fused.matvec
// PROLOGUE-NOT: epilogue
// PROLOGUE: model.rotary %[[A]]#0
// PROLOGUE: %[[K:.*]] = model.rotary %[[A]]#1
// PROLOGUE: model.cache_append @k64, %[[K]]
// PROLOGUE: model.cache_append @v64, %[[A]]#2
// PROLOGUE: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "asked for"}
// EPILOGUE-LABEL: func.func @free
// EPILOGUE: fused.attention {{.*}} {sluice.decision = "epilogue", sluice.reason = "asked for"}
func.func @free(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %w: tensor<128x256xf16>) -> tensor<1x128xf16> {
  %a:3 = fused.matvec %x weights(%w, %w, %w) segments [128, 128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  %q = model.rotary %a#0 at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  %k = model.rotary %a#1 at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @k64, %k at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v64, %a#2 at %p : tensor<1x128xf32>, tensor<1xi32>
  %h = arith.truncf %q : tensor<1x128xf32> to tensor<1x128xf16>
  %y = fused.attention %h, @k64, @v64 at %p scale 0.125 : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}

// Halves of 50 rows fill 7 tiles of 8, so 40 heads of q and of k would have 960 rows of 8000 bytes more, for which some blocks would have a tile more.
// CHECK-LABEL: func.func @padded
// CHECK-NOT: epilogue {
// CHECK: model.rotary
// CHECK: model.rotary
// CHECK: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "halves of heads as rows of a product pad it by 960 rows, {{[0-9.]+}} us; a prologue takes 0.32 us"}
// EPILOGUE-LABEL: func.func @padded
// EPILOGUE: epilogue {
// EPILOGUE: model.rotary
func.func @padded(%x: tensor<1x4000xf32>, %p: tensor<1xi32>, %w: tensor<4000x4000xf16>) -> tensor<1x4000xf16> {
  %a:3 = fused.matvec %x weights(%w, %w, %w) segments [4000, 4000, 4000]
      : tensor<1x4000xf32>, tensor<4000x4000xf16>, tensor<4000x4000xf16>, tensor<4000x4000xf16> -> tensor<1x4000xf32>, tensor<1x4000xf32>, tensor<1x4000xf32>
  %q = model.rotary %a#0 at %p head_dim 100 <theta = 10000.0> : tensor<1x4000xf32>, tensor<1xi32>
  %k = model.rotary %a#1 at %p head_dim 100 <theta = 10000.0> : tensor<1x4000xf32>, tensor<1xi32>
  model.cache_append @k100, %k at %p : tensor<1x4000xf32>, tensor<1xi32>
  model.cache_append @v100, %a#2 at %p : tensor<1x4000xf32>, tensor<1xi32>
  %h = arith.truncf %q : tensor<1x4000xf32> to tensor<1x4000xf16>
  %y = fused.attention %h, @k100, @v100 at %p scale 0.1 : tensor<1x4000xf16>, tensor<1xi32> -> tensor<1x4000xf16>
  return %y : tensor<1x4000xf16>
}

// Integer codes need the prologue; turning does not, unless it is asked for.
// CHECK-LABEL: func.func @integers
// CHECK: epilogue {
// CHECK-COUNT-2: model.rotary
// CHECK: }
// CHECK-NEXT: model.cache_append @k8
// CHECK-NEXT: model.cache_append @v8
// CHECK-NEXT: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "integer codes need a head's scale"}
// PROLOGUE-LABEL: func.func @integers
// PROLOGUE-NOT: epilogue {
// PROLOGUE: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "integer codes need a head's scale"}
// EPILOGUE-LABEL: func.func @integers
// EPILOGUE: epilogue {
// EPILOGUE-COUNT-2: model.rotary
// EPILOGUE: }
// EPILOGUE-NEXT: model.cache_append @k8
func.func @integers(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %w: tensor<128x256xf16>) -> tensor<1x128xf16> {
  %a:3 = fused.matvec %x weights(%w, %w, %w) segments [128, 128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  %q = model.rotary %a#0 at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  %k = model.rotary %a#1 at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @k8, %k at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v8, %a#2 at %p : tensor<1x128xf32>, tensor<1xi32>
  %y = fused.attention %q, @k8, @v8 at %p scale 0.125 : tensor<1x128xf32>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}

// A norm of heads, here of q alone, takes everything that follows with it, whatever is asked for.
// CHECK-LABEL: func.func @norm
// CHECK-NOT: epilogue {
// CHECK: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "a norm needs whole heads"}
// EPILOGUE-LABEL: func.func @norm
// EPILOGUE: model.cache_append @kn
// EPILOGUE-NEXT: model.cache_append @vn
// EPILOGUE: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "a norm needs whole heads"}
func.func @norm(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %g: tensor<64xf32>, %w: tensor<128x256xf16>) -> tensor<1x128xf16> {
  %a:3 = fused.matvec %x weights(%w, %w, %w) segments [128, 128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  %n = model.rms_norm %a#0, %g epsilon 1.0e-6 head_dim 64 : tensor<1x128xf32>, tensor<64xf32>
  %q = model.rotary %n at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @kn, %a#1 at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @vn, %a#2 at %p : tensor<1x128xf32>, tensor<1xi32>
  %y = fused.attention %q, @kn, @vn at %p scale 0.125 : tensor<1x128xf32>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}

// CHECK-LABEL: func.func @interleaved
// CHECK-NOT: epilogue {
// CHECK: fused.attention {{.*}} {sluice.decision = "prologue", sluice.reason = "an epilogue has no interleaved pairs"}
func.func @interleaved(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %q: tensor<1x128xf16>, %w: tensor<128x256xf16>) -> tensor<1x128xf16> {
  %a:2 = fused.matvec %x weights(%w, %w) segments [128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>
  %k = model.rotary %a#0 at %p head_dim 64 interleaved <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @ki, %k at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @vi, %a#1 at %p : tensor<1x128xf32>, tensor<1xi32>
  %y = fused.attention %q, @ki, @vi at %p scale 0.125 : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}

// What a hand has decided stays.
// CHECK-LABEL: func.func @by_hand
// CHECK-NOT: epilogue {
// CHECK: fused.attention {{.*}} {sluice.decision = "prologue"}
// EPILOGUE-LABEL: func.func @by_hand
// EPILOGUE-NOT: epilogue {
// EPILOGUE: return
func.func @by_hand(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %q: tensor<1x128xf16>, %w: tensor<128x256xf16>) -> tensor<1x128xf16> {
  %a:2 = fused.matvec %x weights(%w, %w) segments [128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>
  model.cache_append @kh, %a#0 at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @vh, %a#1 at %p : tensor<1x128xf32>, tensor<1xi32>
  %y = fused.attention %q, @kh, @vh at %p scale 0.125 {sluice.decision = "prologue"} : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}

// Rows of one sequence: no prologue appends them.
// CHECK-LABEL: func.func @rows
// CHECK: epilogue {
// CHECK: fused.attention {{.*}} {sluice.decision = "epilogue", sluice.reason = "a prologue appends keys and values of rows that are sequences of their own"}
// PROLOGUE-LABEL: func.func @rows
// PROLOGUE: epilogue {
// PROLOGUE: fused.attention {{.*}} {sluice.decision = "epilogue"
func.func @rows(%x: tensor<2x256xf32>, %p: tensor<2xi32>, %q: tensor<2x128xf16>, %w: tensor<128x256xf16>) -> tensor<2x128xf16> {
  %a:2 = fused.matvec %x weights(%w, %w) segments [128, 128]
      : tensor<2x256xf32>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<2x128xf32>, tensor<2x128xf32>
  model.cache_append @kb, %a#0 at %p : tensor<2x128xf32>, tensor<2xi32>
  model.cache_append @vb, %a#1 at %p : tensor<2x128xf32>, tensor<2xi32>
  %y = fused.attention %q, @kb, @vb at %p scale 0.125 : tensor<2x128xf16>, tensor<2xi32> -> tensor<2x128xf16>
  return %y : tensor<2x128xf16>
}
