// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Schemes of quantized Hugging Face checkpoints: in which tensors a matrix of N rows (outputs) and
// K columns (inputs) lies. G is the number of groups of a row; b the bits of an element.
//
// clang-format off
//
//   scheme          tensor               type          shape                  what it is
//   gptq, gptq_v2   qweight              I32           [K b / 32, N]          q + 2^(b-1), 32 / b rows of an int32, the first at its low end
//                   scales               F16 BF16 F32  [G, N]
//                   qzeros               I32           [G, N b / 32]          zero + 2^(b-1) (gptq: less 1, modulo 2^b), 32 / b columns of an int32
//                   g_idx                I32           [K]                    optional: the group of a column
//   awq             qweight              I32           [K, N b / 32]          q + 2^(b-1), 32 / b rows of an int32: 0, 2, 4, 6, 1, 3, 5, 7 (8 bits: 0, 2, 1, 3) from its low end
//                   scales               F16 BF16 F32  [G, N]
//                   qzeros               I32           [G, N b / 32]          zero + 2^(b-1), likewise
//   awq-gemv        qweight              I32           [N, K / 8]             q + 8, 8 columns of an int32, the first at its low end
//                   scales               F16 BF16 F32  [N, 8 W]               the first G of a row; W is G / 8, in groups of 64 made even, of 32 a multiple of 4
//                   qzeros               I32           [N, W]                 zero + 8, 8 groups of an int32, the first at its low end
//   pack-quantized  weight_packed        I32           [N, K b / 32]          q + 2^(b-1), 32 / b columns of an int32, the first at its low end
//                   weight_scale         F16 BF16 F32  [N, G] or [1]
//                   weight_zero_point    I32, I8       [N b / 32, G], [N, G]  optional: zero + 2^(b-1), packed by rows; or zero
//                   weight_g_idx         I32           [K]                    optional: the group of a column
//   int-quantized   weight               I8            [N, K]                 q
//                   weight_scale         F16 BF16 F32  [N, G], [N] or [1]
//                   weight_zero_point    I8            [N, G]                 optional: zero
//   fp8             weight               F8_E4M3       [N, K]                 the number
//                   weight_scale_inv or  F16 BF16 F32  [1], [N], [N, 1] or    of the matrix, of a row or of 128 x 128 elements
//                   weight_scale                       [N / 128, K / 128]
//   nvfp4           weight_packed        U8            [N, K / 2]             FP4 (E2M1), the first of two columns in the low half
//                   weight_scale         F8_E4M3       [N, K / 16]
//                   weight_global_scale  F32           [1]                    divides all values (a scheme of its own: inverse-factor)
//   mxfp4           weight_packed        U8            [N, K / 2]             FP4 (E2M1), the first of two columns in the low half
//                   weight_scale         U8            [N, K / 32]            the power of two, plus 127
//   mxfp4-blocks    weight_blocks        U8            [N, K / 32, 16]        the same
//                   weight_scales        U8            [N, K / 32]
//
// clang-format on
//
// value = (q - zero) * scale. Divisions of shapes round up. Definitions: AutoGPTQ's
// qlinear_cuda_old.py and GPTQModel (gptq, gptq_v2); AutoAWQ's WQLinear_GEMM and WQLinear_GEMV, of
// 8 bits vLLM's awq_marlin (awq, awq-gemv); compressed-tensors (pack-quantized, int-quantized,
// nvfp4 and mxfp4, which it calls nvfp4-pack-quantized and mxfp4-pack-quantized); transformers'
// FP8Linear (fp8) and convert_moe_packed_tensors (mxfp4-blocks).

#ifndef SLUICE_IMPORT_CHECKPOINTSCHEME_H
#define SLUICE_IMPORT_CHECKPOINTSCHEME_H

#include "sluice-support/Json.h"
#include "sluice/Import/StorageType.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <cstdint>
#include <optional>

namespace sluice {

enum class CheckpointScheme : uint8_t {
  Gptq,
  GptqV2,
  Awq,
  AwqGemv,
  PackQuantized,
  IntQuantized,
  Fp8,
  Nvfp4,
  Mxfp4,
  Mxfp4Blocks,
  /// Of a vector: every element is 1 / a number of the file.
  InverseFactor,
  /// Of a vector: the columns sorted by their groups, each group's in their order.
  ColumnOrder,
};

/// Whether a scheme is of vectors, not of matrices.
inline bool isVectorScheme(CheckpointScheme scheme) {
  return scheme == CheckpointScheme::InverseFactor || scheme == CheckpointScheme::ColumnOrder;
}

/// What a tensor beside the elements holds.
enum class PartRole : uint8_t { Scales, Zeros, Groups };

/// "gptq", as in the table above.
llvm::StringRef schemeName(CheckpointScheme scheme);
std::optional<CheckpointScheme> schemeFromName(llvm::StringRef name);
/// "scales", "zeros", "groups".
llvm::StringRef roleName(PartRole role);
std::optional<PartRole> roleFromName(llvm::StringRef name);

/// A tensor of a scheme, by what follows the module's name and a dot.
struct PartInfo {
  PartRole role;
  llvm::StringLiteral suffix;
  bool isOptional = false;
  /// Another name that files have for it, or "".
  llvm::StringLiteral other = "";
};

struct SchemeInfo {
  CheckpointScheme scheme;
  llvm::StringLiteral name;
  /// Of the tensor with the elements.
  llvm::StringLiteral elements;
  llvm::ArrayRef<PartInfo> parts;
  /// Tensors that say nothing which the other ones do not (or are about inputs).
  llvm::ArrayRef<llvm::StringLiteral> passedOver;
  /// A tensor with one number, by which all values are divided; "" if there is none.
  llvm::StringLiteral divisor = "";
};

const SchemeInfo &schemeInfo(CheckpointScheme scheme);

/// What the tensor with the elements of a matrix may be.
struct ElementForm {
  unsigned bits;
  StorageType type;
  llvm::SmallVector<int64_t, 4> shape;
};
/// One for each number of bits that the scheme has; no two have equally many bytes.
llvm::SmallVector<ElementForm, 2> elementForms(CheckpointScheme scheme, int64_t rows,
                                               int64_t columns);

/// A config.json's `quantization_config`: what it says about the tensors.
struct QuantizationConfig {
  /// The schemes that the matrices may have; which one a matrix has, its tensors say. None is for
  /// all: embeddings, heads and what the config excepts are plain floats.
  llvm::SmallVector<CheckpointScheme, 4> schemes;
  /// Bits of an element and columns of a group (0: a whole row), where the config says so for all.
  std::optional<int64_t> bits, group;

  /// Throws support::Error, one line, on a method, version, number of bits or group that is not
  /// supported.
  static QuantizationConfig read(const support::JsonField &field);
};

} // namespace sluice

#endif // SLUICE_IMPORT_CHECKPOINTSCHEME_H
