// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Sequences that are decoded together, their prompts read many tokens a step into pages that they
// share, against each of them alone: on the host the same numbers, bit for bit.

#include "sluice-runtime/Batch.h"
#include "Compiled.h"
#include "RandomModels.h"
#include "sluice-runtime/sluice.h"
#include "sluice/Pipelines/Pipelines.h"
#include "sluice/Reference/Evaluator.h"

#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

#include <set>

using namespace sluice;
using namespace sluice::test;

namespace {

const std::string kModel = SLUICE_MODELS "/llama-4m";

std::vector<int32_t> promptOf(size_t length) {
  std::vector<int32_t> ids = {1};
  while (ids.size() < length)
    ids.push_back(static_cast<int32_t>(3 + (ids.size() + length) * 7919 % 2000));
  return ids;
}

/// `length` tokens, of which the first ones are those of `promptOf(prefix)`.
std::vector<int32_t> promptAfter(size_t prefix, size_t length, int32_t first) {
  std::vector<int32_t> ids = promptOf(prefix);
  while (ids.size() < length)
    ids.push_back(first + static_cast<int32_t>(ids.size() * 31 % 500));
  return ids;
}

std::vector<float> copyOf(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

/// A batch, and a session of the same model to compare each of its sequences with.
class Together {
public:
  Together(const std::string &keys, const std::string &values, int64_t context,
           const std::string &prefill, int64_t count, int64_t pages = 0,
           const std::string &model = kModel, const std::string &weights = "int8-g128") {
    together.compile(model, weights, context, "host", keys, values, prefill, count, pages);
    single.compile(model, weights, context, "host", keys, values);
    batch.emplace(runtime::Artifact::open(together.artifact()));
    session.emplace(runtime::Artifact::open(single.artifact()));
  }

  int64_t add(size_t length) { return add(promptOf(length)); }
  int64_t add(const std::vector<int32_t> &prompt) {
    int64_t number = batch->add(prompt, sampling);
    prompts[number] = prompt;
    return number;
  }
  void remove(int64_t number) {
    expectAlone(number);
    batch->remove(number);
    prompts.erase(number);
  }
  void step(int count) {
    for (int i = 0; i < count; ++i)
      batch->step();
  }
  /// That a sequence is what the session makes of its prompt, the last step's logits included.
  void expectAlone(int64_t number) {
    std::span<const int32_t> tokens = batch->tokens(number);
    const std::vector<int32_t> &prompt = prompts.at(number);
    ASSERT_GT(tokens.size(), prompt.size());
    session->reset();
    runtime::GenerateOptions options;
    options.sampling = sampling;
    options.ignoreEos = true;
    options.maxTokens = static_cast<int64_t>(tokens.size() - prompt.size());
    EXPECT_EQ(generate(*session, prompt, options).ids,
              std::vector<int32_t>(tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()),
                                   tokens.end()))
        << "sequence " << number << " of " << prompt.size() << " tokens";
    EXPECT_EQ(copyOf(batch->logits(number)), copyOf(session->logits())) << "sequence " << number;
  }
  void expectAllAlone() {
    for (auto &[number, prompt] : prompts)
      expectAlone(number);
  }

  Compiled together, single;
  std::optional<runtime::Batch> batch;
  std::optional<runtime::Session> session;
  runtime::SamplingOptions sampling{.temperature = 0.9f, .seed = 5};
  std::map<int64_t, std::vector<int32_t>> prompts;
};

template <typename Act> std::string messageOf(Act act) {
  try {
    act();
  } catch (const runtime::CachesFull &error) {
    return error.what();
  }
  return "the caches are not full";
}

struct CacheCase {
  const char *keys, *values;
  int64_t count;
};
std::string nameOf(const testing::TestParamInfo<CacheCase> &info) {
  std::string name = std::string(info.param.keys) + "_" + info.param.values + "_" +
                     std::to_string(info.param.count);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
class Batches : public testing::TestWithParam<CacheCase> {};
class PackedPrompts : public Batches {};

} // namespace

TEST_P(Batches, AreTheSequencesAlone) {
  auto [keys, values, count] = GetParam();
  Together all(keys, values, 160, "16,64", count);
  EXPECT_EQ(all.batch->capacity(), count);
  EXPECT_EQ(all.batch->freePages(), 5 * count);
  for (size_t length : {33, 1, 31, 65, 32})
    if (all.batch->size() < count)
      all.add(length);
  EXPECT_THROW(all.add(3), runtime::Error);
  all.step(12);
  all.expectAllAlone();
  // One leaves, another takes its place and its pages.
  all.remove(1);
  EXPECT_EQ(all.batch->size(), count - 1);
  EXPECT_THROW((void)all.batch->tokens(1), runtime::Error);
  EXPECT_EQ(all.add(90), 1);
  all.step(10);
  all.expectAllAlone();
  all.remove(0);
  EXPECT_EQ(all.add(64), 0);
  all.step(24);
  all.expectAllAlone();
}

INSTANTIATE_TEST_SUITE_P(Caches, Batches,
                         testing::Values(CacheCase{"f16", "f16", 5}, CacheCase{"int8", "bf16", 2},
                                         CacheCase{"int4-h32-rot", "int4-h32", 5},
                                         CacheCase{"fp8", "fp8", 2}, CacheCase{"f16", "int8", 5}),
                         nameOf);

// Products of more than 8 sequences, and prompts without steps of their own.
TEST(Batches, ReadPromptsATokenAStep) {
  Together all("int8", "f16", 96, "none", 12);
  for (size_t length = 3; length < 27; length += 2)
    all.add(length);
  all.step(8);
  all.remove(1);
  EXPECT_EQ(all.add(9), 1);
  all.step(40);
  all.expectAllAlone();
}

// A long prompt does not keep the others from going on.
TEST(Batches, GoOnWhileAPromptIsRead) {
  Together all("int8", "int8", 256, "16", 3);
  int64_t first = all.add(5);
  EXPECT_EQ(all.batch->step().size(), 1u);
  int64_t second = all.add(100), third = all.add(40);
  // Six steps of 16 tokens of the second one, one with its last 4 and 12 of the third one, two with
  // the rest.
  for (int step = 0; step < 6; ++step) {
    ASSERT_EQ(all.batch->step().size(), 1u) << step;
    EXPECT_EQ(all.batch->position(second), 16 * (step + 1));
    EXPECT_EQ(all.batch->position(third), 0);
  }
  EXPECT_EQ(all.batch->step().size(), 2u);
  EXPECT_EQ(all.batch->position(second), 100);
  EXPECT_EQ(all.batch->position(third), 12);
  EXPECT_EQ(all.batch->tokens(first).size(), 5u + 1 + 7);
  all.expectAlone(second);
  EXPECT_EQ(all.batch->step().size(), 2u);
  EXPECT_EQ(all.batch->step().size(), 3u);
  EXPECT_EQ(all.batch->position(third), 40);
  all.expectAllAlone();
  all.step(2);
  all.expectAllAlone();
  // Alone a prompt is read in one go.
  for (int64_t number : {first, second, third})
    all.remove(number);
  all.add(100);
  EXPECT_EQ(all.batch->step().size(), 1u);
  all.expectAllAlone();
}

// Prompts are read together: all that there is room for, each token at its own position and in the
// pages of its own sequence. Each chooses by the last token of its own.
TEST_P(PackedPrompts, AreThosePromptsAlone) {
  auto [keys, values, count] = GetParam();
  Together all(keys, values, 160, "24,64", count);
  const size_t lengths[] = {5, 9, 1, 8, 2};
  // Of one token it is decoded, with nothing before it.
  for (size_t length : lengths)
    if (all.batch->size() < count)
      all.add(length);
  EXPECT_EQ(all.batch->step().size(), static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    EXPECT_EQ(all.batch->position(i), static_cast<int64_t>(lengths[i]));
  all.expectAllAlone();
  all.step(40);
  all.expectAllAlone();
  // Later ones begin in the middle of a step, at positions that are no multiple of anything, beside
  // one that goes on.
  all.remove(1);
  EXPECT_EQ(all.add(70), 1);
  if (count > 4) {
    all.remove(4);
    EXPECT_EQ(all.add(75), 4);
    all.remove(0);
    EXPECT_EQ(all.add(41), 0);
  }
  size_t chosen = all.batch->tokens(1).size();
  for (int i = 0; i < 3; ++i)
    all.step(1);
  EXPECT_GT(all.batch->tokens(1).size(), chosen);
  all.expectAllAlone();
  all.step(20);
  all.expectAllAlone();
}

INSTANTIATE_TEST_SUITE_P(Caches, PackedPrompts,
                         testing::Values(CacheCase{"f16", "f16", 5}, CacheCase{"int8", "bf16", 2},
                                         CacheCase{"int4-h32-rot", "int4-h32", 5},
                                         CacheCase{"fp8", "fp8", 3}),
                         nameOf);

// Sliding windows, of half the layers: what is behind them is in the caches still, so that pages
// are shared there, too.
TEST(Batches, HaveWindows) {
  RandomModel model{.name = "Qwen3OfWindows", .family = "qwen3"};
  model.heads = 6, model.kvHeads = 3, model.headDim = 20;
  model.vocab = 2100, model.context = 160, model.window = 33, model.attentionBias = true;
  Folder folder;
  writeHuggingFace(model, folder);
  Together all("f16", "int8", 160, "24,64", 4, /*pages=*/0, folder.str(), "f16");
  for (size_t length : {40, 7, 90})
    all.add(length);
  all.step(3);
  EXPECT_EQ(all.add(promptAfter(90, 100, 500)), 3);
  EXPECT_EQ(all.batch->sharedTokens(), 64);
  all.step(4);
  all.expectAllAlone();
  all.remove(2);
  EXPECT_EQ(all.add(50), 2);
  all.step(20);
  all.expectAllAlone();
}

// Memory is for the pages that were asked for; who finds none free is told so, and others go on.
TEST(Batches, ShareFewPages) {
  Together all("f16", "int8", 128, "16", 3, /*pages=*/5), roomy("f16", "int8", 128, "16", 3);
  auto cacheBytes = [](const nlohmann::json &plan) {
    int64_t bytes = 0;
    for (const nlohmann::json &buffer : plan["buffers"])
      if (buffer["kind"] == "cache")
        bytes += buffer["bytes"].get<int64_t>();
    return bytes;
  };
  // Each sequence has a page that none is handed out as.
  EXPECT_EQ(cacheBytes(all.together.plan) * (12 + 3), cacheBytes(roomy.together.plan) * (5 + 3));
  EXPECT_EQ(all.batch->pages(), 5);
  int64_t first = all.add(33), second = all.add(60);
  EXPECT_EQ(all.batch->freePages(), 1);
  EXPECT_EQ(messageOf([&] { all.add(40); }),
            "the prompt of 40 tokens needs 2 pages of the caches, 1 of 5 are free; remove a "
            "sequence, or compile the model with more (--cache-pages)");
  EXPECT_EQ(all.batch->size(), 2);
  int64_t third = all.add(32);
  EXPECT_EQ(all.batch->freePages(), 0);
  all.step(3);
  all.expectAlone(first);
  EXPECT_EQ(all.batch->position(second), 32);
  EXPECT_EQ(all.batch->position(third), 0);
  // The third one's next position would be in a page that there is not.
  all.step(4);
  EXPECT_EQ(all.batch->position(third), 32);
  std::vector<int32_t> before(all.batch->tokens(first).begin(), all.batch->tokens(first).end());
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(
        messageOf([&] { all.batch->step(); }),
        "sequence 2 needs another page of the caches, 0 of 5 are free for 1 sequences; remove "
        "a sequence, or compile the model with more (--cache-pages)");
  EXPECT_TRUE(std::ranges::equal(all.batch->tokens(first), before));
  all.remove(second);
  EXPECT_EQ(all.batch->freePages(), 2);
  all.step(20);
  all.expectAllAlone();
  EXPECT_EQ(all.batch->freePages(), 1);
}

class SharedPages : public Batches {};

// What a prompt has in common with a sequence that is there is not computed again: only full pages,
// never the last token, and nothing behind a difference. In whichever order they leave, a page is
// there until the last one that has it has left.
TEST_P(SharedPages, AreComputedOnce) {
  auto [keys, values, count] = GetParam();
  Together all(keys, values, 160, "16,64", count, /*pages=*/14);
  std::vector<int64_t> order = {0, 1, 2};
  do {
    const int64_t before = all.batch->sharedTokens();
    EXPECT_EQ(all.add(promptAfter(70, 75, 100)), 0);
    EXPECT_EQ(all.batch->freePages(), 14 - 3);
    all.step(2);
    EXPECT_EQ(all.batch->sharedTokens(), before);
    EXPECT_EQ(all.add(promptAfter(70, 100, 700)), 1);
    EXPECT_EQ(all.batch->position(1), 64);
    EXPECT_EQ(all.batch->freePages(), 14 - 3 - 2);
    // Two full pages, of which the second one has the last token.
    std::vector<int32_t> two = promptOf(70);
    two.resize(64);
    EXPECT_EQ(all.add(two), 2);
    EXPECT_EQ(all.batch->position(2), 32);
    EXPECT_EQ(all.batch->freePages(), 14 - 3 - 2 - 1);
    // Other tokens from the second page on, and from within the first one on.
    std::vector<int32_t> other = promptAfter(70, 80, 100);
    ++other[40];
    EXPECT_EQ(all.add(other), 3);
    EXPECT_EQ(all.batch->position(3), 32);
    ++other[31];
    EXPECT_EQ(all.add(other), 4);
    EXPECT_EQ(all.batch->position(4), 0);
    EXPECT_EQ(all.batch->freePages(), 14 - 3 - 2 - 1 - 2 - 3);
    EXPECT_EQ(all.batch->sharedTokens(), before + 64 + 32 + 32);
    all.step(8);
    all.expectAllAlone();
    all.remove(3);
    all.remove(4);
    // Who comes next gets the pages that are free now.
    std::map<int64_t, std::set<std::string>> pages = {{0, {"first", "second", "a"}},
                                                      {1, {"first", "second", "b", "c"}},
                                                      {2, {"first", "d", "e"}}};
    for (int64_t leaving : order) {
      std::set<std::string> had;
      for (auto &[number, names] : pages)
        had.insert(names.begin(), names.end());
      EXPECT_EQ(all.batch->freePages(), 14 - static_cast<int64_t>(had.size()));
      all.remove(leaving);
      pages.erase(leaving);
      int64_t next = all.add(promptAfter(0, 66, 900));
      all.step(2);
      all.expectAllAlone();
      all.remove(next);
    }
    EXPECT_EQ(all.batch->freePages(), 14);
  } while (std::ranges::next_permutation(order).found);
}

INSTANTIATE_TEST_SUITE_P(Caches, SharedPages,
                         testing::Values(CacheCase{"f16", "int8", 5},
                                         CacheCase{"int4-h32-rot", "fp8", 5}),
                         nameOf);

// Of equal prompts that join together the first one is read, by whichever steps.
TEST(Batches, ShareWhatIsReadMeanwhile) {
  Together all("f16", "f16", 160, "20", 4);
  for (int64_t i = 0; i < 3; ++i)
    all.add(promptAfter(100, 101 + static_cast<size_t>(i), 300));
  EXPECT_EQ(all.batch->freePages(), 20 - 12);
  EXPECT_EQ(all.batch->sharedTokens(), 0);
  // In steps of 20 tokens: what the others do not have yet is 100 to 101 and 102.
  all.step(4);
  EXPECT_EQ(all.batch->sharedTokens(), 2 * 96);
  EXPECT_EQ(all.batch->freePages(), 20 - 12 + 2 * 3);
  all.expectAllAlone();
  // What was generated is shared, too.
  all.step(30);
  std::span<const int32_t> tokens = all.batch->tokens(1);
  std::vector<int32_t> conversation(tokens.begin(), tokens.end());
  for (int32_t token : {5, 6, 7})
    conversation.push_back(token);
  ASSERT_GT(conversation.size(), 129u);
  EXPECT_EQ(all.add(conversation), 3);
  EXPECT_EQ(all.batch->position(3), 128);
  all.step(3);
  all.expectAllAlone();
}

// Without steps for prompts, too, and where a prompt has begun.
TEST(Batches, SharePromptsReadATokenAStep) {
  Together all("int8", "int8", 96, "none", 3);
  all.add(promptAfter(40, 90, 100));
  all.step(60);
  all.add(promptAfter(40, 50, 800));
  EXPECT_EQ(all.batch->position(1), 32);
  all.step(10);
  // The first one's page from position 64 on is not full yet.
  EXPECT_EQ(all.add(promptAfter(40, 93, 100)), 2);
  EXPECT_EQ(all.batch->position(2), 64);
  EXPECT_EQ(all.batch->sharedTokens(), 32 + 64);
  all.step(31);
  all.expectAlone(2);
  all.expectAlone(1);
}

// A prompt may need fewer pages than it is long; a sequence that is only measured has nothing that
// others could use.
TEST(Batches, ShareOnlyWhatIsThere) {
  Together all("f16", "f16", 128, "16", 3, /*pages=*/4);
  all.add(promptAfter(70, 75, 100));
  EXPECT_EQ(messageOf([&] { all.add(promptAfter(70, 80, 200)); }),
            "the prompt of 80 tokens needs 3 pages of the caches, 1 of 4 are free; remove a "
            "sequence, or compile the model with more (--cache-pages)");
  all.step(1);
  EXPECT_EQ(messageOf([&] { all.add(promptAfter(70, 100, 200)); }),
            "the prompt of 100 tokens needs 2 pages of the caches beside 2 that it shares, 1 of 4 "
            "are free; remove a sequence, or compile the model with more (--cache-pages)");
  EXPECT_EQ(all.batch->sharedTokens(), 0);
  EXPECT_EQ(all.add(promptAfter(70, 80, 200)), 1);
  EXPECT_EQ(all.batch->freePages(), 0);
  all.step(3);
  all.expectAllAlone();
  all.remove(0);
  EXPECT_EQ(all.batch->freePages(), 1);
  all.remove(1);
  all.batch->seekAll(31);
  all.batch->step();
  all.batch->remove(2);
  EXPECT_EQ(all.batch->add(std::vector<int32_t>(32, 0)), 2);
  EXPECT_EQ(all.batch->sharedTokens(), 64);
}

TEST(Batches, EndWhereTheContextDoes) {
  Compiled compiled;
  compiled.compile(kModel, "int8-g128", 16, "host", "", "", "8", 3);
  auto artifact = runtime::Artifact::open(compiled.artifact());
  EXPECT_THROW(runtime::Session session(artifact), runtime::Error);
  runtime::Batch batch(artifact);
  EXPECT_THROW(batch.step(), runtime::Error);
  EXPECT_THROW(batch.add({}), runtime::Error);
  EXPECT_THROW(batch.add(promptOf(17)), runtime::Error);
  EXPECT_THROW(batch.add(std::vector<int32_t>{-1}), runtime::Error);
  int64_t full = batch.add(promptOf(14)), other = batch.add(promptOf(2));
  EXPECT_EQ(batch.step().size(), 2u);
  EXPECT_EQ(batch.position(other), 2);
  while (batch.position(full) < 16)
    EXPECT_EQ(batch.step().size(), 2u);
  // Full: its last token is chosen, and has no place any more.
  EXPECT_EQ(batch.tokens(full).size(), 17u);
  while (batch.position(other) < 16)
    EXPECT_EQ(batch.step().size(), 1u);
  EXPECT_THROW(batch.step(), runtime::Error);
}

// In the definition, too, it does not matter which pages a sequence has, nor whether its tokens
// come one by one.
TEST(Batches, AreDefinedWhateverTheirPages) {
  using reference::Tensor;
  Compiled compiled;
  compiled.compile(kModel, "int8-g128", 64, "host", "f16", "f16", "8", 3);
  mlir::DialectRegistry registry;
  registerDialects(registry);
  mlir::MLIRContext context(registry);
  auto module = mlir::parseSourceFile<mlir::ModuleOp>(compiled.stage("4-scheduled"), &context);
  ASSERT_TRUE(module);
  llvm::Expected<reference::FileWeights> weights = reference::FileWeights::open(*module);
  ASSERT_TRUE(bool(weights)) << llvm::toString(weights.takeError());
  constexpr int32_t first = 28, count = 8;
  auto call = [&](reference::Evaluator &evaluator, llvm::StringRef function,
                  llvm::ArrayRef<Tensor> arguments) -> std::vector<float> {
    auto results = evaluator.call(function, arguments);
    if (!results) {
      ADD_FAILURE() << llvm::toString(results.takeError());
      return {};
    }
    return (*results)[0].values;
  };
  std::vector<std::vector<float>> logits;
  for (const std::vector<int32_t> &table :
       {std::vector<int32_t>{3, 4, 5, 6, 7, 8}, std::vector<int32_t>{8, 3, 5, 7, 4, 6}}) {
    reference::Evaluator evaluator(*module, *weights);
    for (int32_t i = 0; i < count; ++i)
      logits.push_back(call(evaluator, "decode",
                            {Tensor::ints({3}, {11 + i, 500 + i, 900 + 2 * i}),
                             Tensor::ints({3}, {first + i, first + i, first + i}),
                             Tensor::ints({3, 2}, table)}));
  }
  ASSERT_EQ(logits.size(), 2u * count);
  for (int32_t i = 0; i < count; ++i)
    EXPECT_EQ(logits[i], logits[count + i]) << i;
  // Tokens of the first and of the last sequence, packed.
  reference::Evaluator evaluator(*module, *weights);
  constexpr int32_t split = 5;
  std::vector<int32_t> tokens, positions, owners;
  for (int32_t i = 0; i < count; ++i) {
    int32_t own = i < split ? i : i - split;
    tokens.push_back(i < split ? 11 + own : 900 + 2 * own);
    positions.push_back(first + own);
    owners.push_back(i < split ? 0 : 2);
  }
  auto arguments = [&](const std::vector<int32_t> &starts, int32_t page) {
    return std::vector<Tensor>{
        Tensor::ints({count}, tokens), Tensor::ints({count}, positions),
        Tensor::ints({1}, {count}),    Tensor::ints({count}, owners),
        Tensor::ints({4}, starts),     Tensor::ints({3, 2}, {8, page, 0, 1, 7, 3})};
  };
  std::vector<float> read = call(evaluator, "prefill_8", arguments({0, split, split, count}, 4));
  const auto vocabulary = static_cast<std::ptrdiff_t>(logits[0].size() / 3);
  auto rowOf = [&](const std::vector<float> &all, std::ptrdiff_t row) {
    return std::vector<float>(all.begin() + row * vocabulary, all.begin() + (row + 1) * vocabulary);
  };
  EXPECT_EQ(rowOf(read, 0), rowOf(logits[split - 1], 0));
  EXPECT_EQ(rowOf(read, 2), rowOf(logits[count - split - 1], 2));
  auto messageOf = [&](const std::vector<Tensor> &given) {
    auto results = evaluator.call("prefill_8", given);
    return results ? std::string("no error") : llvm::toString(results.takeError());
  };
  auto expectError = [&](const std::vector<Tensor> &given, const std::string &part) {
    EXPECT_NE(messageOf(given).find(part), std::string::npos) << messageOf(given);
  };
  expectError(arguments({0, split, split, count}, 9),
              "page 9 is not in cache 'cache.k.0', which has 9");
  expectError(arguments({0, split, split, count - 1}, 4), "packed sequences have 7 of 8 rows");
  expectError(arguments({0, split, 2, count}, 4), "packed sequence 1 ends before it starts");
  expectError(arguments({1, split, split, count}, 4),
              "the first of packed sequences starts at row 0, found 1");
  owners.back() = 3;
  expectError(arguments({0, split, split, count}, 4),
              "sequence 3 is not in the page table, which has 3");
}

TEST(Batches, RefuseWrongPages) {
  Compiled compiled;
  compiled.compile(kModel, "int8-g128", 64, "host", "", "", "8", 3, /*cachePages=*/4);
  auto messageOf = [&](auto change) -> std::string {
    nlohmann::json plan = compiled.plan;
    change(plan);
    plan["checksum"] = runtime::Plan::checksum(plan.dump(), "plan.json");
    try {
      runtime::Plan::parse(plan.dump(), "plan.json");
    } catch (const runtime::Error &error) {
      return error.what();
    }
    return "no error";
  };
  auto bufferOf = [](nlohmann::json &plan, const std::string &name) -> nlohmann::json & {
    for (nlohmann::json &buffer : plan["buffers"])
      if (buffer["name"] == name)
        return buffer;
    throw std::runtime_error("no buffer " + name);
  };
  EXPECT_EQ(messageOf([](nlohmann::json &) {}), "no error");
  EXPECT_EQ(messageOf([](nlohmann::json &plan) { plan["model"].erase("cache_pages"); }),
            "plan.json: model.cache_pages is 0 for 3 sequences, expected pages for several, and no "
            "others");
  EXPECT_EQ(messageOf([&](nlohmann::json &plan) { plan["model"]["cache_pages"] = 5; }),
            "plan.json: cache \"cache.k.0\" is 7x32x2x64, expected 8 pages of 32 positions");
  EXPECT_EQ(messageOf([&](nlohmann::json &plan) { bufferOf(plan, "pages")["type"] = "i32"; }),
            "plan.json: buffer \"pages\" is input, 3x2 x i32, expected input, u32, 3 rows of the "
            "pages of 64 positions");
  EXPECT_EQ(messageOf([&](nlohmann::json &plan) { bufferOf(plan, "starts")["shape"] = {3}; }),
            "plan.json: buffer \"starts\" is input, 3 x i32, expected input, 4 x i32");
  EXPECT_EQ(messageOf([&](nlohmann::json &plan) { bufferOf(plan, "sequences")["type"] = "u32"; }),
            "plan.json: buffer \"sequences\" is input, 8 x u32, expected input, 8 x i32");
  EXPECT_EQ(messageOf([&](nlohmann::json &plan) {
              bufferOf(plan, "pages")["name"] = "other";
              for (auto &[name, step] : plan["steps"].items())
                for (nlohmann::json &launch : step["launches"])
                  for (nlohmann::json &argument : launch["arguments"])
                    if (argument == "pages")
                      argument = "other";
            }),
            "plan.json: buffers: there is no buffer \"pages\", which a step of caches in pages "
            "needs");
}

/// Null where it cannot be created; sluice_last_error says why.
static sluice_batch *batchOf(const Compiled &compiled) {
  sluice_artifact *artifact = nullptr;
  if (sluice_artifact_open(compiled.artifact().c_str(), &artifact) != SLUICE_OK)
    return nullptr;
  sluice_batch *batch = nullptr;
  sluice_batch_create(artifact, nullptr, &batch);
  sluice_artifact_free(artifact);
  return batch;
}

TEST(Batches, FromC) {
  Compiled compiled;
  compiled.compile(kModel, "int8-g128", 64, "host", "", "", "16", 2, /*cachePages=*/2);
  sluice_batch *batch = batchOf(compiled);
  ASSERT_NE(batch, nullptr) << sluice_last_error();
  EXPECT_EQ(sluice_batch_capacity(batch), 2);
  EXPECT_EQ(sluice_batch_free_pages(batch), 2);
  EXPECT_EQ(sluice_batch_free_pages(nullptr), 0);
  std::vector<int32_t> prompt = promptOf(31);
  int64_t number = -1;
  EXPECT_EQ(sluice_batch_add(batch, promptOf(65).data(), 65, nullptr, &number), SLUICE_ERROR);
  ASSERT_EQ(sluice_batch_add(batch, prompt.data(), 31, nullptr, &number), SLUICE_OK);
  EXPECT_EQ(number, 0);
  EXPECT_EQ(sluice_batch_add(batch, promptOf(33).data(), 33, nullptr, &number), SLUICE_ERROR_FULL);
  EXPECT_NE(std::string(sluice_last_error()).find("needs 2 pages of the caches, 1 of 2 are free"),
            std::string::npos);
  ASSERT_EQ(sluice_batch_add(batch, prompt.data(), 31, nullptr, &number), SLUICE_OK);
  int64_t sequences[2];
  int32_t tokens[2];
  size_t count = 0;
  // Positions 30 and 31.
  size_t chosen = 0;
  sluice_status status = SLUICE_OK;
  for (int i = 0; i < 8 && status == SLUICE_OK; ++i) {
    status = sluice_batch_step(batch, sequences, tokens, &count);
    chosen += status == SLUICE_OK ? count : 0;
  }
  EXPECT_EQ(status, SLUICE_ERROR_FULL);
  EXPECT_NE(std::string(sluice_last_error()).find("needs another page"), std::string::npos);
  EXPECT_GE(chosen, 2u);
  ASSERT_EQ(sluice_batch_remove(batch, 1), SLUICE_OK);
  EXPECT_EQ(sluice_batch_free_pages(batch), 1);
  ASSERT_EQ(sluice_batch_step(batch, sequences, tokens, &count), SLUICE_OK);
  EXPECT_EQ(count, 1u);
  EXPECT_EQ(sequences[0], 0);
  sluice_batch_free(batch);
}

TEST(Batches, ShareFromC) {
  Compiled compiled;
  compiled.compile(kModel, "int8-g128", 96, "host", "", "", "16", 2, /*cachePages=*/4);
  sluice_batch *batch = batchOf(compiled);
  ASSERT_NE(batch, nullptr) << sluice_last_error();
  EXPECT_EQ(sluice_batch_shared_tokens(nullptr), 0);
  std::vector<int32_t> prompt = promptOf(80);
  int64_t number = -1, sequences[2];
  int32_t tokens[2];
  size_t count = 0;
  ASSERT_EQ(sluice_batch_add(batch, prompt.data(), 80, nullptr, &number), SLUICE_OK);
  ASSERT_EQ(sluice_batch_step(batch, sequences, tokens, &count), SLUICE_OK);
  EXPECT_EQ(sluice_batch_shared_tokens(batch), 0);
  ASSERT_EQ(sluice_batch_add(batch, prompt.data(), 70, nullptr, &number), SLUICE_OK);
  EXPECT_EQ(sluice_batch_shared_tokens(batch), 64);
  EXPECT_EQ(sluice_batch_free_pages(batch), 0);
  ASSERT_EQ(sluice_batch_remove(batch, 0), SLUICE_OK);
  EXPECT_EQ(sluice_batch_free_pages(batch), 1);
  sluice_batch_free(batch);
}
