// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/CacheEncoding.h"

#include "llvm/ADT/StringSwitch.h"
#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/MathExtras.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

using namespace llvm;
using namespace sluice::formats;
using Element = CacheEncoding::Element;

unsigned CacheEncoding::bits() const {
  switch (element) {
  case Element::F32:
    return 32;
  case Element::F16:
  case Element::BF16:
    return 16;
  case Element::I8:
  case Element::E4M3:
    return 8;
  case Element::I4:
    return 4;
  }
  llvm_unreachable("not an element type");
}

int64_t CacheEncoding::groups(int64_t dim) const {
  return isInteger() ? divideCeil(dim, groupElements(dim)) : 0;
}

int64_t CacheEncoding::bytesPerVector(int64_t dim) const {
  return divideCeil(dim * bits(), 8) + 2 * groups(dim);
}

std::string CacheEncoding::name() const {
  switch (element) {
  case Element::F32:
    return "f32";
  case Element::F16:
    return "f16";
  case Element::BF16:
    return "bf16";
  case Element::E4M3:
    return "fp8";
  case Element::I8:
  case Element::I4:
    break;
  }
  std::string text = element == Element::I8 ? "int8" : "int4";
  if (group != head)
    text += "-h" + std::to_string(group);
  return text;
}

std::optional<CacheEncoding> CacheEncoding::fromName(StringRef name) {
  int64_t group = head;
  if (name.consume_back("-h64"))
    group = 64;
  else if (name.consume_back("-h32"))
    group = 32;
  auto element = StringSwitch<std::optional<Element>>(name)
                     .Case("f32", Element::F32)
                     .Case("f16", Element::F16)
                     .Case("bf16", Element::BF16)
                     .Case("fp8", Element::E4M3)
                     .Case("int8", Element::I8)
                     .Case("int4", Element::I4)
                     .Default(std::nullopt);
  if (!element)
    return std::nullopt;
  CacheEncoding encoding{*element, group};
  if (group != head && !encoding.isInteger())
    return std::nullopt;
  return encoding;
}

void sluice::formats::quantizeCacheVector(CacheEncoding encoding, ArrayRef<float> x,
                                          MutableArrayRef<int8_t> codes,
                                          MutableArrayRef<uint16_t> scales) {
  assert(encoding.isInteger() && codes.size() == x.size());
  int64_t dim = static_cast<int64_t>(x.size()), group = encoding.groupElements(dim);
  assert(scales.size() == static_cast<size_t>(encoding.groups(dim)));
  auto codeMax = static_cast<float>(encoding.codeMax());
  auto codeMin = static_cast<float>(encoding.codeMin());
  for (int64_t begin = 0, g = 0; begin < dim; begin += group, ++g) {
    ArrayRef<float> part = x.slice(begin, std::min(group, dim - begin));
    float positive = 0, negative = 0;
    bool finite = true;
    for (float value : part) {
      positive = std::max(positive, value);
      negative = std::max(negative, -value);
      finite &= std::isfinite(value);
    }
    float magnitude = std::max(std::max(positive, negative) / -codeMin, cacheScaleFloor);
    bool isNegative = encoding.hasSignedScale() && positive > negative;
    uint16_t scale = floatToF16(isNegative ? -magnitude : magnitude);
    finite &= std::isfinite(f16ToFloat(scale));
    scales[g] = finite ? scale : floatToF16(std::numeric_limits<float>::quiet_NaN());
    float inverse = finite ? 1.0f / f16ToFloat(scale) : 0.0f;
    for (auto [i, value] : enumerate(part)) {
      float scaled = finite ? std::nearbyint(value * inverse) : 0.0f;
      codes[begin + i] = static_cast<int8_t>(std::clamp(scaled, codeMin, codeMax));
    }
  }
}

float sluice::formats::roundToCacheElement(Element element, float x) {
  switch (element) {
  case Element::F32:
    return x;
  case Element::F16:
    return roundToF16(x);
  case Element::BF16:
    return roundToBf16(x);
  case Element::E4M3:
    return e4m3ToFloat(floatToE4M3(x));
  case Element::I8:
  case Element::I4:
    break;
  }
  llvm_unreachable("not a float element");
}

void sluice::formats::roundCacheVector(CacheEncoding encoding, ArrayRef<float> x,
                                       MutableArrayRef<float> rounded) {
  assert(rounded.size() == x.size());
  if (!encoding.isInteger()) {
    for (auto [from, to] : zip_equal(x, rounded))
      to = roundToCacheElement(encoding.element, from);
    return;
  }
  int64_t dim = static_cast<int64_t>(x.size()), group = encoding.groupElements(dim);
  SmallVector<int8_t, 256> codes(dim);
  SmallVector<uint16_t, 8> scales(encoding.groups(dim));
  quantizeCacheVector(encoding, x, codes, scales);
  for (int64_t i = 0; i < dim; ++i)
    rounded[i] = static_cast<float>(codes[i]) * f16ToFloat(scales[i / group]);
}
