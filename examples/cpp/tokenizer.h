// Text to token ids and back, by the tokenizer.json of a package.
//
// Covered is byte-level BPE with the words of GPT-2 (SmolLM2, bitnet-tiny) or Llama 3 (BitNet b1.58 2B 4T);
// everything else is refused by name.
#ifndef BITNET_EXAMPLE_TOKENIZER_H_
#define BITNET_EXAMPLE_TOKENIZER_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.h"
#include "words.h"

class Tokenizer {
 public:
  // Without tokens, for who has ids.
  Tokenizer() = default;
  // Throws Error: a file of the directory is missing or broken, or asks for what is not covered.
  explicit Tokenizer(const std::filesystem::path& package);

  // The ids of a text in UTF-8, with the tokens that begin and end one. `special`: where the text spells a
  // control token, it is that token; leave it off for what strangers type.
  std::vector<int64_t> Encode(std::string_view text, bool special) const;

  // The bytes that a token adds to a text; none for control tokens.
  std::string_view Bytes(int64_t id) const;

 private:
  struct Added {
    std::string text;
    int64_t id;
    bool special;
  };
  struct Merge {
    int64_t rank, result;
  };

  void ReadAdded(const Json& tokens);
  void ReadModel(const Json& model);
  void ReadFrame(const Json& post_processor);
  const Added* AddedAt(std::string_view text, bool special) const;
  void EncodeText(std::string_view text, std::vector<int64_t>* ids) const;
  void EncodeWord(std::string_view word, std::vector<int64_t>* ids) const;
  const Merge* FindMerge(int64_t left, int64_t right) const;
  void SetBytes(int64_t id, std::string bytes);

  std::vector<WordRule> rules_;
  std::vector<Added> added_;
  std::unordered_map<std::string, int64_t> ids_;  // by the bytes that a token stands for
  std::unordered_map<uint64_t, Merge> merges_;    // by both ids
  std::vector<std::string> bytes_;                // by id
  std::vector<int64_t> prefix_, suffix_;          // around each text
  bool ignores_merges_ = false;
};

// Bytes of tokens in, whole characters out.
class TextStream {
 public:
  // The text that is complete now, often all of `bytes`, sometimes nothing.
  std::string Append(std::string_view bytes);
  // U+FFFD for a character that was begun, otherwise nothing.
  std::string Finish();

 private:
  std::string pending_;
};

#endif  // BITNET_EXAMPLE_TOKENIZER_H_
