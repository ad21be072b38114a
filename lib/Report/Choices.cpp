// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Report/Report.h"

#include "dialects/Quantized/Quantized.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FormatVariadic.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::report;
using nlohmann::json;

static StringRef textOf(Operation *op, StringRef attribute) {
  auto text = op ? op->getAttrOfType<StringAttr>(attribute) : StringAttr();
  return text ? text.getValue() : StringRef();
}

/// Adds what `plan` (the module attribute, or "plan" of plan.json) predicts of choices.
static void addPredictions(std::vector<Choice> &choices, const json &plan) {
  llvm::StringMap<const json *> known;
  for (const char *list : {"weights", "caches"})
    if (auto found = plan.find(list); found != plan.end())
      for (const json &decision : *found)
        known[decision.value("name", std::string())] = &decision;
  for (Choice &choice : choices) {
    const json *decision = known.lookup(choice.what);
    if (!decision || !decision->contains("chosen"))
      continue;
    const json &chosen = (*decision)["chosen"];
    choice.seconds = chosen.value("seconds", 0.0);
    choice.divergence = chosen.value("divergence", 0.0);
    choice.bytes = chosen.value("bytes", choice.bytes);
    choice.planned = !decision->value("fixed", false);
    if (auto next = decision->find("next"); next != decision->end()) {
      choice.nextFormat = next->value("format", std::string());
      choice.nextBytes = next->value("bytes", 0.0);
      choice.nextSeconds = next->value("seconds", 0.0);
      choice.nextDivergence = next->value("divergence", 0.0);
    }
  }
}

std::vector<Choice> report::choicesOf(ModuleOp module, const json &plan) {
  std::vector<Choice> choices;
  auto decode = module.lookupSymbol<func::FuncOp>("decode");
  if (!decode)
    return choices;
  llvm::StringSet<> seen;
  auto addCache = [&](FlatSymbolRefAttr name) {
    auto cache = module.lookupSymbol<model::CacheOp>(name.getAttr());
    if (!cache || !seen.insert(name.getValue()).second)
      return;
    quantized::CacheType type = cache.getCacheType();
    Choice choice;
    choice.what = name.getValue().str();
    choice.isCache = true;
    choice.format = textOf(cache, "sluice.decision").str();
    if (choice.format.empty())
      choice.format = type.getEncoding().name();
    choice.reason = textOf(cache, "sluice.reason").str();
    choice.bytes = static_cast<double>(type.getPositions() * type.getSequences() * type.getHeads() *
                                       type.getEncoding().bytesPerVector(type.getHeadDim()));
    choices.push_back(std::move(choice));
  };
  decode.walk([&](Operation *op) {
    if (auto attention = dyn_cast<model::AttentionOp>(op)) {
      addCache(attention.getKeysAttr());
      addCache(attention.getValuesAttr());
      return;
    }
    auto linear = dyn_cast<model::LinearOp>(op);
    if (!linear)
      return;
    Value stored = linear.getWeight();
    if (auto dequantize = stored.getDefiningOp<quantized::DequantizeOp>())
      stored = dequantize.getInput();
    Value source = stored;
    while (Operation *definition = source.getDefiningOp())
      if (isa<quantized::QuantizeOp, quantized::DequantizeOp>(definition))
        source = definition->getOperand(0);
      else
        break;
    auto parameter = source.getDefiningOp<model::ParameterOp>();
    if (!parameter || !seen.insert(parameter.getWeight()).second)
      return;
    Choice choice;
    choice.what = parameter.getWeight().str();
    choice.format = textOf(stored.getDefiningOp(), "sluice.decision").str();
    choice.reason = textOf(stored.getDefiningOp(), "sluice.reason").str();
    if (choice.format.empty()) {
      auto type = dyn_cast<quantized::QuantizedTensorType>(stored.getType());
      choice.format = (type ? type.getEncoding()
                            : quantized::EncodingAttr::of(
                                  cast<RankedTensorType>(stored.getType()).getElementType()))
                          .getName();
    }
    if (choice.reason.empty())
      choice.reason = "as in the model's file";
    MatrixBytes bytes = matrixBytes(stored.getType());
    choice.bytes = static_cast<double>(bytes.elements + bytes.scales);
    choices.push_back(std::move(choice));
  });
  addPredictions(choices, plan);
  return choices;
}

std::vector<Choice> report::choicesOf(const json &artifactPlan) {
  std::vector<Choice> choices;
  llvm::StringMap<double> caches;
  for (const json &buffer : artifactPlan.value("buffers", json::array()))
    if (buffer.value("kind", std::string()) == "cache")
      caches[buffer.value("name", std::string())] = buffer.value("bytes", 0.0);
  for (const json &decision : artifactPlan.value("decisions", json::array())) {
    Choice choice;
    choice.what = decision.value("what", std::string());
    choice.format = decision.value("decision", std::string());
    choice.reason = decision.value("reason", std::string());
    choice.isCache = caches.count(choice.what);
    choice.bytes = caches.lookup(choice.what);
    choices.push_back(std::move(choice));
  }
  addPredictions(choices, artifactPlan.value("plan", json::object()));
  return choices;
}

void report::shareTimes(Report &report) {
  llvm::StringMap<Choice *> byName;
  for (Choice &choice : report.choices)
    byName[choice.what] = &choice;
  for (const Kernel &kernel : report.kernels) {
    double bytes = 0;
    for (const std::string &name : kernel.weights)
      if (const Choice *choice = byName.lookup(name))
        bytes += choice->bytes;
    for (const std::string &name : kernel.weights)
      if (Choice *choice = byName.lookup(name); choice && !choice->seconds && bytes > 0)
        choice->seconds = kernel.time.at(report.context).seconds() * choice->bytes / bytes;
  }
}

//===----------------------------------------------------------------------===//
// Table and JSON
//===----------------------------------------------------------------------===//

using Counts = llvm::MapVector<StringRef, int64_t>;

/// Choices by format: of weights, of keys, of values; what occurs most comes first.
static std::array<Counts, 3> countChoices(const Report &report) {
  std::array<Counts, 3> counts;
  for (const Choice &choice : report.choices)
    ++counts[!choice.isCache                                 ? 0
             : StringRef(choice.what).starts_with("cache.k") ? 1
                                                             : 2][choice.format];
  for (Counts &list : counts) {
    auto entries = list.takeVector();
    llvm::sort(entries, [](const auto &a, const auto &b) {
      return std::tuple(-a.second, a.first) < std::tuple(-b.second, b.first);
    });
    for (auto &[format, count] : entries)
      list.insert({format, count});
  }
  return counts;
}

static constexpr llvm::StringLiteral kCounted[] = {"weights", "keys", "values"};

std::string report::priceText(const json &plan) {
  double price = plan.value("price", 0.0);
  StringRef goal = plan["goal"].get_ref<const std::string &>();
  if (price <= 0)
    return "the limit binds nothing: more of it would change nothing";
  if (goal.starts_with("error-budget"))
    return llvm::formatv("0.1e-3 nats more of error would save {0:F2} us a token",
                         price * 1e-4 * 1e6);
  if (goal.starts_with("max-bits"))
    return llvm::formatv("1 MB more of weights would take {0:F3}e-3 nats off the error",
                         price * 8e6 * 1e3);
  if (goal.starts_with("max-bytes"))
    return llvm::formatv("1 MB more of memory would take {0:F3}e-3 nats off the error",
                         price * 1e6 * 1e3);
  return llvm::formatv("1 us more a token would take {0:F3}e-3 nats off the error",
                       price * 1e-6 * 1e3);
}

void report::printChoices(const Report &report, bool all, llvm::raw_ostream &os) {
  os << "formats:";
  llvm::ListSeparator semicolon(";");
  for (auto [kind, counts] : llvm::zip_equal(kCounted, countChoices(report))) {
    if (counts.empty())
      continue;
    os << semicolon << " " << kind << " ";
    llvm::ListSeparator comma;
    for (auto &[format, count] : counts)
      os << comma << count << " " << format;
  }
  os << "\n";
  if (report.plan.is_object()) {
    const json &plan = report.plan;
    os << llvm::formatv("plan for {0} at context {1}, errors from {2}:\n",
                        plan["goal"].get_ref<const std::string &>(),
                        plan.value("context", int64_t(0)),
                        plan["basis"].get_ref<const std::string &>());
    os << llvm::formatv("  {0:F2} bits a weight, predicted error {1:F3}e-3 nats a token, products "
                        "and attention {2:F1} us\n",
                        plan.value("bits_per_weight", 0.0), 1e3 * plan.value("divergence", 0.0),
                        1e6 * plan.value("seconds", 0.0));
    os << "  price: " << priceText(plan) << "\n";
  }
  if (!all)
    return;
  size_t width = 4;
  for (const Choice &choice : report.choices)
    width = std::max(width, choice.what.size());
  os << "\n"
     << llvm::left_justify("decision", width + 2) << llvm::left_justify("chosen", 14)
     << llvm::right_justify("bytes", 12) << llvm::right_justify("us", 10)
     << llvm::right_justify("1e-3 nats", 12) << "  reason\n";
  for (const Choice &choice : report.choices) {
    auto number = [](std::optional<double> value, double unit, const char *format) {
      return value ? llvm::formatv(format, *value * unit).str() : std::string("-");
    };
    os << llvm::left_justify(choice.what, width + 2) << llvm::left_justify(choice.format, 14)
       << llvm::right_justify(choice.bytes ? llvm::formatv("{0:F0}", choice.bytes).str() : "-", 12)
       << llvm::right_justify(number(choice.seconds, 1e6, "{0:F2}"), 10)
       << llvm::right_justify(number(choice.divergence, 1e3, "{0:F4}"), 12) << "  " << choice.reason
       << "\n";
  }
}

json report::choicesJson(const Report &report) {
  json counts = json::object(), list = json::array();
  for (auto [kind, formats] : llvm::zip_equal(kCounted, countChoices(report)))
    for (auto &[format, count] : formats)
      counts[kind.str()][format.str()] = count;
  for (const Choice &choice : report.choices) {
    json entry = {{"what", choice.what}, {"decision", choice.format}, {"reason", choice.reason}};
    if (choice.bytes)
      entry["bytes"] = choice.bytes;
    if (choice.seconds)
      entry["seconds"] = *choice.seconds;
    if (choice.divergence)
      entry["divergence"] = *choice.divergence;
    if (choice.nextFormat)
      entry["next"] = {{"format", *choice.nextFormat},
                       {"bytes", choice.nextBytes},
                       {"seconds", choice.nextSeconds},
                       {"divergence", choice.nextDivergence}};
    list.push_back(std::move(entry));
  }
  json result = {{"formats", counts}, {"decisions", list}};
  if (report.plan.is_object()) {
    json &plan = result["plan"] = report.plan;
    // Each of these is among the decisions.
    plan.erase("weights");
    plan.erase("caches");
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Recommending
//===----------------------------------------------------------------------===//

void report::printRecommendation(StringRef model, const planner::Recommendation &recommendation,
                                 const planner::Goal &goal, const TargetDescription &target,
                                 double otherSeconds, bool asJson, llvm::raw_ostream &os) {
  auto tokensPerSecond = [&](const planner::Recommended &choice) {
    return 1 / (choice.totals.seconds + otherSeconds);
  };
  if (asJson) {
    json list = json::array();
    for (const planner::Recommended &choice : recommendation.choices)
      list.push_back({{"weights", choice.weights},
                      {"k_cache", choice.keys},
                      {"v_cache", choice.values},
                      {"bits_per_weight", choice.bitsPerWeight},
                      {"bytes", choice.totals.bytes},
                      {"tokens_per_second", tokensPerSecond(choice)},
                      {"divergence", choice.totals.divergence},
                      {"fits", choice.fits}});
    json result = {{"model", model.str()},
                   {"target", target.name},
                   {"context", recommendation.context},
                   {"goal", goal.name()},
                   {"basis", recommendation.basis},
                   {"recommended", list}};
    os << result.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
    return;
  }
  os << llvm::formatv("{0} on {1}, context {2}, {3}; errors from {4}\n\n", model, target.name,
                      recommendation.context, goal.name(), recommendation.basis);
  static constexpr unsigned kWidths[] = {14, 13, 11};
  auto row = [&](ArrayRef<StringRef> texts, ArrayRef<std::string> numbers, StringRef last) {
    for (auto [text, width] : llvm::zip_equal(texts, kWidths))
      os << llvm::left_justify(text, width);
    for (const std::string &number : numbers)
      os << llvm::right_justify(number, 13);
    os << "  " << last << "\n";
  };
  row({"weights", "keys", "values"}, {"bits a weight", "MB", "tokens/s", "1e-3 nats"}, "");
  // What is behind these is beaten by many.
  constexpr size_t kShown = 25;
  for (const planner::Recommended &choice : ArrayRef(recommendation.choices).take_front(kShown))
    row({choice.weights, choice.keys, choice.values},
        {llvm::formatv("{0:F2}", choice.bitsPerWeight),
         llvm::formatv("{0:F1}", choice.totals.bytes / 1e6),
         llvm::formatv("{0:F1}", tokensPerSecond(choice)),
         llvm::formatv("{0:F3}", choice.totals.divergence * 1e3)},
        choice.fits ? "" : "beyond the limit");
  if (recommendation.choices.size() > kShown)
    os << "... and " << recommendation.choices.size() - kShown << " more (--json has all)\n";
}
