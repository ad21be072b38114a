// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Schedules fit and kernels can be generated: for the matrices and attentions of well-known models,
// every weight format, every target of targets/, through packing, schedules and conversion. What is
// refused is refused by name, for a reason that the documentation gives.

#include "sluice/Conversion/Passes.h"
#include "sluice/Target/TargetDescription.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>
#include <map>
#include <set>

using namespace sluice;

namespace {

/// What of a model's configuration decides its matrices.
struct Model {
  const char *name;
  enum Family { Llama, Gpt2, Qwen3 } family;
  int64_t hidden, intermediate, heads, keyHeads, headDim, vocabulary;
};

/// From the models' config.json.
const Model kModels[] = {
    {"GPT-2", Model::Gpt2, 768, 3072, 12, 12, 64, 50257},
    {"Llama-2-7B", Model::Llama, 4096, 11008, 32, 32, 128, 32000},
    {"Llama-2-13B", Model::Llama, 5120, 13824, 40, 40, 128, 32000},
    {"Llama-2-70B", Model::Llama, 8192, 28672, 64, 8, 128, 32000},
    {"Llama-3-8B", Model::Llama, 4096, 14336, 32, 8, 128, 128256},
    {"Llama-3-70B", Model::Llama, 8192, 28672, 64, 8, 128, 128256},
    {"Llama-3.2-1B", Model::Llama, 2048, 8192, 32, 8, 64, 128256},
    {"Mistral-7B", Model::Llama, 4096, 14336, 32, 8, 128, 32768},
    {"Qwen2.5-0.5B", Model::Llama, 896, 4864, 14, 2, 64, 151936},
    {"Qwen2.5-7B", Model::Llama, 3584, 18944, 28, 4, 128, 152064},
    {"Qwen2.5-72B", Model::Llama, 8192, 29568, 64, 8, 128, 152064},
    {"Qwen3-0.6B", Model::Qwen3, 1024, 3072, 16, 8, 128, 151936},
    {"Qwen3-32B", Model::Qwen3, 5120, 25600, 64, 8, 128, 151936},
    {"SmolLM2-135M", Model::Llama, 576, 1536, 9, 3, 64, 49152},
    // Heads of no whole operand, many query heads for one key/value head.
    {"Phi-2", Model::Gpt2, 2560, 10240, 32, 32, 80, 51200},
    {"Falcon-7B", Model::Gpt2, 4544, 18176, 71, 1, 64, 65024},
    {"OpenLLaMA-3B", Model::Llama, 3200, 8640, 32, 32, 100, 32000},
};
const int64_t kContexts[] = {2048, 131072};

std::string tensor(std::initializer_list<int64_t> shape, llvm::StringRef element) {
  std::string text = "tensor<";
  for (int64_t extent : shape)
    text += std::to_string(extent) + "x";
  return text + element.str() + ">";
}

/// A weight format by what the IR says of it.
struct Format {
  std::string element, parameters; ///< "i8", ", group = 128, zero_point"

  bool isQuantized() const { return element[0] == 'i'; }
  std::string name() const { return element + parameters; }
};

std::vector<Format> allFormats() {
  std::vector<Format> formats = {{"f32", ""}, {"f16", ""}, {"bf16", ""}};
  for (const char *element : {"i8", "i4"})
    for (const char *group : {"32", "64", "128", "256", "channel"})
      for (const char *zeros : {"", ", zero_point"})
        formats.push_back({element, std::string(", group = ") + group + zeros});
  // Between them: an f16 scale, and nested ones.
  formats.push_back({"i5", ", group = 64"});
  formats.push_back({"i4", ", group = 32, table = iq4_nl, scale = i8"});
  return formats;
}

/// What is around a product.
enum class Kind { Plain, Norm, Residual, Gated, QueryKeyValue };
const char *const kKindNames[] = {"plain", "norm", "residual", "gated", "query, key, value"};

/// One product or attention.
struct Shape {
  Kind kind = Kind::Plain;
  /// Rows of the weights. Empty for attention.
  std::vector<int64_t> rows;
  int64_t columns = 0;
  int64_t heads = 0, keyHeads = 0, headDim = 0, context = 0;

  bool isAttention() const { return rows.empty(); }
  std::string describe() const {
    std::string text;
    llvm::raw_string_ostream stream(text);
    if (isAttention())
      stream << "attention of " << heads << " and " << keyHeads << " heads of " << headDim
             << " over " << context << " positions";
    else
      stream << llvm::join(llvm::map_range(rows, [](int64_t r) { return std::to_string(r); }), "+")
             << "x" << columns << " (" << kKindNames[int(kind)] << ", heads of " << headDim << ")";
    return text;
  }
};

std::vector<Shape> shapesOf(const Model &m) {
  int64_t q = m.heads * m.headDim, kv = m.keyHeads * m.headDim;
  std::vector<Shape> shapes;
  if (m.family == Model::Llama)
    shapes.push_back({Kind::QueryKeyValue, {q, kv, kv}, m.hidden, m.heads, m.keyHeads, m.headDim});
  else
    shapes.push_back({Kind::Norm, {q + 2 * kv}, m.hidden});
  shapes.push_back({Kind::Residual, {m.hidden}, q});
  if (m.family == Model::Gpt2)
    shapes.push_back({Kind::Norm, {m.intermediate}, m.hidden});
  else
    shapes.push_back({Kind::Gated, {m.intermediate, m.intermediate}, m.hidden});
  shapes.push_back({Kind::Residual, {m.hidden}, m.intermediate});
  shapes.push_back({Kind::Norm, {m.vocabulary}, m.hidden});
  for (int64_t context : kContexts)
    shapes.push_back({Kind::Plain, {}, 0, m.heads, m.keyHeads, m.headDim, context});
  return shapes;
}

std::string cacheType(const Shape &s, int64_t context) {
  return "!quantized.cache<1x" + std::to_string(context) + "x" + std::to_string(s.keyHeads) + "x" +
         std::to_string(s.headDim) + "xf16>";
}

std::string attentionText(const Shape &s) {
  std::string cache = cacheType(s, s.context), query = tensor({1, s.heads * s.headDim}, "f16");
  return "model.cache @k : " + cache + "\nmodel.cache @v : " + cache +
         "\nfunc.func @f(%q: " + query + ", %p: tensor<1xi32>) -> " + query +
         " {\n  %y = fused.attention %q, @k, @v at %p scale 0.125 : " + query +
         ", tensor<1xi32> -> " + query + "\n  return %y : " + query + "\n}\n";
}

/// A function that takes what a product does, or with `isStep` @decode, which has a token and a
/// position and loads the rest.
std::string productText(const Shape &s, const Format &format, bool isStep = false) {
  std::string globals, arguments = "%x: " + tensor({1, s.columns}, "f32"), body, weights, types,
                       segments, sums, values, in = tensor({1, s.columns}, "f32");
  for (auto [number, rows] : llvm::enumerate(s.rows)) {
    std::string n = std::to_string(number), separator = number ? ", " : "";
    std::string stored =
        tensor({rows, s.columns}, format.isQuantized() ? std::string("f16") : format.element);
    std::string type = stored;
    globals += "model.weight @w" + n + " : " + stored + "\n";
    body += "  %p" + n + " = model.parameter @w" + n + " : " + stored + "\n";
    if (format.isQuantized()) {
      type = "!quantized.tensor<" + std::to_string(rows) + "x" + std::to_string(s.columns) + "x" +
             format.element + format.parameters + ">";
      body += "  %w" + n + " = quantized.quantize %p" + n + " : " + stored + " to " + type + "\n";
    }
    weights += separator + (format.isQuantized() ? "%w" : "%p") + n;
    types += ", " + type;
    segments += separator + std::to_string(rows);
    sums += separator + "%s" + n + ": " + tensor({1, rows}, "f32");
  }
  std::string sum = tensor({1, s.rows[0]}, "f32"), half = tensor({1, s.rows[0]}, "f16"),
              result = s.kind == Kind::Gated || s.kind == Kind::QueryKeyValue ? half : sum;
  std::string regions;
  if (s.kind != Kind::Plain && s.kind != Kind::Residual) {
    std::string gain = tensor({s.columns}, "f32");
    arguments += ", %gain: " + gain;
    regions += "  prologue {\n  ^bb0(%in: " + in +
               "):\n    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : " + in + ", " + gain +
               "\n    fused.yield %n : " + in + "\n  }";
  }
  if (s.kind == Kind::Residual) {
    arguments += ", %h: " + sum;
    regions += "  epilogue {\n  ^bb0(" + sums + "):\n    %r = arith.addf %h, %s0 : " + sum +
               "\n    fused.yield %r : " + sum + "\n  }";
  } else if (s.kind == Kind::Gated) {
    regions += " epilogue {\n  ^bb0(" + sums + "):\n    %a = model.silu %s0 : " + sum +
               "\n    %m = arith.mulf %a, %s1 : " + sum + "\n    %r = arith.truncf %m : " + sum +
               " to " + half + "\n    fused.yield %r : " + half + "\n  }";
  } else if (s.kind == Kind::QueryKeyValue) {
    std::string cache = cacheType(s, 2048), kv = tensor({1, s.rows[1]}, "f32"),
                d = std::to_string(s.headDim), table = tensor({2048, s.headDim}, "f32");
    globals += "model.cache @k : " + cache + "\nmodel.cache @v : " + cache + "\n";
    arguments += ", %at: tensor<1xi32>, %t: " + table;
    auto rotary = [&](const char *to, const char *from, const std::string &type) {
      return std::string("    ") + to + " = model.rotary " + from + " at %at head_dim " + d +
             " <theta = 10000.0> table %t : " + type + ", tensor<1xi32>, " + table + "\n";
    };
    regions += " epilogue {\n  ^bb0(" + sums + "):\n" + rotary("%q", "%s0", sum) +
               rotary("%kr", "%s1", kv) + "    model.cache_append @k, %kr at %at : " + kv +
               ", tensor<1xi32>\n    model.cache_append @v, %s2 at %at : " + kv +
               ", tensor<1xi32>\n    %r = arith.truncf %q : " + sum + " to " + half +
               "\n    fused.yield %r : " + half + "\n  }";
    // How attention reads the caches decides how they are written.
    values = "  %a = fused.attention %y, @k, @v at %at scale 0.125 : " + half +
             ", tensor<1xi32> -> " + half + "\n";
  }
  std::string header = "func.func @f(" + arguments + ") -> ";
  if (isStep) {
    header = "func.func @decode(%token: tensor<1xi32>, %at: tensor<1xi32>) -> ";
    auto rows = [&](const std::string &name, int64_t width) {
      std::string table = tensor({64, width}, "f16"), row = tensor({1, width}, "f32");
      globals += "model.weight @" + name + ".rows : " + table + "\n";
      body += "  %" + name + "e = model.parameter @" + name + ".rows : " + table + "\n  %" + name +
              " = fused.embedding %token, %" + name + "e : tensor<1xi32>, " + table + " -> " + row +
              "\n";
    };
    auto vector = [&](const std::string &name, const std::string &type, const std::string &op) {
      globals += op + " : " + type + "\n";
      body += "  %" + name + " = model.parameter @" + name + " : " + type + "\n";
    };
    rows("x", s.columns);
    if (s.kind == Kind::Residual)
      rows("h", s.rows[0]);
    if (s.kind != Kind::Plain && s.kind != Kind::Residual)
      vector("gain", tensor({s.columns}, "f32"), "model.weight @gain");
    if (s.kind == Kind::QueryKeyValue)
      vector("t", tensor({2048, s.headDim}, "f32"), "model.rope_table @t <theta = 10000.0>");
  }
  return globals + header + result + " {\n" + body + "  %y = fused.matvec %x weights(" + weights +
         ") segments [" + segments + "] : " + in + types + " -> " + result + regions + "\n" +
         values + "  return " + (values.empty() ? "%y" : "%a") + " : " + result + "\n}\n";
}

/// The first error of compiling `text` for a target; empty if there is none.
std::string compile(const std::string &text, const TargetDescription &target,
                    mlir::MLIRContext &context, llvm::ArrayRef<int64_t> tokens = {}) {
  std::string error;
  mlir::ScopedDiagnosticHandler handler(&context, [&](mlir::Diagnostic &diagnostic) {
    if (error.empty() && diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error)
      error = diagnostic.str();
    return mlir::success();
  });
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  if (!module)
    return "cannot parse: " + error + "\n" + text;
  mlir::PassManager pm(&context);
  pm.addPass(createFusedPackWeights({target.name}));
  pm.addPass(createFusedTileCaches({target.name}));
  for (int64_t count : tokens) {
    FusedDeriveStepsOptions steps;
    steps.target = target.name;
    steps.prefill = {0};
    steps.verify = count;
    pm.addPass(createFusedDeriveSteps(steps));
  }
  pm.addPass(createFusedAssignSchedules({target.name}));
  if (target.isGpu())
    pm.addPass(createConvertFusedToGpu({target.name}));
  else
    pm.addPass(createConvertFusedToHost());
  if (failed(pm.run(*module)))
    return error.empty() ? "failed without a message" : error;
  module->walk([&](plan::DispatchOp dispatch) {
    if (dispatch.getLaunch().getShared() > target.sharedBytesPerBlock.value)
      error = "a launch has more shared memory than a block";
  });
  return error;
}

TEST(Sweep, EveryShapeFormatAndTarget) {
  mlir::DialectRegistry registry;
  registry.insert<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect, mlir::func::FuncDialect, mlir::arith::ArithDialect>();
  mlir::MLIRContext context(registry, mlir::MLIRContext::Threading::DISABLED);
  std::vector<TargetDescription> targets;
  for (const std::string &name : targetNames())
    targets.push_back(llvm::cantFail(loadTarget(name)));
  size_t named = 0;
  std::map<std::string, size_t> refused;
  std::set<std::string> tried;
  auto tryOne = [&](const std::string &what, const std::string &text,
                    const TargetDescription &target, llvm::StringRef mayRefuse) {
    ++named;
    if (!tried.insert(what + " for " + target.name).second)
      return;
    std::string error = compile(text, target, context);
    if (error.empty())
      EXPECT_TRUE(mayRefuse.empty()) << what << " for " << target.name << " is not refused";
    else if (!mayRefuse.empty() && llvm::StringRef(error).contains(mayRefuse))
      ++refused[mayRefuse.str()];
    else
      ADD_FAILURE() << what << " for " << target.name << ": " << error;
  };
  for (const Model &model : kModels)
    for (const Shape &shape : shapesOf(model))
      for (const TargetDescription &target : targets) {
        if (shape.isAttention()) {
          tryOne(shape.describe(), attentionText(shape), target, "");
          continue;
        }
        for (const Format &format : allFormats())
          // README.md: float32 weights are for CPUs.
          tryOne(shape.describe() + ", " + format.name(), productText(shape, format), target,
                 target.isGpu() && format.element == "f32" ? "f32" : "");
      }
  std::cout << "coverage: " << tried.size() << " combinations tried, which stand for " << named
            << " of " << std::size(kModels) << " models, " << allFormats().size() << " formats and "
            << targets.size() << " targets\n";
  for (auto &[reason, count] : refused)
    std::cout << "coverage: " << count << " refused: " << reason << "\n";
}

// The same of products of many tokens, for some of the models: for as many tokens as steps are
// made.
TEST(Sweep, EveryFormatAndTargetOfPrompts) {
  mlir::DialectRegistry registry;
  registry.insert<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect, mlir::func::FuncDialect, mlir::arith::ArithDialect>();
  mlir::MLIRContext context(registry, mlir::MLIRContext::Threading::DISABLED);
  size_t tried = 0;
  for (const std::string &name : targetNames()) {
    TargetDescription target = llvm::cantFail(loadTarget(name));
    if (!target.isGpu())
      continue;
    for (const Model &model : kModels) {
      if (!llvm::is_contained({"GPT-2", "Llama-3-8B", "SmolLM2-135M", "OpenLLaMA-3B"},
                              llvm::StringRef(model.name)))
        continue;
      for (const Shape &shape : shapesOf(model)) {
        // A prompt's head has one row.
        if (shape.isAttention() || shape.rows[0] == model.vocabulary)
          continue;
        for (const Format &format : allFormats()) {
          if (format.element == "f32")
            continue;
          std::string text =
              "module attributes {model.config = {context_length = 2048 : i64}} {\n" +
              productText(shape, format, /*isStep=*/true) + "}\n";
          std::string error = compile(text, target, context, target.prefillTokens.value);
          EXPECT_EQ(error, "") << shape.describe() << ", " << format.name() << " for " << name;
          ++tried;
        }
      }
    }
  }
  std::cout << "coverage: " << tried << " products of many tokens\n";
}

} // namespace
