// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/GGUF.h"

#include "Diagnostics.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/bit.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/Path.h"

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;
using sluice::detail::quote;

/// Bytes of a value of fixed size; 0 for strings and arrays.
static uint64_t fixedSize(GGUFType type) {
  switch (type) {
  case GGUFType::U8:
  case GGUFType::I8:
  case GGUFType::Bool:
    return 1;
  case GGUFType::U16:
  case GGUFType::I16:
    return 2;
  case GGUFType::U32:
  case GGUFType::I32:
  case GGUFType::F32:
    return 4;
  case GGUFType::U64:
  case GGUFType::I64:
  case GGUFType::F64:
    return 8;
  case GGUFType::String:
  case GGUFType::Array:
    return 0;
  }
  llvm_unreachable("the parser admits no other type");
}

StringRef sluice::ggufTypeName(GGUFType type) {
  static constexpr StringLiteral names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                            "bool", "string", "array", "u64", "i64", "f64"};
  return names[static_cast<uint32_t>(type)];
}

//===----------------------------------------------------------------------===//
// Values
//===----------------------------------------------------------------------===//

static std::optional<int64_t> readInteger(GGUFType type, const char *at) {
  using namespace llvm::support::endian;
  switch (type) {
  case GGUFType::U8:
    return static_cast<uint8_t>(*at);
  case GGUFType::I8:
    return static_cast<int8_t>(*at);
  case GGUFType::U16:
    return read16le(at);
  case GGUFType::I16:
    return static_cast<int16_t>(read16le(at));
  case GGUFType::U32:
    return read32le(at);
  case GGUFType::I32:
    return static_cast<int32_t>(read32le(at));
  case GGUFType::I64:
    return static_cast<int64_t>(read64le(at));
  case GGUFType::U64: {
    uint64_t value = read64le(at);
    if (value > INT64_MAX)
      return std::nullopt;
    return static_cast<int64_t>(value);
  }
  default:
    return std::nullopt;
  }
}

static std::optional<double> readFloat(GGUFType type, const char *at) {
  if (type == GGUFType::F32)
    return bit_cast<float>(llvm::support::endian::read32le(at));
  if (type == GGUFType::F64)
    return bit_cast<double>(llvm::support::endian::read64le(at));
  return std::nullopt;
}

std::optional<int64_t> GGUFValue::asInteger() const { return readInteger(valueType, raw.data()); }

std::optional<double> GGUFValue::asFloat() const { return readFloat(valueType, raw.data()); }

std::optional<bool> GGUFValue::asBool() const {
  if (valueType != GGUFType::Bool)
    return std::nullopt;
  return raw[0] != 0;
}

std::optional<StringRef> GGUFValue::asString() const {
  if (valueType != GGUFType::String)
    return std::nullopt;
  return raw;
}

std::optional<std::vector<StringRef>> GGUFValue::asStrings(uint64_t limit) const {
  if (!isArray() || elemType != GGUFType::String)
    return std::nullopt;
  std::vector<StringRef> result;
  result.reserve(std::min(limit, elements));
  StringRef rest = raw;
  for (uint64_t i = 0; i < std::min(limit, elements); ++i) {
    uint64_t length = llvm::support::endian::read64le(rest.data());
    result.push_back(rest.substr(8, length));
    rest = rest.drop_front(8 + length);
  }
  return result;
}

std::optional<std::vector<int64_t>> GGUFValue::asIntegers(uint64_t limit) const {
  if (!isArray())
    return std::nullopt;
  std::vector<int64_t> result;
  for (uint64_t i = 0; i < std::min(limit, elements); ++i) {
    std::optional<int64_t> value = readInteger(elemType, raw.data() + i * fixedSize(elemType));
    if (!value)
      return std::nullopt;
    result.push_back(*value);
  }
  return result;
}

std::optional<std::vector<double>> GGUFValue::asFloats(uint64_t limit) const {
  if (!isArray() || (elemType != GGUFType::F32 && elemType != GGUFType::F64))
    return std::nullopt;
  std::vector<double> result;
  result.reserve(std::min(limit, elements));
  for (uint64_t i = 0; i < std::min(limit, elements); ++i)
    result.push_back(*readFloat(elemType, raw.data() + i * fixedSize(elemType)));
  return result;
}

//===----------------------------------------------------------------------===//
// Parser
//===----------------------------------------------------------------------===//

namespace sluice {

class GGUFParser {
public:
  GGUFParser(GGUFFile &result, StringRef text, StringRef path)
      : result(result), text(text), path(path) {}

  Error run(StringRef relative, bool withTensors);

  /// Walks the elements of an array whose type and count stand at `position`; for reading them
  /// again later, when they are known to be good.
  static std::vector<GGUFValue> elements(const GGUFValue &array, uint64_t limit);

private:
  Error need(uint64_t bytes, const Twine &what) {
    if (bytes <= text.size() - position)
      return Error::success();
    return fail(path, "truncated at byte " + Twine(position) + ": " + what + " needs " +
                          Twine(bytes) + " bytes, " + Twine(text.size() - position) + " are left");
  }
  Error readU32(uint32_t &out, const Twine &what) {
    if (Error error = need(4, what))
      return error;
    out = llvm::support::endian::read32le(text.data() + position);
    position += 4;
    return Error::success();
  }
  Error readU64(uint64_t &out, const Twine &what) {
    if (Error error = need(8, what))
      return error;
    out = llvm::support::endian::read64le(text.data() + position);
    position += 8;
    return Error::success();
  }
  Error readString(StringRef &out, const Twine &what) {
    uint64_t length;
    if (Error error = readU64(length, "the length of " + what))
      return error;
    if (Error error = need(length, what))
      return error;
    out = text.substr(position, length);
    position += length;
    return Error::success();
  }
  Error readType(GGUFType &out, const Twine &what) {
    uint32_t type;
    if (Error error = readU32(type, "the type of " + what))
      return error;
    if (type > static_cast<uint32_t>(GGUFType::F64))
      return fail(path, what + " has the unknown value type " + Twine(type) + ", expected 0 to 12");
    out = static_cast<GGUFType>(type);
    return Error::success();
  }
  Error readValue(GGUFType type, GGUFValue &out, const Twine &what, unsigned depth);
  Error readTensorInfo(uint64_t index, StringRef relative);
  Error placeTensors();

  GGUFFile &result;
  StringRef text;
  StringRef path;
  uint64_t position = 0;
};

} // namespace sluice

Error GGUFParser::readValue(GGUFType type, GGUFValue &out, const Twine &what, unsigned depth) {
  out.valueType = type;
  if (type == GGUFType::String)
    return readString(out.raw, what);
  if (type != GGUFType::Array) {
    uint64_t size = fixedSize(type);
    if (Error error = need(size, what))
      return error;
    out.raw = text.substr(position, size);
    position += size;
    if (type == GGUFType::Bool && static_cast<uint8_t>(out.raw[0]) > 1)
      return fail(path, what + " is a bool of value " +
                            Twine(static_cast<unsigned>(static_cast<uint8_t>(out.raw[0]))) +
                            ", expected 0 or 1");
    return Error::success();
  }

  if (depth == GGUFFile::maxDepth)
    return fail(path, what + " nests arrays deeper than " + Twine(GGUFFile::maxDepth) + " levels");
  if (Error error = readType(out.elemType, "the elements of " + what))
    return error;
  if (Error error = readU64(out.elements, "the count of " + what))
    return error;
  // An element has at least so many bytes, so a count that the file cannot hold ends here.
  uint64_t least = out.elemType == GGUFType::Array    ? 12
                   : out.elemType == GGUFType::String ? 8
                                                      : fixedSize(out.elemType);
  if (out.elements > (text.size() - position) / least)
    return fail(path, "truncated at byte " + Twine(position) + ": " + what + " has " +
                          Twine(out.elements) + " elements of type " + ggufTypeName(out.elemType) +
                          ", but only " + Twine(text.size() - position) + " bytes are left");
  uint64_t begin = position;
  if (uint64_t size = fixedSize(out.elemType)) {
    position += out.elements * size;
  } else {
    for (uint64_t i = 0; i < out.elements; ++i) {
      GGUFValue element;
      if (Error error = readValue(out.elemType, element, what, depth + 1))
        return error;
    }
  }
  out.raw = text.substr(begin, position - begin);
  return Error::success();
}

std::vector<GGUFValue> GGUFParser::elements(const GGUFValue &array, uint64_t limit) {
  GGUFFile unused;
  GGUFParser parser(unused, array.raw, "");
  std::vector<GGUFValue> result;
  for (uint64_t i = 0; i < std::min(limit, array.elements); ++i) {
    GGUFValue element;
    cantFail(parser.readValue(array.elemType, element, "", 0));
    result.push_back(element);
  }
  return result;
}

std::optional<std::vector<GGUFValue>> GGUFValue::asValues(uint64_t limit) const {
  if (!isArray())
    return std::nullopt;
  return GGUFParser::elements(*this, limit);
}

Error GGUFParser::readTensorInfo(uint64_t index, StringRef relative) {
  std::string nth = ("tensor info " + Twine(index)).str();
  StringRef name;
  if (Error error = readString(name, "the name of " + nth))
    return error;
  std::string who = "tensor " + quote(name);
  if (name.empty())
    return fail(path, nth + " has an empty name");

  uint32_t dims;
  if (Error error = readU32(dims, who + "'s number of dimensions"))
    return error;
  if (dims > 4)
    return fail(path, who + " has " + Twine(dims) + " dimensions, expected at most 4");
  TensorRef tensor;
  tensor.name = name.str();
  tensor.file = relative.str();
  tensor.shape.resize(dims);
  for (uint32_t i = 0; i < dims; ++i) {
    uint64_t size;
    if (Error error = readU64(size, who + "'s dimensions"))
      return error;
    if (size > INT64_MAX)
      return fail(path, who + " has a dimension of " + Twine(size) + ", which no file can hold");
    tensor.shape[dims - 1 - i] = static_cast<int64_t>(size);
  }

  uint32_t id;
  if (Error error = readU32(id, who + "'s type"))
    return error;
  std::optional<StorageType> type = storageFromGGML(id);
  tensor.type = type.value_or(StorageType::Unknown);
  if (!type)
    tensor.unknownType = "ggml type " + std::to_string(id);
  if (Error error = readU64(tensor.offset, who + "'s offset"))
    return error;

  const StorageInfo &info = storageInfo(tensor.type);
  // placeTensors() sees how far a tensor of unknown type reaches.
  std::optional<uint64_t> bytes =
      type ? storageBytes(*type, tensor.shape) : elementCount(tensor.shape);
  if (!bytes && !tensor.shape.empty() && tensor.shape.back() % info.blockElements != 0)
    return fail(path, who + " has rows of " + Twine(tensor.shape.back()) +
                          " elements, expected a multiple of " + Twine(info.blockElements) +
                          " for " + info.name);
  if (!bytes)
    return fail(path, who + " has shape " + shapeText(tensor.shape) + ", which no file can hold");
  tensor.bytes = type ? *bytes : 0;

  if (!result.tensorIndex.try_emplace(name, result.tensorList.size()).second)
    return fail(path, who + " is there twice");
  result.tensorList.push_back(std::move(tensor));
  return Error::success();
}

/// Turns offsets into the data section into offsets into the file, and checks them.
Error GGUFParser::placeTensors() {
  if (result.tensorList.empty())
    return Error::success();
  uint64_t alignment = result.dataAlignment;
  uint64_t size = text.size();
  uint64_t dataStart = alignTo(position, alignment);
  if (dataStart < position || dataStart > size)
    return fail(path, "truncated: the data begins at byte " + Twine(dataStart) + ", the file has " +
                          Twine(size));
  for (TensorRef &tensor : result.tensorList) {
    std::string who = "tensor " + quote(tensor.name);
    if (tensor.offset % alignment != 0)
      return fail(path, who + " has offset " + Twine(tensor.offset) +
                            ", expected a multiple of the alignment " + Twine(alignment));
    if (tensor.offset > size - dataStart || tensor.bytes > size - dataStart - tensor.offset)
      return fail(path, who + " has " + Twine(tensor.bytes) + " bytes at offset " +
                            Twine(tensor.offset) + ", outside the file's " +
                            Twine(size - dataStart) + " bytes of data");
    tensor.offset += dataStart;
  }

  std::vector<TensorRef *> order;
  for (TensorRef &tensor : result.tensorList)
    if (tensor.bytes || tensor.type == StorageType::Unknown)
      order.push_back(&tensor);
  llvm::sort(order, [](const TensorRef *a, const TensorRef *b) { return a->offset < b->offset; });
  for (auto [i, tensor] : enumerate(order))
    if (tensor->type == StorageType::Unknown)
      tensor->bytes = (i + 1 < order.size() ? order[i + 1]->offset : size) - tensor->offset;
  for (size_t i = 1; i < order.size(); ++i)
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes)
      return fail(path, "tensor " + quote(order[i]->name) + " overlaps tensor " +
                            quote(order[i - 1]->name));

  // Writers pad the last tensor at most. More may be a count of tensors that is too small; then the
  // data would be read from the wrong place, and the padding in front of it is not zeros but the
  // next tensor's description.
  uint64_t end = order.empty() ? dataStart : order.back()->offset + order.back()->bytes;
  if (size - end < alignment)
    return Error::success();
  result.bytesLeft = size - end;
  if (text.slice(position, dataStart).find_first_not_of('\0') != StringRef::npos)
    return fail(path, Twine(size - end) +
                          " bytes follow the last tensor, and what stands between "
                          "the descriptions of " +
                          Twine(result.tensorList.size()) +
                          " tensors and their data is not padding");
  return Error::success();
}

Error GGUFParser::run(StringRef relative, bool withTensors) {
  if (text.size() < 24)
    return fail(path,
                "not a GGUF file: it has " + Twine(text.size()) + " bytes, expected at least 24");
  if (!GGUFFile::hasMagic(text))
    return fail(path, "not a GGUF file: it begins with " + quote(text.take_front(4)) +
                          ", expected 'GGUF'");
  position = 4;
  cantFail(readU32(result.fileVersion, ""));
  uint32_t version = result.fileVersion;
  if (version != 2 && version != 3) {
    if (uint32_t swapped = llvm::byteswap(version); swapped >= 1 && swapped <= 16)
      return fail(path, "is a big-endian GGUF file (version " + Twine(swapped) +
                            "), expected a little-endian one");
    return fail(path, "has GGUF version " + Twine(version) + ", expected 2 or 3");
  }
  uint64_t tensorCount, valueCount;
  cantFail(readU64(tensorCount, ""));
  cantFail(readU64(valueCount, ""));
  // The smallest entry of each kind: an empty key with a one-byte value; an empty name, no
  // dimensions.
  if (valueCount > (text.size() - position) / 13)
    return fail(path, "truncated: it declares " + Twine(valueCount) + " metadata values, but has " +
                          Twine(text.size()) + " bytes");
  if (withTensors && tensorCount > (text.size() - position) / 24)
    return fail(path, "truncated: it declares " + Twine(tensorCount) + " tensors, but has " +
                          Twine(text.size()) + " bytes");

  for (uint64_t i = 0; i < valueCount; ++i) {
    StringRef key;
    if (Error error = readString(key, "metadata key " + Twine(i)))
      return error;
    std::string who = "metadata " + quote(key);
    GGUFType type;
    if (Error error = readType(type, who))
      return error;
    GGUFValue value;
    if (Error error = readValue(type, value, who, 0))
      return error;
    if (!result.keys.try_emplace(key, result.values.size()).second)
      return fail(path, who + " is there twice");
    result.values.emplace_back(key, value);
  }

  if (const GGUFValue *value = result.find("general.alignment")) {
    std::optional<int64_t> alignment = value->asInteger();
    if (!alignment || *alignment <= 0 || !isPowerOf2_64(static_cast<uint64_t>(*alignment)))
      return fail(path, "general.alignment is " +
                            (alignment ? std::to_string(*alignment)
                                       : "of type " + ggufTypeName(value->type()).str()) +
                            ", expected a power of two");
    result.dataAlignment = static_cast<uint64_t>(*alignment);
  }

  if (!withTensors)
    return Error::success();
  for (uint64_t i = 0; i < tensorCount; ++i)
    if (Error error = readTensorInfo(i, relative))
      return error;
  return placeTensors();
}

Expected<GGUFFile> GGUFFile::parse(std::shared_ptr<const MappedFile> file, StringRef relative,
                                   bool withTensors) {
  GGUFFile result;
  result.mapped = std::move(file);
  GGUFParser parser(result, result.mapped->text(), result.mapped->path());
  if (Error error = parser.run(relative, withTensors))
    return std::move(error);
  return result;
}

Expected<GGUFFile> GGUFFile::open(StringRef path, bool withTensors) {
  auto file = mapFile(path);
  if (!file)
    return file.takeError();
  return parse(*file, sys::path::filename(path), withTensors);
}

const GGUFValue *GGUFFile::find(StringRef key) const {
  auto found = keys.find(key);
  return found == keys.end() ? nullptr : &values[found->second].second;
}

const TensorRef *GGUFFile::findTensor(StringRef name) const {
  auto found = tensorIndex.find(name);
  return found == tensorIndex.end() ? nullptr : &tensorList[found->second];
}
