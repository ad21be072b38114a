// RUN: sluice-opt --verify-roundtrip %s | FileCheck %s

model.weight @gate : tensor<768x256xf16>
model.weight @up : tensor<768x256xf16>
model.weight @norm : tensor<256xf16>

// CHECK: quantized.packed @gate_up of [@gate, @up] order [zip(0, 1)] : !quantized.tensor<1536x256xi8, group = 128, layout = lanes>
quantized.packed @gate_up of [@gate, @up] order [zip(0, 1)] : !quantized.tensor<1536x256xi8, group = 128, layout = lanes>
// CHECK: quantized.packed @two of [@gate, @up] order [pairs(0, 64), natural(1)] : !quantized.tensor<1536x256xi4, group = 64, zero_point, layout = mma, columns = 256>
quantized.packed @two of [@gate, @up] order [pairs(0, 64), natural(1)] : !quantized.tensor<1536x256xi4, group = 64, zero_point, layout = mma, columns = 256>
// CHECK: quantized.packed @norm.f32 of [@norm] : tensor<256xf32>
quantized.packed @norm.f32 of [@norm] : tensor<256xf32>

// CHECK-LABEL: func.func private @types
// CHECK-SAME: !quantized.tensor<4x256xi8, group = 32>
// CHECK-SAME: !quantized.tensor<4x256xi4, group = channel>
// CHECK-SAME: !quantized.tensor<4x256xi8, group = 256, zero_point>
// CHECK-SAME: !quantized.tensor<4x256xi8, group = 32, layout = blocks>
// CHECK-SAME: !quantized.tensor<4x256xi4, group = 32, layout = blocks>
// CHECK-SAME: !quantized.tensor<4x256xf16, layout = lanes>
// CHECK-SAME: !quantized.tensor<4x256xbf16>
// CHECK-SAME: !quantized.tensor<4x256xf32>
func.func private @types(!quantized.tensor<4x256xi8, group = 32, layout = rows>, !quantized.tensor<4x256xi4, group = channel>,
                         !quantized.tensor<4x256xi8, group = 256, zero_point>, !quantized.tensor<4x256xi8, group = 32, layout = blocks>,
                         !quantized.tensor<4x256xi4, group = 32, layout = blocks>, !quantized.tensor<4x256xf16, layout = lanes>,
                         !quantized.tensor<4x256xbf16>, !quantized.tensor<4x256xf32>)

// CHECK-LABEL: func.func private @encodings
// CHECK-SAME: !quantized.tensor<4x256xui4, group = 32, scale = u6, offset = field, layout = blocks>
// CHECK-SAME: !quantized.tensor<4x256xi6, group = 16, scale = i8, layout = lanes>
// CHECK-SAME: !quantized.tensor<4x256xui5, group = 32, offset = f16>
// CHECK-SAME: !quantized.tensor<4x256xi4, table = iq4_nl, group = 32>
// CHECK-SAME: !quantized.tensor<4x256xi4, table = e2m1, group = 16, scale = e4m3>
// CHECK-SAME: !quantized.tensor<4x256xi4, table = iq1, group = 16, scale = i8>
// CHECK-SAME: !quantized.tensor<4x256xi4, table = iq2, group = 16, scale = i8>
// CHECK-SAME: !quantized.tensor<4x256xi4, table = iq3_xxs, group = 32, scale = i8>
// CHECK-SAME: !quantized.tensor<4x256xi4, table = iq3_s, group = 32, scale = i8>
// CHECK-SAME: !quantized.tensor<4x256xi8, group = 256, scale = f32>
// CHECK-SAME: !quantized.tensor<4x256xf8E4M3FN, group = 128, scale = bf16>
// CHECK-SAME: !quantized.tensor<4x256xf8E4M3FN, group = channel, scale = f32, layout = lanes>
// CHECK-SAME: !quantized.tensor<4x256xui2, group = 16, scale = u4, offset = field>
func.func private @encodings(!quantized.tensor<4x256xui4, group = 32, scale = u6, offset = field, layout = blocks>,
                             !quantized.tensor<4x256xi6, group = 16, scale = i8, layout = lanes>,
                             !quantized.tensor<4x256xui5, offset = f16, group = 32, scale = f16>,
                             !quantized.tensor<4x256xi4, table = iq4_nl, group = 32>,
                             !quantized.tensor<4x256xi4, table = e2m1, group = 16, scale = e4m3>,
                             !quantized.tensor<4x256xi4, table = iq1, group = 16, scale = i8>,
                             !quantized.tensor<4x256xi4, table = iq2, group = 16, scale = i8>,
                             !quantized.tensor<4x256xi4, table = iq3_xxs, group = 32, scale = i8>,
                             !quantized.tensor<4x256xi4, table = iq3_s, group = 32, scale = i8>,
                             !quantized.tensor<4x256xi8, group = 256, scale = f32>,
                             !quantized.tensor<4x256xf8E4M3FN, group = 128, scale = bf16>,
                             !quantized.tensor<4x256xf8E4M3FN, scale = f32, layout = lanes>,
                             !quantized.tensor<4x256xui2, group = 16, scale = u4, offset = field>)

// CHECK-LABEL: func.func private @attributes
// CHECK-SAME: #quantized.encoding<f16>, #quantized.encoding<i8, group = channel>, #quantized.encoding<i4, group = 64, zero_point>
// CHECK-SAME: #quantized.layout<lanes>, #quantized.layout<mma, columns = 256>
// CHECK-SAME: #quantized.row_order<natural(2)>, #quantized.row_order<pairs(0, 64)>, #quantized.row_order<zip(0, 1)>
func.func private @attributes() attributes {
  sluice.all = [#quantized.encoding<f16>, #quantized.encoding<i8, group = channel>, #quantized.encoding<i4, group = 64, zero_point>,
                #quantized.layout<lanes>, #quantized.layout<mma, columns = 256>,
                #quantized.row_order<natural(2)>, #quantized.row_order<pairs(0, 64)>, #quantized.row_order<zip(0, 1)>]}

// CHECK-LABEL: func.func @conversions
func.func @conversions(%w: tensor<4x256xbf16>) -> tensor<4x256xf32> {
  // CHECK: quantized.quantize %{{.*}} : tensor<4x256xbf16> to !quantized.tensor<4x256xi8, group = 128>
  %q = quantized.quantize %w : tensor<4x256xbf16> to !quantized.tensor<4x256xi8, group = 128>
  // CHECK: quantized.dequantize %{{.*}} : !quantized.tensor<4x256xi8, group = 128> to tensor<4x256xf32>
  %d = quantized.dequantize %q : !quantized.tensor<4x256xi8, group = 128> to tensor<4x256xf32>
  return %d : tensor<4x256xf32>
}
