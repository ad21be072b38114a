// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/TargetDescription.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

using namespace sluice;
using nlohmann::json;

namespace {

json readJson(const std::string &name) {
  std::ifstream file(std::string(SLUICE_TARGETS) + "/" + name + ".json");
  return json::parse(file);
}

std::string errorOf(const std::string &text) {
  llvm::Expected<TargetDescription> target = parseTarget(text, "t.json");
  return target ? "" : llvm::toString(target.takeError());
}

std::string loadError(llvm::StringRef name) {
  llvm::Expected<TargetDescription> target = loadTarget(name);
  return target ? "" : llvm::toString(target.takeError());
}

TEST(Target, EveryDescriptionLoads) {
  std::vector<std::string> names = targetNames();
  EXPECT_EQ(names, (std::vector<std::string>{"a100", "h100", "h200", "host-avx2", "host-avx512",
                                             "host-avx512-vnni", "l40s", "rtx4090"}));
  for (const std::string &name : names) {
    llvm::Expected<TargetDescription> target = loadTarget(name);
    ASSERT_TRUE(static_cast<bool>(target)) << llvm::toString(target.takeError());
    EXPECT_EQ(target->name, name);
    EXPECT_GT(target->bandwidth(), 1e10);
    EXPECT_EQ(target->isGpu(), target->ridge().has_value());
  }
}

TEST(Target, Numbers) {
  llvm::Expected<TargetDescription> h100 = loadTarget("h100"), h200 = loadTarget("h200");
  ASSERT_TRUE(h100 && h200);
  EXPECT_NEAR(*h100->ridge(), 295, 0.5);
  EXPECT_EQ(h100->bandwidth(), 3.15e12);
  EXPECT_EQ(h200->peakBandwidth->value, 4.8e12);
  EXPECT_GE(h200->bandwidth(), 4.6e12);
  EXPECT_LE(h200->bandwidth(), 4.7e12);
  EXPECT_EQ(h200->multiprocessors.value, 132);
  EXPECT_EQ(h200->sharedBytesPerBlock.value, 227 * 1024);
  EXPECT_EQ(planTarget(*h200), (json{{"name", "h200"}, {"kind", "gpu"}, {"arch", "sm_90a"}}));
}

TEST(Target, Host) {
  llvm::StringMap<bool> features;
  for (const char *feature : {"avx2", "fma", "f16c"})
    features[feature] = true;
  auto isa = [&] {
    llvm::Expected<std::string> isa = isaOfFeatures(features);
    return isa ? *isa : llvm::toString(isa.takeError());
  };
  EXPECT_EQ(isa(), "avx2");
  features["avx512f"] = true;
  EXPECT_EQ(isa(), "avx2");
  features["avx512bw"] = features["avx512dq"] = features["avx512vl"] = true;
  EXPECT_EQ(isa(), "avx512");
  features["avx512vnni"] = true;
  EXPECT_EQ(isa(), "avx512_vnni");
  features["fma"] = false;
  EXPECT_EQ(isa(), "target 'host': this CPU lacks AVX2, FMA or F16C, which host kernels need");

  llvm::Expected<TargetDescription> host = loadTarget("host");
  if (!host) {
    llvm::consumeError(host.takeError());
    GTEST_SKIP() << "this CPU has no AVX2";
  }
  EXPECT_EQ(host->name, "host");
  EXPECT_FALSE(host->isGpu());
  json plan = planTarget(*host);
  EXPECT_EQ(plan["kind"], "cpu");
  EXPECT_EQ(plan["triple"], "x86_64-linux-gnu");
  EXPECT_EQ(plan["isa"], host->isa);
  EXPECT_EQ(plan["features"].size(), host->features.size());
}

TEST(Target, ErrorsOfFiles) {
  EXPECT_EQ(loadError("h300"),
            "unknown target 'h300', expected host, a100, h100, h200, host-avx2, host-avx512, "
            "host-avx512-vnni, l40s, rtx4090 or the path of a .json file");
  EXPECT_EQ(loadError("/nonexistent/x.json"),
            "/nonexistent/x.json: cannot be opened: No such file or directory");
  EXPECT_EQ(loadError("/"), "/: is a directory, expected a file");
  std::filesystem::path folder = std::filesystem::temp_directory_path() / "sluice-target-test";
  std::filesystem::create_directories(folder);
  std::string large = (folder / "large.json").string();
  std::ofstream(large) << std::string((1 << 20) + 1, ' ');
  EXPECT_EQ(loadError(large), large + ": has 1048577 bytes, expected at most 1048576");
  // A description by path may have any name.
  std::string mine = (folder / "mine.json").string();
  json j = readJson("h100");
  j["name"] = "other";
  std::ofstream(mine) << j;
  EXPECT_EQ(loadError(mine), "");
  std::filesystem::remove_all(folder);
}

TEST(Target, ErrorsOfText) {
  EXPECT_EQ(errorOf("{"),
            "t.json: not valid JSON: parse error at line 1, column 2: syntax error while parsing "
            "object key - unexpected end of input; expected string literal");
  EXPECT_EQ(errorOf("[]"), "t.json: is an array of 0 elements, expected an object");
  EXPECT_EQ(errorOf("{}"), "t.json: name is missing");
  EXPECT_EQ(errorOf(R"({"name": "x", "name": "y"})"),
            "t.json: JSON has the key 'name' twice in one object");

  struct Case {
    const char *base;
    const char *pointer; ///< what is replaced
    const char *value;   ///< JSON, or null to remove
    const char *message;
  };
  for (const Case &c : std::initializer_list<Case>{
           {"h100", "/name", R"("a b")", R"(name is 'a b', expected letters, digits, '-' and '_')"},
           {"h100", "/kind", R"("tpu")", R"(kind is 'tpu', expected "gpu" or "cpu")"},
           {"h100", "/arch", R"("90")",
            R"(arch is '90', expected "sm_" and two or three digits, perhaps an "a")"},
           {"h100", "/arch", nullptr, "arch is missing"},
           {"h100", "/peak_bandwidth", "3",
            R"(peak_bandwidth is 3, expected {"value": number, "source": text})"},
           {"h100", "/peak_bandwidth", nullptr, "peak_bandwidth is missing"},
           {"h100", "/peak_bandwidth/value", "-1",
            "peak_bandwidth.value is -1, expected a number from 100000000 to "
            "1e+15"},
           {"h100", "/peak_bandwidth/source", R"(" ")",
            R"(peak_bandwidth.source is ' ', expected where the number is from)"},
           {"h100", "/peak_bandwidth/source", nullptr, "peak_bandwidth.source is missing"},
           {"h100", "/peak_bandwidth/unit", R"("B/s")",
            "unknown key 'peak_bandwidth.unit', expected value, source"},
           {"h100", "/read_ceiling/value", "3.4e12", "read_ceiling exceeds peak_bandwidth"},
           {"h100", "/operations/f16", nullptr, "operations.f16 is missing"},
           {"h100", "/operations/int3", "{}",
            "unknown key 'operations.int3', expected f32, f16, bf16, fp8, int8"},
           {"h100", "/operations", "[]",
            "operations is an array of 0 elements, expected an object"},
           {"h100", "/multiprocessors/value", "1.5",
            "multiprocessors.value is 1.5, expected an integer from 1 to 4096"},
           {"h100", "/multiprocessors/value", "18446744073709551615",
            "multiprocessors.value is 18446744073709551615, expected an integer from 1 to "
            "4096"},
           {"h100", "/sms", "1",
            "unknown key 'sms', expected name, description, kind, peak_bandwidth, read_ceiling, "
            "memory_bytes, operations, "
            "arch, multiprocessors, l2_bytes, shared_bytes_per_block, tuning, persistent, time"},
           {"h100", "/persistent/warps", nullptr, "persistent.warps is missing"},
           {"h100", "/persistent/resident_clusters/value", "[132, 0]",
            "persistent.resident_clusters.value[1] is 0, expected an integer from 1 to 4096"},
           {"h100", "/persistent/clusters", "3",
            "unknown key 'persistent.clusters', expected resident_clusters, warps, "
            "attention_in_flight, mlp_in_flight, time"},
           {"h100", "/tuning", nullptr, "tuning is missing"},
           {"h100", "/tuning", "3", "tuning is 3, expected an object"},
           {"h100", "/tuning/product_warps", nullptr, "tuning.product_warps is missing"},
           {"h100", "/tuning/product_warps/value", "32",
            "tuning.product_warps.value is 32, expected an integer from 1 to 31"},
           {"h100", "/tuning/sample_logits/source", nullptr,
            "tuning.sample_logits.source is missing"},
           {"h100", "/time", nullptr, "time is missing"},
           {"h100", "/time/product_gap", nullptr, "time.product_gap is missing"},
           {"h100", "/time/alone/value", "-1",
            "time.alone.value is -1, expected a number from 0 to 1"},
           {"h100", "/time/products", "{}",
            "time.products is an object of 0 members, expected the rate of at least one format"},
           {"h100", "/time/products/int3-g7", "1",
            "time.products.int3-g7 is unknown, expected a number format of weights"},
           {"h100", "/time/attention/q4_k", "1",
            "time.attention.q4_k is unknown, expected a number format of caches"},
           {"h100", "/time/warpgroup_integers", nullptr, "time.warpgroup_integers is missing"},
           {"h100", "/tuning/matmul_stages/value", "2",
            "tuning.matmul_stages.value is 2, expected an integer from 3 to 64"},
           {"host-avx2", "/time/matmul", nullptr, "time.matmul is missing"},
           {"host-avx2", "/time/attention_operands", nullptr, "time.attention_operands is missing"},
           {"host-avx2", "/time/cache_bandwidth/value", "1",
            "time.cache_bandwidth.value is 1, expected a number from 100000000 to 1e+15"},
           {"host-avx2", "/time/alone", "1",
            "time.alone is unknown, expected product_bandwidth, cache_bandwidth, rows_bandwidth, "
            "launch, "
            "product_column, append, step, products, attention, attention_operands, matmul"},
           {"host-avx2", "/tuning/product_warps", "1",
            "tuning.product_warps is unknown, expected accumulators, positions, "
            "prefill_tokens, verify_tokens"},
           {"h100", "/tuning/prefill_tokens/value", "[16, 16]",
            "tuning.prefill_tokens.value[1] is 16, expected an integer from 17 to 65536"},
           {"h100", "/tuning/prefill_tokens/value", "[1]",
            "tuning.prefill_tokens.value[0] is 1, expected an integer from 2 to 65536"},
           {"h100", "/tuning/prefill_tokens/source", nullptr,
            "tuning.prefill_tokens.source is missing"},
           {"host-avx2", "/tuning/verify_tokens/value", "1",
            "tuning.verify_tokens.value is 1, expected an integer from 2 to 65536"},
           {"host-avx2", "/tuning/positions/value", "0",
            "tuning.positions.value is 0, expected an integer from 1 to 1024"},
           {"host-avx2", "/isa", R"("sse2")",
            R"(isa is 'sse2', expected "avx2", "avx512" or "avx512_vnni")"},
           {"host-avx2", "/isa", R"("avx512")", "features lacks 'avx512f', which isa avx512 needs"},
           {"host-avx2", "/triple", R"("aarch64-linux-gnu")",
            R"(triple is 'aarch64-linux-gnu', expected a triple of x86_64 and linux)"},
           {"host-avx2", "/features", "[1]",
            "features is an array of 1 elements, expected a list of CPU features"},
           {"host-avx2", "/read_ceiling", nullptr, "peak_bandwidth is missing"},
       }) {
    json j = readJson(c.base);
    json::json_pointer pointer(c.pointer);
    if (c.value)
      j[pointer] = json::parse(c.value);
    else
      j[pointer.parent_pointer()].erase(pointer.back());
    EXPECT_EQ(errorOf(j.dump()), std::string("t.json: ") + c.message);
  }
}

} // namespace
