// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/CacheScheme.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/Twine.h"

using namespace llvm;
using namespace sluice::formats;

const CacheChoice &CacheScheme::layer(int64_t number) const {
  for (const Exception &exception : exceptions)
    if (number >= exception.first && number <= exception.last)
      return exception.choice;
  return common;
}

std::string CacheScheme::name() const {
  std::string text = common.name();
  for (const Exception &exception : exceptions) {
    text += "," + std::to_string(exception.first);
    if (exception.last != exception.first)
      text += "-" + std::to_string(exception.last);
    text += "=" + exception.choice.name();
  }
  return text;
}

static Expected<CacheChoice> parseChoice(StringRef text, bool rotates) {
  StringRef name = text;
  CacheChoice choice;
  choice.rotated = name.consume_back("-rot");
  choice.automatic = name == "auto";
  std::optional<CacheEncoding> encoding = CacheEncoding::fromName(choice.automatic ? "f16" : name);
  if (!encoding || encoding->element == CacheEncoding::Element::F32)
    return createStringError("unknown format '" + text +
                             "': expected auto, f16, bf16, fp8, int8 or int4, the last two with "
                             "-h64 or -h32 for finer scales" +
                             (rotates ? ", and -rot to rotate keys" : ""));
  if (choice.rotated && !rotates)
    return createStringError("'" + text + "': only keys are rotated");
  choice.encoding = *encoding;
  return choice;
}

/// "3" or "3-5".
static bool parseLayers(StringRef text, int64_t &first, int64_t &last) {
  auto [from, to] = text.split('-');
  if (from.getAsInteger(10, first) || first < 0)
    return false;
  last = first;
  if (text.contains('-') && (to.getAsInteger(10, last) || last < first))
    return false;
  return true;
}

Expected<CacheScheme> CacheScheme::parse(StringRef text, bool rotates) {
  CacheScheme scheme;
  bool hasCommon = false;
  for (StringRef item : llvm::split(text, ',')) {
    auto [layers, format] = item.split('=');
    bool isException = item.contains('=');
    Expected<CacheChoice> choice = parseChoice(isException ? format : item, rotates);
    if (!choice)
      return choice.takeError();
    if (!isException) {
      if (hasCommon)
        return createStringError("two formats for all layers: '" + scheme.common.name() +
                                 "' and '" + item + "'");
      hasCommon = true;
      scheme.common = *choice;
      continue;
    }
    Exception exception;
    exception.choice = *choice;
    if (!parseLayers(layers, exception.first, exception.last))
      return createStringError("'" + layers + "' names no layers: expected N or N-M");
    for (const Exception &other : scheme.exceptions)
      if (exception.first <= other.last && other.first <= exception.last)
        return createStringError("layer " + Twine(std::max(exception.first, other.first)) +
                                 " is named twice");
    scheme.exceptions.push_back(exception);
  }
  return scheme;
}

Error CacheScheme::checkLayers(int64_t layers) const {
  for (const Exception &exception : exceptions)
    if (exception.last >= layers)
      return createStringError("there is no layer " + Twine(exception.last) +
                               ", the model has 0 to " + Twine(layers - 1));
  return Error::success();
}
