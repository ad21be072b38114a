// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/CheckpointScheme.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/MathExtras.h"

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::support::JsonField;

static constexpr PartInfo gptqParts[] = {
    {PartRole::Scales, "scales"}, {PartRole::Zeros, "qzeros"}, {PartRole::Groups, "g_idx", true}};
static constexpr PartInfo awqParts[] = {{PartRole::Scales, "scales"}, {PartRole::Zeros, "qzeros"}};
static constexpr PartInfo packedParts[] = {{PartRole::Scales, "weight_scale"},
                                           {PartRole::Zeros, "weight_zero_point", true},
                                           {PartRole::Groups, "weight_g_idx", true}};
static constexpr StringLiteral packedRest[] = {"weight_shape"};

static constexpr PartInfo intParts[] = {{PartRole::Scales, "weight_scale"},
                                        {PartRole::Zeros, "weight_zero_point", true}};
static constexpr PartInfo fp8Parts[] = {
    {PartRole::Scales, "weight_scale_inv", false, "weight_scale"}};
static constexpr PartInfo fp4Parts[] = {{PartRole::Scales, "weight_scale"}};
static constexpr PartInfo blockParts[] = {{PartRole::Scales, "weight_scales"}};
// Scales of inputs: products round their inputs less (docs/numerics.md).
static constexpr StringLiteral inputRest[] = {"input_scale", "activation_scale",
                                              "input_zero_point"};
static constexpr StringLiteral nvfp4Rest[] = {"input_global_scale"};

static constexpr SchemeInfo schemes[] = {
    {CheckpointScheme::Gptq, "gptq", "qweight", gptqParts, {}},
    {CheckpointScheme::GptqV2, "gptq_v2", "qweight", gptqParts, {}},
    {CheckpointScheme::Awq, "awq", "qweight", awqParts, {}},
    {CheckpointScheme::AwqGemv, "awq-gemv", "qweight", awqParts, {}},
    {CheckpointScheme::PackQuantized, "pack-quantized", "weight_packed", packedParts, packedRest},
    {CheckpointScheme::IntQuantized, "int-quantized", "weight", intParts, inputRest},
    {CheckpointScheme::Fp8, "fp8", "weight", fp8Parts, inputRest},
    {CheckpointScheme::Nvfp4, "nvfp4", "weight_packed", fp4Parts, nvfp4Rest, "weight_global_scale"},
    {CheckpointScheme::Mxfp4, "mxfp4", "weight_packed", fp4Parts, {}},
    {CheckpointScheme::Mxfp4Blocks, "mxfp4-blocks", "weight_blocks", blockParts, {}},
    {CheckpointScheme::InverseFactor, "inverse-factor", "", {}, {}},
    {CheckpointScheme::ColumnOrder, "column-order", "", {}, {}},
};

static constexpr StringLiteral roles[] = {"scales", "zeros", "groups"};

const SchemeInfo &sluice::schemeInfo(CheckpointScheme scheme) {
  const SchemeInfo &found = schemes[static_cast<size_t>(scheme)];
  assert(found.scheme == scheme && "the table is in the order of the enumeration");
  return found;
}

StringRef sluice::schemeName(CheckpointScheme scheme) { return schemeInfo(scheme).name; }

std::optional<CheckpointScheme> sluice::schemeFromName(StringRef name) {
  for (const SchemeInfo &info : schemes)
    if (info.name == name)
      return info.scheme;
  return std::nullopt;
}

StringRef sluice::roleName(PartRole role) { return roles[static_cast<size_t>(role)]; }

std::optional<PartRole> sluice::roleFromName(StringRef name) {
  const auto *found = llvm::find(roles, name);
  if (found == std::end(roles))
    return std::nullopt;
  return static_cast<PartRole>(found - roles);
}

SmallVector<ElementForm, 2> sluice::elementForms(CheckpointScheme scheme, int64_t rows,
                                                 int64_t columns) {
  auto words = [](int64_t elements, int64_t bits) {
    return static_cast<int64_t>(divideCeil(elements, 32 / bits));
  };
  int64_t pairs = static_cast<int64_t>(divideCeil(columns, 2));
  switch (scheme) {
  case CheckpointScheme::IntQuantized:
    return {{8, StorageType::I8, {rows, columns}}};
  case CheckpointScheme::Fp8:
    return {{8, StorageType::F8E4M3, {rows, columns}}};
  case CheckpointScheme::Nvfp4:
  case CheckpointScheme::Mxfp4:
    return {{4, StorageType::U8, {rows, pairs}}};
  case CheckpointScheme::Mxfp4Blocks:
    return {{4, StorageType::U8, {rows, static_cast<int64_t>(divideCeil(columns, 32)), 16}}};
  case CheckpointScheme::AwqGemv:
    return {{4, StorageType::I32, {rows, words(columns, 4)}}};
  case CheckpointScheme::InverseFactor:
    return {{32, StorageType::F32, {1}}};
  case CheckpointScheme::ColumnOrder:
    return {{32, StorageType::I32, {columns}}};
  default:
    break;
  }
  SmallVector<ElementForm, 2> forms;
  for (unsigned bits : {4, 8})
    switch (scheme) {
    case CheckpointScheme::Gptq:
    case CheckpointScheme::GptqV2:
      forms.push_back({bits, StorageType::I32, {words(columns, bits), rows}});
      break;
    case CheckpointScheme::Awq:
      forms.push_back({bits, StorageType::I32, {columns, words(rows, bits)}});
      break;
    case CheckpointScheme::PackQuantized:
      forms.push_back({bits, StorageType::I32, {rows, words(columns, bits)}});
      break;
    default:
      llvm_unreachable("handled above");
    }
  return forms;
}

/// A group size as GPTQ and AWQ write it (-1: a whole row) or null.
static std::optional<int64_t> readGroup(const JsonField &object) {
  std::optional<JsonField> field = object.find("group_size");
  if (!field)
    return std::nullopt;
  int64_t group = field->asInt(-1, INT32_MAX);
  if (group == -1)
    return 0;
  if (!is_contained({32, 64, 128, 256}, group))
    field->fail("32, 64, 128, 256 or -1 (a whole row)");
  return group;
}

static int64_t readBits(const JsonField &object, ArrayRef<int64_t> supported) {
  const char *key = !object.find("bits") && object.find("w_bit") ? "w_bit" : "bits";
  JsonField field = object.at(key);
  int64_t bits = field.asInt(1, 32);
  if (!is_contained(supported, bits))
    field.fail(supported.size() == 1 ? "4" : "4 or 8");
  return bits;
}

static QuantizationConfig readGptq(const JsonField &field) {
  QuantizationConfig config;
  config.bits = readBits(field, {4, 8});
  config.group = readGroup(field);
  std::string format = field.stringAt("checkpoint_format", "gptq");
  if (format == "gptq")
    config.schemes = {CheckpointScheme::Gptq};
  else if (format == "gptq_v2")
    config.schemes = {CheckpointScheme::GptqV2};
  else
    field.at("checkpoint_format").fail("gptq or gptq_v2");
  return config;
}

static QuantizationConfig readAwq(const JsonField &field) {
  QuantizationConfig config;
  std::string given = field.stringAt("version", "gemm");
  StringRef version = given;
  bool isGemv = version.equals_insensitive("gemv");
  if (!isGemv && !version.equals_insensitive("gemm"))
    field.at("version").fail("gemm or gemv");
  if (isGemv)
    config.bits = readBits(field, {4});
  else
    config.bits = readBits(field, {4, 8});
  config.group = readGroup(field);
  if (isGemv && !config.group)
    field.at("group_size").asInt(-1, INT32_MAX);
  config.schemes = {isGemv ? CheckpointScheme::AwqGemv : CheckpointScheme::Awq};
  return config;
}

static QuantizationConfig readCompressedTensors(const JsonField &field) {
  QuantizationConfig config;
  config.schemes = {CheckpointScheme::PackQuantized, CheckpointScheme::IntQuantized,
                    CheckpointScheme::Fp8, CheckpointScheme::Nvfp4, CheckpointScheme::Mxfp4};
  // Which of them a matrix has, its tensors say; this names what none of them can be.
  auto checkFormat = [](const JsonField &object) {
    if (std::optional<JsonField> format = object.find("format"))
      if (!is_contained({"pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
                         "nvfp4-pack-quantized", "mxfp4-pack-quantized", "dense",
                         "mixed-precision"},
                        format->asString()))
        format->fail("pack-quantized, int-quantized, float-quantized, naive-quantized, "
                     "nvfp4-pack-quantized or mxfp4-pack-quantized");
  };
  checkFormat(field);
  std::optional<JsonField> groups = field.find("config_groups");
  if (!groups)
    return config;
  for (const auto &[name, group] : groups->members()) {
    checkFormat(group);
    // FP4 has groups of 16, which the tensors say.
    if (std::optional<JsonField> weights = group.find("weights"))
      if (weights->stringAt("type", "int") == "int")
        readGroup(*weights);
  }
  return config;
}

static QuantizationConfig readFp8(const JsonField &field) {
  if (std::optional<JsonField> block = field.find("weight_block_size"))
    if (block->get() != json::array({128, 128}))
      block->failWith("is not [128, 128], which is the only size of blocks that is supported");
  if (field.stringAt("fmt", "e4m3") != "e4m3")
    field.at("fmt").fail("e4m3");
  QuantizationConfig config;
  config.schemes = {CheckpointScheme::Fp8};
  return config;
}

QuantizationConfig QuantizationConfig::read(const JsonField &field) {
  field.asObject();
  JsonField method = field.at("quant_method");
  if (method.get() == "gptq")
    return readGptq(field);
  if (method.get() == "awq")
    return readAwq(field);
  if (method.get() == "compressed-tensors")
    return readCompressedTensors(field);
  if (method.get() == "fp8" || method.get() == "fbgemm_fp8")
    return readFp8(field);
  if (method.get() == "mxfp4") {
    QuantizationConfig config;
    config.schemes = {CheckpointScheme::Mxfp4Blocks};
    return config;
  }
  method.fail("gptq, awq, compressed-tensors, fp8, fbgemm_fp8 or mxfp4");
}
