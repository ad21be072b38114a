// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The grammar is that of Jinja's own parser (jinja2/parser.py), rule by rule.

#include "Parser.h"

#include "Lexer.h"

#include "sluice-support/Text.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

namespace sluice::runtime::jinja {

using Kind = Token::Kind;

namespace {

/// Of expressions or statements in each other; each costs stack here and in the interpreter.
constexpr int maxDepth = 150;

class Parser {
public:
  explicit Parser(std::vector<Token> tokens) : tokens(std::move(tokens)) {}

  Statements run() {
    Statements all = parseBody({});
    if (current().kind != Kind::End)
      fail("unexpected " + current().describe());
    return all;
  }

private:
  // ---- Tokens ----

  const Token &current() const { return tokens[at]; }
  const Token &look() const { return tokens[std::min(at + 1, tokens.size() - 1)]; }
  Token next() {
    Token token = tokens[at];
    if (at + 1 < tokens.size())
      ++at;
    return token;
  }
  [[noreturn]] void fail(const std::string &message) const {
    throw LineFailure{current().line, message};
  }
  [[noreturn]] void failExpected(const std::string &what) const {
    fail("found " + current().describe() + ", expected " + what);
  }
  bool skip(std::string_view op) {
    bool found = current().is(op);
    if (found)
      next();
    return found;
  }
  bool skipName(std::string_view name) {
    bool found = current().isName(name);
    if (found)
      next();
    return found;
  }
  void expect(std::string_view op) {
    if (!skip(op))
      failExpected("'" + std::string(op) + "'");
  }
  void expectName(std::string_view name) {
    if (!skipName(name))
      failExpected("'" + std::string(name) + "'");
  }
  std::string expectIdentifier() {
    if (current().kind != Kind::Name)
      failExpected("a name");
    return next().text;
  }
  void expectTagEnd() {
    if (current().kind != Kind::TagEnd)
      failExpected("'%}'");
    next();
  }

  /// Counts calls of each other; throws before they take all of the stack.
  class Nesting {
  public:
    explicit Nesting(Parser &parser) : parser(parser) {
      if (++parser.nesting > maxDepth)
        parser.fail("nested deeper than " + std::to_string(maxDepth) + " levels");
    }
    ~Nesting() { --parser.nesting; }

  private:
    Parser &parser;
  };

  // ---- Expressions ----

  template <typename Node> ExpressionPointer make(int line, Node node, int innerDepth) {
    // A chain such as a + b + c is as deep as it is long.
    if (innerDepth >= maxDepth)
      throw LineFailure{line, "an expression is nested deeper than " + std::to_string(maxDepth) +
                                  " levels"};
    return std::make_unique<Expression>(Expression{line, innerDepth + 1, std::move(node)});
  }
  static int depthOf(const ExpressionPointer &expression) {
    return expression ? expression->depth : 0;
  }
  static int depthOf(const Expressions &expressions) {
    int depth = 0;
    for (const auto &expression : expressions)
      depth = std::max(depth, depthOf(expression));
    return depth;
  }
  static int depthOf(const CallArguments &arguments) {
    int depth =
        std::max({depthOf(arguments.positional), depthOf(arguments.list), depthOf(arguments.dict)});
    for (const auto &[name, value] : arguments.named)
      depth = std::max(depth, depthOf(value));
    return depth;
  }

  ExpressionPointer parseExpression(bool withConditional = true) {
    Nesting nested(*this);
    return withConditional ? parseConditional() : parseOr();
  }

  ExpressionPointer parseConditional() {
    int line = current().line;
    ExpressionPointer value = parseOr();
    while (skipName("if")) {
      ExpressionPointer condition = parseOr(), otherwise;
      if (skipName("else"))
        otherwise = parseExpression();
      int depth = std::max({depthOf(value), depthOf(condition), depthOf(otherwise)});
      value = make(line, Conditional{std::move(condition), std::move(value), std::move(otherwise)},
                   depth);
    }
    return value;
  }

  ExpressionPointer parseLogical(bool isAnd) {
    int line = current().line;
    auto operand = [&] { return isAnd ? parseNot() : parseLogical(/*isAnd=*/true); };
    Expressions operands;
    do
      operands.push_back(operand());
    while (skipName(isAnd ? "and" : "or"));
    if (operands.size() == 1)
      return std::move(operands.front());
    int depth = depthOf(operands);
    return make(line, Logical{isAnd, std::move(operands)}, depth);
  }
  ExpressionPointer parseOr() { return parseLogical(/*isAnd=*/false); }

  ExpressionPointer parseNot() {
    int line = current().line;
    if (!skipName("not"))
      return parseComparison();
    Nesting nested(*this);
    return makeUnary(line, Unary::Op::Not, parseNot());
  }

  ExpressionPointer makeUnary(int line, Unary::Op op, ExpressionPointer operand) {
    int depth = depthOf(operand);
    return make(line, Unary{op, std::move(operand)}, depth);
  }

  std::optional<Comparison::Op> skipComparison() {
    using Op = Comparison::Op;
    static constexpr std::pair<std::string_view, Op> operators[] = {
        {"==", Op::Equal},       {"!=", Op::NotEqual}, {"<", Op::Less},
        {"<=", Op::LessOrEqual}, {">", Op::Greater},   {">=", Op::GreaterOrEqual}};
    for (auto [text, op] : operators)
      if (skip(text))
        return op;
    if (skipName("in"))
      return Op::In;
    if (current().isName("not") && look().isName("in")) {
      next();
      next();
      return Op::NotIn;
    }
    return std::nullopt;
  }

  ExpressionPointer parseComparison() {
    int line = current().line;
    ExpressionPointer first = parseSum();
    std::vector<std::pair<Comparison::Op, ExpressionPointer>> rest;
    int depth = depthOf(first);
    while (auto op = skipComparison()) {
      rest.emplace_back(*op, parseSum());
      depth = std::max(depth, depthOf(rest.back().second));
    }
    if (rest.empty())
      return first;
    return make(line, Comparison{std::move(first), std::move(rest)}, depth);
  }

  struct BinaryOperator {
    std::string_view text;
    Binary::Op op;
  };
  /// operand op operand op operand, from left to right.
  template <typename F>
  ExpressionPointer parseBinary(std::initializer_list<BinaryOperator> operators, F &&operand) {
    int line = current().line;
    ExpressionPointer left = operand();
    while (true) {
      const auto *found = std::find_if(operators.begin(), operators.end(),
                                       [&](const auto &o) { return current().is(o.text); });
      if (found == operators.end())
        return left;
      next();
      ExpressionPointer right = operand();
      int depth = std::max(depthOf(left), depthOf(right));
      left = make(line, Binary{found->op, std::move(left), std::move(right)}, depth);
    }
  }

  ExpressionPointer parseSum() {
    return parseBinary({{"+", Binary::Op::Add}, {"-", Binary::Op::Subtract}},
                       [&] { return parseConcatenation(); });
  }

  ExpressionPointer parseConcatenation() {
    int line = current().line;
    Expressions parts;
    do
      parts.push_back(parseProduct());
    while (skip("~"));
    if (parts.size() == 1)
      return std::move(parts.front());
    int depth = depthOf(parts);
    return make(line, Concatenation{std::move(parts)}, depth);
  }

  ExpressionPointer parseProduct() {
    return parseBinary({{"*", Binary::Op::Multiply},
                        {"/", Binary::Op::Divide},
                        {"//", Binary::Op::FloorDivide},
                        {"%", Binary::Op::Modulo}},
                       [&] {
                         return parseBinary({{"**", Binary::Op::Power}},
                                            [&] { return parseUnary(/*withFilters=*/true); });
                       });
  }

  ExpressionPointer parseUnary(bool withFilters) {
    Nesting nested(*this);
    int line = current().line;
    ExpressionPointer operand;
    if (skip("-"))
      operand = makeUnary(line, Unary::Op::Minus, parseUnary(false));
    else if (skip("+"))
      operand = makeUnary(line, Unary::Op::Plus, parseUnary(false));
    else
      operand = parsePrimary();
    operand = parsePostfix(std::move(operand));
    return withFilters ? parseFiltersAndTests(std::move(operand)) : std::move(operand);
  }

  ExpressionPointer parsePrimary() {
    int line = current().line;
    auto literal = [&](Value value) { return make(line, Literal{std::move(value)}, 0); };
    switch (current().kind) {
    case Kind::Name: {
      std::string name = next().text;
      if (name == "true" || name == "True")
        return literal(true);
      if (name == "false" || name == "False")
        return literal(false);
      if (name == "none" || name == "None")
        return literal(Value::none());
      return make(line, Name{std::move(name)}, 0);
    }
    case Kind::String: {
      // Neighbours are one string.
      std::string text;
      while (current().kind == Kind::String)
        text += next().text;
      return literal(std::move(text));
    }
    case Kind::Integer:
    case Kind::Float:
      return literal(parseNumber());
    default:
      break;
    }
    if (skip("(")) {
      ExpressionPointer inner = parseTuple(true, true);
      expect(")");
      return inner;
    }
    if (skip("[")) {
      Expressions items;
      while (!current().is("]")) {
        if (!items.empty())
          expect(",");
        if (current().is("]"))
          break;
        items.push_back(parseExpression());
      }
      expect("]");
      int depth = depthOf(items);
      return make(line, ListLiteral{std::move(items)}, depth);
    }
    if (skip("{"))
      return parseDict(line);
    failExpected("an expression");
  }

  Value parseNumber() {
    Token token = next();
    const char *begin = token.text.data(), *end = begin + token.text.size();
    if (token.kind == Kind::Integer) {
      int64_t value = 0;
      if (std::from_chars(begin, end, value).ec != std::errc())
        throw LineFailure{token.line, token.text + " does not fit in 64 bits"};
      return value;
    }
    double value = 0;
    if (std::from_chars(begin, end, value).ec != std::errc())
      throw LineFailure{token.line, token.text + " is out of the range of numbers"};
    return value;
  }

  ExpressionPointer parseDict(int line) {
    DictLiteral dict;
    int depth = 0;
    while (!current().is("}")) {
      if (!dict.items.empty())
        expect(",");
      if (current().is("}"))
        break;
      ExpressionPointer key = parseExpression();
      expect(":");
      ExpressionPointer value = parseExpression();
      depth = std::max({depth, depthOf(key), depthOf(value)});
      dict.items.emplace_back(std::move(key), std::move(value));
    }
    expect("}");
    return make(line, std::move(dict), depth);
  }

  bool isTupleEnd() const {
    return current().kind == Kind::OutputEnd || current().kind == Kind::TagEnd || current().is(")");
  }

  /// One expression, or several with commas, which are a tuple. In parentheses there may be none.
  ExpressionPointer parseTuple(bool withConditional, bool inParentheses) {
    int line = current().line;
    Expressions items;
    bool isTuple = false;
    while (!isTupleEnd()) {
      items.push_back(parseExpression(withConditional));
      if (!skip(","))
        break;
      isTuple = true;
    }
    if (!isTuple && !items.empty())
      return std::move(items.front());
    if (!isTuple && !inParentheses)
      failExpected("an expression");
    int depth = depthOf(items);
    return make(line, ListLiteral{std::move(items), /*isTuple=*/true}, depth);
  }

  ExpressionPointer parsePostfix(ExpressionPointer operand) {
    while (true) {
      if (current().is("."))
        operand = parseDot(std::move(operand));
      else if (current().is("["))
        operand = parseSubscript(std::move(operand));
      else if (current().is("("))
        operand = parseCall(std::move(operand));
      else
        return operand;
    }
  }

  ExpressionPointer parseDot(ExpressionPointer object) {
    int line = next().line, depth = depthOf(object);
    if (current().kind == Kind::Integer) {
      ExpressionPointer index = make(line, Literal{parseNumber()}, 0);
      return make(line, Item{std::move(object), std::move(index)}, depth);
    }
    return make(line, Attribute{std::move(object), expectIdentifier()}, depth);
  }

  ExpressionPointer parseSubscript(ExpressionPointer object) {
    int line = next().line;
    ExpressionPointer start, stop, step;
    bool isSlice = false;
    if (!current().is(":"))
      start = parseExpression();
    if (skip(":")) {
      isSlice = true;
      if (!current().is(":") && !current().is("]"))
        stop = parseExpression();
      if (skip(":") && !current().is("]"))
        step = parseExpression();
    }
    expect("]");
    int depth = std::max({depthOf(object), depthOf(start), depthOf(stop), depthOf(step)});
    if (!isSlice)
      return make(line, Item{std::move(object), std::move(start)}, depth);
    return make(line, Slice{std::move(object), std::move(start), std::move(stop), std::move(step)},
                depth);
  }

  CallArguments parseArguments() {
    CallArguments arguments;
    expect("(");
    bool first = true;
    while (!current().is(")")) {
      if (!std::exchange(first, false)) {
        expect(",");
        if (current().is(")"))
          break;
      }
      if (arguments.dict)
        fail("an argument stands after **");
      if (skip("*")) {
        if (arguments.list)
          fail("a call has two arguments with *");
        arguments.list = parseExpression();
      } else if (skip("**")) {
        arguments.dict = parseExpression();
      } else if (current().kind == Kind::Name && look().is("=")) {
        std::string name = next().text;
        next();
        arguments.named.emplace_back(std::move(name), parseExpression());
      } else {
        if (!arguments.named.empty() || arguments.list)
          fail("an argument without a name stands after one with a name");
        arguments.positional.push_back(parseExpression());
      }
    }
    expect(")");
    return arguments;
  }

  ExpressionPointer parseCall(ExpressionPointer function) {
    int line = current().line;
    CallArguments arguments = parseArguments();
    int depth = std::max(depthOf(function), depthOf(arguments));
    return make(line, Call{std::move(function), std::move(arguments)}, depth);
  }

  ExpressionPointer parseFiltersAndTests(ExpressionPointer operand) {
    while (true) {
      if (skip("|"))
        operand = parseFilter(std::move(operand));
      else if (current().isName("is"))
        operand = parseTest(std::move(operand));
      else if (current().is("("))
        operand = parseCall(std::move(operand));
      else
        return operand;
    }
  }

  /// After the bar.
  ExpressionPointer parseFilter(ExpressionPointer operand) {
    int line = current().line;
    std::string name = expectIdentifier();
    CallArguments arguments;
    if (current().is("("))
      arguments = parseArguments();
    int depth = std::max(depthOf(operand), depthOf(arguments));
    return make(line, Filter{std::move(operand), std::move(name), std::move(arguments)}, depth);
  }

  ExpressionPointer parseTest(ExpressionPointer operand) {
    int line = next().line;
    bool negated = skipName("not");
    std::string name = expectIdentifier();
    CallArguments arguments;
    const Token &token = current();
    if (token.is("(")) {
      arguments = parseArguments();
    } else if ((token.kind == Kind::Name && !token.isName("else") && !token.isName("or") &&
                !token.isName("and")) ||
               token.kind == Kind::String || token.kind == Kind::Integer ||
               token.kind == Kind::Float || token.is("[") || token.is("{")) {
      if (token.isName("is"))
        fail("tests can not be chained with 'is'");
      // A word that goes on with the expression around it is no argument.
      if (!isKeywordAfterTest(token))
        arguments.positional.push_back(parsePostfix(parsePrimary()));
    }
    int depth = std::max(depthOf(operand), depthOf(arguments));
    ExpressionPointer test =
        make(line, Test{std::move(operand), std::move(name), std::move(arguments)}, depth);
    return negated ? makeUnary(line, Unary::Op::Not, std::move(test)) : std::move(test);
  }

  static bool isKeywordAfterTest(const Token &token) {
    return token.isName("if") || token.isName("in") || token.isName("not") ||
           token.isName("recursive");
  }

  // ---- Statements ----

  /// Up to a tag that begins with one of these names, whose name is then the current token; or to
  /// the end, if there are none.
  Statements parseBody(std::initializer_list<std::string_view> ends) {
    Nesting nested(*this);
    // Of the tag before it.
    int beginLine = tokens[at > 0 ? at - 1 : 0].line;
    Statements body;
    while (true) {
      switch (current().kind) {
      case Kind::Text: {
        Token token = next();
        body.push_back({token.line, Text{std::move(token.text)}});
        break;
      }
      case Kind::OutputBegin: {
        int line = next().line;
        ExpressionPointer value = parseTuple(true, false);
        if (current().kind != Kind::OutputEnd)
          failExpected("'}}'");
        next();
        body.push_back({line, Output{std::move(value)}});
        break;
      }
      case Kind::TagBegin: {
        next();
        for (std::string_view end : ends)
          if (current().isName(end))
            return body;
        parseStatement(body);
        break;
      }
      default:
        if (ends.size() > 0)
          throw LineFailure{beginLine, "the block that begins here has no '" +
                                           std::string(*(ends.end() - 1)) + "'"};
        return body;
      }
    }
  }

  /// The body of a tag, up to one of these names.
  Statements parseBlock(std::initializer_list<std::string_view> ends) {
    skip(":");
    expectTagEnd();
    return parseBody(ends);
  }
  /// The same with the one tag that ends it.
  Statements parseWholeBlock(std::string_view end) {
    Statements body = parseBlock({end});
    expectName(end);
    expectTagEnd();
    return body;
  }

  void parseStatement(Statements &body) {
    int line = current().line;
    if (current().kind != Kind::Name)
      failExpected("the name of a tag");
    auto add = [&](auto node) { body.push_back({line, std::move(node)}); };
    if (skipName("if")) {
      add(parseIf());
    } else if (skipName("for")) {
      add(parseFor());
    } else if (skipName("set")) {
      parseSet(body, line);
    } else if (skipName("macro")) {
      add(parseMacro());
    } else if (skipName("filter")) {
      FilterBlock block{parseBlockFilter(), {}};
      block.body = parseWholeBlock("endfilter");
      add(std::move(block));
    } else if (skipName("with")) {
      add(parseWith());
    } else if (skipName("generation")) {
      add(Block{{}, parseWholeBlock("endgeneration")});
    } else if (current().isName("break") || current().isName("continue")) {
      bool isBreak = next().text == "break";
      if (loops == 0)
        throw LineFailure{line, std::string(isBreak ? "break" : "continue") +
                                    " stands outside of a loop"};
      expectTagEnd();
      if (isBreak)
        add(Break{});
      else
        add(Continue{});
    } else {
      fail("tag " + support::quote(current().text) +
           " is unknown or out of place; known are if, for, set, macro, filter, with, generation, "
           "break, continue and raw");
    }
  }

  If parseIf() {
    If result;
    while (true) {
      ExpressionPointer condition = parseTuple(false, false);
      Statements body = parseBlock({"elif", "else", "endif"});
      result.branches.push_back({std::move(condition), std::move(body)});
      if (skipName("elif"))
        continue;
      if (skipName("else")) {
        result.otherwise = parseWholeBlock("endif");
      } else {
        next();
        expectTagEnd();
      }
      return result;
    }
  }

  For parseFor() {
    For result;
    result.target = parseTarget(/*withAttribute=*/false);
    expectName("in");
    result.sequence = parseTuple(false, false);
    if (skipName("if"))
      result.condition = parseExpression();
    if (current().isName("recursive"))
      fail("recursive loops are not supported");
    ++loops;
    result.body = parseBlock({"endfor", "else"});
    --loops;
    if (skipName("else"))
      result.otherwise = parseWholeBlock("endfor");
    else {
      next();
      expectTagEnd();
    }
    return result;
  }

  /// `filter` or `filter | filter`, with the innermost's operand left open.
  ExpressionPointer parseBlockFilter() {
    ExpressionPointer filter = parseFilter(nullptr);
    while (skip("|"))
      filter = parseFilter(std::move(filter));
    return filter;
  }

  void parseSet(Statements &body, int line) {
    Target target = parseTarget(/*withAttribute=*/true);
    if (skip("=")) {
      ExpressionPointer value = parseTuple(true, false);
      expectTagEnd();
      body.push_back({line, Set{std::move(target), std::move(value)}});
      return;
    }
    SetBlock block{std::move(target), nullptr, {}};
    if (skip("|"))
      block.filter = parseBlockFilter();
    block.body = parseWholeBlock("endset");
    body.push_back({line, std::move(block)});
  }

  Macro parseMacro() {
    Macro macro;
    macro.name = expectIdentifier();
    expect("(");
    while (!current().is(")")) {
      if (!macro.parameters.empty())
        expect(",");
      std::string name = parseAssignable();
      ExpressionPointer otherwise;
      if (skip("="))
        otherwise = parseExpression();
      else if (!macro.parameters.empty() && macro.parameters.back().otherwise)
        fail("a parameter without a default stands after one with a default");
      macro.parameters.push_back({std::move(name), std::move(otherwise)});
    }
    expect(")");
    int outerLoops = std::exchange(loops, 0);
    macro.body = parseWholeBlock("endmacro");
    loops = outerLoops;
    return macro;
  }

  Block parseWith() {
    Block block;
    while (current().kind != Kind::TagEnd) {
      if (!block.variables.empty())
        expect(",");
      Target target = parseTarget(/*withAttribute=*/false);
      expect("=");
      block.variables.emplace_back(std::move(target), parseExpression());
    }
    block.body = parseWholeBlock("endwith");
    return block;
  }

  /// A name that can be assigned to.
  std::string parseAssignable() {
    for (const char *constant : {"true", "false", "none", "True", "False", "None"})
      if (current().isName(constant))
        failExpected("a name that can be assigned to");
    return expectIdentifier();
  }

  /// A name or tuple of names; or with `withAttribute` an attribute.
  Target parseTarget(bool withAttribute) {
    Nesting nested(*this);
    Target target;
    if (withAttribute && look().is(".")) {
      target.name = parseAssignable();
      next();
      target.attribute = expectIdentifier();
      return target;
    }
    std::vector<Target> parts;
    bool isTuple = false;
    while (true) {
      if (skip("(")) {
        parts.push_back(parseTarget(false));
        expect(")");
      } else {
        parts.push_back({parseAssignable(), std::nullopt, {}});
      }
      if (!skip(","))
        break;
      isTuple = true;
      if (current().isName("in") || current().is("=") || current().is(")"))
        break;
    }
    if (!isTuple)
      return std::move(parts.front());
    target.parts = std::move(parts);
    return target;
  }

  std::vector<Token> tokens;
  size_t at = 0;
  int nesting = 0, loops = 0;
};

} // namespace

Statements parse(std::string_view source) { return Parser(lex(source)).run(); }

} // namespace sluice::runtime::jinja
