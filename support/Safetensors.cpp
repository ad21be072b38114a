// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Safetensors.h"

#include "sluice-support/Json.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <tuple>

using namespace sluice::support;
using nlohmann::json;

static constexpr size_t maxDimensions = 32;
static constexpr uint64_t lengthBytes = 8;

std::optional<uint32_t> sluice::support::safetensorsElementBits(std::string_view dtype) {
  static constexpr std::pair<std::string_view, uint32_t> types[] = {
      {"BOOL", 8}, {"U8", 8},   {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
      {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},    {"U32", 32},
      {"F32", 32}, {"I64", 64}, {"U64", 64}, {"F64", 64}};
  for (const auto &[name, bits] : types)
    if (name == dtype)
      return bits;
  return std::nullopt;
}

/// "[4, 512]".
template <typename T> static std::string listText(const std::vector<T> &numbers) {
  std::string text;
  for (T number : numbers)
    text += (text.empty() ? "" : ", ") + std::to_string(number);
  return "[" + text + "]";
}

/// Bytes of the elements, or nothing when no file could hold them.
static std::optional<uint64_t> denseBytes(uint32_t bits, const std::vector<int64_t> &shape) {
  // A dimension of 0 makes it 0 whatever the others are.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end())
    return 0;
  uint64_t total = bits / 8;
  for (int64_t extent : shape)
    if (__builtin_mul_overflow(total, static_cast<uint64_t>(extent), &total) || total >> 62)
      return std::nullopt;
  return total;
}

static SafetensorsTensor readTensor(const std::string &name, const json &entry, uint64_t dataBytes,
                                    const std::string &file) {
  const std::string who = file + ": tensor " + quote(name);
  for (const char *key : {"dtype", "shape", "data_offsets"})
    if (!entry.is_object() || !entry.contains(key))
      throw Error(who + " lacks " + key + ", expected dtype, shape and data_offsets");
  const json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];

  SafetensorsTensor tensor;
  tensor.name = name;
  if (!dtype.is_string())
    throw Error(who + " has dtype " + describeJson(dtype) + ", expected a string");
  tensor.dtype = dtype.get<std::string>();

  if (!shape.is_array() || shape.size() > maxDimensions)
    throw Error(who + " has shape " + describeJson(shape) + ", expected an array of at most " +
                std::to_string(maxDimensions) + " dimensions");
  for (const json &extent : shape) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > INT64_MAX)
      throw Error(who + " has a dimension of " + describeJson(extent) +
                  ", expected a number that is not negative");
    tensor.shape.push_back(extent.get<int64_t>());
  }

  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    throw Error(who + " has data_offsets " + describeJson(offsets) +
                ", expected an array of two numbers");
  uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end || end > dataBytes)
    throw Error(who + " has data_offsets " + listText(std::vector{begin, end}) +
                " outside the file's " + std::to_string(dataBytes) + " bytes of data");
  if (std::optional<uint32_t> bits = safetensorsElementBits(tensor.dtype)) {
    std::optional<uint64_t> bytes = denseBytes(*bits, tensor.shape);
    if (!bytes || *bytes != end - begin)
      throw Error(who + " has " + std::to_string(end - begin) + " bytes, but " + tensor.dtype +
                  " " + listText(tensor.shape) + " takes " +
                  (bytes ? std::to_string(*bytes) : std::string("more than any file")));
  }
  tensor.offset = begin;
  tensor.bytes = end - begin;
  return tensor;
}

static void readMetadata(const json &entry, SafetensorsHeader &header, const std::string &file) {
  if (!entry.is_object())
    throw Error(file + ": __metadata__ is " + describeJson(entry) +
                ", expected an object of strings");
  for (const auto &[key, value] : entry.items()) {
    if (!value.is_string())
      throw Error(file + ": __metadata__ key " + quote(key) + " is " + describeJson(value) +
                  ", expected a string");
    header.metadata.emplace_back(key, value.get<std::string>());
  }
}

SafetensorsHeader sluice::support::readSafetensors(std::span<const std::byte> file,
                                                   const std::string &name) {
  if (file.size() < lengthBytes)
    throw Error(name + ": not a safetensors file: it has " + std::to_string(file.size()) +
                " bytes, expected at least " + std::to_string(lengthBytes));
  uint64_t headerBytes = 0;
  for (uint64_t i = lengthBytes; i-- > 0;)
    headerBytes = headerBytes << 8 | std::to_integer<uint64_t>(file[i]);
  if (headerBytes > maxSafetensorsHeaderBytes)
    throw Error(name + ": not a safetensors file: header length " + std::to_string(headerBytes) +
                " is above the format's limit of " + std::to_string(maxSafetensorsHeaderBytes));
  if (headerBytes > file.size() - lengthBytes)
    throw Error(name + ": truncated: header length " + std::to_string(headerBytes) + ", but only " +
                std::to_string(file.size() - lengthBytes) + " bytes follow");
  std::string_view text(reinterpret_cast<const char *>(file.data()) + lengthBytes, headerBytes);
  if (!text.starts_with('{'))
    throw Error(name + ": not a safetensors file: the header does not begin with '{'");
  const json parsed = parseJson(text, name + ": header");

  SafetensorsHeader header;
  const uint64_t dataStart = lengthBytes + headerBytes, dataBytes = file.size() - dataStart;
  for (const auto &[key, entry] : parsed.items()) {
    if (key == "__metadata__")
      readMetadata(entry, header, name);
    else
      header.tensors.push_back(readTensor(key, entry, dataBytes, name));
  }

  std::vector<SafetensorsTensor> &tensors = header.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const auto &a, const auto &b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  // The format allows neither overlap nor holes: both mean that the header is not this file's.
  uint64_t expected = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    SafetensorsTensor &tensor = tensors[i];
    if (tensor.offset != expected)
      throw Error(name + ": tensor " + quote(tensor.name) + " begins at data byte " +
                  std::to_string(tensor.offset) +
                  (tensor.offset < expected ? " and overlaps " : ", leaving a hole after ") +
                  (i ? "tensor " + quote(tensors[i - 1].name) : std::string("the header")) +
                  ", expected " + std::to_string(expected));
    expected += tensor.bytes;
    tensor.offset += dataStart;
  }
  header.trailingBytes = dataBytes - expected;
  return header;
}
