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

Expected<runtime::Tokenizer> sluice::readTokenizer(const ModelFiles &files) {
  return toExpected([&] {
    return files.tokenizer.gguf ? runtime::Tokenizer::fromGguf(*files.tokenizer.gguf, files.path)
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
  Expected<std::optional<GgufTokenizer>> source = openGGUFTokenizer(model);
  if (!source)
    return source.takeError();
  if (!*source)
    return createStringError(model + ": has no tokenizer (no tokenizer.ggml keys, or the model "
                                     "'no_vocab'): it runs on token ids");
  return toExpected([&] { return runtime::Tokenizer::fromGguf(**source, model.str()); });
}
