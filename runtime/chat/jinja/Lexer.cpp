// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Lexer.h"

#include "Text.h"

#include "sluice-support/Text.h"

#include <algorithm>
#include <cctype>

namespace sluice::runtime::jinja {

using Kind = Token::Kind;

std::string Token::describe() const {
  switch (kind) {
  case Kind::Text:
    return "text";
  case Kind::OutputBegin:
  case Kind::OutputEnd:
  case Kind::TagBegin:
  case Kind::TagEnd:
  case Kind::Name:
  case Kind::Integer:
  case Kind::Float:
  case Kind::Operator:
    return support::quote(text);
  case Kind::String:
    return "the string " + support::quote(text);
  case Kind::End:
    return "the end of the template";
  }
  return "";
}

namespace {

bool isNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool isNamePart(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool isDecimal(char c) { return c >= '0' && c <= '9'; }

class Lexer {
public:
  explicit Lexer(std::string_view given) {
    // Line ends become line feeds, and the last one is not the template's.
    source.reserve(given.size());
    for (size_t i = 0; i < given.size(); ++i) {
      if (given[i] == '\r' && i + 1 < given.size() && given[i + 1] == '\n')
        continue;
      source += given[i] == '\r' ? '\n' : given[i];
    }
    if (source.ends_with('\n'))
      source.pop_back();
  }

  std::vector<Token> run() {
    while (readText())
      ;
    add(Kind::End, "");
    return std::move(tokens);
  }

private:
  [[noreturn]] void fail(const std::string &message) const { throw LineFailure{line, message}; }

  char peek(size_t offset = 0) const {
    return at + offset < source.size() ? source[at + offset] : '\0';
  }
  bool startsWith(std::string_view text) const {
    return std::string_view(source).substr(at).starts_with(text);
  }
  void advance(size_t count) {
    line += static_cast<int>(std::count(source.begin() + static_cast<ptrdiff_t>(at),
                                        source.begin() + static_cast<ptrdiff_t>(at + count), '\n'));
    at += count;
  }
  void add(Kind kind, std::string text) { tokens.push_back({kind, line, std::move(text)}); }

  void skipSpace() {
    std::string_view rest = std::string_view(source).substr(at);
    advance(rest.size() - strip(rest, Side::Left).size());
  }

  /// After the end of a tag or comment: '-' takes the white space, '+' nothing, and without a sign
  /// one line end goes.
  void endTag(char sign) {
    if (sign == '-')
      skipSpace();
    else if (sign != '+' && peek() == '\n')
      advance(1);
  }

  /// The text before a tag that begins with this sign.
  void addText(size_t begin, size_t end, char sign, bool isOutput, int textLine) {
    std::string_view text = std::string_view(source).substr(begin, end - begin);
    if (sign == '-') {
      text = strip(text, Side::Right);
    } else if (sign != '+' && !isOutput) {
      size_t lineBegin = text.rfind('\n') + 1;
      bool startsLine = lineBegin > 0 || begin == 0 || source[begin - 1] == '\n';
      if (startsLine && isAllSpace(text.substr(lineBegin)))
        text = text.substr(0, lineBegin);
    }
    if (!text.empty())
      tokens.push_back({Kind::Text, textLine, std::string(text)});
  }

  /// Text up to the next tag, and that. False at the end.
  bool readText() {
    size_t begin = at, tag = at;
    while ((tag = source.find('{', tag)) != std::string::npos) {
      char next = tag + 1 < source.size() ? source[tag + 1] : '\0';
      if (next == '{' || next == '%' || next == '#')
        break;
      ++tag;
    }
    int textLine = line;
    if (tag == std::string::npos) {
      addText(begin, source.size(), '+', true, textLine);
      advance(source.size() - begin);
      return false;
    }
    advance(tag - begin);
    char kind = peek(1), sign = peek(2);
    if (sign != '-' && sign != '+')
      sign = '\0';
    addText(begin, tag, sign, kind == '{', textLine);
    if (kind == '#')
      readComment();
    else if (kind == '{')
      readTag(Kind::OutputBegin, Kind::OutputEnd, '}', sign);
    else if (!readRaw(sign))
      readTag(Kind::TagBegin, Kind::TagEnd, '%', sign);
    return true;
  }

  void readComment() {
    size_t end = source.find("#}", at + 2);
    if (end == std::string::npos)
      fail("the comment that begins here has no end \"#}\"");
    char sign = end > at + 2 ? source[end - 1] : '\0';
    advance(end + 2 - at);
    endTag(sign == '-' || sign == '+' ? sign : '\0');
  }

  /// The sign of a tag's end "%}" at `place`, and how long that is; 0 if there is none.
  size_t tagEndAt(size_t place, char &sign) const {
    std::string_view rest = std::string_view(source).substr(std::min(place, source.size()));
    sign = !rest.empty() && (rest[0] == '-' || rest[0] == '+') ? rest[0] : '\0';
    return rest.substr(sign != '\0').starts_with("%}") ? 2 + (sign != '\0') : 0;
  }

  size_t skipSpaceFrom(size_t place) const {
    std::string_view rest = std::string_view(source).substr(place);
    return place + rest.size() - strip(rest, Side::Left).size();
  }

  /// Whether `name` stands as the only word of a tag whose word may begin at `place`; `end` is then
  /// the tag's end, with its sign.
  bool isTagOf(std::string_view name, size_t place, size_t &end, char &sign) const {
    place = skipSpaceFrom(place);
    if (!std::string_view(source).substr(place).starts_with(name))
      return false;
    place = skipSpaceFrom(place + name.size());
    size_t length = tagEndAt(place, sign);
    end = place + length;
    return length > 0;
  }

  bool readRaw(char sign) {
    size_t end;
    char endSign;
    if (!isTagOf("raw", at + 2 + (sign != '\0'), end, endSign) || endSign == '+')
      return false;
    int beginLine = line;
    advance(end - at);
    // The line end after it stays.
    if (endSign == '-')
      skipSpace();
    size_t begin = at;
    int textLine = line;
    for (size_t tag = at; (tag = source.find("{%", tag)) != std::string::npos; ++tag) {
      char tagSign = tag + 2 < source.size() ? source[tag + 2] : '\0';
      if (tagSign != '-' && tagSign != '+')
        tagSign = '\0';
      if (!isTagOf("endraw", tag + 2 + (tagSign != '\0'), end, endSign))
        continue;
      addText(begin, tag, tagSign, false, textLine);
      advance(end - at);
      endTag(endSign);
      return true;
    }
    line = beginLine;
    fail("\"raw\" has no \"endraw\"");
  }

  void readTag(Kind beginKind, Kind endKind, char endChar, char sign) {
    size_t length = 2 + (sign != '\0');
    add(beginKind, source.substr(at, length));
    int beginLine = line;
    advance(length);
    brackets.clear();
    while (true) {
      skipSpace();
      if (at >= source.size()) {
        line = beginLine;
        fail(beginKind == Kind::TagBegin ? "the tag that begins here has no end \"%}\""
                                         : "the output that begins here has no end \"}}\"");
      }
      if (brackets.empty()) {
        bool isTag = endKind == Kind::TagEnd;
        char endSign = peek() == '-' || (isTag && peek() == '+') ? peek() : '\0';
        size_t offset = endSign != '\0';
        if (peek(offset) == endChar && peek(offset + 1) == '}') {
          add(endKind, source.substr(at, offset + 2));
          advance(offset + 2);
          endTag(isTag || endSign ? endSign : '+');
          return;
        }
      }
      readToken();
    }
  }

  void readToken() {
    char c = peek();
    if (isNameStart(c)) {
      size_t length = 1;
      while (isNamePart(peek(length)))
        ++length;
      add(Kind::Name, source.substr(at, length));
      advance(length);
    } else if (isDecimal(c)) {
      readNumber();
    } else if (c == '\'' || c == '"') {
      readString(c);
    } else {
      readOperator();
    }
  }

  size_t digitsAt(size_t offset) const {
    size_t length = 0;
    while (isDecimal(peek(offset + length)) ||
           (length > 0 && peek(offset + length) == '_' && isDecimal(peek(offset + length + 1))))
      ++length;
    return length;
  }

  void readNumber() {
    size_t length = digitsAt(0);
    Kind kind = Kind::Integer;
    // In "x.0.1" each part is a number of its own.
    bool afterDot = at > 0 && source[at - 1] == '.';
    if (!afterDot && peek(length) == '.')
      if (size_t fraction = digitsAt(length + 1)) {
        length += 1 + fraction;
        kind = Kind::Float;
      }
    if (!afterDot && (peek(length) == 'e' || peek(length) == 'E')) {
      size_t sign = peek(length + 1) == '+' || peek(length + 1) == '-';
      if (size_t exponent = digitsAt(length + 1 + sign)) {
        length += 1 + sign + exponent;
        kind = Kind::Float;
      }
    }
    if (isNameStart(peek(length)))
      fail("\"" + source.substr(at, length + 1) + "\" is not a number");
    std::string digits = source.substr(at, length);
    std::erase(digits, '_');
    add(kind, std::move(digits));
    advance(length);
  }

  uint32_t hexAt(size_t offset, size_t digits) const {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      char c = peek(offset + i);
      if (!std::isxdigit(static_cast<unsigned char>(c)))
        fail("a string has an escape with too few hexadecimal digits");
      value = value << 4 | static_cast<uint32_t>(isDecimal(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  void readString(char quote) {
    std::string text;
    int beginLine = line;
    size_t length = 1;
    while (true) {
      if (at + length >= source.size())
        fail("the string that begins here has no end");
      char c = peek(length);
      if (c == quote)
        break;
      if (c != '\\') {
        text += c;
        ++length;
        continue;
      }
      c = peek(length + 1);
      length += 2;
      static constexpr std::string_view names = "abfnrtv\\'\"", values = "\a\b\f\n\r\t\v\\'\"";
      if (size_t index = names.find(c); index != std::string_view::npos) {
        text += values[index];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        appendUtf8(text, hexAt(length, digits));
        length += digits;
      } else if (c >= '0' && c <= '7') {
        uint32_t value = static_cast<uint32_t>(c - '0');
        for (int i = 0; i < 2 && peek(length) >= '0' && peek(length) <= '7'; ++i)
          value = value << 3 | static_cast<uint32_t>(source[at + length++] - '0');
        appendUtf8(text, value);
      } else if (c != '\n') {
        // Not an escape: both characters stay.
        text += '\\';
        --length;
      }
    }
    advance(length + 1);
    tokens.push_back({Kind::String, beginLine, std::move(text)});
  }

  void readOperator() {
    static constexpr std::string_view operators[] = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  "<",  ">", "=", ".", ":", "|", ","};
    const auto *found = std::find_if(std::begin(operators), std::end(operators),
                                     [&](std::string_view op) { return startsWith(op); });
    if (found == std::end(operators)) {
      std::string_view rest = std::string_view(source).substr(at);
      fail("unexpected character " +
           support::quote(rest.substr(0, std::max<size_t>(1, support::decodeUtf8(rest).length))));
    }
    if (*found == "(" || *found == "[" || *found == "{")
      brackets.push_back(*found == "(" ? ')' : *found == "[" ? ']' : '}');
    else if (*found == ")" || *found == "]" || *found == "}") {
      if (brackets.empty() || brackets.back() != found->front())
        fail("unexpected '" + std::string(*found) + "'" +
             (brackets.empty() ? "" : std::string(", expected '") + brackets.back() + "'"));
      brackets.pop_back();
    }
    add(Kind::Operator, std::string(*found));
    advance(found->size());
  }

  std::string source;
  size_t at = 0;
  int line = 1;
  std::vector<Token> tokens;
  /// The closing brackets that are due.
  std::string brackets;
};

} // namespace

std::vector<Token> lex(std::string_view source) { return Lexer(source).run(); }

} // namespace sluice::runtime::jinja
