// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The filter tojson, as transformers defines it: Python's json.dumps.

#include "Value.h"

#include "Text.h"

#include "sluice-support/Text.h"

#include <cmath>

namespace sluice::runtime::jinja {

namespace {

class JsonWriter {
public:
  explicit JsonWriter(const JsonStyle &style) : style(style) {
    item = style.separators ? style.separators->first : style.indent ? "," : ", ";
    key = style.separators ? style.separators->second : ": ";
  }

  void write(const Value &value) {
    switch (value.kind()) {
    case Value::Kind::None:
      out += "null";
      return;
    case Value::Kind::Boolean:
      out += value.asBoolean() ? "true" : "false";
      return;
    case Value::Kind::Integer:
    case Value::Kind::Float:
      out += numberText(value);
      return;
    case Value::Kind::String:
      writeString(value.asString());
      return;
    case Value::Kind::List:
      if (value.asList().kind == List::Kind::Iterator)
        break;
      writeItems(value.asList().items, '[', ']', [&](const Value &element) { write(element); });
      return;
    case Value::Kind::Dict: {
      auto items = value.asDict().items;
      if (style.sortKeys)
        stableSort(items, [](const auto &a, const auto &b) { return less(a.first, b.first); });
      writeItems(items, '{', '}', [&](const auto &member) {
        writeString(keyText(member.first));
        out += key;
        write(member.second);
      });
      return;
    }
    case Value::Kind::Undefined:
      throw Failure{"tojson: " + value.why()};
    case Value::Kind::Object:
      break;
    }
    throw Failure{"tojson: a value of type " + value.typeName() + " has no JSON"};
  }

  std::string out;

private:
  static std::string numberText(const Value &value) {
    if (value.kind() == Value::Kind::Integer)
      return std::to_string(value.asInteger());
    double number = value.asDouble();
    if (std::isfinite(number))
      return floatText(number);
    return std::isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity";
  }

  static std::string keyText(const Value &value) {
    switch (value.kind()) {
    case Value::Kind::String:
      return value.asString();
    case Value::Kind::None:
      return "null";
    case Value::Kind::Boolean:
      return value.asBoolean() ? "true" : "false";
    case Value::Kind::Integer:
    case Value::Kind::Float:
      return numberText(value);
    default:
      throw Failure{"tojson: a key of type " + value.typeName() +
                    ", expected a string, a number, a bool or none"};
    }
  }

  void newLine() {
    // Each line begins with spaces, however many were asked for.
    if (out.size() > Value::maxWeight)
      throw Failure{"tojson: the text is longer than " + std::to_string(Value::maxWeight >> 20) +
                    " MiB"};
    out += '\n';
    for (size_t i = 0; i < level; ++i)
      out += *style.indent;
  }

  template <typename Items, typename F>
  void writeItems(const Items &items, char open, char close, F &&writeOne) {
    out += open;
    ++level;
    bool first = true;
    for (const auto &element : items) {
      if (!std::exchange(first, false))
        out += item;
      if (style.indent)
        newLine();
      writeOne(element);
    }
    --level;
    if (style.indent && !items.empty())
      newLine();
    out += close;
  }

  void writeUnit(uint32_t unit) { (out += "\\u") += support::hexDigits(unit).substr(12); }

  void writeString(std::string_view text) {
    out += '"';
    while (!text.empty()) {
      support::Utf8Char c = support::decodeUtf8(text);
      char byte = text.front();
      static constexpr std::string_view special = "\"\\\b\f\n\r\t", names = "\"\\bfnrt";
      if (size_t at = special.find(byte); at != std::string_view::npos)
        (out += '\\') += names[at];
      else if (static_cast<unsigned char>(byte) < 0x20)
        writeUnit(static_cast<unsigned char>(byte));
      else if (!style.ensureAscii || static_cast<unsigned char>(byte) < 0x80)
        out += text.substr(0, c.length);
      else if (c.status != support::Utf8Status::Valid)
        writeUnit(0xFFFD);
      else if (c.codePoint < 0x10000)
        writeUnit(c.codePoint);
      else {
        writeUnit(0xD800 + ((c.codePoint - 0x10000) >> 10));
        writeUnit(0xDC00 + ((c.codePoint - 0x10000) & 0x3FF));
      }
      text.remove_prefix(c.length);
    }
    out += '"';
  }

  const JsonStyle &style;
  std::string item, key;
  size_t level = 0;
};

} // namespace

std::string toJson(const Value &value, const JsonStyle &style) {
  JsonWriter writer(style);
  writer.write(value);
  return std::move(writer.out);
}

} // namespace sluice::runtime::jinja
