// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Format.h"

#include "llvm/Support/ErrorHandling.h"

#include <cassert>

using namespace llvm;
using namespace sluice::formats;

unsigned Format::bits() const {
  switch (element) {
  case Element::F32:
    return 32;
  case Element::F16:
  case Element::BF16:
    return 16;
  case Element::I8:
    return 8;
  case Element::I4:
    return 4;
  }
  llvm_unreachable("not an element type");
}

int64_t Format::groupsPerRow(int64_t columns) const {
  if (!isInteger())
    return 0;
  return group == channel ? 1 : (columns + group - 1) / group;
}

int64_t Format::bytesPerRow(int64_t columns) const {
  return (columns * bits() + 7) / 8 + groupsPerRow(columns) * (zeroPoint ? 3 : 2);
}

std::string Format::name() const {
  switch (element) {
  case Element::F32:
    return "f32";
  case Element::F16:
    return "f16";
  case Element::BF16:
    return "bf16";
  case Element::I8:
  case Element::I4:
    break;
  }
  std::string text = element == Element::I8 ? "int8-" : "int4-";
  text += group == channel ? std::string("channel") : "g" + std::to_string(group);
  if (zeroPoint)
    text += "-zp";
  return text;
}

std::optional<Format> Format::fromName(StringRef name) {
  if (name == "f32")
    return Format{Element::F32};
  if (name == "f16")
    return Format{Element::F16};
  if (name == "bf16")
    return Format{Element::BF16};
  Format format;
  if (name.consume_front("int8-"))
    format.element = Element::I8;
  else if (name.consume_front("int4-"))
    format.element = Element::I4;
  else
    return std::nullopt;
  format.zeroPoint = name.consume_back("-zp");
  if (name == "channel")
    return format;
  for (int64_t group : {32, 64, 128, 256})
    if (name == "g" + std::to_string(group)) {
      format.group = group;
      return format;
    }
  return std::nullopt;
}

/// The conversion is a template argument so that the loop is vectorised.
template <auto convert, typename From, typename To>
static void convertAll(ArrayRef<From> from, MutableArrayRef<To> to) {
  assert(from.size() == to.size() && "arrays of the same length");
  const From *source = from.data();
  To *target = to.data();
  for (size_t i = 0, n = from.size(); i < n; ++i)
    target[i] = convert(source[i]);
}

void sluice::formats::f16ToFloat(ArrayRef<uint16_t> bits, MutableArrayRef<float> values) {
  convertAll<support::f16ToFloat>(bits, values);
}

void sluice::formats::floatToF16(ArrayRef<float> values, MutableArrayRef<uint16_t> bits) {
  convertAll<support::floatToF16>(values, bits);
}

void sluice::formats::bf16ToFloat(ArrayRef<uint16_t> bits, MutableArrayRef<float> values) {
  convertAll<support::bf16ToFloat>(bits, values);
}

void sluice::formats::floatToBf16(ArrayRef<float> values, MutableArrayRef<uint16_t> bits) {
  convertAll<support::floatToBf16>(values, bits);
}
