// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/TargetDescription.h"

#include "lib/Import/Diagnostics.h"
#include "sluice-support/Json.h"
#include "sluice/Formats/CacheEncoding.h"
#include "sluice/Import/Expected.h"
#include "sluice/Import/FileSet.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/Path.h"
#include "llvm/TargetParser/Host.h"
#include "llvm/TargetParser/Triple.h"

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::fail;
using sluice::detail::quote;
using sluice::support::JsonField;

static constexpr int64_t gib = int64_t(1) << 30;

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

static bool isName(StringRef text) {
  return !text.empty() && text.size() <= 64 && isAlnum(text[0]) &&
         all_of(text, [](char c) { return isAlnum(c) || c == '-' || c == '_'; });
}

static bool isArch(StringRef text) {
  if (!text.consume_front("sm_"))
    return false;
  text.consume_back("a");
  return (text.size() == 2 || text.size() == 3) && all_of(text, isDigit);
}

static bool isText(StringRef text) { return !text.trim().empty(); }

static std::string readText(const JsonField &field, function_ref<bool(StringRef)> valid,
                            const char *expected) {
  if (!field.get().is_string() || !valid(field.asString()))
    field.fail(expected);
  return field.asString();
}

template <typename T> static Sourced<T> readNumber(const JsonField &field, T least, T greatest) {
  if (!field.get().is_object())
    field.fail(R"({"value": number, "source": text})");
  field.allowOnly({"value", "source"});
  Sourced<T> result;
  if constexpr (std::is_integral_v<T>)
    result.value = field.at("value").asInt(least, greatest);
  else
    result.value = field.at("value").asNumber(least, greatest);
  result.source = readText(field.at("source"), isText, "where the number is from");
  return result;
}

namespace {
/// A key of "tuning" or "time", with its least and greatest value.
template <typename Group, typename Number> struct NumberKey {
  StringLiteral key;
  Sourced<Number> Group::*number;
  Number least, greatest;
};
template <typename Tuning> using TuningKey = NumberKey<Tuning, int64_t>;
template <typename Time> using TimeKey = NumberKey<Time, double>;
} // namespace

static constexpr TuningKey<GpuTuning> gpuTuningKeys[] = {
    {"product_warps", &GpuTuning::productWarps, 1, 31},
    {"product_stages", &GpuTuning::productStages, 1, 1024},
    {"product_in_flight", &GpuTuning::productInFlight, 1, 1024},
    {"product_held_tiles", &GpuTuning::productHeldTiles, 1, 65536},
    {"product_prefetch_bytes", &GpuTuning::productPrefetchBytes, 0, 1 << 20},
    {"matmul_warps", &GpuTuning::matmulWarps, 4, 16},
    {"matmul_stages", &GpuTuning::matmulStages, 3, 64},
    {"matmul_weight_bytes", &GpuTuning::matmulWeightBytes, 1024, 1 << 20},
    {"matmul_tokens", &GpuTuning::matmulTokens, 8, 128},
    {"warpgroup_columns", &GpuTuning::warpgroupColumns, 1, 1 << 16},
    {"attention_warps", &GpuTuning::attentionWarps, 1, 31},
    {"attention_splits", &GpuTuning::attentionSplits, 1, 8},
    {"attention_stage_bytes", &GpuTuning::attentionStageBytes, 1, 1 << 20},
    {"attention_short_ring_bytes", &GpuTuning::shortRingBytes, 1, 1 << 20},
    {"attention_long_ring_bytes", &GpuTuning::longRingBytes, 1, 1 << 20},
    {"attention_prompt_stages", &GpuTuning::promptStages, 2, 64},
    {"attention_prompt_stage_bytes", &GpuTuning::promptStageBytes, 1, 1 << 20},
    {"sample_warps", &GpuTuning::sampleWarps, 8, 31},
    {"sample_splits", &GpuTuning::sampleSplits, 1, 8},
    {"sample_logits", &GpuTuning::sampleLogits, 1, 1 << 30},
    {"embedding_warps", &GpuTuning::embeddingWarps, 1, 31},
    {"embedding_columns", &GpuTuning::embeddingColumns, 2, 1 << 20},
};
static constexpr TuningKey<CpuTuning> cpuTuningKeys[] = {
    {"accumulators", &CpuTuning::accumulators, 1, 8},
    {"positions", &CpuTuning::positions, 1, 1024},
};

static constexpr double bandwidthMin = 1e8, bandwidthMax = 1e15, rateMin = 1e6, rateMax = 1e19;

static constexpr TimeKey<GpuTime> gpuTimeKeys[] = {
    {"product_bandwidth", &GpuTime::productBandwidth, bandwidthMin, bandwidthMax},
    {"cache_bandwidth", &GpuTime::cacheBandwidth, bandwidthMin, bandwidthMax},
    {"block_bandwidth", &GpuTime::blockBandwidth, bandwidthMin, bandwidthMax},
    {"product_gap", &GpuTime::productGap, 0, 1},
    {"product_wait", &GpuTime::productWait, 0, 1},
    {"product_column", &GpuTime::productColumn, 0, 1},
    {"product_stage", &GpuTime::productStage, 0, 1},
    {"product_sum", &GpuTime::productSum, 0, 1},
    {"product_rival", &GpuTime::productRival, 0, 1},
    {"attention_wait", &GpuTime::attentionWait, 0, 1},
    {"attention_part", &GpuTime::attentionPart, 0, 1},
    {"beside_saving", &GpuTime::besideSaving, 0, 1},
    {"beside_slowdown", &GpuTime::besideSlowdown, 0, 100},
    {"room_saving", &GpuTime::roomSaving, 0, 1},
    {"append", &GpuTime::append, 0, 1},
    {"matmul_wait", &GpuTime::matmulWait, 0, 1},
    {"matmul_stage", &GpuTime::matmulStage, 0, 1},
    {"unpack_integers", &GpuTime::unpackIntegers, rateMin, rateMax},
    {"unpack_floats", &GpuTime::unpackFloats, rateMin, rateMax},
    {"unpack_records", &GpuTime::unpackRecords, rateMin, rateMax},
    {"warp_integers", &GpuTime::warpIntegers, rateMin, rateMax},
    {"warp_floats", &GpuTime::warpFloats, rateMin, rateMax},
    {"warp_records", &GpuTime::warpRecords, rateMin, rateMax},
    {"warpgroup_integers", &GpuTime::warpgroupIntegers, rateMin, rateMax},
    {"warpgroup_floats", &GpuTime::warpgroupFloats, rateMin, rateMax},
    {"warpgroup_records", &GpuTime::warpgroupRecords, rateMin, rateMax},
    {"l2_bandwidth", &GpuTime::l2Bandwidth, bandwidthMin, bandwidthMax},
    {"l2_block_bandwidth", &GpuTime::l2BlockBandwidth, bandwidthMin, bandwidthMax},
    {"rows_bandwidth", &GpuTime::rowsBandwidth, bandwidthMin, bandwidthMax},
    {"small_kernel", &GpuTime::smallKernel, 0, 1},
    {"sampling_logit", &GpuTime::samplingLogit, 0, 1},
    {"step", &GpuTime::step, 0, 1},
    {"alone", &GpuTime::alone, 0, 1},
};
static constexpr TimeKey<PersistentTime> persistentTimeKeys[] = {
    {"bandwidth", &PersistentTime::bandwidth, bandwidthMin, bandwidthMax},
    {"cache_bandwidth", &PersistentTime::cacheBandwidth, bandwidthMin, bandwidthMax},
    {"wait", &PersistentTime::wait, 0, 1},
    {"integer_wait", &PersistentTime::integerWait, 0, 1},
    {"integers", &PersistentTime::integers, rateMin, rateMax},
    {"record_bandwidth", &PersistentTime::recordBandwidth, bandwidthMin, bandwidthMax},
    {"record_arithmetic", &PersistentTime::recordArithmetic, 0, 1},
};
static constexpr TimeKey<CpuTime> cpuTimeKeys[] = {
    {"product_bandwidth", &CpuTime::productBandwidth, bandwidthMin, bandwidthMax},
    {"cache_bandwidth", &CpuTime::cacheBandwidth, bandwidthMin, bandwidthMax},
    {"rows_bandwidth", &CpuTime::rowsBandwidth, bandwidthMin, bandwidthMax},
    {"launch", &CpuTime::launch, 0, 1},
    {"product_column", &CpuTime::productColumn, 0, 1},
    {"append", &CpuTime::append, 0, 1},
    {"step", &CpuTime::step, 0, 1},
};

/// `others` are keys of the object that are no numbers of the group.
template <typename Group, typename Number>
static Group readNumbers(const JsonField &field, ArrayRef<NumberKey<Group, Number>> keys,
                         ArrayRef<StringRef> others = {}) {
  Group group;
  for (const auto &entry : keys)
    group.*entry.number =
        readNumber<Number>(field.at(std::string_view(entry.key)), entry.least, entry.greatest);
  for (const auto &[key, value] : field.members())
    if (!is_contained(others, key) &&
        none_of(keys, [&](const auto &entry) { return entry.key == key; }))
      value.failWith("is unknown, expected " +
                     join(concat<const std::string>(
                              map_to_vector(keys, [](const auto &e) { return e.key.str(); }),
                              map_to_vector(others, [](StringRef o) { return o.str(); })),
                          ", "));
  return group;
}

template <typename Format>
static FormatRates readRates(const JsonField &field, const char *expected) {
  FormatRates rates;
  for (const auto &[name, rate] : field.members()) {
    if (!Format::fromName(name))
      rate.failWith(std::string("is unknown, expected ") + expected);
    rates[name] = readNumber<double>(rate, rateMin, rateMax);
  }
  if (rates.empty())
    field.fail("the rate of at least one format");
  return rates;
}

template <typename Time>
static Time readTime(const JsonField &field, ArrayRef<TimeKey<Time>> keys,
                     TargetDescription &target, ArrayRef<StringRef> tables) {
  target.productRates =
      readRates<formats::Encoding>(field.at("products"), "a number format of weights");
  target.attentionRates =
      readRates<formats::CacheEncoding>(field.at("attention"), "a number format of caches");
  return readNumbers<Time, double>(field, keys, tables);
}

/// Keys of "tuning" that every kind of target may have, and may lack.
static constexpr StringRef stepKeys[] = {"prefill_tokens", "verify_tokens"};

static void readSteps(const JsonField &tuning, TargetDescription &target) {
  constexpr int64_t most = 1 << 16;
  if (std::optional<JsonField> verify = tuning.find("verify_tokens"))
    target.verifyTokens = readNumber<int64_t>(*verify, 2, most);
  std::optional<JsonField> field = tuning.find("prefill_tokens");
  if (!field)
    return;
  field->allowOnly({"value", "source"});
  for (const JsonField &tokens : field->at("value").elements(16)) {
    std::vector<int64_t> &all = target.prefillTokens.value;
    all.push_back(tokens.asInt(all.empty() ? 2 : all.back() + 1, most));
  }
  target.prefillTokens.source = readText(field->at("source"), isText, "where the numbers are from");
}

static void readPersistent(const JsonField &field, TargetDescription &target) {
  field.allowOnly({"resident_clusters", "warps", "attention_in_flight", "mlp_in_flight", "time"});
  PersistentTuning &tuning = target.persistent.emplace();
  JsonField clusters = field.at("resident_clusters");
  clusters.allowOnly({"value", "source"});
  for (const JsonField &count : clusters.at("value").elements(4))
    tuning.residentClusters.value.push_back(count.asInt(1, 4096));
  tuning.residentClusters.source =
      readText(clusters.at("source"), isText, "where the numbers are from");
  tuning.warps = readNumber<int64_t>(field.at("warps"), 1, 31);
  tuning.attentionInFlight = readNumber<int64_t>(field.at("attention_in_flight"), 1, 1024);
  tuning.mlpInFlight = readNumber<int64_t>(field.at("mlp_in_flight"), 1, 1024);
  if (std::optional<JsonField> time = field.find("time"))
    tuning.time = readNumbers<PersistentTime, double>(*time, persistentTimeKeys);
}

static void readGpu(const JsonField &root, TargetDescription &target) {
  target.arch =
      readText(root.at("arch"), isArch, "\"sm_\" and two or three digits, perhaps an \"a\"");
  target.multiprocessors = readNumber<int64_t>(root.at("multiprocessors"), 1, 4096);
  target.l2Bytes = readNumber<int64_t>(root.at("l2_bytes"), 1 << 16, 64 * gib);
  target.sharedBytesPerBlock =
      readNumber<int64_t>(root.at("shared_bytes_per_block"), 16 << 10, 16 << 20);
  target.gpuTuning = readNumbers<GpuTuning, int64_t>(root.at("tuning"), gpuTuningKeys, stepKeys);
  readSteps(root.at("tuning"), target);
  if (std::optional<JsonField> persistent = root.find("persistent"))
    readPersistent(*persistent, target);
  target.gpuTime =
      readTime<GpuTime>(root.at("time"), gpuTimeKeys, target, {"products", "attention"});
}

static void readCpu(const JsonField &root, TargetDescription &target) {
  auto isTriple = [](StringRef text) {
    Triple triple(Triple::normalize(text));
    return triple.getArch() == Triple::x86_64 && triple.isOSLinux();
  };
  target.triple = readText(root.at("triple"), isTriple, "a triple of x86_64 and linux");
  auto isIsa = [](StringRef text) {
    return any_of(hostIsas, [&](const auto &known) { return known.isa == text; });
  };
  target.isa = readText(root.at("isa"), isIsa, "\"avx2\", \"avx512\" or \"avx512_vnni\"");
  JsonField features = root.at("features");
  if (!features.get().is_array() || !all_of(features.elements(), [](const JsonField &feature) {
        return feature.get().is_string() && isText(feature.asString());
      }))
    features.fail("a list of CPU features");
  target.features = features.get().get<std::vector<std::string>>();
  for (const auto &known : hostIsas)
    if (known.isa == target.isa)
      for (StringRef needed : known.features)
        if (!is_contained(target.features, needed))
          features.failWith(("lacks '" + needed + "', which isa " + known.isa + " needs").str());
  target.cpuTuning = readNumbers<CpuTuning, int64_t>(root.at("tuning"), cpuTuningKeys, stepKeys);
  readSteps(root.at("tuning"), target);
  JsonField time = root.at("time");
  target.cpuTime = readTime<CpuTime>(time, cpuTimeKeys, target,
                                     {"products", "attention", "attention_operands", "matmul"});
  target.matmulRates =
      readRates<formats::Encoding>(time.at("matmul"), "a number format of weights");
  target.attentionOperandRates =
      readRates<formats::CacheEncoding>(time.at("attention_operands"), "a number format of caches");
}

static TargetDescription readTarget(const JsonField &root) {
  TargetDescription target;
  target.name = readText(root.at("name"), isName, "letters, digits, '-' and '_'");
  target.description = readText(root.at("description"), isText, "a description");
  auto isKind = [](StringRef text) { return text == "gpu" || text == "cpu"; };
  bool gpu = readText(root.at("kind"), isKind, "\"gpu\" or \"cpu\"") == "gpu";
  target.kind = gpu ? TargetDescription::Kind::Gpu : TargetDescription::Kind::Cpu;

  if (gpu || root.find("peak_bandwidth") || !root.find("read_ceiling"))
    target.peakBandwidth =
        readNumber<double>(root.at("peak_bandwidth"), bandwidthMin, bandwidthMax);
  if (auto ceiling = root.find("read_ceiling"))
    target.readCeiling = readNumber<double>(*ceiling, bandwidthMin, bandwidthMax);
  if (gpu || root.find("memory_bytes"))
    target.memoryBytes = readNumber<int64_t>(root.at("memory_bytes"), gib, gib * 65536);
  if (gpu || root.find("operations")) {
    JsonField operations = root.at("operations");
    operations.allowOnly({"f32", "f16", "bf16", "fp8", "int8"});
    for (const auto &[type, rate] : operations.members())
      target.operations[type] = readNumber<double>(rate, rateMin, rateMax);
    if (gpu)
      operations.at("f16");
  }
  if (gpu) {
    readGpu(root, target);
    root.allowOnly({"name", "description", "kind", "peak_bandwidth", "read_ceiling", "memory_bytes",
                    "operations", "arch", "multiprocessors", "l2_bytes", "shared_bytes_per_block",
                    "tuning", "persistent", "time"});
  } else {
    readCpu(root, target);
    root.allowOnly({"name", "description", "kind", "peak_bandwidth", "read_ceiling", "memory_bytes",
                    "operations", "triple", "isa", "features", "tuning", "time"});
  }
  if (target.peakBandwidth && target.readCeiling &&
      target.readCeiling->value > target.peakBandwidth->value)
    root.at("read_ceiling").failWith("exceeds peak_bandwidth");
  return target;
}

Expected<TargetDescription> sluice::parseTarget(StringRef text, StringRef path) {
  return toExpected([&] {
    std::string name = path.str();
    json parsed = support::parseJson(text, name);
    return readTarget(JsonField(parsed, "", name));
  });
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

static Expected<std::shared_ptr<const MappedFile>> openFile(StringRef path) {
  constexpr uint64_t largest = 1 << 20;
  return mapFile(path, largest);
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

/// The path of a description.
static Expected<std::string> findTarget(StringRef nameOrPath) {
  if (nameOrPath.contains('/') || nameOrPath.ends_with(".json"))
    return nameOrPath.str();

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
  return path.str().str();
}

Expected<TargetDescription> sluice::loadTarget(StringRef nameOrPath) {
  Expected<std::string> path = findTarget(nameOrPath);
  if (!path)
    return path.takeError();
  auto file = openFile(*path);
  if (!file)
    return file.takeError();
  Expected<TargetDescription> target = parseTarget((*file)->text(), *path);
  if (!target || *path == nameOrPath)
    return target;
  StringRef stem = sys::path::stem(*path);
  if (target->name != stem)
    return fail(*path,
                "name is " + quote(target->name) + ", expected the file's name " + quote(stem));
  target->name = nameOrPath.str();
  return target;
}

static nlohmann::ordered_json sourcedJson(const Sourced<double> &number) {
  // Four digits are more than measurements have.
  return {{"value", strtod(formatv("{0:E3}", number.value).str().c_str(), nullptr)},
          {"source", number.source}};
}

template <typename Time>
static nlohmann::ordered_json timeJson(const TargetDescription &target, const Time &time,
                                       ArrayRef<TimeKey<Time>> keys) {
  nlohmann::ordered_json object;
  for (const TimeKey<Time> &entry : keys)
    object[entry.key.str()] = sourcedJson(time.*entry.number);
  for (const auto &[key, rates] :
       {std::pair("products", &target.productRates), std::pair("attention", &target.attentionRates),
        std::pair("attention_operands", &target.attentionOperandRates),
        std::pair("matmul", &target.matmulRates)})
    for (const auto &[name, rate] : *rates)
      object[key][name] = sourcedJson(rate);
  return object;
}

Expected<std::string> sluice::calibratedText(StringRef nameOrPath,
                                             const TargetDescription &calibrated) {
  Expected<std::string> path = findTarget(nameOrPath);
  if (!path)
    return path.takeError();
  auto file = openFile(*path);
  if (!file)
    return file.takeError();
  // Keeps the order of the keys; loadTarget has parsed it.
  auto object = nlohmann::ordered_json::parse((*file)->text());
  object["name"] = calibrated.name;
  object["description"] = calibrated.description;
  if (calibrated.readCeiling)
    object["read_ceiling"] = sourcedJson(*calibrated.readCeiling);
  if (calibrated.peakBandwidth)
    object["peak_bandwidth"] = sourcedJson(*calibrated.peakBandwidth);
  object["time"] = calibrated.isGpu()
                       ? timeJson<GpuTime>(calibrated, calibrated.gpuTime, gpuTimeKeys)
                       : timeJson<CpuTime>(calibrated, calibrated.cpuTime, cpuTimeKeys);
  return object.dump(1) + "\n";
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
