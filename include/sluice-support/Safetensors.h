// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The safetensors format, as https://huggingface.co/docs/safetensors describes it: eight bytes of
// header length (little-endian), a JSON header, then the tensors' bytes without holes.

#ifndef SLUICE_SUPPORT_SAFETENSORS_H
#define SLUICE_SUPPORT_SAFETENSORS_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::support {

/// The reference implementation's limit (safetensors/src/tensor.rs, MAX_HEADER_SIZE); of an index
/// file too.
inline constexpr uint64_t maxSafetensorsHeaderBytes = 100'000'000;

/// Bits of an element of a data type, which has to be one of safetensors ("F16", "I8").
std::optional<uint32_t> safetensorsElementBits(std::string_view dtype);

struct SafetensorsTensor {
  std::string name;
  std::string dtype;
  /// Outermost dimension first.
  std::vector<int64_t> shape;
  /// From the start of the file.
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

struct SafetensorsHeader {
  /// In the order of their bytes.
  std::vector<SafetensorsTensor> tensors;
  /// `__metadata__`, sorted by key.
  std::vector<std::pair<std::string, std::string>> metadata;
  /// What follows the last tensor, which the format has no use for.
  uint64_t trailingBytes = 0;
};

/// Checks a whole file and lists what it holds. `name` starts each error's message. Thrown as
/// Error: what does not follow the format, sizes that are not shape times element, and tensors that
/// lie outside of the file, overlap or leave holes. A data type without safetensorsElementBits() is
/// no error, as nobody may need the tensor; its size is not checked.
SafetensorsHeader readSafetensors(std::span<const std::byte> file, const std::string &name);

} // namespace sluice::support

#endif // SLUICE_SUPPORT_SAFETENSORS_H
