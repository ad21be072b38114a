// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Numbers in messages, as many digits as it takes to tell them from their neighbours.

#ifndef SLUICE_SUPPORT_NUMBERTEXT_H
#define SLUICE_SUPPORT_NUMBERTEXT_H

#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <type_traits>

namespace sluice::support {

/// The shortest decimal number that reads back as `value`: "0.1", "65519.996", "500000", "1e-05",
/// "nan". A float takes fewer digits than the double of the same value, so its type matters.
template <typename Number> std::string numberText(Number value) {
  if constexpr (std::is_integral_v<Number>) {
    return std::to_string(value);
  } else {
    Number magnitude = std::abs(value);
    bool isPlain = magnitude == 0 || (magnitude >= Number(1e-4) && magnitude < Number(1e15));
    std::chars_format format = isPlain ? std::chars_format::fixed : std::chars_format::scientific;
    std::array<char, 32> text;
    return std::string(text.data(), std::to_chars(text.begin(), text.end(), value, format).ptr);
  }
}

} // namespace sluice::support

#endif // SLUICE_SUPPORT_NUMBERTEXT_H
