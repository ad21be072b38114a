// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/Safetensors.h"

#include "Diagnostics.h"
#include "Json.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/Errno.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/Signals.h"

#include <cerrno>
#include <unistd.h>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::fail;
using sluice::detail::quote;

static constexpr StringLiteral paddingPrefix = "__padding__.";

namespace {
struct Slot {
  std::string name;
  StorageType type;
  SmallVector<int64_t, 4> shape;
  uint64_t offset = 0; // in the data section until the header's length is known
  uint64_t bytes = 0;
  uint64_t written = 0;
};
} // namespace

struct SafetensorsWriter::State {
  std::string path;
  /// Empty once the file is in place.
  std::string temporary;
  int descriptor = -1;
  std::vector<Slot> slots; // as declared, then padding
  size_t declared = 0;
  uint64_t fileBytes = 0;

  State() = default;
  State(const State &) = delete;
  ~State() {
    if (descriptor >= 0)
      ::close(descriptor);
    if (!temporary.empty()) {
      (void)sys::fs::remove(temporary); // a destructor has nobody to tell
      sys::DontRemoveFileOnSignal(temporary);
    }
  }

  /// llvm::sys::fs::TempFile would take every '%' of the folder's name for a random digit.
  Error openTemporary() {
    std::error_code ec;
    for (int attempt = 0; attempt < 100; ++attempt) {
      std::string name =
          path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
      ec = sys::fs::openFileForReadWrite(name, descriptor, sys::fs::CD_CreateNew, sys::fs::OF_None);
      if (ec == std::errc::file_exists)
        continue;
      if (!ec) {
        temporary = name;
        sys::RemoveFileOnSignal(temporary);
        return Error::success();
      }
      break;
    }
    return fail(path, "cannot be written: " + ec.message());
  }

  Error writeAt(uint64_t offset, ArrayRef<uint8_t> data) {
    while (!data.empty()) {
      ssize_t count = ::pwrite(descriptor, data.data(), std::min<size_t>(data.size(), 1 << 30),
                               static_cast<off_t>(offset));
      if (count < 0) {
        if (errno == EINTR)
          continue;
        return fail(path, "cannot be written: " + sys::StrError());
      }
      data = data.drop_front(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    }
    return Error::success();
  }
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state(std::move(state)) {}
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter &&) noexcept = default;
SafetensorsWriter &SafetensorsWriter::operator=(SafetensorsWriter &&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

uint64_t SafetensorsWriter::offset(size_t index) const { return state->slots[index].offset; }
uint64_t SafetensorsWriter::bytes(size_t index) const { return state->slots[index].bytes; }
uint64_t SafetensorsWriter::fileBytes() const { return state->fileBytes; }

/// The header as compact JSON in the order of the data, so that equal declarations give equal
/// files.
static std::string headerText(ArrayRef<Slot> slots, ArrayRef<size_t> order,
                              ArrayRef<std::pair<std::string, std::string>> metadata) {
  auto string = [](StringRef text) {
    return json(text.str()).dump(-1, ' ', false, json::error_handler_t::replace);
  };
  std::string header = "{";
  auto separate = [&] {
    if (header.size() > 1)
      header += ',';
  };
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (auto [i, entry] : enumerate(metadata))
      header += (i ? "," : "") + string(entry.first) + ":" + string(entry.second);
    header += '}';
  }
  for (size_t index : order) {
    const Slot &slot = slots[index];
    separate();
    header +=
        string(slot.name) + ":{\"dtype\":\"" + storageName(slot.type).str() + "\",\"shape\":[";
    for (auto [i, dim] : enumerate(slot.shape))
      header += (i ? "," : "") + std::to_string(dim);
    header += "],\"data_offsets\":[" + std::to_string(slot.offset) + "," +
              std::to_string(slot.offset + slot.bytes) + "]}";
  }
  return header + "}";
}

Expected<SafetensorsWriter>
SafetensorsWriter::create(StringRef path, ArrayRef<Declaration> declarations,
                          ArrayRef<std::pair<std::string, std::string>> metadata) {
  auto state = std::make_unique<State>();
  state->path = path.str();
  state->declared = declarations.size();

  StringSet<> names;
  std::vector<size_t> order, unaligned;
  for (auto [index, declaration] : enumerate(declarations)) {
    std::string who = "tensor " + quote(declaration.name);
    if (declaration.name == "__metadata__" ||
        StringRef(declaration.name).starts_with(paddingPrefix))
      return fail(path, who + " cannot be written: the name is reserved");
    if (!names.insert(declaration.name).second)
      return fail(path, who + " cannot be written twice");
    if (!isInSafetensors(declaration.type))
      return fail(path, who + " cannot be written: safetensors has no type " +
                            storageName(declaration.type));
    std::optional<uint64_t> bytes = storageBytes(declaration.type, declaration.shape);
    if (!bytes || *bytes > (uint64_t(1) << 50))
      return fail(path, who + " cannot be written with shape " + shapeText(declaration.shape));
    state->slots.push_back({declaration.name, declaration.type, declaration.shape, 0, *bytes, 0});
    (*bytes % alignment ? unaligned : order).push_back(index);
  }
  for (auto [i, index] : enumerate(unaligned)) {
    order.push_back(index);
    uint64_t gap = offsetToAlignment(state->slots[index].bytes, Align(alignment));
    if (i + 1 == unaligned.size())
      break;
    order.push_back(state->slots.size());
    state->slots.push_back({(paddingPrefix + Twine(i)).str(),
                            StorageType::U8,
                            {static_cast<int64_t>(gap)},
                            0,
                            gap,
                            gap});
  }

  uint64_t dataBytes = 0;
  for (size_t index : order) {
    state->slots[index].offset = dataBytes;
    dataBytes += state->slots[index].bytes;
  }
  std::string header = headerText(state->slots, order, metadata);
  header.resize(alignTo(8 + header.size(), alignment) - 8, ' ');
  uint64_t dataStart = 8 + header.size();
  for (Slot &slot : state->slots)
    slot.offset += dataStart;
  state->fileBytes = dataStart + dataBytes;

  if (Error error = state->openTemporary())
    return std::move(error);
  // Reserves the space, so that a full disk is found before the work and padding reads as zeros.
  if (std::error_code ec = sys::fs::resize_file(state->descriptor, state->fileBytes))
    return fail(path, "cannot be written: " + Twine(state->fileBytes) + " bytes: " + ec.message());
  uint8_t length[8];
  llvm::support::endian::write64le(length, header.size());
  if (Error error = state->writeAt(0, length))
    return std::move(error);
  if (Error error = state->writeAt(8, arrayRefFromStringRef(header)))
    return std::move(error);
  return SafetensorsWriter(std::move(state));
}

Error SafetensorsWriter::append(size_t index, ArrayRef<uint8_t> data) {
  Slot &slot = state->slots[index];
  if (data.size() > slot.bytes - slot.written)
    return fail(state->path, "tensor " + quote(slot.name) + " was given more than its " +
                                 Twine(slot.bytes) + " bytes");
  if (Error error = state->writeAt(slot.offset + slot.written, data))
    return error;
  slot.written += data.size();
  return Error::success();
}

Error SafetensorsWriter::finish() {
  for (const Slot &slot : state->slots)
    if (slot.written != slot.bytes)
      return fail(state->path, "tensor " + quote(slot.name) + " was given " + Twine(slot.written) +
                                   " of its " + Twine(slot.bytes) + " bytes");
  int descriptor = std::exchange(state->descriptor, -1);
  if (::close(descriptor) != 0)
    return fail(state->path, "cannot be written: " + sys::StrError());
  if (std::error_code ec = sys::fs::rename(state->temporary, state->path))
    return fail(state->path, "cannot be written: " + ec.message());
  sys::DontRemoveFileOnSignal(state->temporary);
  state->temporary.clear();
  return Error::success();
}
