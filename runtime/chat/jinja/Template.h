// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Renders Jinja templates as transformers does those of chats: Jinja 3 with trim_blocks,
// lstrip_blocks and loop controls, in a sandbox. README.md says which part of Jinja.

#ifndef SLUICE_RUNTIME_CHAT_JINJA_TEMPLATE_H
#define SLUICE_RUNTIME_CHAT_JINJA_TEMPLATE_H

#include "sluice-runtime/Error.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>

namespace sluice::runtime::jinja {

/// What a template may use. It comes from a file that nobody vouches for.
struct RenderOptions {
  /// Expressions, statements and elements that are gone through.
  uint64_t maxSteps = 50'000'000;
  /// Bytes of texts and lists that are made, whether they are kept or not.
  uint64_t maxBytes = uint64_t(512) << 20;
  /// Expressions, blocks and macros in each other.
  int maxDepth = 400;
  /// What strftime_now tells.
  std::time_t now = std::time(nullptr);
};

/// A template that has been parsed. Immutable.
class Template {
public:
  /// Throws an Error "NAME: line N: what is wrong". A template has at most maxSource bytes.
  Template(std::string_view source, std::string name);
  ~Template();
  Template(Template &&) noexcept;
  Template &operator=(Template &&) noexcept;

  /// Renders with these variables, an object. Errors are of the same form; a template's own
  /// raise_exception is one, too.
  std::string render(const nlohmann::ordered_json &variables,
                     const RenderOptions &options = {}) const;

  static constexpr size_t maxSource = size_t(1) << 20;

private:
  struct Tree;
  std::unique_ptr<const Tree> tree;
};

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_TEMPLATE_H
