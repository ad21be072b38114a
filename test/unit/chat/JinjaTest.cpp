// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What an error says, and that every template ends. That texts are Jinja's is tested by comparing
// (test/e2e/chat-templates.test).

#include "runtime/chat/jinja/Template.h"

#include <gtest/gtest.h>

using nlohmann::ordered_json;
using sluice::runtime::Error;
using sluice::runtime::jinja::RenderOptions;
using sluice::runtime::jinja::Template;

namespace {

std::string render(std::string_view source, const ordered_json &variables = ordered_json::object(),
                   const RenderOptions &options = {}) {
  return Template(source, "t").render(variables, options);
}

std::string errorOf(std::string_view source, const ordered_json &variables = ordered_json::object(),
                    const RenderOptions &options = {}) {
  try {
    return "no error but " + render(source, variables, options);
  } catch (const Error &error) {
    return error.what();
  }
}

TEST(Jinja, RendersAConversation) {
  ordered_json variables = {
      {"messages",
       {{{"role", "user"}, {"content", " hi "}}, {{"role", "assistant"}, {"content", "ho"}}}},
      {"add_generation_prompt", true}};
  EXPECT_EQ(render("{% for m in messages %}\n"
                   "  {% if loop.first %}<s>{% endif %}\n"
                   "<{{ m.role }}>{{ m['content'] | trim }}\n"
                   "{% endfor %}\n"
                   "{%- if add_generation_prompt %}<assistant>{% endif %}\n",
                   variables),
            "<s><user>hi\n<assistant>ho\n<assistant>");
}

TEST(Jinja, ErrorsNameTheLineAndWhatWasFound) {
  const std::pair<const char *, const char *> cases[] = {
      // Of syntax.
      {"a\n{% if x %}\nb", "t: line 2: the block that begins here has no 'endif'"},
      {"\n\n{{ x y }}", "t: line 3: found 'y', expected '}}'"},
      {"{{ 1 + }}", "t: line 1: found '}}', expected an expression"},
      {"{{ (1 }}", "t: line 1: unexpected '}', expected ')'"},
      {"{{ x", "t: line 1: the output that begins here has no end \"}}\""},
      {"{% set x = 1", "t: line 1: the tag that begins here has no end \"%}\""},
      {"\n{# x", "t: line 2: the comment that begins here has no end \"#}\""},
      {"{{ 'x }}", "t: line 1: the string that begins here has no end"},
      {"{{ '\\xg' }}", "t: line 1: a string has an escape with too few hexadecimal digits"},
      {"{{ 1a }}", "t: line 1: \"1a\" is not a number"},
      {"{{ 99999999999999999999 }}", "t: line 1: 99999999999999999999 does not fit in 64 bits"},
      {"{{ a $ b }}", "t: line 1: unexpected character '$'"},
      {"{{ \xC3\xA9 }}", "t: line 1: unexpected character '\xC3\xA9'"},
      {"\n{% raw %}{{ x }}", "t: line 2: \"raw\" has no \"endraw\""},
      {"{% frobnicate x %}",
       "t: line 1: tag 'frobnicate' is unknown or out of place; known are if, for, set, macro, "
       "filter, with, generation, break, continue and raw"},
      {"{% if x %}{% endfor %}",
       "t: line 1: tag 'endfor' is unknown or out of place; known are if, for, set, macro, filter, "
       "with, generation, break, continue and raw"},
      {"{% 5 %}", "t: line 1: found '5', expected the name of a tag"},
      {"{% break %}", "t: line 1: break stands outside of a loop"},
      {"{% for x in y %}{% macro m() %}{% continue %}{% endmacro %}{% endfor %}",
       "t: line 1: continue stands outside of a loop"},
      {"{% for x y %}{% endfor %}", "t: line 1: found 'y', expected 'in'"},
      {"{% for x in y recursive %}{% endfor %}", "t: line 1: recursive loops are not supported"},
      {"{% set true = 1 %}", "t: line 1: found 'true', expected a name that can be assigned to"},
      {"{% macro m(a=1, b) %}{% endmacro %}",
       "t: line 1: a parameter without a default stands after one with a default"},
      {"{{ f(a=1, 2) }}", "t: line 1: an argument without a name stands after one with a name"},
      {"{{ f(**a, b) }}", "t: line 1: an argument stands after **"},
      {"{{ f(*a, *b) }}", "t: line 1: a call has two arguments with *"},
      {"{{ 1 is odd is even }}", "t: line 1: tests can not be chained with 'is'"},
      // Of rendering.
      {"a\n{{ x.y }}", "t: line 2: 'x' is undefined"},
      {"{{ d.q.r }}", "t: line 1: 'dict object' has no attribute 'q'"},
      {"{% if d %}\n{{ l[9].x }}\n{% endif %}", "t: line 2: list object has no element 9"},
      {"{{ l.append(1) }}", "t: line 1: 'list object' has no attribute 'append'"},
      {"{{ 1 + 'a' }}", "t: line 1: '+' is not supported between 'int' and 'str'"},
      {"{{ 1 < 'a' }}", "t: line 1: '<' is not supported between 'int' and 'str'"},
      {"{{ 'a' >= 1 }}", "t: line 1: '>=' is not supported between 'int' and 'str'"},
      {"{{ 1 in 2 }}", "t: line 1: argument of type 'int' is not iterable"},
      {"{{ 1 in 'a' }}", "t: line 1: 'in <string>' requires a string as its left operand, not int"},
      {"{{ 9223372036854775807 + 1 }}", "t: line 1: a number does not fit in 64 bits"},
      {"{{ 2 ** 64 }}", "t: line 1: a number does not fit in 64 bits"},
      {"{{ 3 ** 9999999999 }}", "t: line 1: a number does not fit in 64 bits"},
      {"{{ (-9223372036854775807 - 1) // -1 }}", "t: line 1: a number does not fit in 64 bits"},
      {"{{ 1 / 0 }}", "t: line 1: division by zero"},
      {"{{ 0 ** -1 }}", "t: line 1: division by zero"},
      {"{{ '%d' % 1 }}", "t: line 1: formatting a string with % is not supported"},
      {"{{ -'a' }}", "t: line 1: a value of type str has no sign"},
      {"{{ l['a':] }}", "t: line 1: a slice's bound is of type str, expected an integer"},
      {"{{ l[::0] }}", "t: line 1: the step of a slice is 0"},
      {"{{ {[]: 1} }}", "t: line 1: a list can not be the key of a dict"},
      {"{{ 5() }}", "t: line 1: 'int' object is not callable"},
      {"{{ nosuch(1) }}", "t: line 1: 'nosuch' is undefined"},
      {"{{ 5 | nosuch }}", "t: line 1: there is no filter 'nosuch'"},
      {"{{ 5 is nosuch }}", "t: line 1: there is no test 'nosuch'"},
      {"{{ 5 | length }}", "t: line 1: object of type 'int' has no length"},
      {"{{ l | default(1, 2, 3) }}", "t: line 1: default has 3 arguments, expected at most 2"},
      {"{{ l | join(x=1) }}", "t: line 1: join has no parameter 'x'"},
      {"{{ l | join('a', d='b') }}", "t: line 1: join is given its parameter 'd' twice"},
      {"{{ 'a' | replace('b') }}", "t: line 1: replace needs its argument 'new'"},
      {"{{ x | tojson }}", "t: line 1: tojson: 'x' is undefined"},
      {"{{ range | tojson }}", "t: line 1: tojson: a value of type function has no JSON"},
      {"{{ {(1,): 2} | tojson }}", "t: line 1: tojson: a key of type tuple, expected a string, a "
                                   "number, a bool or none"},
      {"{% for a, b in [[1]] %}{% endfor %}",
       "t: line 1: there are 1 values to assign, expected 2"},
      {"{% for a in 5 %}{% endfor %}", "t: line 1: 'int' object is not iterable"},
      {"{% set d.x = 1 %}", "t: line 1: can not assign to an attribute of 'd', which is of type "
                            "dict; expected a namespace"},
      {"{% macro m(a) %}{% endmacro %}\n{{ m(1, 2) }}",
       "t: line 2: macro 'm' has 2 arguments, expected at most 1"},
      {"{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "t: line 1: macro 'm' has no parameter 'b'"},
      {"{% macro m(a) %}\n{{ a.x }}{% endmacro %}{{ m() }}",
       "t: line 2: parameter 'a' was not provided"},
      {"\n{{ raise_exception('Roles must\nalternate') }}",
       "t: line 2: the template refuses the conversation: Roles must\\x0Aalternate"},
  };
  ordered_json variables = {{"d", {{"a", 1}}}, {"l", {1, 2}}};
  for (auto [source, message] : cases)
    EXPECT_EQ(errorOf(source, variables), message) << source;
}

// ---- Limits ----

TEST(Jinja, DepthOfSyntaxIsLimited) {
  auto repeated = [](std::string_view part, int count) {
    std::string text;
    for (int i = 0; i < count; ++i)
      text += part;
    return text;
  };
  constexpr int many = 100'000;
  for (const std::string &source : {
           "{{ " + repeated("(", many) + "1" + repeated(")", many) + " }}",
           "{{ " + repeated("[", many) + repeated("]", many) + " }}",
           "{{ " + repeated("-", many) + "1 }}",
           "{{ " + repeated("not ", many) + "1 }}",
           "{{ 1" + repeated(" + 1", many) + " }}",
           "{{ x" + repeated(".x", many) + " }}",
           "{{ x" + repeated("[0]", many) + " }}",
           "{{ x" + repeated("()", many) + " }}",
           "{{ x" + repeated("|x", many) + " }}",
           "{{ 1" + repeated(" if 1", many) + " }}",
           "{{ 1" + repeated(" if 1 else 1", 50'000) + " }}",
           repeated("{% if 1 %}", many),
           repeated("{% for x in y %}", 60'000),
           "{% for " + repeated("(", many) + "x" + repeated(")", many) + " in y %}{% endfor %}",
       }) {
    std::string message = errorOf(source);
    EXPECT_NE(message.find("nested deeper than 150 levels"), std::string::npos)
        << source.substr(0, 30) << ": " << message;
  }
  // What is long but not deep is fine.
  EXPECT_EQ(render("{{ 0" + repeated(" or 0", 50'000) + " }}"), "0");
  EXPECT_EQ(render("{{ 'a'" + repeated("~'a'", 1000) + " }}").size(), 1001u);
}

TEST(Jinja, RecursionIsLimited) {
  for (const char *source :
       {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro m(x=m()) %}{% endmacro %}{{ m() }}"})
    EXPECT_EQ(errorOf(source), "t: line 1: expressions, blocks and macros are nested deeper than "
                               "400 levels");
}

TEST(Jinja, StepsAreLimited) {
  RenderOptions options;
  options.maxSteps = 1'000'000;
  for (const char *source :
       {"{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ a }}{{ a }}{{ a }}{{ a }}{{ a }}{% endfor %}",
        "{% for a in range(100000) if false %}{% endfor %}"
        "{% for a in range(100000) if a < 0 and a > 9 or a == 3 %}{% endfor %}",
        "{% set l = range(100000) | list %}{{ l | unique | list | length }}",
        "{% set l = range(100000) | list %}{% for a in range(200) %}{{ l == l }}{% endfor %}",
        "{% set x = 'ab' * 1000000 %}{% for a in range(500) %}{{ 'z' in x }}{% endfor %}",
        "{% set l = range(100000) | list %}{{ l | sort(reverse=true) | sort | first }}"})
    EXPECT_NE(errorOf(source, {}, options).find("takes more than 1000000 steps"), std::string::npos)
        << source;
}

TEST(Jinja, MemoryIsLimited) {
  RenderOptions options;
  options.maxBytes = 1 << 20;
  for (const char *source :
       {"{{ 'abc' * 1000000 }}", "{{ ([1] * 9000000000000000000) | length }}",
        "{{ 'ab' * 9223372036854775807 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}"
        "{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
        "{% for i in range(1000) %}{% for j in range(1000) %}abcdefghij{% endfor %}{% endfor %}",
        "{% set ns = namespace(s=['x']) %}{% for i in range(100) %}{% set ns.s = [ns.s, ns.s] %}"
        "{{ ns.s | string | length }}{% endfor %}",
        "{{ range(1000) | join('a' * 10000) }}", "{{ ('a\n' * 1000) | indent(1000) }}",
        "{% for i in range(100000) %}{% set n = namespace() %}{% endfor %}"})
    EXPECT_NE(errorOf(source, {}, options).find("makes more than 1048576 bytes"), std::string::npos)
        << source << ": " << errorOf(source, {}, options);
}

TEST(Jinja, ContainersAreLimited) {
  EXPECT_EQ(errorOf("{% set ns = namespace(l=[]) %}{% for i in range(200) %}{% set ns.l = [ns.l] "
                    "%}{% endfor %}"),
            "t: line 1: lists and dicts are nested deeper than 100 levels");
  // Few objects, whose text would have 2^60 parts.
  EXPECT_EQ(errorOf("{% set ns = namespace(l=['x']) %}{% for i in range(60) %}{% set ns.l = [ns.l, "
                    "ns.l] %}{% endfor %}"),
            "t: line 1: a list or dict is larger than 64 MiB");
  EXPECT_EQ(errorOf("{{ range(100001) }}"), "t: line 1: range has more than 100000 numbers");
  EXPECT_EQ(errorOf("{{ [[[1]]] | tojson(indent=' ' * 60000000) }}"),
            "t: line 1: tojson: the text is longer than 64 MiB");
  EXPECT_EQ(errorOf(std::string(Template::maxSource + 1, 'x')),
            "t: the template has 1048577 bytes, expected at most 1048576");
}

TEST(Jinja, ObjectsThatReferToEachOtherAreNoLeakAndNoCrash) {
  EXPECT_EQ(render("{% set a = namespace() %}{% set a.a = a %}{% set a.l = [a, a] %}{{ a.a.a.l == "
                   "a.l }}"),
            "True");
  // A chain of objects, each held by the next.
  EXPECT_EQ(render("{% set ns = namespace(x=none) %}{% for i in range(50000) %}"
                   "{% set ns.x = namespace(x=ns.x) %}{% endfor %}done"),
            "done");
  EXPECT_EQ(render("{% set ns = namespace(x=none) %}{% for i in range(50000) %}"
                   "{% for j in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}done"),
            "done");
  EXPECT_EQ(render("{% set ns = namespace(x='s') %}{% for i in range(9) %}"
                   "{% set ns.x = [ns.x].index %}{% endfor %}{{ ns.x is callable }}"),
            "True");
  // A loop is looked at after its end, and a macro outside of where it was made.
  EXPECT_EQ(render("{% set ns = namespace() %}{% for i in [1, 2, 3] if i > 1 %}{% set ns.l = loop "
                   "%}{% break %}{% endfor %}{{ ns.l.length }}{{ ns.l.changed(1) }}"),
            "2True");
  EXPECT_EQ(render("{% set ns = namespace() %}{% for i in [1, 2] %}{% macro m() %}<{{ i }}>{% "
                   "endmacro %}{% set ns.m = m %}{% endfor %}{{ ns.m() }}"),
            "<2>");
}

TEST(Jinja, OrderMayBeNone) {
  // NaN is neither less nor greater than anything.
  EXPECT_EQ(render("{{ ([3, 'nan' | float, 1, 2, 'nan' | float, 0] * 50) | sort | length }}"),
            "300");
}

TEST(Jinja, AnyBytesGoThrough) {
  ordered_json variables = {{"s", "a\xFFz\xC3"}};
  EXPECT_EQ(
      render("{{ s }}{{ s | length }}{{ s[1:2] }}{{ s | upper }}{{ s | trim('z') }}", variables),
      "a\xFFz\xC3"
      "4\xFF"
      "A\xFFZ\xC3"
      "a\xFFz\xC3");
  EXPECT_EQ(render("\xFF{% if 1 %}\xC3{% endif %}"), "\xFF\xC3");
}

TEST(Jinja, TimeIsTheCallers) {
  RenderOptions options;
  options.now = 86400 * 366;
  EXPECT_EQ(render("{{ strftime_now('%Y') }}", {}, options), "1971");
  EXPECT_EQ(render("[{{ strftime_now('') }}]", {}, options), "[]");
  EXPECT_EQ(errorOf("{{ strftime_now('%A' * 1000) }}"),
            "t: line 1: the argument of strftime_now has 2000 bytes, expected at most 1000");
}

} // namespace
