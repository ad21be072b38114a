// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_CHAT_JINJA_PARSER_H
#define SLUICE_RUNTIME_CHAT_JINJA_PARSER_H

#include "Syntax.h"

#include <string_view>

namespace sluice::runtime::jinja {

/// Throws LineFailure.
Statements parse(std::string_view source);

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_PARSER_H
