// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Tokens that end a text by what they are called. Chat models have been published whose files name
// only the end of a document and not the end of a turn, so llama.cpp (src/llama-vocab.cpp) goes by
// the text of a token, and so does this.

#include "Data.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>

namespace sluice::runtime::tokenizer {

bool isEndByText(std::string_view text) {
  static const std::unordered_set<std::string_view> ends = {
      // Ends of a turn or a document.
      "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
      "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
      "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
      // Ends of a file, where a model of code goes on to the next one.
      "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
      "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"};
  return ends.contains(text);
}

void addEndsByText(Data &data) {
  std::vector<int32_t> found;
  for (size_t i = 0; i < data.tokens.size(); ++i)
    if (isEndByText(data.tokens[i]))
      found.push_back(static_cast<int32_t>(i));
  auto has = [&](std::string_view text) {
    return std::any_of(found.begin(), found.end(),
                       [&](int32_t id) { return data.tokens[id] == text; });
  };
  // Where these exist, <|end|> ends a part of a turn, and </s> is text.
  bool endIsInside = (has("<|return|>") && has("<|call|>")) ||
                     ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
  bool hasToolResponse = has("<|tool_response>");
  std::copy_if(found.begin(), found.end(), std::back_inserter(data.eosIds), [&](int32_t id) {
    const std::string &text = data.tokens[id];
    return !(endIsInside && text == "<|end|>") && !(hasToolResponse && text == "</s>");
  });
}

} // namespace sluice::runtime::tokenizer
