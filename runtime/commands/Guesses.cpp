// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/commands/Guesses.h"

#include "runtime/commands/Console.h"

using namespace sluice::runtime;

Guesses::Guesses(const DraftOptions &options, const Artifact &model) {
  switch (options.kind) {
  case DraftOptions::Kind::None:
    break;
  case DraftOptions::Kind::Lookup:
    theDrafter = std::make_unique<PromptLookup>();
    break;
  case DraftOptions::Kind::Model:
    session = std::make_unique<Session>(openSession(openArtifact(options.model), options.session));
    theDrafter = std::make_unique<ModelDrafter>(*session, model);
    break;
  }
}

std::string sluice::runtime::guessNote(const GenerateResult &result) {
  if (result.guessed == 0)
    return {};
  return format(", %lld of %lld guesses were right", static_cast<long long>(result.accepted),
                static_cast<long long>(result.guessed));
}
