// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "TokenizerSource.h"

#include "sluice-runtime/Tokenizer.h"
#include "sluice/Import/Expected.h"

using namespace llvm;
using namespace sluice;

static runtime::Tokenizer fromGguf(const GGUFTokenizer &source, const std::string &name) {
  runtime::GgufTokenizer gguf;
  gguf.model = source.model;
  gguf.pre = source.pre;
  gguf.tokens = source.tokens;
  gguf.scores = source.scores;
  gguf.types = source.types;
  gguf.merges = source.merges;
  gguf.bosId = source.bosId;
  gguf.unknownId = source.unkId;
  for (std::optional<int64_t> id : {source.eosId, source.eotId})
    if (id)
      gguf.eosIds.push_back(*id);
  gguf.addBos = source.addBos;
  gguf.addSpacePrefix = source.addSpacePrefix;
  return runtime::Tokenizer::fromGguf(gguf, name);
}

Expected<std::string> sluice::tokenizerJson(const ModelFiles &files) {
  if (files.tokenizer.empty())
    return std::string();
  return toExpected([&] {
    if (files.tokenizer.gguf)
      return fromGguf(*files.tokenizer.gguf, files.path).toJson();
    return runtime::Tokenizer::fromFile(files.root).toJson();
  });
}
