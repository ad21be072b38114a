// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The methods of Python's values that templates may call: those that change nothing.

#include "Interpreter.h"

#include "Text.h"

#include "sluice-support/Text.h"

#include <algorithm>
#include <unordered_map>

namespace sluice::runtime::jinja {

namespace {

// ---- Strings ----

template <Side S>
Value stripMethod(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  auto bound = bind(arguments, "strip", {"chars"});
  const std::string &text = self.asString();
  if (!bound[0] || bound[0]->isNone())
    return interpreter.text(strip(text, S));
  const std::string &characters = stringArgument(bound[0], "the argument of strip");
  interpreter.charge(characters.size() * text.size() / 16);
  return interpreter.text(strip(text, S, characters));
}

template <std::string (*F)(std::string_view)>
Value changeCase(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  bind(arguments, "the method", {});
  return interpreter.text(F(self.asString()));
}

template <bool (*F)(std::string_view)>
Value check(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  bind(arguments, "the method", {});
  interpreter.charge(self.asString().size() / 16);
  return F(self.asString());
}

template <bool FromRight>
Value split(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  auto bound = bind(arguments, "split", {"sep", "maxsplit"});
  int64_t most = integerArgument(bound[1], "maxsplit of split", -1);
  std::string_view text = self.asString();
  interpreter.chargeBytes(text.size());
  std::vector<std::string_view> parts;
  if (!bound[0] || bound[0]->isNone()) {
    parts = splitWords(text, most, FromRight);
  } else {
    std::string_view separator = stringArgument(bound[0], "the separator of split");
    if (separator.empty())
      throw Failure{"the separator of split is empty"};
    while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
      size_t at = FromRight ? text.rfind(separator) : text.find(separator);
      if (at == std::string_view::npos)
        break;
      parts.push_back(FromRight ? text.substr(at + separator.size()) : text.substr(0, at));
      text = FromRight ? text.substr(0, at) : text.substr(at + separator.size());
    }
    parts.push_back(text);
    if (FromRight)
      std::reverse(parts.begin(), parts.end());
  }
  Values items;
  for (std::string_view part : parts)
    items.push_back(interpreter.text(part));
  return interpreter.list(std::move(items));
}

Value splitLinesMethod(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  bind(arguments, "splitlines", {});
  Values items;
  for (std::string_view line : splitLines(self.asString()))
    items.push_back(interpreter.text(line));
  return interpreter.list(std::move(items));
}

template <bool FromRight>
Value partition(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  std::string_view separator =
      stringArgument(bind(arguments, "partition", {"sep"}, 1)[0], "the separator of partition");
  if (separator.empty())
    throw Failure{"the separator of partition is empty"};
  std::string_view text = self.asString();
  size_t at = FromRight ? text.rfind(separator) : text.find(separator);
  auto part = [&](std::string_view piece) { return interpreter.text(piece); };
  if (at == std::string_view::npos)
    return FromRight ? Value::tuple({"", "", part(text)}) : Value::tuple({part(text), "", ""});
  return Value::tuple(
      {part(text.substr(0, at)), part(separator), part(text.substr(at + separator.size()))});
}

template <bool AtEnd>
Value startsOrEndsWith(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  const char *name = AtEnd ? "endswith" : "startswith";
  const Value &wanted = *bind(arguments, name, {"prefix"}, 1)[0];
  std::string_view text = self.asString();
  auto has = [&](const Value &one) {
    const std::string &part = stringArgument(&one, std::string("the argument of ") + name);
    interpreter.charge(part.size() / 16);
    return AtEnd ? text.ends_with(part) : text.starts_with(part);
  };
  if (wanted.isList() && wanted.asList().kind == List::Kind::Tuple)
    return std::any_of(wanted.asList().items.begin(), wanted.asList().items.end(), has);
  return has(wanted);
}

template <bool AtEnd>
Value remove(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  const char *name = AtEnd ? "removesuffix" : "removeprefix";
  std::string_view part = stringArgument(bind(arguments, name, {"prefix"}, 1)[0],
                                         std::string("the argument of ") + name),
                   text = self.asString();
  if (AtEnd && text.ends_with(part))
    text.remove_suffix(part.size());
  else if (!AtEnd && text.starts_with(part))
    text.remove_prefix(part.size());
  return interpreter.text(text);
}

Value replace(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  auto bound = bind(arguments, "replace", {"old", "new", "count"}, 2);
  const std::string &from = stringArgument(bound[0], "the first argument of replace"),
                    &to = stringArgument(bound[1], "the second argument of replace");
  int64_t most = integerArgument(bound[2], "the third argument of replace", -1);
  std::string_view text = self.asString();
  std::string result;
  int64_t count = 0;
  size_t at = 0;
  auto put = [&] {
    interpreter.chargeBytes(to.size());
    interpreter.charge(1);
    result += to;
    ++count;
  };
  if (from.empty()) {
    // Before each character, and at the end.
    std::vector<size_t> offsets = characterOffsets(text);
    for (size_t i = 0; i < offsets.size() && (most < 0 || count < most); ++i) {
      put();
      at = i + 1 < offsets.size() ? offsets[i + 1] : text.size();
      result += text.substr(offsets[i], at - offsets[i]);
    }
  } else {
    for (size_t found;
         (most < 0 || count < most) && (found = text.find(from, at)) != std::string_view::npos;) {
      result += text.substr(at, found - at);
      put();
      at = found + from.size();
    }
  }
  result += text.substr(at);
  return interpreter.text(std::move(result));
}

/// Where in the text, in characters, or -1.
int64_t indexIn(Interpreter &interpreter, const Value &self, const Arguments &arguments,
                const char *name, bool fromRight) {
  std::string_view part = stringArgument(bind(arguments, name, {"sub"}, 1)[0],
                                         std::string("the argument of ") + name),
                   text = self.asString();
  interpreter.charge(text.size() / 16);
  size_t at = fromRight ? text.rfind(part) : text.find(part);
  if (at == std::string_view::npos)
    return -1;
  return static_cast<int64_t>(characterCount(text.substr(0, at)));
}

Value find(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  return indexIn(interpreter, self, arguments, "find", false);
}
Value rfind(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  return indexIn(interpreter, self, arguments, "rfind", true);
}
Value stringIndex(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  int64_t at = indexIn(interpreter, self, arguments, "index", false);
  if (at < 0)
    throw Failure{"index: the text does not have " +
                  support::quote(arguments.positional.front().asString())};
  return at;
}

Value stringCount(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  const std::string &part = stringArgument(bind(arguments, "count", {"sub"}, 1)[0],
                                           "the argument of count"),
                    &text = self.asString();
  interpreter.charge(text.size() / 16);
  if (part.empty())
    return static_cast<int64_t>(characterCount(text)) + 1;
  int64_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size())
    ++count;
  return count;
}

Value joinMethod(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  std::string all;
  bool first = true;
  for (const Value &item : interpreter.iterate(*bind(arguments, "join", {"iterable"}, 1)[0])) {
    const std::string &part = stringArgument(&item, "an item of join");
    interpreter.chargeBytes(self.asString().size() + part.size());
    if (!std::exchange(first, false))
      all += self.asString();
    all += part;
  }
  return interpreter.text(std::move(all));
}

// ---- Lists ----

Value listIndex(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  const Value &wanted = *bind(arguments, "index", {"value"}, 1)[0];
  interpreter.charge(self.weight() / 16);
  const Values &items = self.asList().items;
  auto it = std::find_if(items.begin(), items.end(),
                         [&](const Value &item) { return equal(item, wanted); });
  if (it == items.end())
    throw Failure{"index: the list does not have " + support::printable(wanted.repr())};
  return it - items.begin();
}

Value listCount(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  const Value &wanted = *bind(arguments, "count", {"value"}, 1)[0];
  interpreter.charge(self.weight() / 16);
  const Values &items = self.asList().items;
  return static_cast<int64_t>(std::count_if(
      items.begin(), items.end(), [&](const Value &item) { return equal(item, wanted); }));
}

// ---- Dicts ----

Value get(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  auto bound = bind(arguments, "get", {"key", "default"}, 1);
  interpreter.charge(self.asDict().items.size() / 8);
  const Value *found = self.asDict().find(*bound[0]);
  return found ? *found : bound[1] ? *bound[1] : Value::none();
}

Value items(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  bind(arguments, "items", {});
  Values result;
  interpreter.chargeBytes(self.asDict().items.size() * 4 * sizeof(Value));
  for (const auto &[key, value] : self.asDict().items)
    result.push_back(Value::tuple({key, value}));
  return interpreter.list(std::move(result));
}

Value keys(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  bind(arguments, "keys", {});
  return interpreter.list(interpreter.iterate(self));
}

Value values(Interpreter &interpreter, const Value &self, const Arguments &arguments) {
  bind(arguments, "values", {});
  Values result;
  for (const auto &[key, value] : self.asDict().items)
    result.push_back(value);
  return interpreter.list(std::move(result));
}

Value copy(Interpreter &, const Value &self, const Arguments &arguments) {
  bind(arguments, "copy", {});
  return self;
}

} // namespace

FilterFunction findMethod(const Value &self, std::string_view name) {
  using Methods = std::unordered_map<std::string_view, FilterFunction>;
  static const Methods none,
      ofString =
          {
              {"capitalize", changeCase<capitalized>},
              {"count", stringCount},
              {"endswith", startsOrEndsWith<true>},
              {"find", find},
              {"index", stringIndex},
              {"isalnum", check<isAllLettersOrDigits>},
              {"isalpha", check<isAllLetters>},
              {"isdecimal", check<isAllDigits>},
              {"isdigit", check<isAllDigits>},
              {"islower", check<isLower>},
              {"isspace", check<isAllSpace>},
              {"isupper", check<isUpper>},
              {"join", joinMethod},
              {"lower", changeCase<toLower>},
              {"lstrip", stripMethod<Side::Left>},
              {"partition", partition<false>},
              {"removeprefix", remove<false>},
              {"removesuffix", remove<true>},
              {"replace", replace},
              {"rfind", rfind},
              {"rpartition", partition<true>},
              {"rsplit", split<true>},
              {"rstrip", stripMethod<Side::Right>},
              {"split", split<false>},
              {"splitlines", splitLinesMethod},
              {"startswith", startsOrEndsWith<false>},
              {"strip", stripMethod<Side::Both>},
              {"title", changeCase<titled>},
              {"upper", changeCase<toUpper>},
          },
      ofList = {{"copy", copy}, {"count", listCount}, {"index", listIndex}},
      ofDict = {{"copy", copy}, {"get", get}, {"items", items}, {"keys", keys}, {"values", values}};
  const Methods &methods = self.isString()                                               ? ofString
                           : self.isDict()                                               ? ofDict
                           : self.isList() && self.asList().kind != List::Kind::Iterator ? ofList
                                                                                         : none;
  auto it = methods.find(name);
  return it == methods.end() ? nullptr : it->second;
}

} // namespace sluice::runtime::jinja
