// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_COMMANDS_GUESSES_H
#define SLUICE_RUNTIME_COMMANDS_GUESSES_H

#include "sluice-runtime/Commands.h"
#include "sluice-runtime/Drafts.h"

namespace sluice::runtime {

/// What --draft asked for: owns the drafter, and the session of a model that drafts.
class Guesses {
public:
  Guesses(const DraftOptions &options, const Artifact &model);
  /// Null if nothing guesses.
  Drafter *drafter() const { return theDrafter.get(); }

private:
  std::unique_ptr<Session> session;
  std::unique_ptr<Drafter> theDrafter;
};

/// ", 12 of 30 guesses were right", or nothing.
std::string guessNote(const GenerateResult &result);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_COMMANDS_GUESSES_H
