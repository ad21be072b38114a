// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Plan.h"

#include "sluice-runtime/SamplingWords.h"
#include "sluice-support/Json.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <regex>
#include <unordered_map>

#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace sluice::runtime;
using nlohmann::json;
using sluice::support::hexDigits;
using sluice::support::JsonField;
using sluice::support::parseJson;
using sluice::support::printable;

namespace {

/// A size that no real artifact reaches; sums of a few of them stay below 2^63.
constexpr int64_t maxBytes = int64_t(1) << 48;
constexpr int64_t maxId = INT32_MAX;
constexpr size_t maxBuffers = 1 << 20;
constexpr size_t maxLaunches = 1 << 20;
constexpr size_t maxArguments = 2048;
constexpr size_t maxRegions = 4096;
constexpr uint64_t arenaAlignment = 64;

} // namespace

std::string_view sluice::runtime::bufferKindName(BufferKind kind) {
  switch (kind) {
  case BufferKind::Arena:
    return "arena";
  case BufferKind::Weights:
    return "weights";
  case BufferKind::Cache:
    return "cache";
  case BufferKind::Input:
    return "input";
  case BufferKind::Output:
    return "output";
  }
  return "";
}

uint64_t Traffic::bytes(uint64_t context) const {
  uint64_t read = window ? std::min(window, context) : context;
  return weights + scales + activations + (keys + values) * read + written;
}

double PredictedTime::seconds(uint64_t context) const {
  uint64_t read = window ? std::min(window, context) : context;
  auto positions = static_cast<double>(read);
  // A step's tokens read half of each other: what they do not is a part that is less than nothing.
  return memory + boundary + memoryPerPosition * positions +
         std::max(0.0, arithmetic + arithmeticPerPosition * positions);
}

std::optional<double> Step::predictedSeconds(uint64_t context) const {
  double seconds = time ? time->seconds(context) : 0;
  for (const Launch &launch : launches) {
    if (!launch.time)
      return std::nullopt;
    seconds += launch.time->seconds(context);
  }
  return seconds;
}

/// Bytes of a plain element, or 0 for other types.
static int64_t plainElementBytes(const std::string &type) {
  static const std::unordered_map<std::string, int64_t> sizes = {
      {"f64", 8}, {"f32", 4}, {"f16", 2}, {"bf16", 2}, {"i8", 1},  {"i16", 2},
      {"i32", 4}, {"i64", 8}, {"u8", 1},  {"u16", 2},  {"u32", 4}, {"u64", 8}};
  auto found = sizes.find(type);
  return found == sizes.end() ? 0 : found->second;
}

/// A file name that stays in the artifact's directory.
static std::string readFileName(const JsonField &value) {
  std::string name = value.asText(255);
  if (name.empty() || name == "." || name == ".." || name.find('/') != name.npos)
    value.fail("the name of a file in the same directory");
  return name;
}

static uint64_t readDigest(const JsonField &value) {
  std::string text = value.asText(64);
  if (text.size() != 16 || text.find_first_not_of("0123456789abcdef") != text.npos)
    value.fail("16 lowercase hexadecimal digits");
  return std::stoull(text, nullptr, 16);
}

static ModelInfo readModel(const JsonField &value) {
  ModelInfo model;
  model.name = value.at("name").asText();
  model.architecture = value.at("architecture").asText();
  model.vocabSize = value.at("vocab_size").asInt(1, maxId);
  model.contextLength = value.at("context_length").asInt(1, maxId);
  model.batch = value.intAt("batch", 1, 64, model.batch);
  model.cachePages = value.intAt("cache_pages", 1, maxId, model.cachePages);
  model.hiddenSize = value.at("hidden_size").asInt(1, maxId);
  model.layers = value.at("layers").asInt(1, maxId);
  model.heads = value.at("heads").asInt(1, maxId);
  model.kvHeads = value.at("kv_heads").asInt(1, maxId);
  model.headDim = value.at("head_dim").asInt(1, maxId);
  model.bosId = static_cast<int32_t>(value.intAt("bos_id", -1, model.vocabSize - 1, model.bosId));
  for (const JsonField &eos : value.at("eos_ids").elements(1024))
    model.eosIds.push_back(static_cast<int32_t>(eos.asInt(0, model.vocabSize - 1)));
  model.weights = value.at("weights").asText();
  model.synthetic = value.at("synthetic").asBool();
  return model;
}

/// "sm_" and the major and minor capability, then perhaps what restricts it to one chip (a) or
/// family (f).
static bool isGpuArch(const std::string &text) {
  static const std::regex pattern("sm_[1-9][0-9]{1,2}[af]?");
  return std::regex_match(text, pattern);
}

static TargetInfo readTarget(const JsonField &value) {
  TargetInfo target;
  target.name = value.at("name").asText();
  target.kind = value.at("kind").asText(64);
  if (target.kind.empty())
    value.at("kind").fail("a kind of device");
  if (value.find("triple") || target.kind == "cpu")
    target.triple = value.at("triple").asText();
  if (auto isa = value.find("isa"))
    target.isa = isa->asText();
  if (target.kind == "gpu") {
    target.arch = value.at("arch").asText(64);
    if (!isGpuArch(target.arch))
      value.at("arch").fail("a GPU architecture such as \"sm_90\"");
  }
  if (value.find("features") || target.kind == "cpu")
    for (const JsonField &feature : value.at("features").elements(1024))
      target.features.push_back(feature.asText(64));
  return target;
}

static std::map<std::string, FileInfo> readFiles(const JsonField &value, const Plan &plan) {
  std::map<std::string, FileInfo> files;
  for (const auto &[role, member] : value.members()) {
    FileInfo file;
    file.name = readFileName(member.at("name"));
    file.bytes = static_cast<uint64_t>(member.at("bytes").asInt(0, maxBytes));
    file.xxh3 = readDigest(member.at("xxh3"));
    files.emplace(role, std::move(file));
  }
  // A device of another kind knows itself which files it needs.
  if (plan.target.kind == "cpu")
    value.at("kernels");
  if (!plan.model.synthetic)
    value.at("weights");
  return files;
}

static BufferKind readKind(const JsonField &value) {
  std::string text = value.asText(64);
  for (BufferKind kind : {BufferKind::Arena, BufferKind::Weights, BufferKind::Cache,
                          BufferKind::Input, BufferKind::Output})
    if (text == bufferKindName(kind))
      return kind;
  value.fail("arena, weights, cache, input or output");
}

static sluice::synthetic::SyntheticPattern readPattern(const JsonField &value) {
  sluice::synthetic::SyntheticPattern pattern;
  pattern.seed = readDigest(value.at("seed"));
  uint64_t end = 0;
  for (const JsonField &region : value.at("regions").elements(maxRegions)) {
    end += static_cast<uint64_t>(region.at("bytes").asInt(1, maxBytes));
    pattern.regions.push_back({end, {readDigest(region.at("keep")), readDigest(region.at("set"))}});
  }
  if (pattern.regions.empty())
    value.at("regions").fail("at least one region");
  return pattern;
}

static Buffer readBuffer(const JsonField &value, uint64_t arenaBytes) {
  Buffer buffer;
  buffer.name = value.at("name").asText(256);
  if (buffer.name.empty())
    value.at("name").fail("a name");
  buffer.kind = readKind(value.at("kind"));
  buffer.type = value.at("type").asText(256);
  if (buffer.type.empty())
    value.at("type").fail("an element type");

  JsonField shape = value.at("shape");
  int64_t elements = 1;
  for (const JsonField &dimension : shape.elements(8)) {
    int64_t extent = dimension.asInt(1, maxBytes);
    buffer.shape.push_back(extent);
    if (elements > maxBytes / extent)
      shape.failWith("has more than 2^48 elements");
    elements *= extent;
  }

  buffer.bytes = static_cast<uint64_t>(value.at("bytes").asInt(1, maxBytes));
  if (int64_t size = plainElementBytes(buffer.type);
      size * elements > static_cast<int64_t>(buffer.bytes))
    value.at("bytes").fail("at least " + std::to_string(size * elements) + " for " +
                           std::to_string(elements) + " " + buffer.type + " (buffer \"" +
                           buffer.name + "\")");

  if (buffer.kind == BufferKind::Arena) {
    buffer.offset = static_cast<uint64_t>(value.at("offset").asInt(0, maxBytes));
    if (buffer.offset % arenaAlignment)
      value.at("offset").fail("a multiple of " + std::to_string(arenaAlignment));
    if (buffer.offset + buffer.bytes > arenaBytes)
      value.failWith("\"" + buffer.name + "\" ends at byte " +
                     std::to_string(buffer.offset + buffer.bytes) + " of an arena of " +
                     std::to_string(arenaBytes));
  }
  if (buffer.kind == BufferKind::Weights) {
    buffer.tensor = value.at("tensor").asText(1024);
    if (buffer.tensor.empty())
      value.at("tensor").fail("the name of a tensor");
    if (auto synthetic = value.find("synthetic"))
      buffer.synthetic = readPattern(*synthetic);
  }
  return buffer;
}

static Traffic readTraffic(const JsonField &value) {
  Traffic traffic;
  auto read = [&](const char *key) {
    return static_cast<uint64_t>(value.at(key).asInt(0, maxBytes));
  };
  traffic.weights = read("weights");
  traffic.scales = read("scales");
  traffic.activations = read("activations");
  // Times a context length of at most 2^31 these must stay below 2^63.
  traffic.keys = static_cast<uint64_t>(value.at("keys").asInt(0, maxId));
  traffic.values = static_cast<uint64_t>(value.at("values").asInt(0, maxId));
  traffic.written = read("written");
  if (std::optional<JsonField> window = value.find("window"))
    traffic.window = static_cast<uint64_t>(window->asInt(1, maxId));
  traffic.operations = read("operations");
  traffic.operationsPerPosition =
      static_cast<uint64_t>(value.at("operations_per_position").asInt(0, maxBytes));
  return traffic;
}

static PredictedTime readTime(const JsonField &value) {
  value.allowOnly({"memory", "arithmetic", "boundary", "memory_per_position",
                   "arithmetic_per_position", "window", "alone"});
  constexpr double most = 1e6;
  auto read = [&](const char *key, double least = 0) {
    std::optional<JsonField> number = value.find(key);
    return number ? number->asNumber(least, most) : 0.0;
  };
  PredictedTime time;
  time.memory = read("memory");
  time.arithmetic = read("arithmetic", -most);
  time.boundary = read("boundary");
  time.memoryPerPosition = read("memory_per_position");
  time.arithmeticPerPosition = read("arithmetic_per_position");
  time.window = static_cast<uint64_t>(value.intAt("window", 1, maxId, 0));
  time.alone = read("alone");
  return time;
}

static Launch readLaunch(const JsonField &value,
                         const std::unordered_map<std::string, uint32_t> &buffers) {
  Launch launch;
  launch.kernel = value.at("kernel").asText(1024);
  if (launch.kernel.empty())
    value.at("kernel").fail("the name of a kernel");
  launch.label = value.at("label").asText();
  launch.grid = value.at("grid").asInt(1, maxId);
  launch.block = value.at("block").asInt(0, 1024);
  launch.shared = value.at("shared").asInt(0, 1 << 30);
  launch.cluster = value.at("cluster").asInt(0, 64);
  launch.overlap = value.at("overlap").asBool();
  if (std::optional<JsonField> cooperative = value.find("cooperative"))
    launch.cooperative = cooperative->asBool();
  for (const JsonField &argument : value.at("arguments").elements(maxArguments)) {
    auto found = buffers.find(argument.asText(256));
    if (found == buffers.end())
      argument.fail("the name of a buffer");
    launch.arguments.push_back(found->second);
  }
  if (auto traffic = value.find("traffic"))
    launch.traffic = readTraffic(*traffic);
  if (auto time = value.find("time"))
    launch.time = readTime(*time);
  return launch;
}

/// Two arena buffers may share bytes only if one is last used before, or in the launch where, the
/// other is first used: otherwise a launch would find another value than was left there.
static void checkLifetimes(const Plan &plan, const Step &step, const JsonField &where) {
  struct Use {
    uint32_t buffer;
    size_t first, last;
  };
  std::vector<Use> uses;
  std::unordered_map<uint32_t, size_t> indexOf;
  for (size_t i = 0; i < step.launches.size(); ++i)
    for (uint32_t buffer : step.launches[i].arguments) {
      if (plan.buffers[buffer].kind != BufferKind::Arena)
        continue;
      auto [place, isNew] = indexOf.try_emplace(buffer, uses.size());
      if (isNew)
        uses.push_back({buffer, i, i});
      uses[place->second].last = i;
    }
  std::sort(uses.begin(), uses.end(), [](const Use &a, const Use &b) { return a.first < b.first; });
  // What is alive across the end of the launch, by its first byte. These are disjoint, so that only
  // neighbours have to be compared.
  std::multimap<uint64_t, Use> alive;
  std::multimap<size_t, std::multimap<uint64_t, Use>::iterator> ends;
  for (const Use &use : uses) {
    while (!ends.empty() && ends.begin()->first <= use.first) {
      alive.erase(ends.begin()->second);
      ends.erase(ends.begin());
    }
    const Buffer &buffer = plan.buffers[use.buffer];
    auto check = [&](const Use &other) {
      const Buffer &there = plan.buffers[other.buffer];
      if (there.offset + there.bytes > buffer.offset &&
          buffer.offset + buffer.bytes > there.offset && use.last > other.first)
        where.failWith("let \"" + there.name + "\" and \"" + buffer.name +
                       "\" share bytes of the arena while both are in use");
    };
    auto next = alive.lower_bound(buffer.offset);
    if (next != alive.begin())
      check(std::prev(next)->second);
    for (; next != alive.end() && next->first < buffer.offset + buffer.bytes; ++next)
      check(next->second);
    // A buffer that only its own launch uses ends right there.
    if (use.last > use.first)
      ends.emplace(use.last, alive.emplace(buffer.offset, use));
  }
}

static std::map<std::string, Utility> readUtilities(const JsonField &value) {
  std::map<std::string, Utility> utilities;
  for (const auto &[name, member] : value.members()) {
    Utility utility;
    utility.block = member.at("block").asInt(1, 1024);
    utility.shared = member.at("shared").asInt(0, 1 << 30);
    utility.blocksPerMultiprocessor = member.at("blocks_per_multiprocessor").asInt(1, 64);
    utilities.emplace(name, utility);
  }
  return utilities;
}

static Step readStep(const std::string &name, const JsonField &value, const Plan &plan,
                     const std::unordered_map<std::string, uint32_t> &buffers) {
  Step step;
  step.name = name;
  if (auto tokens = value.find("tokens")) {
    if (name == "decode" || name == Plan::graphStep)
      tokens->failWith("is for other steps: \"" + name + "\" takes one token");
    step.tokens = tokens->asInt(2, maxId);
    if (auto all = value.find("all_logits"))
      step.allLogits = all->asBool();
  } else if (name != "decode" && name != Plan::graphStep) {
    value.at("tokens");
  }
  JsonField launches = value.at("launches");
  if (launches.asArray(maxLaunches).empty())
    launches.fail("at least one launch");
  int64_t moved = 0, perPosition = 0, operations = 0;
  for (const JsonField &field : launches.elements()) {
    Launch launch = readLaunch(field, buffers);
    if (launch.traffic) {
      const Traffic &t = *launch.traffic;
      moved += static_cast<int64_t>(t.weights + t.scales + t.activations + t.written);
      perPosition += static_cast<int64_t>(t.keys + t.values);
      operations += static_cast<int64_t>(t.operations + t.operationsPerPosition);
      if (moved > 4 * maxBytes || perPosition > maxId || operations > 4 * maxBytes)
        launches.failWith("have a traffic that together is larger than any machine's memory");
    }
    step.launches.push_back(std::move(launch));
  }
  if (auto time = value.find("time"))
    step.time = readTime(*time);
  checkLifetimes(plan, step, launches);
  return step;
}

/// The page table and pages of several sequences' caches.
static void checkPages(const Plan &plan, const std::string &name) {
  const ModelInfo &model = plan.model;
  if (model.batch == 1 && model.cachePages == 0)
    return;
  if (model.batch == 1 || model.cachePages == 0)
    throw Error(name + ": model.cache_pages is " + std::to_string(model.cachePages) + " for " +
                std::to_string(model.batch) +
                " sequences, expected pages for several, and no others");
  auto shapeText = [](const std::vector<int64_t> &shape) {
    std::string text;
    for (int64_t extent : shape)
      text += (text.empty() ? "" : "x") + std::to_string(extent);
    return text;
  };
  auto index = plan.findBuffer("pages");
  if (!index)
    throw Error(name + ": buffers: there is no buffer \"pages\", which a step of caches in pages "
                       "needs");
  const Buffer &found = plan.buffers[*index];
  if (found.kind != BufferKind::Input || found.type != "u32" || found.shape.size() != 2 ||
      found.shape[0] != model.batch || found.shape[1] > maxId / ModelInfo::kPagePositions ||
      found.shape[1] * ModelInfo::kPagePositions < model.contextLength)
    throw Error(name + ": buffer \"pages\" is " + std::string(bufferKindName(found.kind)) + ", " +
                shapeText(found.shape) + " x " + found.type + ", expected input, u32, " +
                std::to_string(model.batch) + " rows of the pages of " +
                std::to_string(model.contextLength) + " positions");
  for (const Buffer &buffer : plan.buffers)
    if (buffer.kind == BufferKind::Cache &&
        (buffer.shape.size() != 4 || buffer.shape[0] != model.batch + model.cachePages ||
         buffer.shape[1] != ModelInfo::kPagePositions))
      throw Error(name + ": cache \"" + buffer.name + "\" is " + shapeText(buffer.shape) +
                  ", expected " + std::to_string(model.batch + model.cachePages) + " pages of " +
                  std::to_string(ModelInfo::kPagePositions) + " positions");
}

/// The buffers that a session speaks to the step through.
static void checkInterface(const Plan &plan, const std::string &name) {
  auto require = [&](const char *buffer, BufferKind kind, const char *type, int64_t elements) {
    auto index = plan.findBuffer(buffer);
    if (!index)
      throw Error(name + ": buffers: there is no buffer \"" + buffer +
                  "\", which a decode step needs");
    const Buffer &found = plan.buffers[*index];
    int64_t count = 1;
    for (int64_t extent : found.shape)
      count *= extent;
    if (found.kind != kind || found.type != type || count != elements)
      throw Error(name + ": buffer \"" + buffer + "\" is " +
                  std::string(bufferKindName(found.kind)) + ", " + std::to_string(count) + " x " +
                  found.type + ", expected " + std::string(bufferKindName(kind)) + ", " +
                  std::to_string(elements) + " x " + type);
  };
  const int64_t batch = plan.model.batch;
  require("token", BufferKind::Input, "i32", batch);
  require("position", BufferKind::Input, "i32", batch);
  require("logits", BufferKind::Output, "f32", batch * plan.model.vocabSize);
  int64_t most = 1, verifying = 0;
  for (const Step &step : plan.steps) {
    most = std::max(most, step.tokens);
    if (!step.allLogits)
      continue;
    if (++verifying > 1)
      throw Error(name + ": steps: there are two that give all logits, expected at most one");
    require("all_logits", BufferKind::Output, "f32", step.tokens * plan.model.vocabSize);
  }
  if (most > 1) {
    require("tokens", BufferKind::Input, "i32", most);
    require("positions", BufferKind::Input, "i32", most);
    require("count", BufferKind::Input, "i32", 1);
    if (batch > 1) {
      require("sequences", BufferKind::Input, "i32", most);
      require("starts", BufferKind::Input, "i32", batch + 1);
    }
  }
  checkPages(plan, name);
  if (plan.samples()) {
    require("sampling", BufferKind::Input, "i32", batch * sluice::sampling::kWords);
    require("next", BufferKind::Output, "i32", batch);
  }
}

/// What feeds inputs, once all buffers are known.
static void readFeeds(const JsonField &buffers, Plan &plan,
                      const std::unordered_map<std::string, uint32_t> &index) {
  uint32_t number = 0;
  for (const JsonField &field : buffers.elements()) {
    Buffer &buffer = plan.buffers[number++];
    auto fedBy = field.find("fed_by");
    if (!fedBy)
      continue;
    if (buffer.kind != BufferKind::Input)
      fedBy->failWith("is for inputs only, buffer \"" + buffer.name + "\" is " +
                      std::string(bufferKindName(buffer.kind)));
    auto found = index.find(fedBy->asText(256));
    if (found == index.end() || plan.buffers[found->second].kind != BufferKind::Output)
      fedBy->fail("the name of an output");
    const Buffer &output = plan.buffers[found->second];
    if (output.type != buffer.type || output.shape != buffer.shape || output.bytes != buffer.bytes)
      fedBy->failWith("names \"" + output.name + "\", whose type, shape or size is not that of \"" +
                      buffer.name + "\"");
    for (const Buffer &other : plan.buffers)
      if (other.fedBy == found->second)
        fedBy->failWith("names \"" + output.name + "\", which feeds \"" + other.name +
                        "\" already");
    buffer.fedBy = found->second;
  }
}

static std::string digestWithout(json object) {
  object.erase("checksum");
  std::string text = object.dump();
  return hexDigits(XXH3_64bits(text.data(), text.size()));
}

std::string Plan::checksum(std::string_view text, const std::string &name) {
  json object = parseJson(text, name);
  JsonField(object, "", name).asObject();
  return digestWithout(std::move(object));
}

Plan Plan::parse(std::string_view text, const std::string &name) {
  json object = parseJson(text, name);
  JsonField top(object, "", name);
  if (top.stringAt("format", "") != "sluice-plan")
    throw Error(name + ": is not a plan: key \"format\" is not \"sluice-plan\"");
  JsonField version = top.at("version");
  if (version.asInt(0, maxId) != formatVersion)
    version.fail(std::to_string(formatVersion) + ": this sluice reads plans of version " +
                 std::to_string(formatVersion) + " only; compile the model again");
  std::string stored = hexDigits(readDigest(top.at("checksum")));
  if (std::string actual = digestWithout(object); actual != stored)
    throw Error(name + ": checksum is " + stored + ", but the content's is " + actual +
                ": the file was changed");

  Plan plan;
  plan.digest = stored;
  plan.producer = top.at("producer").asText();
  plan.model = readModel(top.at("model"));
  plan.target = readTarget(top.at("target"));
  plan.files = readFiles(top.at("files"), plan);
  plan.arenaBytes = static_cast<uint64_t>(top.at("arena_bytes").asInt(0, maxBytes));

  JsonField buffers = top.at("buffers");
  std::unordered_map<std::string, uint32_t> index;
  int64_t total = 0;
  for (const JsonField &field : buffers.elements(maxBuffers)) {
    Buffer buffer = readBuffer(field, plan.arenaBytes);
    if (buffer.synthetic && !plan.model.synthetic)
      field.at("synthetic").failWith("generates weights, but the model is not synthetic");
    if (!index.emplace(buffer.name, static_cast<uint32_t>(plan.buffers.size())).second)
      field.at("name").fail("a name that no buffer before it has");
    if (buffer.kind != BufferKind::Arena &&
        (total += static_cast<int64_t>(buffer.bytes)) > maxBytes)
      buffers.failWith("need more than 2^48 bytes together");
    plan.buffers.push_back(std::move(buffer));
  }

  JsonField steps = top.at("steps");
  steps.at("decode");
  for (const auto &[step, value] : steps.members())
    plan.steps.push_back(readStep(step, value, plan, index));
  if (auto utilities = top.find("utilities"))
    plan.utilities = readUtilities(*utilities);
  checkInterface(plan, name);
  readFeeds(buffers, plan, index);
  return plan;
}

std::optional<uint32_t> Plan::findBuffer(std::string_view name) const {
  for (size_t i = 0; i < buffers.size(); ++i)
    if (buffers[i].name == name)
      return static_cast<uint32_t>(i);
  return std::nullopt;
}

bool Plan::samples() const {
  std::optional<uint32_t> options = findBuffer("sampling");
  return options && buffers[*options].kind == BufferKind::Input;
}

uint32_t Plan::bufferIndex(std::string_view name) const {
  if (auto index = findBuffer(name))
    return *index;
  throw Error("the plan has no buffer \"" + printable(name) + "\"");
}

const Buffer &Plan::bufferPart(uint32_t index, uint64_t offset, uint64_t bytes) const {
  const Buffer &buffer = buffers.at(index);
  if (offset > buffer.bytes || bytes > buffer.bytes - offset)
    throw Error("buffer \"" + buffer.name + "\" has " + std::to_string(buffer.bytes) +
                " bytes, access to " + std::to_string(bytes) + " at " + std::to_string(offset) +
                " leaves it");
  return buffer;
}

const Buffer &Plan::writableBufferPart(uint32_t index, uint64_t offset, uint64_t bytes) const {
  const Buffer &buffer = bufferPart(index, offset, bytes);
  if (buffer.kind == BufferKind::Weights)
    throw Error("buffer \"" + buffer.name + "\" holds weights, which cannot be written");
  return buffer;
}

std::optional<uint32_t> Plan::findStep(std::string_view name) const {
  for (size_t i = 0; i < steps.size(); ++i)
    if (steps[i].name == name)
      return static_cast<uint32_t>(i);
  return std::nullopt;
}

uint32_t Plan::decodeStep(bool graph) const {
  std::optional<uint32_t> asGraph = graph ? findStep(graphStep) : std::nullopt;
  return asGraph ? *asGraph : *findStep("decode");
}

std::optional<uint32_t> Plan::stepFor(int64_t tokens) const {
  if (tokens == 1)
    return findStep("decode");
  std::optional<uint32_t> smallest;
  for (uint32_t i = 0; i < steps.size(); ++i)
    if (!steps[i].allLogits && steps[i].tokens >= tokens &&
        (!smallest || steps[i].tokens < steps[*smallest].tokens))
      smallest = i;
  return smallest;
}

std::optional<double> Plan::predictedPrompt(int64_t tokens) const {
  double seconds = 0;
  for (int64_t position = 0; position < tokens;) {
    int64_t count = std::min(mostTokens(), tokens - position);
    position += count;
    std::optional<double> step =
        steps[*stepFor(count)].predictedSeconds(static_cast<uint64_t>(position));
    if (!step)
      return std::nullopt;
    seconds += *step;
  }
  return seconds;
}

int64_t Plan::mostTokens() const {
  int64_t most = 1;
  for (const Step &step : steps)
    most = std::max(most, step.allLogits ? 1 : step.tokens);
  return most;
}

std::optional<uint32_t> Plan::verifyStep() const {
  for (uint32_t i = 0; i < steps.size(); ++i)
    if (steps[i].allLogits)
      return i;
  return std::nullopt;
}

uint64_t Plan::bytes(const Step &step, uint64_t context) const {
  uint64_t sum = 0;
  for (const Launch &launch : step.launches)
    if (launch.traffic)
      sum += launch.traffic->bytes(context);
  return sum;
}

uint64_t Plan::bytes(BufferKind kind) const {
  if (kind == BufferKind::Arena)
    return arenaBytes;
  uint64_t sum = 0;
  for (const Buffer &buffer : buffers)
    if (buffer.kind == kind)
      sum += buffer.bytes;
  return sum;
}
