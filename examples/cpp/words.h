// How byte-level tokenizers cut a text into words, within which pairs are merged.
#ifndef BITNET_EXAMPLE_WORDS_H_
#define BITNET_EXAMPLE_WORDS_H_

#include <string_view>
#include <vector>

#include "json.h"

enum class WordRule { kGpt2, kLlama3, kDigits, kEachDigit };

// The rules of the member `pre_tokenizer` of tokenizer.json, to be applied in turn; throws Error for others.
std::vector<WordRule> WordRules(const Json& pre_tokenizer);

// The pieces of `text`, which has to be UTF-8; they lie in it.
std::vector<std::string_view> Cut(std::string_view text, WordRule rule);

#endif  // BITNET_EXAMPLE_WORDS_H_
