// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/Safetensors.h"

#include "Diagnostics.h"
#include "Json.h"

#include "sluice-support/Safetensors.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Path.h"

#include <algorithm>

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;
using sluice::detail::quote;

Expected<SafetensorsFile> SafetensorsFile::parse(std::shared_ptr<const MappedFile> file,
                                                 StringRef relative) {
  StringRef path = file->path();
  auto header = toExpected([&] { return support::readSafetensors(file->bytes(), file->path()); });
  if (!header)
    return header.takeError();
  SafetensorsFile result;
  for (support::SafetensorsTensor &entry : header->tensors) {
    std::optional<StorageType> type = storageFromSafetensors(entry.dtype);
    TensorRef tensor;
    tensor.name = std::move(entry.name);
    tensor.file = relative.str();
    tensor.type = type.value_or(StorageType::Unknown);
    if (!type)
      tensor.unknownType = sluice::detail::printable(entry.dtype);
    tensor.shape.assign(entry.shape.begin(), entry.shape.end());
    tensor.offset = entry.offset;
    tensor.bytes = entry.bytes;
    result.byName[tensor.name] = result.tensorList.size();
    result.tensorList.push_back(std::move(tensor));
  }
  result.bytesLeft = header->trailingBytes;
  result.metadataList = std::move(header->metadata);
  result.mapped = std::move(file);
  return result;
}

Expected<SafetensorsFile> SafetensorsFile::open(StringRef path) {
  auto file = mapFile(path);
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
  constexpr uint64_t limit = support::maxSafetensorsHeaderBytes;
  if (file.size() > limit)
    return fail(path, "has " + Twine(file.size()) + " bytes, expected an index of at most " +
                          Twine(limit));
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
      return fail(path, "weight_map has " + support::describeJson(value) + " for tensor " +
                            quote(name) + ", expected a file name");
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
