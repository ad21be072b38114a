// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/Safetensors.h"

#include "Diagnostics.h"
#include "Json.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/Path.h"

#include <algorithm>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::fail;
using sluice::detail::jsonText;
using sluice::detail::quote;

// The reference implementation's limit (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
static constexpr uint64_t maxHeaderBytes = 100'000'000;
static constexpr size_t maxDims = 32;

static Expected<TensorRef> parseTensor(StringRef name, const json &entry, StringRef path,
                                       uint64_t dataBytes) {
  std::string who = "tensor " + quote(name);
  auto field = [&](const char *key) -> const json * {
    auto found = entry.find(key); // end() for what is not an object
    return found == entry.end() ? nullptr : &*found;
  };
  const json *dtype = field("dtype"), *shape = field("shape"), *offsets = field("data_offsets");
  if (!dtype || !shape || !offsets)
    return fail(path, who + " lacks " +
                          (!dtype   ? "dtype"
                           : !shape ? "shape"
                                    : "data_offsets") +
                          ", expected dtype, shape and data_offsets");

  TensorRef tensor;
  tensor.name = name.str();
  std::optional<StorageType> type;
  if (dtype->is_string())
    type = storageFromSafetensors(dtype->get_ref<const std::string &>());
  if (!type)
    return fail(path, who + " has the unknown dtype " + jsonText(*dtype));
  tensor.type = *type;

  if (!shape->is_array() || shape->size() > maxDims)
    return fail(path, who + " has shape " + jsonText(*shape) + ", expected an array of at most " +
                          Twine(maxDims) + " dimensions");
  for (const json &dim : *shape) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > INT64_MAX)
      return fail(path, who + " has a dimension of " + jsonText(dim) +
                            ", expected a number that is not negative");
    tensor.shape.push_back(dim.get<int64_t>());
  }

  if (!offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned())
    return fail(path, who + " has data_offsets " + jsonText(*offsets) +
                          ", expected an array of two numbers");
  uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > dataBytes)
    return fail(path, who + " has data_offsets [" + Twine(begin) + ", " + Twine(end) +
                          "] outside the file's " + Twine(dataBytes) + " bytes of data");
  std::optional<uint64_t> bytes = storageBytes(*type, tensor.shape);
  if (!bytes || *bytes != end - begin)
    return fail(path, who + " has " + Twine(end - begin) + " bytes, but " + storageName(*type) +
                          " " + shapeText(tensor.shape) + " takes " +
                          (bytes ? std::to_string(*bytes) : std::string("more than any file")));
  tensor.offset = begin;
  tensor.bytes = end - begin;
  return tensor;
}

Expected<SafetensorsFile> SafetensorsFile::parse(std::shared_ptr<const MappedFile> file,
                                                 StringRef relative) {
  StringRef path = file->path();
  if (file->size() < 8)
    return fail(path, "not a safetensors file: it has " + Twine(file->size()) +
                          " bytes, expected at least 8");
  uint64_t headerBytes = support::endian::read64le(file->bytes().data());
  if (headerBytes > maxHeaderBytes)
    return fail(path, "not a safetensors file: header length " + Twine(headerBytes) +
                          " is above the format's limit of " + Twine(maxHeaderBytes));
  if (headerBytes > file->size() - 8)
    return fail(path, "truncated: header length " + Twine(headerBytes) + ", but only " +
                          Twine(file->size() - 8) + " bytes follow");
  StringRef text = file->text().substr(8, headerBytes);
  if (!text.starts_with("{"))
    return fail(path, "not a safetensors file: the header does not begin with '{'");
  auto header = detail::parseJsonObject(text, path);
  if (!header)
    return header.takeError();

  SafetensorsFile result;
  uint64_t dataStart = 8 + headerBytes;
  uint64_t dataBytes = file->size() - dataStart;
  for (const auto &[name, entry] : header->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object())
        return fail(path, "__metadata__ is " + jsonText(entry) + ", expected an object of strings");
      for (const auto &[key, value] : entry.items()) {
        if (!value.is_string())
          return fail(path, "__metadata__ key " + quote(key) + " is " + jsonText(value) +
                                ", expected a string");
        result.metadataList.emplace_back(key, value.get<std::string>());
      }
      continue;
    }
    auto tensor = parseTensor(name, entry, path, dataBytes);
    if (!tensor)
      return tensor.takeError();
    tensor->file = relative.str();
    result.tensorList.push_back(std::move(*tensor));
  }

  llvm::sort(result.tensorList, [](const TensorRef &a, const TensorRef &b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  // The format allows neither overlap nor holes: both mean that the header is not this file's.
  uint64_t expected = 0;
  for (auto [index, tensor] : enumerate(result.tensorList)) {
    if (tensor.offset != expected)
      return fail(path,
                  "tensor " + quote(tensor.name) + " begins at data byte " + Twine(tensor.offset) +
                      (tensor.offset < expected ? " and overlaps " : ", leaving a hole after ") +
                      (index ? "tensor " + quote(result.tensorList[index - 1].name)
                             : std::string("the header")) +
                      ", expected " + Twine(expected));
    expected += tensor.bytes;
    tensor.offset += dataStart;
    result.byName[tensor.name] = index;
  }
  if (expected != dataBytes)
    return fail(path, "tensors take " + Twine(expected) + " bytes, but " + Twine(dataBytes) +
                          " bytes of data follow the header");
  result.mapped = std::move(file);
  return result;
}

Expected<SafetensorsFile> SafetensorsFile::open(StringRef path) {
  auto file = MappedFile::open(path);
  if (!file)
    return file.takeError();
  return parse(*file, sys::path::filename(path));
}

const TensorRef *SafetensorsFile::find(StringRef name) const {
  auto found = byName.find(name);
  return found == byName.end() ? nullptr : &tensorList[found->second];
}

Expected<SafetensorsIndex> SafetensorsIndex::parse(const MappedFile &file) {
  StringRef path = file.path();
  if (file.size() > maxHeaderBytes)
    return fail(path, "has " + Twine(file.size()) + " bytes, expected an index of at most " +
                          Twine(maxHeaderBytes));
  auto document = detail::parseJsonObject(file.text(), path);
  if (!document)
    return document.takeError();
  auto map = document->find("weight_map");
  if (map == document->end() || !map->is_object() || map->empty())
    return fail(path, "weight_map is missing or empty, expected an object of file names");

  SafetensorsIndex index;
  StringMap<size_t> seen;
  for (const auto &[name, value] : map->items()) {
    if (!value.is_string())
      return fail(path, "weight_map has " + jsonText(value) + " for tensor " + quote(name) +
                            ", expected a file name");
    StringRef shard = value.get_ref<const std::string &>();
    // Hugging Face writes bare names; anything else could point outside of the model.
    if (shard.empty() || shard.contains('/') || shard.contains('\\') || shard.contains('\0') ||
        shard == "." || shard == "..")
      return fail(path, "weight_map has " + quote(shard) + " for tensor " + quote(name) +
                            ", expected the name of a file in the same folder");
    auto [entry, isNew] = seen.try_emplace(shard, index.shards.size());
    if (isNew)
      index.shards.push_back(shard.str());
    index.shardOf[name] = entry->second;
  }

  // Sorted, so that later messages come in an order that does not depend on tensor names.
  std::vector<std::string> sorted = index.shards;
  llvm::sort(sorted);
  for (auto &entry : index.shardOf)
    entry.second = llvm::lower_bound(sorted, index.shards[entry.second]) - sorted.begin();
  index.shards = std::move(sorted);
  return index;
}
