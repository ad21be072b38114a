// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Artifact.h"

#include "runtime/plan/Json.h"

#include <algorithm>

using namespace sluice::runtime;

/// Bits of an element of a safetensors data type.
static int64_t elementBits(const JsonValue &value) {
  static const std::map<std::string, int64_t> sizes = {
      {"BOOL", 8}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
      {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
      {"U32", 32}, {"F32", 32}, {"F64", 64}, {"I64", 64},    {"U64", 64}};
  auto found = sizes.find(value.string(64));
  if (found == sizes.end())
    value.fail("a data type of safetensors");
  return found->second;
}

std::map<std::string, TensorView, std::less<>>
sluice::runtime::readSafetensors(std::span<const std::byte> bytes, const std::string &name) {
  constexpr uint64_t prefix = 8, maxHeader = 100'000'000;
  if (bytes.size() < prefix)
    throw Error(name + ": has " + std::to_string(bytes.size()) +
                " bytes, expected a safetensors file of at least 8");
  uint64_t headerSize = 0;
  for (int i = 7; i >= 0; --i)
    headerSize = headerSize << 8 | std::to_integer<uint64_t>(bytes[i]);
  if (headerSize > maxHeader || headerSize > bytes.size() - prefix)
    throw Error(name + ": header length is " + std::to_string(headerSize) + ", expected at most " +
                std::to_string(std::min<uint64_t>(maxHeader, bytes.size() - prefix)));
  nlohmann::json header = parseJson(
      {reinterpret_cast<const char *>(bytes.data()) + prefix, headerSize}, name + ": header", 4);
  std::span<const std::byte> data = bytes.subspan(prefix + headerSize);

  const std::string where = name + ": header";
  std::map<std::string, TensorView, std::less<>> tensors;
  JsonValue(header, where).forEachMember([&](const std::string &key, const JsonValue &value) {
    if (key == "__metadata__")
      return;
    TensorView tensor;
    tensor.type = value.at("dtype").string(64);
    int64_t bits = elementBits(value.at("dtype"));
    JsonValue shape = value.at("shape");
    shape.requireArray(16);
    int64_t elements = 1;
    constexpr int64_t limit = int64_t(1) << 48;
    for (size_t i = 0; i < shape.size(); ++i) {
      int64_t extent = shape[i].integer(0, limit);
      if (extent && elements > limit / extent)
        shape.failWith("has more than 2^48 elements");
      elements *= extent;
      tensor.shape.push_back(extent);
    }
    JsonValue offsets = value.at("data_offsets");
    offsets.requireArray(2);
    if (offsets.size() != 2)
      offsets.failWith("has " + std::to_string(offsets.size()) + " elements, expected 2");
    int64_t begin = offsets[0].integer(0, static_cast<int64_t>(data.size()));
    int64_t end = offsets[1].integer(begin, static_cast<int64_t>(data.size()));
    if (end - begin != elements * bits / 8)
      value.failWith("has " + std::to_string(end - begin) + " bytes, expected " +
                     std::to_string(elements * bits / 8) + " for its shape");
    tensor.data = data.subspan(begin, end - begin);
    tensors.emplace(key, std::move(tensor));
  });

  std::vector<std::pair<std::span<const std::byte>, const std::string *>> order;
  for (const auto &[key, tensor] : tensors)
    if (!tensor.data.empty())
      order.emplace_back(tensor.data, &key);
  std::sort(order.begin(), order.end(),
            [](const auto &a, const auto &b) { return a.first.data() < b.first.data(); });
  for (size_t i = 1; i < order.size(); ++i)
    if (order[i - 1].first.data() + order[i - 1].first.size() > order[i].first.data())
      throw Error(where + ": tensors \"" + printable(*order[i - 1].second) + "\" and \"" +
                  printable(*order[i].second) + "\" overlap");
  return tensors;
}
