// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a template computes with: Python's values, as far as templates have use for them.

#ifndef SLUICE_RUNTIME_CHAT_JINJA_VALUE_H
#define SLUICE_RUNTIME_CHAT_JINJA_VALUE_H

#include <nlohmann/json.hpp>

#include <cstdint>
#include <iterator>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace sluice::runtime::jinja {

/// What is wrong, without the place, which the interpreter adds.
struct Failure {
  std::string message;
};

class Interpreter;
class Value;
using Values = std::vector<Value>;

/// What a function is called with.
struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// A value that has identity: a namespace, a loop, a function.
class Object {
public:
  virtual ~Object();
  virtual std::string typeName() const = 0;
  virtual std::optional<Value> attribute(Interpreter &interpreter, std::string_view name);
  virtual bool isCallable() const { return false; }
  /// Only of those that are callable.
  virtual Value call(Interpreter &interpreter, const Arguments &arguments);
};

struct List;
struct Dict;

class Value {
public:
  enum class Kind : uint8_t {
    Undefined,
    None,
    Boolean,
    Integer,
    Float,
    String,
    List,
    Dict,
    Object
  };

  /// Undefined for no reason that anybody knows.
  Value() = default;
  Value(bool value) : data(value) {}
  Value(int64_t value) : data(value) {}
  Value(double value) : data(value) {}
  Value(std::string value) : data(std::make_shared<const std::string>(std::move(value))) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char *value) : Value(std::string(value)) {}
  Value(std::shared_ptr<Object> value) : data(std::move(value)) {}
  static Value none();
  /// `why` is the message when it is used where something is needed: "'x' is undefined".
  static Value undefined(std::string why);
  /// Throw Failure when nested deeper than maxDepth or larger than maxWeight.
  static Value list(Values items);
  static Value tuple(Values items);
  /// What Python would compute item by item: true, and without a length.
  static Value iterator(Values items);
  /// Keys are different from each other.
  static Value dict(std::vector<std::pair<Value, Value>> items);
  static Value fromJson(const nlohmann::ordered_json &json);

  static constexpr uint32_t maxDepth = 100;
  static constexpr uint64_t maxWeight = uint64_t(64) << 20;

  Kind kind() const { return static_cast<Kind>(data.index()); }
  bool isUndefined() const { return kind() == Kind::Undefined; }
  bool isNone() const { return kind() == Kind::None; }
  bool isString() const { return kind() == Kind::String; }
  bool isList() const { return kind() == Kind::List; }
  bool isDict() const { return kind() == Kind::Dict; }
  /// Of any kind of number, bool included as in Python.
  bool isNumber() const;
  bool isInteger() const { return kind() == Kind::Integer || kind() == Kind::Boolean; }

  bool asBoolean() const { return std::get<bool>(data); }
  int64_t asInteger() const;
  double asDouble() const;
  const std::string &asString() const { return **std::get_if<StringPointer>(&data); }
  const List &asList() const { return **std::get_if<ListPointer>(&data); }
  const Dict &asDict() const { return **std::get_if<DictPointer>(&data); }
  const std::shared_ptr<Object> &asObject() const {
    return std::get<std::shared_ptr<Object>>(data);
  }
  /// Why it is undefined.
  std::string why() const;

  /// About how many bytes its text has. A value that stands in a list twice counts twice.
  uint64_t weight() const;

  bool isTrue() const;
  /// As Python calls it, "dict" say.
  std::string typeName() const;
  /// str() and repr().
  std::string str() const;
  std::string repr() const;

private:
  struct UndefinedValue {
    std::shared_ptr<const std::string> why;
  };
  struct NoneValue {};
  using StringPointer = std::shared_ptr<const std::string>;
  using ListPointer = std::shared_ptr<const List>;
  using DictPointer = std::shared_ptr<const Dict>;

  static Value makeList(Values items, uint8_t kind);
  void appendRepr(std::string &out) const;

  std::variant<UndefinedValue, NoneValue, bool, int64_t, double, StringPointer, ListPointer,
               DictPointer, std::shared_ptr<Object>>
      data;
};

/// How large a container is, all in it included.
struct Extent {
  /// Of how many containers in each other it is the outermost.
  uint32_t depth = 1;
  uint64_t weight = 16;

  void add(const Value &item);
  /// Throws Failure if it is too large.
  void check() const;
};

/// A sequence of values. Nothing in a template can change it.
struct List {
  enum class Kind : uint8_t { List, Tuple, Iterator };
  Kind kind = Kind::List;
  Extent extent;
  Values items;
};

/// Keys and values in the order in which they came.
struct Dict {
  Extent extent;
  std::vector<std::pair<Value, Value>> items;

  const Value *find(const Value &key) const;
  const Value *find(std::string_view key) const;
};

/// Python's ==.
bool equal(const Value &left, const Value &right);
/// Python's <; throws Failure if the two have no order. `op` is for the message.
bool less(const Value &left, const Value &right, const char *op = "<");

/// Sorts by an order that a template may spoil (NaN is in none with other numbers), for which other
/// algorithms are not made; what is equal stays in its order.
template <typename T, typename Less> void stableSort(std::vector<T> &items, Less &&less) {
  std::list<T> sorted(std::make_move_iterator(items.begin()), std::make_move_iterator(items.end()));
  sorted.sort(less);
  items.assign(std::make_move_iterator(sorted.begin()), std::make_move_iterator(sorted.end()));
}

/// Python's repr of a float.
std::string floatText(double value);

struct JsonStyle {
  /// Put before each level; nothing for all on one line.
  std::optional<std::string> indent;
  std::optional<std::pair<std::string, std::string>> separators;
  bool ensureAscii = false, sortKeys = false;
};
/// Python's json.dumps; throws Failure for what JSON does not have.
std::string toJson(const Value &value, const JsonStyle &style);

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_VALUE_H
