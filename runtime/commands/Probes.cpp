// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The measurements that `sluice calibrate` needs: small synthetic models, each at some contexts.

#include "sluice-runtime/Commands.h"

#include "runtime/commands/BenchJson.h"
#include "runtime/commands/Console.h"
#include "sluice-support/Json.h"
#include "sluice-support/MappedFile.h"

#include <ctime>

using namespace sluice::runtime;
using nlohmann::json;
using sluice::support::JsonField;

static std::string today() {
  std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[16];
  return {text, std::strftime(text, sizeof(text), "%Y-%m-%d", &local)};
}

std::string sluice::runtime::measureProbes(const std::filesystem::path &directory,
                                           const BenchOptions &options) {
  const std::filesystem::path list = directory / "probes.json";
  support::MappedFile file(list.string());
  const std::string name = file.path();
  json probes = support::parseJson(file.text(), name);
  JsonField root(probes, "", name);
  if (root.at("format").asText() != "sluice-probes")
    root.at("format").fail("\"sluice-probes\"");
  json results = probes;
  results["format"] = "sluice-probe-results";
  results["date"] = today();
  BenchOptions each = options;
  each.perKernel = true;
  each.cold = root.boolAt("cold", false);
  each.repetitions = root.intAt("repetitions", 1, 1000, options.repetitions);
  InterruptGuard guard;
  size_t index = 0;
  for (const JsonField &probe : root.at("probes").elements(1024)) {
    json &result = results["probes"][index++];
    std::string folder = probe.at("name").asText(255);
    if (folder.empty() || folder.front() == '.' || folder.find('/') != folder.npos)
      probe.at("name").fail("the name of a folder beside the file");
    std::shared_ptr<const Artifact> artifact = openArtifact(directory / folder);
    Session session = openSession(artifact, options.session);
    const std::string device = session.device().name() + ": " + session.device().description();
    results["device"] = device;
    for (const JsonField &context : probe.at("contexts").elements(64)) {
      BenchOptions measured = each;
      measured.context = context.asInt(1, INT32_MAX);
      measured.tokens = root.intAt("tokens", 1, 1 << 20, options.tokens);
      result["benches"].push_back(benchJson(measureSpeed(session, measured), *artifact, device));
    }
    // The numbers of tokens give way to what was measured.
    result["prompts"] = json::array();
    for (const JsonField &prompt : probe.at("prompts").elements(64)) {
      BenchOptions measured = each;
      measured.context = 1;
      measured.tokens = 1;
      measured.prompt = prompt.asInt(2, INT32_MAX);
      result["prompts"].push_back(
          benchJson(measureSpeed(session, measured), *artifact, device).at("prompt"));
    }
  }
  return results.dump(1) + "\n";
}
