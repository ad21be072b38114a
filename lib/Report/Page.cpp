// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Report/Report.h"

#include "sluice/Analysis/Explain.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

using namespace sluice;
using namespace sluice::report;
using llvm::formatv;
using llvm::StringRef;
using nlohmann::json;

namespace sluice::report {
// lib/Report/page, embedded by CMake.
extern const char page_html[], page_css[], page_js[];
} // namespace sluice::report

static std::string escape(StringRef text) {
  std::string result;
  llvm::raw_string_ostream os(result);
  llvm::printHTMLEscaped(text, os);
  return result;
}

/// "1.23 MB", "45.6 us": decimal units, three digits.
static std::string human(double value, StringRef unit) {
  static constexpr llvm::StringLiteral prefixes[] = {"", "k", "M", "G", "T"};
  size_t prefix = 0;
  while (value >= 999.5 && prefix + 1 < std::size(prefixes)) {
    value /= 1000;
    ++prefix;
  }
  return formatv(value == static_cast<int64_t>(value) && prefix == 0 ? "{0:F0} {1}{2}"
                 : value < 9.995                                     ? "{0:F2} {1}{2}"
                 : value < 99.95                                     ? "{0:F1} {1}{2}"
                                                                     : "{0:F0} {1}{2}",
                 value, prefixes[prefix], unit);
}
static std::string microseconds(double seconds) {
  return seconds >= 1e-3 ? formatv("{0:F2} ms", seconds * 1e3).str()
                         : formatv("{0:F2} µs", seconds * 1e6).str();
}
static std::string percent(double share) { return formatv("{0:F1}%", 100 * share); }

namespace {

/// A cell: what is shown, and what rows are sorted by if that is a number.
struct Cell {
  Cell(std::string text) : html(escape(text)) {}
  Cell(const char *text) : html(escape(text)) {}
  Cell(std::string text, double value) : html(escape(text)), value(value) {}
  /// A number with a bar beside it.
  static Cell bar(std::string text, double value, double share, StringRef colour) {
    Cell cell(std::move(text), value);
    cell.html += formatv("<span class=\"bar {0}\" style=\"width:{1:F1}%\"></span>", colour,
                         100 * std::clamp(share, 0.0, 1.0));
    return cell;
  }
  static Cell nothing() { return Cell("–", -1); }
  static Cell raw(std::string html) {
    Cell cell("");
    cell.html = std::move(html);
    return cell;
  }

  std::string html;
  std::optional<double> value;
};

} // namespace

static std::string table(StringRef id, llvm::ArrayRef<StringRef> columns,
                         const std::vector<std::vector<Cell>> &rows) {
  std::string html;
  llvm::raw_string_ostream os(html);
  os << "<div class=\"scroll\"><table id=\"" << id << "\"><thead><tr>";
  for (auto [index, column] : llvm::enumerate(columns)) {
    bool isNumber = !rows.empty() && rows.front()[index].value;
    os << "<th scope=\"col\"" << (isNumber ? " class=\"n\"" : "") << ">" << escape(column)
       << "</th>";
  }
  os << "</tr></thead><tbody>\n";
  for (const std::vector<Cell> &row : rows) {
    os << "<tr>";
    for (const Cell &cell : row)
      if (cell.value)
        os << formatv("<td class=\"n\" data-v=\"{0:E}\">", *cell.value) << cell.html << "</td>";
      else
        os << "<td>" << cell.html << "</td>";
    os << "</tr>\n";
  }
  os << "</tbody></table></div>\n";
  return html;
}

/// A label without its layer: what the kernels of all layers have in common.
static std::string commonLabel(const Kernel &kernel) {
  StringRef label = kernel.label;
  label.consume_back(".packed");
  if (label.consume_front("blk."))
    return label.drop_while(llvm::isDigit).drop_front().str();
  if (label.starts_with("attention"))
    return "attention";
  return label.str();
}

static StringRef kindOf(const Kernel &kernel) {
  return kernel.traffic.keys ? "attention" : kernel.traffic.weights ? "product" : "other";
}

static std::string timeTable(const Report &report) {
  std::array<double, kTimeClasses> seconds = report.secondsByClass(report.context);
  double sum = report.seconds(report.context);
  std::vector<std::vector<Cell>> rows;
  for (size_t i = 0; i < kTimeClasses; ++i) {
    StringRef name = timeClassName(static_cast<TimeClass>(i));
    rows.push_back(
        {name.str(), Cell(microseconds(seconds[i]), seconds[i]),
         Cell::bar(percent(seconds[i] / sum), seconds[i] / sum, seconds[i] / sum, name)});
  }
  rows.push_back({"a token", Cell(microseconds(sum), sum), Cell("100%", 1)});
  return table("classes", {"spent on", "time", "share"}, rows);
}

static std::string kernelTable(const Report &report) {
  struct Sum {
    int64_t launches = 0;
    double bytes = 0, operations = 0, seconds = 0, boundary = 0;
    const Kernel *first = nullptr;
  };
  llvm::MapVector<std::string, Sum, std::map<std::string, unsigned>> sums;
  for (const Kernel &kernel : report.kernels) {
    Sum &sum = sums[commonLabel(kernel)];
    ++sum.launches;
    sum.bytes += static_cast<double>(kernel.traffic.bytes(report.context));
    sum.operations += static_cast<double>(kernel.traffic.operationsAt(report.context));
    KernelTime time = kernel.time.at(report.context);
    sum.seconds += time.seconds();
    sum.boundary += time.boundary;
    sum.first = &kernel;
  }
  std::vector<std::vector<Cell>> rows;
  for (auto &[label, sum] : sums) {
    double ceiling = sum.bytes / report.target.bandwidth();
    rows.push_back({label, kindOf(*sum.first).str(),
                    Cell(std::to_string(sum.launches), static_cast<double>(sum.launches)),
                    Cell(human(sum.bytes, "B"), sum.bytes),
                    Cell(formatv("{0:F2}", sum.bytes ? sum.operations / sum.bytes : 0),
                         sum.bytes ? sum.operations / sum.bytes : 0),
                    Cell(microseconds(sum.seconds), sum.seconds),
                    Cell(microseconds(sum.boundary), sum.boundary),
                    Cell(percent(ceiling / sum.seconds), ceiling / sum.seconds)});
  }
  return table("kernels",
               {"kernel", "kind", "launches", "bytes", "operations a byte", "time", "boundaries",
                "share of the read ceiling"},
               rows);
}

static std::string choiceTable(const Report &report) {
  std::vector<std::vector<Cell>> rows;
  auto text = [](std::optional<double> value, auto format) {
    return value ? Cell(format(*value), *value) : Cell::nothing();
  };
  auto nats = [](double value) { return formatv("{0:F4}", 1e3 * value).str(); };
  auto bytes = [](double value) { return human(value, "B"); };
  for (const Choice &choice : report.choices) {
    auto next = [&](double value) {
      return choice.nextFormat ? std::optional(value) : std::nullopt;
    };
    bool pinned = !choice.planned && report.plan.is_object();
    rows.push_back(
        {Cell::raw("<code>" + escape(choice.what) + "</code>" +
                   (pinned ? " <span class=\"pin\">pinned</span>" : "")),
         choice.format, text(choice.bytes ? std::optional(choice.bytes) : std::nullopt, bytes),
         text(choice.seconds, microseconds), text(choice.divergence, nats),
         choice.nextFormat.value_or("–"), text(next(choice.nextBytes), bytes),
         text(next(choice.nextSeconds), microseconds), text(next(choice.nextDivergence), nats),
         // The figures of a plan's reason are in the columns beside it.
         StringRef(choice.reason).split(':').first.str()});
  }
  return table("choices",
               {"weight or cache", "chosen", "bytes", "time", "error, 1e-3 nats", "runner-up",
                "its bytes", "its time", "its error", "reason"},
               rows);
}

static std::string planText(const Report &report) {
  if (!report.plan.is_object())
    return "<p>No format was planned: each is what was asked for, or what the file has.</p>";
  const json &plan = report.plan;
  return formatv("<p>Planned for <b>{0}</b> at context {1}; errors are predicted from {2}. {3:F2} "
                 "bits a weight, predicted error {4:F3}e-3 nats a token. At this plan {5}.</p>",
                 escape(plan.value("goal", std::string())), plan.value("context", int64_t(0)),
                 escape(plan.value("basis", std::string())), plan.value("bits_per_weight", 0.0),
                 1e3 * plan.value("divergence", 0.0), escape(priceText(plan)));
}

static std::string frontierTable(const json &plan) {
  std::vector<std::vector<Cell>> rows;
  for (const json &point : plan["frontier"]) {
    auto divergence = point[0].get<double>(), seconds = point[1].get<double>();
    rows.push_back({Cell(formatv("{0:F4}", 1e3 * divergence), divergence),
                    Cell(microseconds(seconds), seconds)});
  }
  return table("frontier-table", {"error, 1e-3 nats a token", "products and attention"}, rows);
}

static std::vector<std::string> partNames() {
  std::vector<std::string> names;
  for (size_t i = 0; i < kModelParts; ++i)
    names.push_back(modelPartName(static_cast<ModelPart>(i)).str());
  return names;
}

static std::string fusingTable(const json &explanation) {
  std::vector<std::vector<Cell>> rows;
  const json &fused = explanation["fused"], &unfused = explanation["unfused"];
  auto row = [&](const std::string &name, const json &before, const json &after) {
    auto b = before.value("bytes", 0.0), a = after.value("bytes", 0.0);
    rows.push_back({name, Cell(human(b, "B"), b), Cell(human(a, "B"), a),
                    Cell::bar(percent(b ? 1 - a / b : 0), b ? 1 - a / b : 0, b ? 1 - a / b : 0,
                              "activations")});
  };
  for (const std::string &name : partNames())
    row(name, unfused["parts"][name], fused["parts"][name]);
  row("all", unfused["total"], fused["total"]);
  auto before = unfused.value("kernels", 0.0), after = fused.value("kernels", 0.0);
  rows.push_back({"kernels", Cell(formatv("{0:F0}", before), before),
                  Cell(formatv("{0:F0}", after), after),
                  Cell::bar(percent(1 - after / before), 1 - after / before, 1 - after / before,
                            "activations")});
  return table("fusing-table", {"part", "every operation a kernel", "fused", "removed"}, rows);
}

static std::string measuredTable(const Report &report) {
  int64_t context = report.measured.value("context", report.context);
  double ceiling = report.target.bandwidth();
  if (auto read = report.measured.find("read_bandwidth"); read != report.measured.end())
    ceiling = read->value("bytes_per_second", ceiling);
  std::vector<std::vector<Cell>> rows;
  double bytes = 0;
  auto add = [&](std::string label, StringRef kind, double bytes, double measured, double predicted,
                 std::optional<double> boundary) {
    double reading = bytes / ceiling;
    rows.push_back({std::move(label), kind.str(), Cell(microseconds(measured), measured),
                    Cell(microseconds(predicted), predicted),
                    Cell(formatv("{0}{1:F1}%", predicted >= measured ? "+" : "",
                                 100 * (predicted / measured - 1)),
                         predicted / measured - 1),
                    Cell(microseconds(reading), reading),
                    Cell(microseconds(measured - reading), measured - reading),
                    boundary ? Cell(microseconds(*boundary), *boundary) : Cell::nothing()});
  };
  double boundaries = report.stepSeconds;
  for (const Kernel &kernel : report.kernels) {
    auto own = static_cast<double>(kernel.traffic.bytes(context));
    KernelTime time = kernel.time.at(context);
    bytes += own;
    boundaries += time.boundary;
    if (kernel.measured)
      add(kernel.label, kindOf(kernel), own, *kernel.measured, time.seconds() + kernel.time.alone,
          time.boundary);
  }
  double step = report.measured.value("step_seconds", 0.0);
  if (double speed = report.measured.value("tokens_per_second", 0.0); !step && speed > 0)
    step = 1 / speed;
  if (step > 0)
    add("step", "all", bytes, step, report.seconds(context), boundaries);
  return formatv("<p>Measured on {0} at context {1}. A kernel is measured between two events, by "
                 "itself, which takes longer than in a step; the step is measured as it runs. Lost "
                 "is what a kernel takes beyond reading its bytes at {2}, the speed of a read in "
                 "the same run.</p>\n",
                 escape(report.measured.value("device", std::string("an unnamed device"))), context,
                 human(ceiling, "B/s"))
             .str() +
         table("measured-table",
               {"kernel", "kind", "measured", "predicted", "error", "reading alone", "lost",
                "boundary, predicted"},
               rows);
}

static std::string stageColumns(const Report &report) {
  std::string html;
  llvm::raw_string_ostream os(html);
  os << "<div class=\"stages\">\n";
  for (const StageText &stage : report.stages) {
    os << "<section class=\"stage\"><h3>" << escape(stage.name) << "</h3>\n";
    for (const StageText::Operation &op : stage.operations) {
      os << "<pre";
      if (!op.origins.empty())
        os << " data-o=\"" << escape(llvm::join(op.origins, " ")) << "\"";
      os << ">" << escape(op.text) << "</pre>\n";
    }
    os << "</section>\n";
  }
  os << "</div>\n";
  return html;
}

static std::string summary(const Report &report) {
  double bytes = 0;
  for (const Kernel &kernel : report.kernels)
    bytes += static_cast<double>(kernel.traffic.bytes(report.context));
  double seconds = report.seconds(report.context), floor = bytes / report.target.bandwidth();
  std::string html;
  auto tile = [&](StringRef value, StringRef name) {
    html += formatv("<div class=\"tile\"><b>{0}</b>{1}</div>\n", escape(value), escape(name));
  };
  auto tokens = static_cast<double>(report.batch);
  tile(formatv("{0:F0} tokens/s", tokens / seconds).str(),
       report.timed ? "predicted" : "at most, by bytes alone");
  tile(microseconds(seconds), "a step");
  tile(human(bytes, "B"), "moved by a step");
  tile(percent(floor / seconds), "of the read ceiling, " + human(report.target.bandwidth(), "B/s"));
  tile(std::to_string(report.kernels.size()), "kernels");
  if (report.plan.is_object()) {
    tile(formatv("{0:F2} bits", report.plan.value("bits_per_weight", 0.0)).str(), "a weight");
    tile(formatv("{0:F3}e-3 nats", 1e3 * report.plan.value("divergence", 0.0)).str(),
         "a token, predicted error");
  }
  return html;
}

/// What the script draws figures from.
static json dataOf(const Report &report) {
  json kernels = json::array(), classes = json::array();
  for (size_t i = 0; i < kTimeClasses; ++i)
    classes.push_back(timeClassName(static_cast<TimeClass>(i)).str());
  for (const Kernel &kernel : report.kernels) {
    json seconds = json::array();
    for (auto [fixed, perPosition] : kernel.byClass())
      seconds.push_back({fixed, perPosition});
    const Traffic &t = kernel.traffic;
    json entry = {{"label", kernel.label},
                  {"common", commonLabel(kernel)},
                  {"kind", kindOf(kernel).str()},
                  {"seconds", seconds},
                  {"bytes", {t.weights + t.scales + t.activations + t.written, t.keys + t.values}},
                  {"operations", {t.operations, t.operationsPerPosition}},
                  {"window", t.window}};
    if (kernel.layer)
      entry["layer"] = *kernel.layer;
    kernels.push_back(std::move(entry));
  }
  json data = {
      {"model", report.model},
      {"context", report.context},
      {"longest", report.longest},
      {"classes", classes},
      {"kernels", kernels},
      {"step_seconds", report.stepSeconds},
      {"target", {{"name", report.target.name}, {"bandwidth", report.target.bandwidth()}}}};
  if (auto rate = report.target.operations.find("f16"); rate != report.target.operations.end())
    data["target"]["operations"] = rate->second.value;
  if (report.plan.is_object()) {
    data["frontier"] = report.plan["frontier"];
    data["chosen"] = {report.plan["divergence"], report.plan["seconds"]};
  }
  if (report.explanation.is_object()) {
    json &fusing = data["fusing"] = json::array();
    for (const std::string &name : partNames())
      fusing.push_back({name, report.explanation["unfused"]["parts"][name]["bytes"],
                        report.explanation["fused"]["parts"][name]["bytes"]});
  }
  return data;
}

std::string report::page(const Report &report) {
  std::map<StringRef, std::string> values;
  values["title"] = escape(report.model);
  values["css"] = page_css;
  values["js"] = page_js;
  values["subtitle"] = escape(
      formatv("weights {0} · {1} · context {2}{3}", report.weights, report.target.description,
              report.context,
              report.batch == 1 ? std::string() : formatv(" · batch {0}", report.batch).str())
          .str());
  values["summary"] = summary(report);
  // A script ends at "</script", wherever that stands.
  std::string data = dataOf(report).dump(-1, ' ', false, json::error_handler_t::replace);
  for (size_t at = 0; (at = data.find('<', at)) != std::string::npos;)
    data.replace(at, 1, "\\u003c");
  values["data"] = std::move(data);
  values["time"] = timeTable(report);
  values["kernels"] = kernelTable(report);
  values["plan"] = planText(report);
  values["choices"] = choiceTable(report);
  auto section = [&](StringRef id, StringRef title, const std::string &text) {
    return formatv("<section id=\"{0}\"><h2>{1}</h2>\n{2}</section>\n", id, title, text).str();
  };
  values["longest"] = std::to_string(report.longest);
  values["context"] = std::to_string(report.context);
  if (report.plan.is_object() && !report.plan["frontier"].empty())
    values["frontier"] =
        section("frontier", "What more error would save",
                "<p>The least predicted time for every error, at the plan's context. The plan is "
                "the marked "
                "point.</p>\n<figure id=\"frontier-figure\"></figure>\n<details><summary>As a "
                "table</summary>" +
                    frontierTable(report.plan) + "</details>");
  if (report.explanation.is_object())
    values["fusing"] =
        section("fusing", "What fusing removed",
                "<p>Bytes of a step if every operation of the quantized model were a kernel of its "
                "own, and of the fused kernels.</p>\n<figure id=\"fusing-figure\"></figure>\n" +
                    fusingTable(report.explanation));
  if (report.measured.is_object())
    values["measured"] =
        section("measured", "Predicted beside measured",
                "<figure id=\"measured-figure\"></figure>\n" + measuredTable(report));
  if (!report.stages.empty())
    values["stages"] = section(
        "stages", formatv("Layer {0}, stage by stage", report.layer).str(),
        "<p>Point at a line: the lines of other stages that come of the same weights or caches are "
        "marked. A click keeps the marks.</p>\n<div id=\"origins\"></div>\n" +
            stageColumns(report));

  std::string html;
  StringRef rest = page_html;
  while (true) {
    auto [text, behind] = rest.split("{{");
    html += text;
    if (behind.empty())
      return html;
    auto [name, next] = behind.split("}}");
    html += values[name];
    rest = next;
  }
}
