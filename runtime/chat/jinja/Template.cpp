// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Template.h"

#include "Interpreter.h"
#include "Parser.h"

namespace sluice::runtime::jinja {

struct Template::Tree {
  std::string name;
  Statements statements;
};

template <typename F> static auto located(const std::string &name, F &&body) {
  try {
    return body();
  } catch (const LineFailure &failure) {
    throw Error(name + ": line " + std::to_string(failure.line) + ": " + failure.message);
  } catch (const Failure &failure) {
    throw Error(name + ": " + failure.message);
  }
}

Template::Template(std::string_view source, std::string name) {
  if (source.size() > maxSource)
    throw Error(name + ": the template has " + std::to_string(source.size()) +
                " bytes, expected at most " + std::to_string(maxSource));
  Statements statements = located(name, [&] { return parse(source); });
  tree = std::make_unique<const Tree>(Tree{std::move(name), std::move(statements)});
}

Template::~Template() = default;
Template::Template(Template &&) noexcept = default;
Template &Template::operator=(Template &&) noexcept = default;

std::string Template::render(const nlohmann::ordered_json &variables,
                             const RenderOptions &options) const {
  return located(tree->name, [&] { return Interpreter(options).run(tree->statements, variables); });
}

} // namespace sluice::runtime::jinja
