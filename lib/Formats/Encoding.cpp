// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/Encoding.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/ErrorHandling.h"

#include <algorithm>
#include <bit>
#include <cassert>

using namespace llvm;
using namespace sluice::formats;

using Code = Encoding::Code;
using Element = Encoding::Element;
using Offset = Encoding::Offset;
using Scale = Encoding::Scale;

namespace {
struct ElementInfo {
  Element element;
  Code code;
  unsigned bits;
  /// How names of encodings begin.
  StringLiteral name;
};
} // namespace

static constexpr ElementInfo elementTable[] = {
    {Element::F32, Code::Float, 32, "f32"},      {Element::F16, Code::Float, 16, "f16"},
    {Element::BF16, Code::Float, 16, "bf16"},    {Element::I8, Code::Signed, 8, "int8"},
    {Element::I4, Code::Signed, 4, "int4"},      {Element::I6, Code::Signed, 6, "int6"},
    {Element::I5, Code::Signed, 5, "int5"},      {Element::I3, Code::Signed, 3, "int3"},
    {Element::U5, Code::Unsigned, 5, "uint5"},   {Element::U4, Code::Unsigned, 4, "uint4"},
    {Element::U2, Code::Unsigned, 2, "uint2"},   {Element::IQ4NL, Code::Table, 4, "iq4"},
    {Element::E2M1, Code::Table, 4, "e2m1"},     {Element::E4M3, Code::Float, 8, "fp8"},
    {Element::IQ1, Code::Table, 4, "iq1"},       {Element::IQ2, Code::Table, 4, "iq2"},
    {Element::IQ3XXS, Code::Table, 4, "iq3xxs"}, {Element::IQ3S, Code::Table, 4, "iq3s"},
};

static const ElementInfo &info(Element element) {
  const ElementInfo &found = elementTable[static_cast<size_t>(element)];
  assert(found.element == element && "the table is in the order of the enumeration");
  return found;
}

/// Encodings that are in no series of all(), most of which GGUF has a shorter name for than the
/// general rule.
static constexpr std::pair<StringLiteral, Encoding> namedEncodings[] = {
    {"q4_1", {Element::U4, 32, Offset::F16}},
    {"q5_0", {Element::I5, 32}},
    {"q5_1", {Element::U5, 32, Offset::F16}},
    {"q2_k", {Element::U2, 16, Offset::Field, Scale::U4}},
    {"q3_k", {Element::I3, 16, Offset::None, Scale::I8}},
    {"q4_k", {Element::U4, 32, Offset::Field, Scale::U6}},
    {"q5_k", {Element::U5, 32, Offset::Field, Scale::U6}},
    {"q6_k", {Element::I6, 16, Offset::None, Scale::I8}},
    {"iq4_nl", {Element::IQ4NL, 32}},
    {"iq4_xs", {Element::IQ4NL, 32, Offset::None, Scale::I8}},
    {"mxfp4", {Element::E2M1, 32, Offset::None, Scale::E8M0}},
    {"nvfp4", {Element::E2M1, 16, Offset::None, Scale::E4M3}},
    // What GGUF's types of these elements are re-packed to.
    {"iq1-g16-n8", {Element::IQ1, 16, Offset::None, Scale::I8}},
    {"iq1-g32-n8", {Element::IQ1, 32, Offset::None, Scale::I8}},
    {"iq2-g16-n8", {Element::IQ2, 16, Offset::None, Scale::I8}},
    {"iq2-g32-n8", {Element::IQ2, 32, Offset::None, Scale::I8}},
    {"iq3xxs-g32-n8", {Element::IQ3XXS, 32, Offset::None, Scale::I8}},
    {"iq3s-g32-n8", {Element::IQ3S, 32, Offset::None, Scale::I8}},
};

unsigned Encoding::bits() const { return info(element).bits; }

Encoding::Code Encoding::code() const { return info(element).code; }

std::string Encoding::problem() const {
  if (!isScaled()) {
    if (group != channel || offset != Offset::None || scale != Scale::F16)
      return "a float format has neither groups nor zero points";
    return "";
  }
  if (group != channel && group != 16 && group != 32 && group != 64 && group != 128 && group != 256)
    return "group is " + std::to_string(group) + ", expected 16, 32, 64, 128, 256 or channel";
  if (!isInteger() && (group == 16 || offset != Offset::None))
    return "fp8 has groups of 32 or more, and neither zero points nor offsets";
  if (!isInteger() && scale != Scale::BF16 && scale != Scale::F32)
    return "fp8 has scales of bf16 or f32";
  if (isInteger() && (scale == Scale::BF16 || (scale == Scale::F32 && !isPlainInteger())))
    return "scales of bf16 belong to fp8, of f32 to fp8, int8 and int4 in groups of 32 or more";
  if (hasZeroPoint() && code() != Code::Signed)
    return "only signed elements have zero points";
  if (hasFields() != (offset == Offset::Field))
    return "scales that are fields come with offsets that are fields";
  if (hasFields() && group != 16 && group != 32)
    return "scales that are fields belong to groups of 16 or 32";
  if (superNumbers() && group == channel)
    return "scales of a super-block belong to groups of 256 or fewer";
  if (superUnit() != 1 && scale != Scale::I8)
    return "elements of this table have scales of a byte and a super-block";
  return "";
}

ArrayRef<int8_t> Encoding::table() const {
  static constexpr int8_t nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};
  static constexpr int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  // Eight times -1, 0 and 1, plus 1 and less 1.
  static constexpr int8_t iq1[16] = {-7, 1, 9, 0, 0, 0, 0, 0, -9, -1, 7};
  static constexpr int8_t iq2[16] = {8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43};
  static constexpr int8_t iq3xxs[16] = {4,  12,  20,  28,  36,  44,  52,  62,
                                        -4, -12, -20, -28, -36, -44, -52, -62};
  static constexpr int8_t iq3s[16] = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15};
  switch (element) {
  case Element::IQ4NL:
    return nl;
  case Element::E2M1:
    return fp4;
  case Element::IQ1:
    return iq1;
  case Element::IQ2:
    return iq2;
  case Element::IQ3XXS:
    return iq3xxs;
  case Element::IQ3S:
    return iq3s;
  default:
    llvm_unreachable("no table");
  }
}

ArrayRef<Encoding::Plane> Encoding::planes() const {
  static constexpr Plane two[] = {{2, 0}}, three[] = {{2, 0}, {1, 2}}, four[] = {{4, 0}},
                         five[] = {{4, 0}, {1, 4}}, six[] = {{4, 0}, {2, 4}}, eight[] = {{8, 0}};
  switch (bits()) {
  case 2:
    return two;
  case 3:
    return three;
  case 4:
    return four;
  case 5:
    return five;
  case 6:
    return six;
  case 8:
    return eight;
  }
  llvm_unreachable("floats have no planes");
}

unsigned Encoding::scaleBits() const {
  if (!isScaled())
    return 0;
  switch (scale) {
  case Scale::F32:
    return 32;
  case Scale::F16:
  case Scale::BF16:
    return 16;
  case Scale::I8:
  case Scale::E8M0:
  case Scale::E4M3:
    return 8;
  case Scale::U6:
    return 6;
  case Scale::U4:
    return 4;
  }
  llvm_unreachable("not a scale");
}

unsigned Encoding::offsetBits() const {
  switch (offset) {
  case Offset::None:
    return 0;
  case Offset::ZeroPoint:
    return 8;
  case Offset::F16:
    return 16;
  case Offset::Field:
    return scaleBits();
  }
  llvm_unreachable("not an offset");
}

float Encoding::superUnit() const {
  switch (element) {
  case Element::IQ1:
  case Element::IQ2:
    return 0.125f;
  case Element::IQ3XXS:
    return 0.25f;
  default:
    return 1;
  }
}

float Encoding::scaleOf(uint32_t code, uint16_t super) const {
  switch (scale) {
  case Scale::F16:
    return f16ToFloat(static_cast<uint16_t>(code));
  case Scale::BF16:
    return bf16ToFloat(static_cast<uint16_t>(code));
  case Scale::F32:
    return std::bit_cast<float>(code);
  case Scale::I8:
    return f16ToFloat(super) * superUnit() * static_cast<float>(static_cast<int8_t>(code));
  case Scale::U6:
  case Scale::U4:
    return f16ToFloat(super) * static_cast<float>(code);
  case Scale::E8M0:
    // Exponents 0 and 1 give subnormal numbers.
    return std::bit_cast<float>(code < 2 ? 0x00200000u << code : (code - 1) << 23);
  case Scale::E4M3:
    // As e4m3ToFloat, but without NaN: every code is a number, as kernels read it.
    return f16ToFloat(static_cast<uint16_t>(code << 7)) * 128.0f;
  }
  llvm_unreachable("not a scale");
}

float Encoding::offsetOf(uint16_t code, uint16_t super) const {
  if (offset == Offset::F16)
    return f16ToFloat(code);
  return offset == Offset::Field ? -(f16ToFloat(super) * static_cast<float>(code)) : 0.0f;
}

int64_t Encoding::groupsPerRow(int64_t columns) const {
  if (!isScaled())
    return 0;
  return group == channel ? 1 : (columns + group - 1) / group;
}

int64_t Encoding::scaleBytesPerRow(int64_t columns) const {
  return (groupsPerRow(columns) * (scaleBits() + offsetBits()) + 7) / 8 +
         supersPerRow(columns) * superNumbers() * 2;
}

/// The name by the general rule, also of what GGUF has a name for.
static std::string generalName(const Encoding &encoding) {
  std::string text = info(encoding.element).name.str();
  if (!encoding.isScaled())
    return text;
  text += encoding.group == Encoding::channel ? std::string("-channel")
                                              : "-g" + std::to_string(encoding.group);
  // What goes without saying is f16 for integers and bf16 for FP8, whose scales are smaller.
  static constexpr StringLiteral scales[] = {"", "-n8", "-u6", "-u4", "-e8m0", "-e4m3", "", "-f32"};
  static constexpr StringLiteral offsets[] = {"", "-zp", "-f16", "-field"};
  return text + scales[static_cast<size_t>(encoding.scale)].str() +
         offsets[static_cast<size_t>(encoding.offset)].str();
}

std::string Encoding::name() const {
  for (const auto &[name, encoding] : namedEncodings)
    if (encoding == *this)
      return name.str();
  return generalName(*this);
}

ArrayRef<Encoding> Encoding::all() {
  static const std::vector<Encoding> list = [] {
    std::vector<Encoding> list{{Element::F16}, {Element::BF16}, {Element::F32}};
    for (Element element :
         {Element::I8, Element::I6, Element::I5, Element::I4, Element::I3, Element::IQ4NL}) {
      for (int64_t group :
           {int64_t(16), int64_t(32), int64_t(64), int64_t(128), int64_t(256), channel}) {
        list.push_back({element, group});
        if (list.back().isPlainInteger()) {
          list.push_back({element, group, Offset::ZeroPoint});
          list.push_back({element, group, Offset::None, Scale::F32});
        }
        if (group != channel && group <= 64)
          list.push_back({element, group, Offset::None, Scale::I8});
      }
    }
    for (int64_t group : {int64_t(32), int64_t(64), int64_t(128), int64_t(256), channel})
      for (Scale scale : {Scale::BF16, Scale::F32})
        list.push_back({Element::E4M3, group, Offset::None, scale});
    for (const auto &[name, encoding] : namedEncodings)
      if (!is_contained(list, encoding))
        list.push_back(encoding);
    return list;
  }();
  return list;
}

std::optional<Encoding> Encoding::fromName(StringRef name) {
  for (const auto &[known, encoding] : namedEncodings)
    if (known == name)
      return encoding;
  for (const Encoding &encoding : all())
    if (generalName(encoding) == name)
      return encoding;
  return std::nullopt;
}

uint8_t sluice::formats::floatToE4M3(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7FFFFFFF;
  uint32_t sign = bits >> 24 & 0x80;
  if (magnitude > 0x7F800000)
    return static_cast<uint8_t>(sign | 0x7F);
  magnitude = std::min(magnitude, 0x43E00000u); // 448
  // Below 2^-6 codes are multiples of 2^-9, as the last bit of numbers around 2^14 is.
  if (magnitude < 0x3C800000)
    return static_cast<uint8_t>(
        sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 16384.0f) - 0x46800000));
  // To nearest even at the last of three bits of mantissa; the exponent's bias becomes 7.
  uint32_t rounded = magnitude + 0x7FFFF + (magnitude >> 20 & 1);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120 << 3)));
}

std::string sluice::formats::encodingNames() {
  std::string text =
      "f16, bf16, f32, int3, int4, int5, int6, int8 or iq4 with -g16, -g32, -g64, -g128, -g256 or "
      "-channel and optionally -zp or -f32 (scales; int4 and int8) or -n8 (nested scales, up to "
      "-g64), fp8 with -g32 to -channel and optionally -f32 (scales; else bf16)";
  for (const auto &[name, encoding] : namedEncodings)
    text += (&name == &std::prev(std::end(namedEncodings))->first ? " or " : ", ") + name.str();
  return text;
}

hash_code sluice::formats::hash_value(const Encoding &encoding) {
  return hash_combine(encoding.element, encoding.group, encoding.offset, encoding.scale);
}

EncodedRows::EncodedRows(const Encoding &encoding, int64_t rows, int64_t columns)
    : encoding(encoding), columns(columns) {
  if (!encoding.isScaled())
    return;
  int64_t groups = encoding.groupsPerRow(columns);
  q.resize(rows * columns);
  scales.resize(rows * groups);
  zeros.resize(encoding.hasZeroPoint() ? rows * groups : 0);
  offsets.resize(encoding.hasOffset() ? rows * groups : 0);
  supers.resize(rows * encoding.supersPerRow(columns) * encoding.superNumbers());
}

EncodedRow EncodedRows::row(int64_t index) const {
  auto part = [&](const auto &all, int64_t count) {
    ArrayRef values(all);
    return values.empty() ? values : values.slice(index * count, count);
  };
  int64_t groups = encoding.groupsPerRow(columns);
  return {part(q, columns), part(scales, groups), part(zeros, groups), part(offsets, groups),
          part(supers, encoding.supersPerRow(columns) * encoding.superNumbers())};
}

RowNumbers EncodedRows::numbers(int64_t index) {
  auto part = [&](auto &all, int64_t count) { return all.empty() ? nullptr : &all[index * count]; };
  int64_t groups = encoding.groupsPerRow(columns);
  return {part(q, columns), part(scales, groups), part(zeros, groups), part(offsets, groups),
          part(supers, encoding.supersPerRow(columns) * encoding.superNumbers())};
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
