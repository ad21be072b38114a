// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ArtifactReport.h"

#include "Commands.h"

#include "sluice-runtime/Commands.h"
#include "sluice-support/Json.h"
#include "sluice-support/MappedFile.h"
#include "sluice/Formats/WeightScheme.h"
#include "sluice/Report/Report.h"
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

/// How many matrices and caches have each format, how matrices were rounded, and which have another
/// format than the one asked for.
static void printFormats(const json &plan, llvm::raw_ostream &os) {
  const std::string weights = plan["model"].value("weights", std::string());
  llvm::Expected<formats::WeightScheme> scheme = formats::WeightScheme::parse(weights);
  auto text = [](const json &decision, const char *key) {
    return decision.value(key, std::string());
  };
  std::set<std::string> cacheNames;
  for (const json &buffer : plan["buffers"])
    if (text(buffer, "kind") == "cache")
      cacheNames.insert(text(buffer, "name"));
  std::map<std::string, int> matrices, caches, roundings;
  for (const json &decision : plan["decisions"]) {
    ++(cacheNames.count(text(decision, "what")) ? caches : matrices)[text(decision, "decision")];
    const std::string reason = text(decision, "reason");
    if (size_t at = llvm::StringRef(reason).find("rounded "); at != llvm::StringRef::npos)
      ++roundings[reason.substr(at)];
  }
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
  line("", roundings);
  for (const json &decision : plan["decisions"]) {
    if (!scheme || cacheNames.count(text(decision, "what")))
      continue;
    std::optional<formats::Encoding> asked = scheme->formatOf(text(decision, "what"));
    if (asked && text(decision, "decision") != asked->name())
      os << "    " << text(decision, "what") << ": " << text(decision, "decision") << " instead of "
         << asked->name() << " (" << text(decision, "reason") << ")\n";
  }
  // A plan of another version may name what this one does not know.
  llvm::consumeError(scheme.takeError());
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
                          "head_dim", "vocab_size", "context_length", "batch", "cache_pages"})
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

static TargetDescription targetOf(const json &plan, const std::string &name) {
  llvm::Expected<TargetDescription> target =
      loadTarget(name.empty() ? plan["target"].value("name", std::string("host")) : name);
  if (!target)
    throw Failure(target.takeError());
  return std::move(*target);
}

/// The context asked for, or the default; throws if the artifact has fewer positions.
static int64_t contextOf(const json &plan, int64_t context) {
  int64_t longest = plan["model"].value("context_length", int64_t(1));
  if (context > longest)
    throw Failure("option --context is " + std::to_string(context) + ", but this artifact has " +
                  std::to_string(longest) + " positions");
  return context ? context : std::min<int64_t>(512, longest);
}

static report::Kernel kernelOf(const json &launch, const TargetDescription &target) {
  report::Kernel kernel;
  kernel.label = launch.value("label", std::string());
  kernel.layer = report::layerOf(kernel.label);
  json traffic = launch.value("traffic", json::object());
  Traffic &t = kernel.traffic;
  for (auto [key, field] : std::initializer_list<std::pair<const char *, int64_t *>>{
           {"weights", &t.weights},
           {"scales", &t.scales},
           {"activations", &t.activations},
           {"keys", &t.keys},
           {"values", &t.values},
           {"written", &t.written},
           {"operations", &t.operations},
           {"operations_per_position", &t.operationsPerPosition},
           {"window", &t.window}})
    *field = traffic.value(key, int64_t(0));
  TimeFormula &time = kernel.time;
  time.window = t.window;
  if (auto found = launch.find("time"); found != launch.end()) {
    time.fixed = {found->value("memory", 0.0), found->value("arithmetic", 0.0),
                  found->value("boundary", 0.0)};
    time.perPosition = {found->value("memory_per_position", 0.0),
                        found->value("arithmetic_per_position", 0.0), 0};
    time.alone = found->value("alone", 0.0);
  } else {
    Traffic fixed = t;
    fixed.keys = fixed.values = 0;
    time.fixed.memory = static_cast<double>(fixed.bytes(1)) / target.bandwidth();
    time.perPosition.memory = static_cast<double>(t.keys + t.values) / target.bandwidth();
  }
  return kernel;
}

/// What plan.json says, without anything measured and without stages.
static report::Report reportOf(const json &plan, const std::string &target, int64_t context) {
  report::Report report;
  report.model = plan["model"].value("name", std::string());
  report.weights = plan["model"].value("weights", std::string());
  report.longest = plan["model"].value("context_length", int64_t(1));
  report.context = contextOf(plan, context);
  report.target = targetOf(plan, target);
  const json &step = plan["steps"]["decode"];
  for (const json &launch : step["launches"]) {
    report.timed &= launch.contains("time");
    report.kernels.push_back(kernelOf(launch, report.target));
  }
  if (auto time = step.find("time"); time != step.end())
    report.stepSeconds = time->value("boundary", 0.0);
  report.choices = report::choicesOf(plan);
  report.plan = plan.value("plan", json());
  return report;
}

void driver::explainArtifact(const json &plan, const std::string &targetName, int64_t context,
                             bool asJson, llvm::raw_ostream &os) {
  const report::Report facts = reportOf(plan, targetName, context);
  const TargetDescription &target = facts.target;
  context = facts.context;
  int64_t total = 0;
  for (const report::Kernel &kernel : facts.kernels)
    total += kernel.traffic.bytes(context);
  double seconds = total / target.bandwidth();
  // By the target that it was compiled for.
  runtime::Plan parsed = runtime::Plan::parse(plan.dump(), "plan.json");
  const runtime::Step &step = parsed.steps[*parsed.findStep("decode")];
  std::optional<double> predicted = step.predictedSeconds(static_cast<uint64_t>(context));
  if (asJson) {
    json list = json::array();
    for (const report::Kernel &kernel : facts.kernels) {
      int64_t bytes = kernel.traffic.bytes(context);
      list.push_back({{"label", kernel.label},
                      {"bytes", bytes},
                      {"floor_seconds", static_cast<double>(bytes) / target.bandwidth()}});
    }
    json report = {{"model", plan["model"]["name"]},
                   {"target", target.name},
                   {"context", context},
                   {"bytes", total},
                   {"floor_seconds", seconds},
                   {"launches", list}};
    report.update(report::choicesJson(facts));
    if (predicted)
      report["predicted"] = {{"seconds", *predicted}, {"tokens_per_second", 1 / *predicted}};
    os << report.dump(2) << "\n";
    return;
  }
  os << plan["model"].value("name", std::string()) << " on " << target.name << ", context "
     << context << "\n\n";
  os << llvm::left_justify("launch", 42) << llvm::right_justify("bytes", 12)
     << llvm::right_justify("floor", 12) << llvm::right_justify("part", 9) << "\n";
  for (const report::Kernel &kernel : facts.kernels) {
    auto bytes = static_cast<double>(kernel.traffic.bytes(context));
    os << llvm::left_justify(kernel.label, 42) << llvm::right_justify(bytesText(bytes), 12)
       << llvm::format("%9.2f us %7.1f%%\n", 1e6 * bytes / target.bandwidth(),
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
  os << "\n";
  report::printChoices(facts, /*all=*/false, os);
  os << "\ndecisions\n";
  for (const json &decision : plan["decisions"])
    os << "  " << llvm::left_justify(decision.value("what", std::string()), 28)
       << llvm::left_justify(decision.value("decision", std::string()), 14)
       << decision.value("reason", std::string()) << "\n";
}

/// Adds what was measured to the kernels of the report.
static void addMeasured(report::Report &report, const std::string &path) {
  support::MappedFile file(path);
  json measured = support::parseJson(file.text(), path);
  auto wrong = [&](const std::string &what) { throw Failure(path + ": " + what); };
  if (!measured.is_object() || !measured.contains("kernels") || !measured["kernels"].is_array())
    wrong("has no list \"kernels\"; sluice bench --per-kernel --json writes one");
  std::string model = measured.value("model", std::string());
  if (model != report.model)
    wrong("was measured with " + model + ", the artifact is " + report.model);
  const json &kernels = measured["kernels"];
  if (kernels.size() != report.kernels.size())
    wrong("has " + std::to_string(kernels.size()) + " kernels, the artifact " +
          std::to_string(report.kernels.size()));
  for (size_t i = 0; i < kernels.size(); ++i) {
    if (!kernels[i].is_object() || !kernels[i].contains("seconds") ||
        !kernels[i]["seconds"].is_number() || kernels[i]["seconds"] <= 0 ||
        kernels[i].value("label", std::string()) != report.kernels[i].label)
      wrong("kernel " + std::to_string(i) + " is not the artifact's " + report.kernels[i].label);
    report.kernels[i].measured = kernels[i]["seconds"].get<double>();
  }
  report.measured = std::move(measured);
}

void driver::writeArtifactPage(const json &plan, const std::string &artifact,
                               const CompileOptions &options, const ExplainOptions &explain,
                               const std::string &measured) {
  report::Report report = reportOf(plan, options.target, options.context);
  report.layer = explain.layer;
  if (!measured.empty())
    addMeasured(report, measured);
  llvm::Expected<std::vector<report::StageText>> stages =
      stageTexts(artifact + "/ir", explain.layer);
  if (!stages)
    throw Failure(stages.takeError());
  report.stages = std::move(*stages);
  if (llvm::Error error = writeTextFile(explain.html, report::page(report)))
    throw Failure(std::move(error));
}
