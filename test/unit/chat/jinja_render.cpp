// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Renders templates for a test that knows what is right: reads lines of JSON, {"template": TEXT,
// "variables": {...}, "now": SECONDS}, and answers each with {"text": TEXT} or {"error": MESSAGE}.

#include "runtime/chat/jinja/Template.h"

#include <iostream>

using nlohmann::ordered_json;
namespace jinja = sluice::runtime::jinja;

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    ordered_json request = ordered_json::parse(line), answer;
    jinja::RenderOptions options;
    options.now = request.value("now", int64_t(0));
    try {
      jinja::Template parsed(request["template"].get<std::string>(), "template");
      answer["text"] = parsed.render(request["variables"], options);
    } catch (const sluice::runtime::Error &error) {
      answer["error"] = error.what();
    }
    std::cout << answer.dump(-1, ' ', true, ordered_json::error_handler_t::replace) << "\n";
  }
  return 0;
}
