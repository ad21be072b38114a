// RUN: sluice-opt --canonicalize %s | FileCheck %s

// CHECK-LABEL: func.func @same_format
func.func @same_format(%q: !quantized.tensor<4x256xi8, group = 32>) -> !quantized.tensor<4x256xi8, group = 32> {
  // CHECK-NEXT: return %arg0
  %d = quantized.dequantize %q : !quantized.tensor<4x256xi8, group = 32> to tensor<4x256xf32>
  %r = quantized.quantize %d : tensor<4x256xf32> to !quantized.tensor<4x256xi8, group = 32>
  return %r : !quantized.tensor<4x256xi8, group = 32>
}

// Rounding to another format changes the numbers.
// CHECK-LABEL: func.func @other_format
func.func @other_format(%q: !quantized.tensor<4x256xi8, group = 32>) -> !quantized.tensor<4x256xi8, group = 64> {
  // CHECK: quantized.dequantize
  // CHECK: quantized.quantize
  %d = quantized.dequantize %q : !quantized.tensor<4x256xi8, group = 32> to tensor<4x256xf32>
  %r = quantized.quantize %d : tensor<4x256xf32> to !quantized.tensor<4x256xi8, group = 64>
  return %r : !quantized.tensor<4x256xi8, group = 64>
}

// So does a stop in half precision on the way.
// CHECK-LABEL: func.func @through_f16
func.func @through_f16(%q: !quantized.tensor<4x256xi8, group = 32>) -> !quantized.tensor<4x256xi8, group = 32> {
  // CHECK: quantized.dequantize
  // CHECK: quantized.quantize
  %d = quantized.dequantize %q : !quantized.tensor<4x256xi8, group = 32> to tensor<4x256xf16>
  %r = quantized.quantize %d : tensor<4x256xf16> to !quantized.tensor<4x256xi8, group = 32>
  return %r : !quantized.tensor<4x256xi8, group = 32>
}

// Quantizing is not undone: what it lost is lost.
// CHECK-LABEL: func.func @round
func.func @round(%w: tensor<4x256xf32>) -> tensor<4x256xf32> {
  // CHECK: quantized.quantize
  // CHECK: quantized.dequantize
  %q = quantized.quantize %w : tensor<4x256xf32> to !quantized.tensor<4x256xi8, group = 32>
  %d = quantized.dequantize %q : !quantized.tensor<4x256xi8, group = 32> to tensor<4x256xf32>
  return %d : tensor<4x256xf32>
}
