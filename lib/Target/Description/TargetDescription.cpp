// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/TargetDescription.h"

#include "lib/Import/Diagnostics.h"
#include "lib/Import/Json.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/TargetParser/Host.h"
#include "llvm/TargetParser/Triple.h"

#include <nlohmann/json.hpp>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::fail;
using sluice::detail::jsonText;
using sluice::detail::quote;

/// Isas with host kernels, narrowest first, and the features that they need.
static constexpr struct {
  StringLiteral isa, description;
  std::initializer_list<StringRef> features;
} hostIsas[] = {
    {"avx2", "host-avx2", {"avx2", "fma", "f16c"}},
    {"avx512",
     "host-avx512",
     {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}},
    {"avx512_vnni",
     "host-avx512-vnni",
     {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}},
};

std::optional<double> TargetDescription::ridge() const {
  auto f16 = operations.find("f16");
  if (f16 == operations.end() || !peakBandwidth)
    return std::nullopt;
  return f16->second.value / peakBandwidth->value;
}

namespace {
/// Takes the keys of an object one by one; the first problem is kept.
class Reader {
public:
  Reader(const json &object, StringRef file, std::string prefix = "")
      : object(object), file(file), prefix(std::move(prefix)) {}

  bool has(StringRef key) const { return object.contains(key.str()); }

  /// The value of a key that must be there.
  const json *take(StringRef key) {
    known.push_back(key.str());
    auto found = object.find(key.str());
    if (found == object.end()) {
      problem.set(file, "key '" + prefix + key + "' is missing");
      return nullptr;
    }
    return &*found;
  }

  std::string string(StringRef key, function_ref<bool(StringRef)> valid, StringRef expected) {
    const json *value = take(key);
    if (!value)
      return "";
    if (!value->is_string() || !valid(value->get_ref<const std::string &>())) {
      problem.set(file,
                  "key '" + prefix + key + "' is " + jsonText(*value) + ", expected " + expected);
      return "";
    }
    return value->get<std::string>();
  }

  template <typename T> Sourced<T> number(StringRef key, T least, T greatest) {
    Sourced<T> result;
    const json *value = take(key);
    if (!value)
      return result;
    if (!value->is_object()) {
      problem.set(file, "key '" + prefix + key + "' is " + jsonText(*value) +
                            R"(, expected {"value": number, "source": text})");
      return result;
    }
    Reader inner(*value, file, prefix + key.str() + ".");
    if (const json *n = inner.take("value")) {
      bool integral = std::is_integral_v<T>;
      bool fits = integral ? n->is_number_integer() : n->is_number();
      // Compared as doubles: a JSON integer may exceed int64.
      double d = fits ? n->template get<double>() : 0;
      if (!fits || !(d >= static_cast<double>(least) && d <= static_cast<double>(greatest)))
        inner.problem.set(file, "key '" + inner.prefix + "value' is " + jsonText(*n) +
                                    ", expected " + (integral ? "an integer" : "a number") +
                                    " from " + json(least).dump() + " to " + json(greatest).dump());
      else
        result.value = n->template get<T>();
    }
    result.source = inner.string(
        "source", [](StringRef s) { return !s.trim().empty(); }, "where the number is from");
    inner.finish();
    if (inner.problem)
      problem = inner.problem;
    return result;
  }

  void finish() {
    for (const auto &[key, value] : object.items())
      if (!is_contained(known, key))
        problem.set(file, "unknown key " + quote(prefix + key) + ", expected " + join(known, ", "));
  }

  const json &object;
  StringRef file;
  std::string prefix;
  std::vector<std::string> known;
  sluice::detail::FirstProblem problem;
};
} // namespace

static bool isName(StringRef text) {
  return !text.empty() && text.size() <= 64 && isAlnum(text[0]) &&
         all_of(text, [](char c) { return isAlnum(c) || c == '-' || c == '_'; });
}

static bool isArch(StringRef text) {
  return text.consume_front("sm_") && (text.size() == 2 || text.size() == 3) &&
         all_of(text, isDigit);
}

static bool isText(StringRef text) { return !text.trim().empty(); }

Expected<TargetDescription> sluice::parseTarget(StringRef text, StringRef path) {
  Expected<json> parsed = sluice::detail::parseJsonObject(text, path);
  if (!parsed)
    return parsed.takeError();
  constexpr double bandwidthMin = 1e8, bandwidthMax = 1e15, rateMin = 1e9, rateMax = 1e19;
  constexpr int64_t gib = int64_t(1) << 30;

  Reader reader(*parsed, path);
  TargetDescription target;
  target.name = reader.string("name", isName, "letters, digits, '-' and '_'");
  target.description = reader.string("description", isText, "a description");
  std::string kind = reader.string(
      "kind", [](StringRef s) { return s == "gpu" || s == "cpu"; }, "\"gpu\" or \"cpu\"");
  bool gpu = kind == "gpu";
  target.kind = gpu ? TargetDescription::Kind::Gpu : TargetDescription::Kind::Cpu;
  if (reader.problem)
    return reader.problem.take();

  if (gpu || reader.has("peak_bandwidth") || !reader.has("read_ceiling"))
    target.peakBandwidth = reader.number<double>("peak_bandwidth", bandwidthMin, bandwidthMax);
  if (reader.has("read_ceiling"))
    target.readCeiling = reader.number<double>("read_ceiling", bandwidthMin, bandwidthMax);
  if (gpu || reader.has("memory_bytes"))
    target.memoryBytes = reader.number<int64_t>("memory_bytes", gib, gib * 65536);
  if (gpu || reader.has("operations")) {
    const json *operations = reader.take("operations");
    if (operations && !operations->is_object()) {
      reader.problem.set(path,
                         "key 'operations' is " + jsonText(*operations) + ", expected an object");
    } else if (operations) {
      Reader rates(*operations, path, "operations.");
      if (gpu)
        rates.number<double>("f16", rateMin, rateMax); // must be there
      for (StringRef type : {"f32", "f16", "bf16", "fp8", "int8"})
        if (rates.has(type))
          target.operations[type.str()] = rates.number<double>(type, rateMin, rateMax);
      rates.known = {"f32", "f16", "bf16", "fp8", "int8"};
      rates.finish();
      if (rates.problem)
        reader.problem = rates.problem;
    }
  }
  if (gpu) {
    target.arch = reader.string("arch", isArch, "\"sm_\" and two or three digits");
    target.multiprocessors = reader.number<int64_t>("multiprocessors", 1, 4096);
    target.l2Bytes = reader.number<int64_t>("l2_bytes", 1 << 16, 64 * gib);
    target.sharedBytesPerBlock =
        reader.number<int64_t>("shared_bytes_per_block", 16 << 10, 16 << 20);
  } else {
    target.triple = reader.string(
        "triple",
        [](StringRef s) {
          Triple triple(Triple::normalize(s));
          return triple.getArch() == Triple::x86_64 && triple.isOSLinux();
        },
        "a triple of x86_64 and linux");
    target.isa = reader.string(
        "isa",
        [](StringRef s) {
          return any_of(hostIsas, [&](const auto &known) { return known.isa == s; });
        },
        "\"avx2\", \"avx512\" or \"avx512_vnni\"");
    if (const json *features = reader.take("features")) {
      if (!features->is_array() || !all_of(*features, [](const json &f) {
            return f.is_string() && isText(f.get_ref<const std::string &>());
          }))
        reader.problem.set(path, "key 'features' is " + jsonText(*features) +
                                     ", expected a list of CPU features");
      else
        target.features = features->get<std::vector<std::string>>();
    }
  }
  reader.finish();
  if (!reader.problem && !gpu)
    for (const auto &known : hostIsas)
      if (known.isa == target.isa)
        for (StringRef needed : known.features)
          if (!is_contained(target.features, needed))
            reader.problem.set(path, "key 'features' lacks '" + needed + "', which isa " +
                                         known.isa + " needs");
  if (!reader.problem && target.peakBandwidth && target.readCeiling &&
      target.readCeiling->value > target.peakBandwidth->value)
    reader.problem.set(path, "key 'read_ceiling' exceeds peak_bandwidth");
  if (reader.problem)
    return reader.problem.take();
  return target;
}

std::string sluice::targetDirectory() {
  // The address of any function of this executable will do.
  std::string executable =
      sys::fs::getMainExecutable(nullptr, reinterpret_cast<void *>(&targetDirectory));
  SmallString<256> installed(sys::path::parent_path(sys::path::parent_path(executable)));
  sys::path::append(installed, "share", "sluice", "targets");
  if (sys::fs::is_directory(installed))
    return installed.str().str();
  if (sys::fs::is_directory(SLUICE_SOURCE_TARGETS))
    return SLUICE_SOURCE_TARGETS;
  return "";
}

std::vector<std::string> sluice::targetNames() {
  std::vector<std::string> names;
  std::string directory = targetDirectory();
  if (directory.empty())
    return names;
  std::error_code error;
  for (sys::fs::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error))
    if (sys::path::extension(it->path()) == ".json")
      names.push_back(sys::path::stem(it->path()).str());
  sort(names);
  return names;
}

static Expected<TargetDescription> loadFile(const Twine &path) {
  constexpr uint64_t largest = 1 << 20;
  SmallString<256> storage;
  StringRef file = path.toStringRef(storage);
  sys::fs::file_status status;
  if (std::error_code error = sys::fs::status(file, status))
    return fail(file, "cannot read the target description: " + error.message());
  if (status.type() != sys::fs::file_type::regular_file)
    return fail(file, "not a regular file, expected a target description");
  if (status.getSize() > largest)
    return fail(file, "has " + Twine(status.getSize()) +
                          " bytes, expected a target description of at most " + Twine(largest));
  ErrorOr<std::unique_ptr<MemoryBuffer>> buffer = MemoryBuffer::getFile(file, /*IsText=*/true);
  if (!buffer)
    return fail(file, "cannot read the target description: " + buffer.getError().message());
  return parseTarget((*buffer)->getBuffer(), file);
}

Expected<std::string> sluice::isaOfFeatures(const StringMap<bool> &features) {
  std::string isa;
  for (const auto &known : hostIsas)
    if (all_of(known.features, [&](StringRef feature) { return features.lookup(feature); }))
      isa = known.isa.str();
  if (isa.empty())
    return createStringError(
        "target 'host': this CPU lacks AVX2, FMA or F16C, which host kernels need");
  return isa;
}

Expected<TargetDescription> sluice::loadTarget(StringRef nameOrPath) {
  if (nameOrPath.contains('/') || nameOrPath.ends_with(".json"))
    return loadFile(nameOrPath);

  std::string directory = targetDirectory();
  if (directory.empty())
    return createStringError(
        "target " + quote(nameOrPath) +
        ": no directory of target descriptions found beside the executable or in the source tree");
  StringRef file = nameOrPath;
  if (nameOrPath == "host") {
    Expected<std::string> isa = isaOfFeatures(sys::getHostCPUFeatures());
    if (!isa)
      return isa.takeError();
    for (const auto &known : hostIsas)
      if (known.isa == *isa)
        file = known.description;
  }
  std::vector<std::string> names = targetNames();
  if (!is_contained(names, file))
    return createStringError("unknown target " + quote(nameOrPath) + ", expected host, " +
                             join(names, ", ") + " or the path of a .json file");
  SmallString<256> path(directory);
  sys::path::append(path, file + ".json");
  Expected<TargetDescription> target = loadFile(path);
  if (!target)
    return target.takeError();
  if (target->name != file)
    return fail(path, "key 'name' is " + quote(target->name) + ", expected the file's name " +
                          quote(file));
  target->name = nameOrPath.str();
  return target;
}

json sluice::planTarget(const TargetDescription &target) {
  if (target.isGpu())
    return {{"name", target.name}, {"kind", "gpu"}, {"arch", target.arch}};
  return {{"name", target.name},
          {"kind", "cpu"},
          {"triple", target.triple},
          {"isa", target.isa},
          {"features", target.features}};
}

int sluice::TargetDescription::computeCapability() const {
  StringRef number = arch;
  int capability = 0;
  if (!number.consume_front("sm_") || number.consumeInteger(10, capability))
    return 0;
  return capability;
}
