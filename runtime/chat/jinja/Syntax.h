// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A template's syntax tree. The parser makes it, the interpreter walks it; nothing changes it.

#ifndef SLUICE_RUNTIME_CHAT_JINJA_SYNTAX_H
#define SLUICE_RUNTIME_CHAT_JINJA_SYNTAX_H

#include "Value.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace sluice::runtime::jinja {

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;
using Expressions = std::vector<ExpressionPointer>;

struct Literal {
  Value value;
};
struct Name {
  std::string name;
};
struct ListLiteral {
  Expressions items;
  bool isTuple = false;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPointer, ExpressionPointer>> items;
};
/// object.name
struct Attribute {
  ExpressionPointer object;
  std::string name;
};
/// object[index]
struct Item {
  ExpressionPointer object, index;
};
/// object[start:stop:step]; each may be null.
struct Slice {
  ExpressionPointer object, start, stop, step;
};
struct CallArguments {
  Expressions positional;
  std::vector<std::pair<std::string, ExpressionPointer>> named;
  /// *list and **dict; may be null.
  ExpressionPointer list, dict;
};
struct Call {
  ExpressionPointer function;
  CallArguments arguments;
};
struct Filter {
  /// Null in a block of text, which is then what is filtered.
  ExpressionPointer operand;
  std::string name;
  CallArguments arguments;
};
struct Test {
  ExpressionPointer operand;
  std::string name;
  CallArguments arguments;
};
struct Unary {
  enum class Op : uint8_t { Not, Minus, Plus } op;
  ExpressionPointer operand;
};
struct Binary {
  enum class Op : uint8_t { Add, Subtract, Multiply, Divide, FloorDivide, Modulo, Power } op;
  ExpressionPointer left, right;
};
/// a ~ b ~ c
struct Concatenation {
  Expressions parts;
};
/// a and b and c, or the same with or.
struct Logical {
  bool isAnd;
  Expressions operands;
};
/// first op operand op operand: each with its left neighbour.
struct Comparison {
  enum class Op : uint8_t {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn
  };
  ExpressionPointer first;
  std::vector<std::pair<Op, ExpressionPointer>> rest;
};
/// value if condition else otherwise; the last may be null.
struct Conditional {
  ExpressionPointer condition, value, otherwise;
};

struct Expression {
  int line;
  /// Of how many expressions in each other it is the outermost.
  int depth;
  std::variant<Literal, Name, ListLiteral, DictLiteral, Attribute, Item, Slice, Call, Filter, Test,
               Unary, Binary, Concatenation, Logical, Comparison, Conditional>
      node;
};

struct Statement;
using Statements = std::vector<Statement>;

/// What is assigned to: a name, an attribute of a namespace, or a tuple of targets.
struct Target {
  std::string name;
  std::optional<std::string> attribute;
  std::vector<Target> parts;
};

struct Text {
  std::string text;
};
struct Output {
  ExpressionPointer value;
};
struct If {
  struct Branch {
    ExpressionPointer condition;
    Statements body;
  };
  std::vector<Branch> branches;
  Statements otherwise;
};
struct For {
  Target target;
  /// `condition` may be null.
  ExpressionPointer sequence, condition;
  Statements body, otherwise;
};
struct Set {
  Target target;
  ExpressionPointer value;
};
/// {% set x %}...{% endset %}; the filter, which may be null, has no operand at its innermost.
struct SetBlock {
  Target target;
  ExpressionPointer filter;
  Statements body;
};
struct Macro {
  struct Parameter {
    std::string name;
    /// May be null.
    ExpressionPointer otherwise;
  };
  std::string name;
  std::vector<Parameter> parameters;
  Statements body;
};
/// {% filter x %}...{% endfilter %}
struct FilterBlock {
  ExpressionPointer filter;
  Statements body;
};
/// Statements with variables of their own: with, and generation, which has none.
struct Block {
  std::vector<std::pair<Target, ExpressionPointer>> variables;
  Statements body;
};
struct Break {};
struct Continue {};

struct Statement {
  int line;
  std::variant<Text, Output, If, For, Set, SetBlock, Macro, FilterBlock, Block, Break, Continue>
      node;
};

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_SYNTAX_H
