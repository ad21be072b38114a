// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Json.h"

#include "TestSupport.h"

using namespace sluice::support;
using namespace sluice::support::test;
using nlohmann::json;

static std::string parseError(std::string_view text) {
  return errorOf([&] { parseJson(text, "f.json"); });
}

/// The error of a check of the value that stands under "a" of an object.
template <typename F> static std::string fieldError(const char *value, F &&check) {
  const std::string file = "f.json";
  const json parsed = parseJson(std::string("{\"a\": ") + value + "}", file);
  return errorOf([&] { check(JsonField(parsed, "", file).at("a")); });
}

TEST(Json, ParsesAsNlohmannDoes) {
  for (const char *text :
       {"null", "true", "-7", "18446744073709551615", "1.5e-3", R"("\u00e9\n")", "[]", "{}",
        R"({"a": [1, {"b": []}, [[2], 3]], "c": {"d": null, "e": {}}, "f": "x"})"})
    EXPECT_EQ(parseJson(text, "f.json"), json::parse(text)) << text;
}

TEST(Json, WhatIsNotJsonIsNamedByLineAndColumn) {
  EXPECT_EQ(parseError(""), "f.json: is empty, expected JSON");
  EXPECT_EQ(parseError("{\"a\":\n tru}"),
            "f.json: not valid JSON: parse error at line 2, column 5: syntax error while parsing "
            "value - invalid literal; last read: '\"a\":<U+000A> tru}'");
  for (const char *text : {"{", "{} {}", "{\"a\" 1}", "[1,]", "\xFF", "\"\xC3\"", "01", "nan"})
    EXPECT_TRUE(parseError(text).starts_with("f.json: not valid JSON: ")) << parseError(text);
  EXPECT_EQ(parseError("[1e999]"), "f.json: not valid JSON: number overflow parsing '1e999'");
  // A message stays one short line of UTF-8 whatever the text holds.
  EXPECT_LT(parseError("\"" + std::string(100000, 'x') + "\n").size(), 300u);
}

TEST(Json, KeysThatStandTwiceAreErrors) {
  EXPECT_EQ(parseError(R"({"a": 1, "a": 1})"), "f.json: JSON has the key 'a' twice in one object");
  EXPECT_EQ(parseError(R"({"x": [{"y": {"a": 1, "b": {"a": 2}, "a": []}}]})"),
            "f.json: JSON has the key 'a' twice in one object");
  EXPECT_EQ(parseError(R"({"a": {"a": [{"a": 1}, {"a": 2}]}})"), "no error");
}

TEST(Json, NestingIsLimited) {
  std::string deep = std::string(32, '[') + std::string(32, ']');
  EXPECT_EQ(parseError(deep), "no error");
  EXPECT_EQ(parseError("[" + deep + "]"), "f.json: JSON is nested deeper than 32 levels");
  EXPECT_EQ(parseError(std::string(2'000'000, '[')),
            "f.json: JSON is nested deeper than 32 levels");
}

TEST(JsonField, NamesThePlaceOfAWrongValue) {
  const std::string file = "f.json";
  const json parsed = parseJson(R"({"list": [{"x": 1}, {"x": -1, "y": null}]})", file);
  JsonField root(parsed, "", file);
  JsonField second = root.at("list").elements()[1];
  EXPECT_EQ(errorOf([&] { second.at("x").asInt(0, 7); }),
            "f.json: list[1].x is -1, expected an integer from 0 to 7");
  EXPECT_EQ(errorOf([&] { second.at("y"); }), "f.json: list[1].y is missing");
  EXPECT_EQ(errorOf([&] { second.at("z\n"); }), "f.json: list[1].z\\x0A is missing");
  EXPECT_EQ(errorOf([&] { root.at("list").elements(1); }),
            "f.json: list is an array of 2 elements, expected an array of at most 1");
  EXPECT_EQ(errorOf([&] { root.allowOnly({"name", "kind"}); }),
            "f.json: unknown key 'list', expected name, kind");
  EXPECT_EQ(errorOf([&] { second.allowOnly({"y"}); }),
            "f.json: unknown key 'list[1].x', expected y");
  EXPECT_EQ(errorOf([&] { root.at("list").failWith("has a hole"); }), "f.json: list has a hole");
  const json list = json::array();
  EXPECT_EQ(errorOf([&] { JsonField(list, "", file).at("x"); }),
            "f.json: is an array of 0 elements, expected an object");
}

TEST(JsonField, ValuesAreShownAsWhatTheyAre) {
  auto shown = [](const char *value) {
    std::string error = fieldError(value, [](const JsonField &field) { field.asBool(); });
    std::string start = "f.json: a is ", end = ", expected true or false";
    EXPECT_TRUE(error.starts_with(start) && error.ends_with(end)) << error;
    return error.substr(start.size(), error.size() - start.size() - end.size());
  };
  EXPECT_EQ(shown("2"), "2");
  EXPECT_EQ(shown("\"2\""), "'2'");
  EXPECT_EQ(shown("1.5"), "1.5");
  EXPECT_EQ(shown("[1, 2]"), "an array of 2 elements");
  EXPECT_EQ(shown("{\"b\": 1}"), "an object of 1 members");
  EXPECT_EQ(shown("\"a\\nb\""), "'a\\x0Ab'");
}

TEST(JsonField, Integers) {
  auto integer = [](const char *value) {
    return fieldError(value, [](const JsonField &field) { field.asInt(INT64_MIN, INT64_MAX); });
  };
  std::string range = "an integer from -9223372036854775808 to 9223372036854775807";
  for (const char *value : {"0", "9223372036854775807", "-9223372036854775808"})
    EXPECT_EQ(integer(value), "no error");
  for (const char *value : {"9223372036854775808", "18446744073709551615", "1.5", "1.0", "true"})
    EXPECT_EQ(integer(value), std::string("f.json: a is ") + value + ", expected " + range);
  EXPECT_EQ(integer("18446744073709551616"), "f.json: a is 1.8446744073709552e+19, expected " +
                                                 range + ": the number is beyond 64 bits");
  EXPECT_EQ(integer("-100000000000000000000"),
            "f.json: a is -1e+20, expected " + range + ": the number is beyond 64 bits");
}

TEST(JsonField, Numbers) {
  auto number = [](const char *value) {
    return fieldError(value, [](const JsonField &field) { field.asNumber(-1, 2.5); });
  };
  for (const char *value : {"-1", "2.5", "0"})
    EXPECT_EQ(number(value), "no error");
  for (const char *value : {"2.6", "-2", "'1'", "null"})
    EXPECT_NE(value[0] == '\'' ? number("\"1\"") : number(value), "no error") << value;
  EXPECT_EQ(number("2.6"), "f.json: a is 2.6, expected a number from -1 to 2.5");
  auto positive = [](const char *value) {
    return fieldError(value, [](const JsonField &field) { field.asPositive(); });
  };
  EXPECT_EQ(positive("1e-300"), "no error");
  EXPECT_EQ(positive("0.0"), "f.json: a is 0.0, expected a number above 0");
  EXPECT_EQ(positive("\"1\""), "f.json: a is '1', expected a number above 0");
}

TEST(JsonField, Texts) {
  auto text = [](const char *value) {
    return fieldError(value, [](const JsonField &field) { field.asText(3); });
  };
  EXPECT_EQ(text("\"abc\""), "no error");
  EXPECT_EQ(text("\"abcd\""), "f.json: a is 'abcd', expected a string of at most 3 bytes");
  EXPECT_EQ(text("\"a\\u0000\""),
            "f.json: a is 'a\\x00', expected a string without control characters");
  EXPECT_EQ(text("7"), "f.json: a is 7, expected a string");
}

TEST(JsonField, Defaults) {
  const std::string file = "f.json";
  const json parsed =
      parseJson(R"({"yes": true, "text": "x", "seven": 7, "half": 0.5, "none": null})", file);
  JsonField root(parsed, "", file);
  EXPECT_TRUE(root.boolAt("yes", false));
  EXPECT_TRUE(root.boolAt("none", true));
  EXPECT_EQ(root.stringAt("text", "y"), "x");
  EXPECT_EQ(root.stringAt("absent", "y"), "y");
  EXPECT_EQ(root.intAt("seven", 0, 9, 1), 7);
  EXPECT_EQ(root.intAt("none", 0, 9, 1), 1);
  EXPECT_EQ(root.positiveAt("half", 2), 0.5);
  EXPECT_EQ(root.positiveAt("absent", 2), 2);
  EXPECT_EQ(errorOf([&] { root.intAt("text", 0, 9, 1); }),
            "f.json: text is 'x', expected an integer from 0 to 9");
  EXPECT_FALSE(root.find("none"));
  EXPECT_EQ(root.members().size(), 5u);
}
