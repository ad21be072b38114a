// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How keys and values are stored in a cache, and what attention over them computes.
//
// A cache holds, for every sequence, key/value head and position, a vector of `dim` numbers. An
// encoding says how such a vector is stored; `CacheLayout` says where its bytes lie. Rounding,
// kernels of all devices, the reference evaluator and the tests share the definitions of this file.

#ifndef SLUICE_FORMATS_CACHEENCODING_H
#define SLUICE_FORMATS_CACHEENCODING_H

#include "sluice/Formats/Encoding.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

namespace sluice::formats {

/// The number format of a cache.
///
/// With an integer element, `value = code * scale`: the code is a signed integer (int8: -127..127,
/// int4: -8..7), the scale an f16 for every `group` consecutive elements of a vector (the last
/// group may be shorter), which for int4 may be negative. With a float element `value = code`; f32
/// is for the reference evaluator, no kernel reads it.
struct CacheEncoding {
  enum class Element : uint8_t { F32, F16, BF16, I8, I4, E4M3 };

  /// The group of a scale that spans a head's whole vector.
  static constexpr int64_t head = 0;

  Element element = Element::F16;
  int64_t group = head; ///< head, 64 or 32; head for a float element

  bool operator==(const CacheEncoding &) const = default;

  bool isInteger() const { return element == Element::I8 || element == Element::I4; }
  /// Bits of a code.
  unsigned bits() const;
  /// Greatest and least code; integer elements only.
  int codeMax() const { return element == Element::I8 ? 127 : 7; }
  int codeMin() const { return element == Element::I8 ? -127 : -8; }
  /// Whether a group's element of greatest magnitude gets the least code, whatever its sign, and
  /// the scale the sign that this takes: of 16 codes none is left unused.
  bool hasSignedScale() const { return element == Element::I4; }
  /// Elements that share a scale in a vector of `dim`; integer elements only.
  int64_t groupElements(int64_t dim) const { return group == head ? dim : group; }
  /// Scales of a vector of `dim` elements; 0 for a float element.
  int64_t groups(int64_t dim) const;
  /// Bytes that a reader of one vector has to move: codes and scales, without padding.
  int64_t bytesPerVector(int64_t dim) const;

  /// "f32", "f16", "bf16", "int8", "int8-h64", "int8-h32", "int4", "int4-h64", "int4-h32", "fp8".
  std::string name() const;
  /// Parses such a name; nothing if it is not one.
  static std::optional<CacheEncoding> fromName(llvm::StringRef name);
};

/// The least scale. Kernels take logarithms of scales, so that 0 is none of them; and a group whose
/// magnitudes stay below this times half a code is one of zeros in any format of 16 bits.
inline constexpr float cacheScaleFloor = 0x1p-14f;

/// Rounds a vector to an integer encoding:
///
///   int8: scale = f16(max(max|x| / 127, 2^-14))
///   int4: the same with 8 for 127, and negative if max(x) > max(-x), as in GGUF's Q4_0
///   code = round to nearest even (x * (1 / scale)), clamped to codeMin..codeMax
///
/// all in float32. The sign saves a quarter of int4's squared error (docs/numerics.md).
/// A group with a NaN or an infinity, or whose scale is beyond f16, gets codes of 0 and a scale of
/// NaN, so that every result that it enters is NaN. `codes` has x.size() entries, `scales`
/// encoding.groups(x.size()).
void quantizeCacheVector(CacheEncoding encoding, llvm::ArrayRef<float> x,
                         llvm::MutableArrayRef<int8_t> codes,
                         llvm::MutableArrayRef<uint16_t> scales);

/// The nearest value of a float encoding (ties to even; E4M3 saturates at 448 and keeps NaN).
float roundToCacheElement(CacheEncoding::Element element, float x);

/// What is read back: the vector that attention computes with, `x` as stored and dequantized.
void roundCacheVector(CacheEncoding encoding, llvm::ArrayRef<float> x,
                      llvm::MutableArrayRef<float> rounded);

/// Positions whose softmax weights share a scale in attention over integer values; a block starts
/// at a multiple of it (docs/numerics.md, "Attention").
inline constexpr int64_t cacheBlock = 64;

/// An upper bound of log2(scale / 32512), at most 0.0863 above it, that every device computes
/// alike: a float's bits are a piecewise linear logarithm. `scale` is a positive magnitude.
inline constexpr float cacheScaleExponentOffset = -141.9024f;
inline float cacheScaleExponent(float scale) {
  return std::fma(static_cast<float>(std::bit_cast<int32_t>(scale)), 0x1p-23f,
                  cacheScaleExponentOffset);
}

} // namespace sluice::formats

#endif // SLUICE_FORMATS_CACHEENCODING_H
