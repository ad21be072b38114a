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
// CHECK-SAME: !quantized.tensor<4x256xi8, group = 32, layout = q8_0>
// CHECK-SAME: !quantized.tensor<4x256xi4, group = 32, layout = q4_0>
// CHECK-SAME: !quantized.tensor<4x256xf16, layout = lanes>
// CHECK-SAME: !quantized.tensor<4x256xbf16>
// CHECK-SAME: !quantized.tensor<4x256xf32>
func.func private @types(!quantized.tensor<4x256xi8, group = 32, layout = rows>, !quantized.tensor<4x256xi4, group = channel>,
                         !quantized.tensor<4x256xi8, group = 256, zero_point>, !quantized.tensor<4x256xi8, group = 32, layout = q8_0>,
                         !quantized.tensor<4x256xi4, group = 32, layout = q4_0>, !quantized.tensor<4x256xf16, layout = lanes>,
                         !quantized.tensor<4x256xbf16>, !quantized.tensor<4x256xf32>)

// CHECK-LABEL: func.func private @attributes
// CHECK-SAME: #quantized.format<f16>, #quantized.format<i8, group = channel>, #quantized.format<i4, group = 64, zero_point>
// CHECK-SAME: #quantized.layout<lanes>, #quantized.layout<mma, columns = 256>
// CHECK-SAME: #quantized.row_order<natural(2)>, #quantized.row_order<pairs(0, 64)>, #quantized.row_order<zip(0, 1)>
func.func private @attributes() attributes {
  sluice.all = [#quantized.format<f16>, #quantized.format<i8, group = channel>, #quantized.format<i4, group = 64, zero_point>,
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
