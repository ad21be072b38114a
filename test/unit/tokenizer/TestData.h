// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TEST_UNIT_TOKENIZER_TESTDATA_H
#define SLUICE_TEST_UNIT_TOKENIZER_TESTDATA_H

#include "sluice-runtime/Tokenizer.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <unistd.h>

namespace sluice::runtime::test {

using nlohmann::json;

inline std::filesystem::path dataPath(const std::string &file) {
  std::filesystem::path source = SLUICE_SOURCE_DIR;
  return file.starts_with("models/") ? source / file : source / "test/unit/tokenizer/data" / file;
}

inline std::string readAll(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline json readData(const std::string &file) { return json::parse(readAll(dataPath(file))); }

/// A folder of its own for one test, gone at its end.
class TemporaryFolder {
public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "sluice-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
  void write(const std::string &name, const std::string &bytes) const {
    std::ofstream(path / name, std::ios::binary) << bytes;
  }
  std::filesystem::path path;
};

/// The metadata of a GGUF file of the sample models, dumped as JSON.
inline GgufTokenizer readGgufFixture(const std::string &file) {
  json j = readData(file);
  GgufTokenizer gguf;
  gguf.model = j.at("model");
  gguf.pre = j.at("pre");
  gguf.tokens = j.at("tokens").get<std::vector<std::string>>();
  gguf.types = j.at("token_type").get<std::vector<int32_t>>();
  if (j.contains("scores"))
    gguf.scores = j["scores"].get<std::vector<float>>();
  if (j.contains("merges"))
    gguf.merges = j["merges"].get<std::vector<std::string>>();
  gguf.bosId = j.at("bos_token_id").get<int64_t>();
  gguf.eosIds = {j.at("eos_token_id").get<int64_t>()};
  gguf.addBos = j.at("add_bos_token").get<bool>();
  return gguf;
}

template <typename F> std::string errorOf(F f) {
  try {
    f();
  } catch (const Error &e) {
    return e.what();
  }
  return "no error";
}

} // namespace sluice::runtime::test

#endif // SLUICE_TEST_UNIT_TOKENIZER_TESTDATA_H
