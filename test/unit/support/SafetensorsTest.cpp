// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Safetensors.h"

#include "TestSupport.h"

#include <nlohmann/json.hpp>

#include <cstring>
#include <functional>
#include <random>

using namespace sluice::support;
using namespace sluice::support::test;
using nlohmann::json;

namespace {

std::string fileOf(const std::string &header, const std::string &data) {
  std::string bytes(8, '\0');
  uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + data;
}

json header() {
  return {{"__metadata__", {{"format", "pt"}}},
          {"b", {{"dtype", "F16"}, {"shape", {2, 3}}, {"data_offsets", {4, 16}}}},
          {"a", {{"dtype", "U8"}, {"shape", {4}}, {"data_offsets", {0, 4}}}}};
}

SafetensorsHeader read(const std::string &bytes) {
  return readSafetensors(std::as_bytes(std::span(bytes)), "f");
}

std::string errorWith(const std::function<void(json &)> &edit, size_t dataBytes = 16) {
  json edited = header();
  edit(edited);
  std::string bytes = fileOf(edited.dump(), std::string(dataBytes, '\0'));
  return errorOf([&] { read(bytes); });
}

} // namespace

TEST(Safetensors, ListsTensorsInTheOrderOfTheirBytes) {
  std::string text = header().dump();
  SafetensorsHeader found = read(fileOf(text, std::string(16, '\0')));
  ASSERT_EQ(found.tensors.size(), 2u);
  EXPECT_EQ(found.tensors[0].name, "a");
  EXPECT_EQ(found.tensors[0].offset, 8 + text.size());
  EXPECT_EQ(found.tensors[0].bytes, 4u);
  EXPECT_EQ(found.tensors[1].name, "b");
  EXPECT_EQ(found.tensors[1].dtype, "F16");
  EXPECT_EQ(found.tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(found.tensors[1].offset, 12 + text.size());
  ASSERT_EQ(found.metadata.size(), 1u);
  EXPECT_EQ(found.metadata[0], std::pair(std::string("format"), std::string("pt")));
  EXPECT_EQ(found.trailingBytes, 0u);
  EXPECT_EQ(read(fileOf(text, std::string(19, '\0'))).trailingBytes, 3u);
  EXPECT_TRUE(read(fileOf("{}", "")).tensors.empty());
}

TEST(Safetensors, UnknownDataTypesHaveTheirExtent) {
  json edited = header();
  edited["b"]["dtype"] = "F4";
  SafetensorsHeader found = read(fileOf(edited.dump(), std::string(16, '\0')));
  EXPECT_EQ(found.tensors[1].dtype, "F4");
  EXPECT_EQ(found.tensors[1].bytes, 12u);
  EXPECT_FALSE(safetensorsElementBits("F4"));
  EXPECT_EQ(safetensorsElementBits("BF16"), 16u);
}

TEST(Safetensors, FaultsOfTheFileAreNamed) {
  auto error = [](const std::string &bytes) { return errorOf([&] { read(bytes); }); };
  EXPECT_EQ(error("1234567"), "f: not a safetensors file: it has 7 bytes, expected at least 8");
  EXPECT_EQ(error(std::string(8, '\xFF')),
            "f: not a safetensors file: header length 18446744073709551615 is above the format's "
            "limit of 100000000");
  EXPECT_EQ(error(std::string("\x10\0\0\0\0\0\0\0{}", 10)),
            "f: truncated: header length 16, but only 2 bytes follow");
  EXPECT_EQ(error(fileOf("[]", "")),
            "f: not a safetensors file: the header does not begin with '{'");
  EXPECT_TRUE(error(fileOf("{]", "")).starts_with("f: header: not valid JSON: "));
  EXPECT_EQ(error(fileOf("{\"a\":" + std::string(100000, '['), "")),
            "f: header: JSON is nested deeper than 32 levels");
  std::string entry = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_EQ(error(fileOf("{" + entry + "," + entry + "}", "")),
            "f: header: JSON has the key 'a' twice in one object");
}

TEST(Safetensors, FaultsOfTensorsAreNamed) {
  EXPECT_EQ(errorWith([](json &) {}), "no error");
  EXPECT_EQ(errorWith([](json &h) { h["__metadata__"]["n"] = 1; }),
            "f: __metadata__ key 'n' is 1, expected a string");
  EXPECT_EQ(errorWith([](json &h) { h["__metadata__"] = 1; }),
            "f: __metadata__ is 1, expected an object of strings");
  for (const char *key : {"dtype", "shape", "data_offsets"})
    EXPECT_EQ(errorWith([&](json &h) { h["b"].erase(key); }),
              std::string("f: tensor 'b' lacks ") + key +
                  ", expected dtype, shape and data_offsets");
  EXPECT_EQ(errorWith([](json &h) { h["b"] = 3; }),
            "f: tensor 'b' lacks dtype, expected dtype, shape and data_offsets");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["dtype"] = 5; }),
            "f: tensor 'b' has dtype 5, expected a string");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["shape"] = {-2, 3}; }),
            "f: tensor 'b' has a dimension of -2, expected a number that is not negative");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["shape"] = "2"; }),
            "f: tensor 'b' has shape '2', expected an array of at most 32 dimensions");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["shape"] = {int64_t(1) << 62, 1024}; }),
            "f: tensor 'b' has 12 bytes, but F16 [4611686018427387904, 1024] takes more than any "
            "file");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["shape"] = {2, 4}; }),
            "f: tensor 'b' has 12 bytes, but F16 [2, 4] takes 16");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["data_offsets"] = {16, 4}; }),
            "f: tensor 'b' has data_offsets [16, 4] outside the file's 16 bytes of data");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["data_offsets"] = {4, 17}; }),
            "f: tensor 'b' has data_offsets [4, 17] outside the file's 16 bytes of data");
  for (json offsets : {json{-4, 8}, json{4}, json{4, 8.5}, json("4")})
    EXPECT_NE(errorWith([&](json &h) {
                h["b"]["data_offsets"] = offsets;
              }).find("expected an array of two numbers"),
              std::string::npos);
  EXPECT_EQ(errorWith([](json &h) { h["b"]["data_offsets"] = {2, 14}; }),
            "f: tensor 'b' begins at data byte 2 and overlaps tensor 'a', expected 4");
  EXPECT_EQ(errorWith([](json &h) { h["b"]["data_offsets"] = {5, 17}; }, 17),
            "f: tensor 'b' begins at data byte 5, leaving a hole after tensor 'a', expected 4");
  EXPECT_EQ(errorWith([](json &h) { h.erase("a"); }),
            "f: tensor 'b' begins at data byte 4, leaving a hole after the header, expected 0");
}

TEST(Safetensors, AnyDamageIsAnErrorOrHarmless) {
  std::string text = header().dump(), whole = fileOf(text, std::string(16, '\0'));
  std::mt19937 random(5);
  size_t rejected = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string damaged = whole;
    size_t at = random() % (8 + text.size());
    damaged[at] = static_cast<char>(damaged[at] ^ 1 << random() % 8);
    if (i % 4 == 0)
      damaged.resize(random() % damaged.size());
    try {
      for (const SafetensorsTensor &tensor : read(damaged).tensors) {
        EXPECT_LE(tensor.offset, damaged.size());
        EXPECT_LE(tensor.bytes, damaged.size() - tensor.offset);
      }
    } catch (const Error &error) {
      ++rejected;
      EXPECT_TRUE(std::string_view(error.what()).starts_with("f: ")) << error.what();
    }
  }
  EXPECT_GT(rejected, 1500u);
}
