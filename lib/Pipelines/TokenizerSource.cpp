// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "TokenizerSource.h"

#include "sluice/Import/Expected.h"
#include "sluice/Import/GGUF.h"
#include "sluice/Pipelines/Compiler.h"

#include "llvm/Support/Path.h"

#include <fstream>

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
  for (std::optional<int64_t> id : {source.eosId, source.eotId, source.eomId})
    if (id)
      gguf.eosIds.push_back(*id);
  gguf.addBos = source.addBos;
  gguf.addEos = source.addEos;
  gguf.addSpacePrefix = source.addSpacePrefix;
  gguf.removeExtraWhitespaces = source.removeExtraWhitespaces;
  return runtime::Tokenizer::fromGguf(gguf, name);
}

Expected<runtime::Tokenizer> sluice::readTokenizer(const ModelFiles &files) {
  return toExpected([&] {
    return files.tokenizer.gguf ? fromGguf(*files.tokenizer.gguf, files.path)
                                : runtime::Tokenizer::fromFile(files.root);
  });
}

static bool isGguf(StringRef path) {
  char magic[4] = {};
  std::ifstream(path.str(), std::ios::binary).read(magic, sizeof(magic));
  return GGUFFile::hasMagic(StringRef(magic, sizeof(magic))) || path.ends_with_insensitive(".gguf");
}

Expected<runtime::Tokenizer> sluice::modelTokenizer(StringRef model) {
  if (sys::path::filename(model) == "config.json")
    return createStringError(model + ": is a config alone, without a tokenizer");
  if (!isGguf(model))
    return toExpected([&] { return runtime::Tokenizer::fromFile(model.str()); });
  Expected<std::optional<GGUFTokenizer>> source = openGGUFTokenizer(model);
  if (!source)
    return source.takeError();
  if (!*source)
    return createStringError(model + ": has no tokenizer (no tokenizer.ggml keys, or the model "
                                     "'no_vocab'): it runs on token ids");
  return toExpected([&] { return fromGguf(**source, model.str()); });
}
