// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A model's files as a module of the model dialect, the first stage of the compiler.

#ifndef SLUICE_IMPORT_MODELBUILDER_H
#define SLUICE_IMPORT_MODELBUILDER_H

#include "dialects/Model/Model.h"
#include "sluice/Import/ModelFiles.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <optional>
#include <string>

namespace sluice {

struct ImportOptions {
  /// Positions that the caches hold. Without it as many as the model was made for, but at most
  /// `defaultContext`: a cache is memory, and models that allow 128k positions rarely see them.
  std::optional<int64_t> context = std::nullopt;
  /// Rows of a step. Of one sequence all rows share the caches: they are tokens of one text, each
  /// attending to the positions up to its own.
  int64_t tokens = 1;
  /// Sequences, each with caches of its own, of which a step has one token each: then rows are
  /// sequences, and `tokens` is 1.
  int64_t sequences = 1;

  static constexpr int64_t defaultContext = 4096;
};

/// Builds a module of the model dialect:
///
///   module @name attributes {model.source = "path", model.config = {architecture = "llama", ...}}
///   {
///     model.weight @token_embd ... ; @blk.N.attn_q ... ; @output ...
///     model.cache @cache.k.N, @cache.v.N : !quantized.cache<sequences x context x
///     kv_heads x head_dim x f16>
///     func.func @decode(tensor<rows x i32>, tensor<rows x i32>) -> tensor<rows x vocab_size x f32>
///   }
///
/// Weights carry GGUF's names without `.weight` (a bias ends in `.bias`), whatever the file calls
/// them. Operations are located by name (`blk.0.attn_q`), so that later stages can say which part
/// of the model a kernel came from. Files without weights give synthetic f16 ones.
///
/// `model.config` holds architecture, vocab_size, hidden_size, intermediate_size, layers, heads,
/// kv_heads, head_dim, context_length (of the caches), max_context_length (the model's own),
/// eos_ids and, where the model has one, bos_id as integers, and norm_epsilon as a float.
///
/// Errors: a context above the model's own, fewer than one position or row, more rows than
/// positions.
llvm::Expected<mlir::OwningOpRef<mlir::ModuleOp>>
importModel(mlir::MLIRContext &context, const ModelFiles &files, const ImportOptions &options = {});

/// The folder that the module's weights are relative to: `model.source` if that is a folder, else
/// the folder it lies in. An error if the module does not name its source.
llvm::Expected<std::string> weightRoot(mlir::ModuleOp module);

/// Where `weight` lies, by its attributes alone: a module that was edited by hand is as good as a
/// fresh import. An error, naming the weight, if it is synthetic, if its type is none that a
/// model file can hold, or if a scheme, a part's role or its element type is not known.
llvm::Expected<Weight> weightInFile(model::WeightOp weight);

} // namespace sluice

#endif // SLUICE_IMPORT_MODELBUILDER_H
