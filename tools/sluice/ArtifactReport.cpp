// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ArtifactReport.h"

#include "Commands.h"
#include "sluice-runtime/Commands.h"
#include "sluice-support/Json.h"
#include "sluice-support/MappedFile.h"
#include "sluice/Target/TargetDescription.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"

#include <map>
#include <set>

using namespace sluice;
using namespace sluice::driver;
using nlohmann::json;

json driver::readPlan(const std::string &artifact) {
  runtime::openArtifact(artifact); // throws what is wrong with it
  support::MappedFile file(artifact + "/plan.json");
  return support::parseJson(file.text(), file.path());
}

static std::string bytesText(double bytes) {
  const char *units[] = {"B", "KB", "MB", "GB", "TB"};
  unsigned unit = 0;
  for (; bytes >= 1000 && unit < 4; ++unit)
    bytes /= 1000;
  std::string text;
  llvm::raw_string_ostream(text) << llvm::format(unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
  return text;
}

static int64_t launchBytes(const json &launch, int64_t context) {
  if (!launch.contains("traffic"))
    return 0;
  const json &t = launch["traffic"];
  auto get = [&](const char *key) { return t.value(key, int64_t(0)); };
  if (int64_t window = get("window"))
    context = std::min(context, window);
  return get("weights") + get("scales") + get("activations") + get("written") +
         context * (get("keys") + get("values"));
}

/// How many matrices and caches have each format, and which matrices have another than the one
/// asked for.
static void printFormats(const json &plan, llvm::raw_ostream &os) {
  const std::string asked = plan["model"].value("weights", std::string());
  auto text = [](const json &decision, const char *key) {
    return decision.value(key, std::string());
  };
  std::set<std::string> cacheNames;
  for (const json &buffer : plan["buffers"])
    if (text(buffer, "kind") == "cache")
      cacheNames.insert(text(buffer, "name"));
  std::map<std::string, int> matrices, caches;
  for (const json &decision : plan["decisions"])
    ++(cacheNames.count(text(decision, "what")) ? caches : matrices)[text(decision, "decision")];
  auto line = [&](llvm::StringRef what, const std::map<std::string, int> &counts) {
    if (counts.empty())
      return;
    os << "  " << llvm::left_justify(what, 20);
    llvm::ListSeparator comma;
    for (const auto &[format, count] : counts)
      os << comma << count << " " << format;
    os << "\n";
  };
  line("matrices", matrices);
  for (const json &decision : plan["decisions"])
    if (asked != "keep" && !cacheNames.count(text(decision, "what")) &&
        text(decision, "decision") != asked)
      os << "    " << text(decision, "what") << ": " << text(decision, "decision") << " instead of "
         << asked << " (" << text(decision, "reason") << ")\n";
  line("caches", caches);
}

void driver::printArtifact(const json &plan, llvm::raw_ostream &os) {
  const json &model = plan["model"], &target = plan["target"];
  auto text = [](const json &object, const char *key) { return object.value(key, std::string()); };
  os << text(model, "name") << ": " << text(model, "architecture") << ", weights "
     << text(model, "weights") << ", keys " << model.value("k_cache", std::string("auto"))
     << ", values " << model.value("v_cache", std::string("auto"));
  if (model.value("synthetic", false))
    os << " (synthetic)";
  os << "\n";
  for (const char *key : {"layers", "hidden_size", "intermediate_size", "heads", "kv_heads",
                          "head_dim", "vocab_size", "context_length"})
    if (model.contains(key))
      os << "  " << llvm::left_justify(key, 20) << model[key].dump() << "\n";
  printFormats(plan, os);
  os << "target " << text(target, "name") << ": " << text(target, "kind");
  for (const char *key : {"triple", "isa", "arch"})
    if (!text(target, key).empty())
      os << ", " << text(target, key);
  os << "\nmemory: " << runtime::memoryText(runtime::Plan::parse(plan.dump(), "plan.json"))
     << "\nfiles\n";
  for (const auto &[role, file] : plan["files"].items())
    os << "  " << llvm::left_justify(role, 12) << llvm::left_justify(text(file, "name"), 32)
       << llvm::right_justify(bytesText(file.value("bytes", 0.0)), 12) << "  xxh3 "
       << text(file, "xxh3") << "\n";
  json kernels = plan.value("kernels", json::object());
  if (!kernels.empty())
    os << "kernels\n";
  for (const auto &[name, kernel] : kernels.items())
    os << "  " << llvm::left_justify(name, 16) << kernel.value("registers", 0) << " registers, "
       << kernel.value("spill_store_bytes", 0) + kernel.value("spill_load_bytes", 0)
       << " bytes of spills, " << kernel.value("stack_bytes", 0) << " bytes of stack\n";
  std::map<std::string, std::pair<int, double>> kinds;
  for (const json &buffer : plan["buffers"]) {
    auto &[count, bytes] = kinds[text(buffer, "kind")];
    ++count;
    bytes += buffer.value("bytes", 0.0);
  }
  os << "buffers\n";
  for (const auto &[kind, sum] : kinds)
    os << "  " << llvm::left_justify(kind, 12) << llvm::right_justify(std::to_string(sum.first), 5)
       << llvm::right_justify(bytesText(sum.second), 12) << "\n";
  os << "  arena in use " << bytesText(plan.value("arena_bytes", 0.0)) << "\n";
  for (const auto &[name, step] : plan["steps"].items()) {
    os << "step " << name << ": " << step["launches"].size() << " launches\n";
    for (const json &launch : step["launches"]) {
      os << "  " << llvm::left_justify(text(launch, "kernel"), 16)
         << llvm::left_justify(text(launch, "label"), 40) << " grid "
         << llvm::right_justify(launch["grid"].dump(), 6);
      if (launch.value("block", 0))
        os << " block " << launch["block"].dump() << " shared " << launch["shared"].dump();
      os << "\n";
    }
  }
}

void driver::explainArtifact(const json &plan, const std::string &targetName, int64_t context,
                             bool asJson, llvm::raw_ostream &os) {
  llvm::Expected<TargetDescription> target = loadTarget(
      targetName.empty() ? plan["target"].value("name", std::string("host")) : targetName);
  if (!target)
    throw Failure(target.takeError());
  int64_t longest = plan["model"].value("context_length", int64_t(1));
  if (context == 0)
    context = std::min<int64_t>(512, longest);
  if (context > longest)
    throw Failure("option --context is " + std::to_string(context) + ", but this artifact has " +
                  std::to_string(longest) + " positions");
  int64_t total = 0;
  const json &launches = plan["steps"]["decode"]["launches"];
  for (const json &launch : launches)
    total += launchBytes(launch, context);
  double seconds = total / target->bandwidth();
  // By the target that it was compiled for.
  runtime::Plan parsed = runtime::Plan::parse(plan.dump(), "plan.json");
  const runtime::Step &step = parsed.steps[*parsed.findStep("decode")];
  std::optional<double> predicted = step.predictedSeconds(static_cast<uint64_t>(context));
  if (asJson) {
    json list = json::array();
    for (const json &launch : launches)
      list.push_back({{"label", launch["label"]},
                      {"bytes", launchBytes(launch, context)},
                      {"floor_seconds", launchBytes(launch, context) / target->bandwidth()}});
    json report = {{"model", plan["model"]["name"]},
                   {"target", target->name},
                   {"context", context},
                   {"bytes", total},
                   {"floor_seconds", seconds},
                   {"launches", list},
                   {"decisions", plan["decisions"]}};
    if (predicted)
      report["predicted"] = {{"seconds", *predicted}, {"tokens_per_second", 1 / *predicted}};
    os << report.dump(2) << "\n";
    return;
  }
  os << plan["model"].value("name", std::string()) << " on " << target->name << ", context "
     << context << "\n\n";
  os << llvm::left_justify("launch", 42) << llvm::right_justify("bytes", 12)
     << llvm::right_justify("floor", 12) << llvm::right_justify("part", 9) << "\n";
  for (const json &launch : launches) {
    double bytes = launchBytes(launch, context);
    os << llvm::left_justify(launch.value("label", std::string()), 42)
       << llvm::right_justify(bytesText(bytes), 12)
       << llvm::format("%9.2f us %7.1f%%\n", 1e6 * bytes / target->bandwidth(),
                       total ? 100 * bytes / total : 0.0);
  }
  os << llvm::left_justify("step", 42) << llvm::right_justify(bytesText(total), 12)
     << llvm::format("%9.2f us, so at most %.0f tokens/s\n", 1e6 * seconds, 1 / seconds);
  if (predicted)
    os << "predicted "
       << llvm::format(*predicted < 1e-3 ? "%.1f us" : "%.2f ms",
                       *predicted * (*predicted < 1e-3 ? 1e6 : 1e3))
       << llvm::format(", %.0f tokens/s at ", 1 / *predicted) << context << "\n";
  if (plan["decisions"].empty())
    return;
  os << "\ndecisions\n";
  for (const json &decision : plan["decisions"])
    os << "  " << llvm::left_justify(decision.value("what", std::string()), 28)
       << llvm::left_justify(decision.value("decision", std::string()), 14)
       << decision.value("reason", std::string()) << "\n";
}
