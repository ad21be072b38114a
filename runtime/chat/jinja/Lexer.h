// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_CHAT_JINJA_LEXER_H
#define SLUICE_RUNTIME_CHAT_JINJA_LEXER_H

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::jinja {

/// What is wrong at a line of a template.
struct LineFailure {
  int line;
  std::string message;
};

struct Token {
  enum class Kind : uint8_t {
    /// Between tags.
    Text,
    /// {{ and }}, {% and %}.
    OutputBegin,
    OutputEnd,
    TagBegin,
    TagEnd,
    Name,
    String,
    Integer,
    Float,
    Operator,
    End
  };
  Kind kind = Kind::End;
  int line = 1;
  /// Of a text or string what it stands for, of a number its digits, else how it is spelled.
  std::string text;

  bool is(std::string_view op) const { return kind == Kind::Operator && text == op; }
  bool isName(std::string_view name) const { return kind == Kind::Name && text == name; }
  /// For a message.
  std::string describe() const;
};

/// Cuts a template into tokens, with trim_blocks and lstrip_blocks as transformers sets them: the
/// line end after a tag goes, and so does the white space of a line before it. Comments leave
/// nothing. Throws LineFailure.
std::vector<Token> lex(std::string_view source);

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_LEXER_H
