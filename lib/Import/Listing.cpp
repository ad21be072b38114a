// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/Listing.h"

#include "Diagnostics.h"
#include "Json.h"

#include "sluice/Import/GGUF.h"
#include "sluice/Import/Safetensors.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/Path.h"

#include <map>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using nlohmann::ordered_json;
using sluice::detail::fail;
using sluice::detail::printable;

static constexpr uint64_t longArray = 16;
static constexpr uint64_t shownOfLongArray = 8;

/// JSON strings must be UTF-8; what the file has instead is shown replaced.
static ordered_json textValue(StringRef text) { return printable(text, text.size()); }

static ordered_json metadataValue(const GGUFValue &value) {
  if (auto text = value.asString())
    return textValue(*text);
  if (auto flag = value.asBool())
    return *flag;
  if (auto number = value.asInteger())
    return *number;
  if (auto number = value.asFloat())
    return *number;
  if (!value.isArray()) // a u64 above int64's range
    return "above 2^63";
  uint64_t shown = value.count() > longArray ? shownOfLongArray : value.count();
  ordered_json items = ordered_json::array();
  std::vector<GGUFValue> values = *value.asValues(shown);
  for (const GGUFValue &item : values)
    items.push_back(metadataValue(item));
  if (value.count() <= longArray)
    return items;
  return {{"count", value.count()}, {"first", std::move(items)}};
}

static void addMetadata(ordered_json &listing, StringRef key, StringRef type, ordered_json value) {
  listing["metadata"].push_back(
      {{"key", printable(key, key.size())}, {"type", type.str()}, {"value", std::move(value)}});
}

static void addTensors(ordered_json &listing, ArrayRef<TensorRef> tensors) {
  for (const TensorRef &tensor : tensors)
    listing["tensors"].push_back(
        {{"name", printable(tensor.name, tensor.name.size())},
         {"type", tensor.typeText()},
         {"shape", std::vector<int64_t>(tensor.shape.begin(), tensor.shape.end())},
         {"bytes", tensor.bytes},
         {"offset", tensor.offset},
         {"file", printable(tensor.file, tensor.file.size())}});
}

static ordered_json start(StringRef path, StringRef format) {
  return {{"path", printable(path, path.size())}, {"format", format.str()}};
}

/// Sums, once all tensors are in.
static ordered_json finish(ordered_json listing) {
  struct Sum {
    uint64_t tensors = 0, bytes = 0;
  };
  std::map<std::string, Sum> types;
  uint64_t elements = 0, bytes = 0;
  for (const ordered_json &tensor : listing["tensors"]) {
    uint64_t count = 1;
    for (const ordered_json &dim : tensor["shape"])
      count *= dim.get<uint64_t>();
    elements += count;
    bytes += tensor["bytes"].get<uint64_t>();
    Sum &sum = types[tensor["type"].get<std::string>()];
    ++sum.tensors;
    sum.bytes += tensor["bytes"].get<uint64_t>();
  }
  ordered_json list = ordered_json::array();
  for (const auto &[type, sum] : types)
    list.push_back({{"type", type}, {"tensors", sum.tensors}, {"bytes", sum.bytes}});
  listing["totals"] = {{"tensors", listing["tensors"].size()},
                       {"elements", elements},
                       {"bytes", bytes},
                       {"types", std::move(list)}};
  return listing;
}

/// Of a single file, which may go on behind its last tensor.
static void addFileBytes(ordered_json &listing, uint64_t bytes, uint64_t trailing) {
  listing["file_bytes"] = bytes;
  if (trailing)
    listing["trailing_bytes"] = trailing;
}

static void reserveSections(ordered_json &listing) {
  listing["metadata"] = ordered_json::array();
  listing["tensors"] = ordered_json::array();
}

static Expected<ordered_json> listGGUF(StringRef path) {
  auto file = GGUFFile::open(path);
  if (!file)
    return file.takeError();
  ordered_json listing = start(path, "GGUF");
  listing["version"] = file->version();
  listing["alignment"] = file->alignment();
  addFileBytes(listing, file->file().size(), file->trailingBytes());
  reserveSections(listing);
  for (const auto &[key, value] : file->metadata()) {
    std::string type = ggufTypeName(value.type()).str();
    if (value.isArray())
      type += " of " + ggufTypeName(value.elementType()).str();
    addMetadata(listing, key, type, metadataValue(value));
  }
  addTensors(listing, file->tensors());
  return finish(std::move(listing));
}

static void addSafetensors(ordered_json &listing, const SafetensorsFile &file) {
  for (const auto &[key, value] : file.metadata())
    addMetadata(listing, key, "string", textValue(value));
  addTensors(listing, file.tensors());
}

static Expected<ordered_json> listSafetensors(StringRef path) {
  auto file = SafetensorsFile::open(path);
  if (!file)
    return file.takeError();
  ordered_json listing = start(path, "safetensors");
  addFileBytes(listing, file->file().size(), file->trailingBytes());
  reserveSections(listing);
  addSafetensors(listing, *file);
  return finish(std::move(listing));
}

/// All *.safetensors of the folder and config.json as it is: any architecture can be looked at.
static Expected<ordered_json> listFolder(StringRef path) {
  std::vector<std::string> names;
  std::error_code ec;
  for (sys::fs::directory_iterator it(path, ec), end; it != end && !ec; it.increment(ec))
    if (StringRef name = sys::path::filename(it->path()); name.ends_with(".safetensors"))
      names.push_back(name.str());
  if (ec)
    return fail(path, "cannot be read: " + ec.message());
  llvm::sort(names);

  SmallString<256> configPath(path);
  sys::path::append(configPath, "config.json");
  bool hasConfig = sys::fs::exists(configPath);
  if (names.empty() && !hasConfig)
    return fail(path, "has neither config.json nor a safetensors file");

  ordered_json listing = start(path, "Hugging Face");
  listing["file_bytes"] = 0;
  reserveSections(listing);
  uint64_t fileBytes = 0;
  if (hasConfig) {
    auto file = mapFile(configPath);
    if (!file)
      return file.takeError();
    auto config = sluice::detail::parseJsonObject((*file)->text(), configPath);
    if (!config)
      return config.takeError();
    for (const auto &[key, value] : config->items())
      addMetadata(listing, key, value.type_name(), ordered_json(value));
  }
  FileSet files(path.str());
  for (const std::string &name : names) {
    auto mapped = files.get(name);
    if (!mapped)
      return mapped.takeError();
    auto file = SafetensorsFile::parse(*mapped, name);
    if (!file)
      return file.takeError();
    fileBytes += file->file().size();
    addSafetensors(listing, *file);
  }
  listing["file_bytes"] = fileBytes;
  return finish(std::move(listing));
}

Expected<ordered_json> sluice::listModelFile(StringRef path) {
  sys::fs::file_status status;
  if (std::error_code ec = sys::fs::status(path, status))
    return fail(path, "cannot be opened: " + ec.message());
  if (status.type() == sys::fs::file_type::directory_file)
    return listFolder(path);
  auto file = mapFile(path);
  if (!file)
    return file.takeError();
  StringRef text = (*file)->text();
  if (GGUFFile::hasMagic(text) || path.ends_with_insensitive(".gguf"))
    return listGGUF(path);
  if (path.ends_with_insensitive(".safetensors") || text.substr(8).starts_with("{"))
    return listSafetensors(path);
  return fail(path, "is neither a GGUF nor a safetensors file");
}

/// 4512800 as "4,512,800".
static std::string grouped(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t i = digits.size(); i > 3;) {
    i -= 3;
    digits.insert(i, ",");
  }
  return digits;
}

static std::string tensorCount(uint64_t count) {
  return grouped(count) + (count == 1 ? " tensor" : " tensors");
}

static std::string shortText(const ordered_json &value) {
  if (value.is_object() && value.contains("count") && value.contains("first")) {
    std::string text = grouped(value["count"].get<uint64_t>()) + " entries: ";
    for (const ordered_json &item : value["first"])
      text += item.dump() + ", ";
    return printable(text, 76) + (text.size() > 76 ? "" : "...");
  }
  return printable(value.dump(), 76);
}

void sluice::printListing(const ordered_json &listing, raw_ostream &os) {
  os << listing["path"].get<std::string>() << ": " << listing["format"].get<std::string>();
  if (listing.contains("version"))
    os << " version " << listing["version"].get<uint64_t>() << ", alignment "
       << listing["alignment"].get<uint64_t>();
  os << ", " << grouped(listing["file_bytes"].get<uint64_t>()) << " bytes";
  if (listing.contains("trailing_bytes"))
    os << ", " << grouped(listing["trailing_bytes"].get<uint64_t>())
       << " of them after the last tensor";
  os << '\n';

  const ordered_json &metadata = listing["metadata"], &tensors = listing["tensors"];
  if (!metadata.empty()) {
    os << "\nmetadata (" << metadata.size() << ")\n";
    size_t keyWidth = 0, typeWidth = 0;
    for (const ordered_json &entry : metadata) {
      keyWidth = std::max(keyWidth, entry["key"].get_ref<const std::string &>().size());
      typeWidth = std::max(typeWidth, entry["type"].get_ref<const std::string &>().size());
    }
    keyWidth = std::min<size_t>(keyWidth, 64);
    for (const ordered_json &entry : metadata)
      os << "  " << left_justify(entry["key"].get_ref<const std::string &>(), keyWidth) << "  "
         << left_justify(entry["type"].get_ref<const std::string &>(), typeWidth) << "  "
         << shortText(entry["value"]) << '\n';
  }

  bool manyFiles = false;
  for (const ordered_json &tensor : tensors)
    manyFiles |= tensor["file"] != tensors[0]["file"];
  if (!tensors.empty()) {
    os << "\ntensors (" << tensors.size() << ")\n";
    std::vector<std::array<std::string, 6>> rows;
    rows.push_back({"name", "type", "shape", "bytes", "offset", manyFiles ? "file" : ""});
    for (const ordered_json &tensor : tensors)
      rows.push_back({tensor["name"].get<std::string>(), tensor["type"].get<std::string>(),
                      shapeText(tensor["shape"].get<std::vector<int64_t>>()),
                      grouped(tensor["bytes"].get<uint64_t>()),
                      grouped(tensor["offset"].get<uint64_t>()),
                      manyFiles ? tensor["file"].get<std::string>() : ""});
    std::array<size_t, 6> widths{};
    for (const auto &row : rows)
      for (size_t i = 0; i < row.size(); ++i)
        widths[i] = std::min<size_t>(std::max(widths[i], row[i].size()), 64);
    for (const auto &row : rows) {
      // Numbers to the right, words to the left, nothing after the last word.
      os << "  ";
      for (size_t i = 0; i < row.size(); ++i) {
        bool right = i == 3 || i == 4;
        if (i)
          os << (row[i].empty() ? "" : "  ");
        if (i == row.size() - 1)
          os << row[i];
        else
          os << (right ? right_justify(row[i], widths[i]) : left_justify(row[i], widths[i]));
      }
      os << '\n';
    }
  }

  const ordered_json &totals = listing["totals"];
  os << "\ntotal: " << tensorCount(totals["tensors"].get<uint64_t>()) << ", "
     << grouped(totals["elements"].get<uint64_t>()) << " elements, "
     << grouped(totals["bytes"].get<uint64_t>()) << " bytes";
  const char *separator = " (";
  for (const ordered_json &type : totals["types"]) {
    os << separator << type["type"].get<std::string>() << ": "
       << tensorCount(type["tensors"].get<uint64_t>()) << ", "
       << grouped(type["bytes"].get<uint64_t>()) << " bytes";
    separator = "; ";
  }
  os << (totals["types"].empty() ? "\n" : ")\n");
}
