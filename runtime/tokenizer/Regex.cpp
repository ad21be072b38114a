// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#define PCRE2_CODE_UNIT_WIDTH 8
#include "Regex.h"

#include "Utf8.h"
#include "sluice-runtime/Error.h"

#include <pcre2.h>

namespace sluice::runtime::tokenizer {

/// Whether PCRE2 compiles a pattern.
static bool compiles(const std::string &pattern) {
  int error;
  PCRE2_SIZE offset;
  pcre2_code *code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  pcre2_code_free(code);
  return code;
}

/// Translates from Ruby's syntax as Oniguruma has it. PCRE2 takes U+180E as white space and Unicode
/// has not for long; its words are others, and a script's name stands for the characters that the
/// script is written with instead of those that are its own. && would silently be plain
/// characters; options in (?...) have other letters, of which only `i` is the same.
static std::string translate(const std::string &pattern, const std::string &where) {
  constexpr std::string_view spaces =
      "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
      "\\x{205F}\\x{3000}";
  // The superscripts and fractions are Oniguruma's own.
  constexpr std::string_view words =
      "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
  auto unsupported = [&](const char *what) -> Error {
    return Error(where + ": the pattern " + quote(pattern) + " uses " + what +
                 ", which is not supported");
  };
  auto classOf = [](std::string_view members, bool inverted = false) {
    return (inverted ? "[^" : "[") + std::string(members) + "]";
  };
  std::string out;
  int depth = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\') {
      ++i;
      std::string word = classOf(words);
      if (next == 's' || next == 'w') {
        std::string_view members = next == 's' ? spaces : words;
        out += depth ? std::string(members) : classOf(members);
      } else if (next == 'S' || next == 'W') {
        if (depth)
          throw unsupported(next == 'S' ? "\\S in a class" : "\\W in a class");
        out += classOf(next == 'S' ? spaces : words, true);
      } else if (!depth && next == 'b') {
        out += "(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))";
      } else if (!depth && next == 'B') {
        out += "(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))";
      } else if ((next == 'p' || next == 'P') && i + 1 < pattern.size() && pattern[i + 1] == '{') {
        size_t end = pattern.find('}', i);
        if (end == std::string::npos)
          throw unsupported("an unfinished \\p{");
        std::string name = pattern.substr(i + 2, end - i - 2);
        bool inverted = name.starts_with('^');
        std::string bare = name.substr(inverted);
        if (compiles("\\p{sc:" + bare + "}"))
          name = (inverted ? "^sc:" : "sc:") + bare;
        out.append("\\").append(1, next).append("{").append(name).append("}");
        i = end;
      } else if (next == 'h' || next == 'H') {
        throw unsupported("\\h (a hexadecimal digit)");
      } else {
        out.push_back(c);
        if (i < pattern.size())
          out.push_back(next);
      }
      continue;
    }
    if (depth) {
      if (c == '[' && next == ':') {
        size_t end = pattern.find(":]", i + 2);
        if (end == std::string::npos)
          throw unsupported("an unfinished [: class");
        out.append(pattern, i, end + 2 - i);
        i = end + 1;
        continue;
      }
      if (c == '[') {
        if (next == '^' || next == ']' || pattern[i - 1] == '-')
          throw unsupported("a class inside of a class that is not just more members");
        ++depth;
        continue;
      }
      if (c == '&' && next == '&')
        throw unsupported("&& in a class");
      if (c == ']' && --depth) {
        if (next == '-')
          throw unsupported("a class inside of a class that is not just more members");
        continue;
      }
    } else if (c == '[') {
      depth = 1;
      out.push_back(c);
      // A bracket in first place is itself, also after ^.
      if (next == '^') {
        out.push_back(next);
        ++i;
      }
      if (i + 1 < pattern.size() && pattern[i + 1] == ']')
        out.push_back(pattern[++i]);
      continue;
    } else if (c == '(' && next == '?') {
      size_t end = pattern.find_first_not_of("abcdefghijklmnopqrstuvwxyz-", i + 2);
      if (end != std::string::npos && end > i + 2 && (pattern[end] == ':' || pattern[end] == ')') &&
          pattern.find_first_not_of("i-", i + 2) < end)
        throw unsupported("an option other than (?i)");
    }
    out.push_back(c);
  }
  return out;
}

Regex::Regex(const std::string &pattern, bool literal, const std::string &where)
    : pattern(pattern), literal(literal), where(where) {
  if (pattern.empty())
    throw Error(where + ": the pattern is empty");
  if (validUtf8Prefix(pattern) != pattern.size())
    throw Error(where + ": the pattern " + quote(pattern) + " is not valid UTF-8");
  if (literal)
    return;
  if (pattern.size() > 65536)
    throw Error(where + ": the pattern has " + std::to_string(pattern.size()) +
                " bytes, expected at most 65536");
  std::string translated = translate(pattern, where);
  int error;
  PCRE2_SIZE offset;
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context)
    throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_code *compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &offset, context.get());
  if (!compiled) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    throw Error(where + ": the pattern " + quote(pattern) +
                " is not a regular expression: " + reinterpret_cast<const char *>(message));
  }
  code = std::shared_ptr<void>(compiled,
                               [](void *p) { pcre2_code_free(static_cast<pcre2_code *>(p)); });
  // Where there is no just-in-time compiler, or no memory for it, patterns are interpreted.
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
}

std::vector<std::pair<size_t, size_t>> Regex::findAll(std::string_view text) const {
  std::vector<std::pair<size_t, size_t>> matches;
  if (literal) {
    for (size_t at = text.find(pattern); at != std::string_view::npos;
         at = text.find(pattern, at + pattern.size()))
      matches.emplace_back(at, at + pattern.size());
    return matches;
  }
  const auto *compiled = static_cast<const pcre2_code *>(code.get());
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(compiled, nullptr), pcre2_match_data_free);
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (!data || !context)
    throw std::bad_alloc();
  pcre2_set_match_limit(context.get(), 10'000'000);
  pcre2_set_heap_limit(context.get(), 256 * 1024); // KiB
  const PCRE2_SIZE *range = pcre2_get_ovector_pointer(data.get());
  size_t at = 0;
  uint32_t options = PCRE2_NO_UTF_CHECK;
  while (at < text.size()) {
    auto match = [&](uint32_t extra) {
      return pcre2_match(compiled, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         options | extra, data.get(), context.get());
    };
    int rc = match(0);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = match(PCRE2_NO_JIT);
    if (rc == PCRE2_ERROR_NOMATCH)
      break;
    if (rc < 0) {
      PCRE2_UCHAR message[256];
      pcre2_get_error_message(rc, message, sizeof(message));
      throw Error(where + ": the pattern " + quote(pattern) + " gave up at byte " +
                  std::to_string(at) + " of " + std::to_string(text.size()) +
                  " of a text: " + reinterpret_cast<const char *>(message));
    }
    if (range[1] <= range[0]) {
      // An empty match (\K can even turn the range around): go on after the next character.
      at = std::max<size_t>(range[0], at);
      if (at < text.size())
        at += decodeUtf8(text.substr(at)).length;
      continue;
    }
    matches.emplace_back(range[0], range[1]);
    at = range[1];
  }
  return matches;
}

} // namespace sluice::runtime::tokenizer
