#include "words.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "error.h"
#include "unicode.h"
#include "utf8.h"

namespace {

// The pattern of Llama 3, which BitNet b1.58 2B 4T has too. GPT-2's is written nowhere: ByteLevel implies it.
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

enum class Class : uint8_t { kLetter, kNumber, kSpace, kOther, kEnd };

template <size_t N>
bool Within(const CodeRange (&ranges)[N], uint32_t code) {
  const auto* range = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                       [](uint32_t value, const CodeRange& one) { return value < one.first; });
  return range != std::begin(ranges) && code <= std::prev(range)->last;
}

Class ClassOf(uint32_t code) {
  if (code < 0x80) {
    if ((code | 0x20) >= 'a' && (code | 0x20) <= 'z')
      return Class::kLetter;
    if (code >= '0' && code <= '9')
      return Class::kNumber;
  }
  if (Within(kSpaces, code))
    return Class::kSpace;
  if (Within(kLetters, code))
    return Class::kLetter;
  return Within(kNumbers, code) ? Class::kNumber : Class::kOther;
}

// A text as characters, with one word cut off at a time.
class Cutter {
 public:
  explicit Cutter(std::string_view text) : text_(text) {
    for (size_t at = 0; at < text.size();) {
      const Character character = FirstCharacter(text.substr(at));
      codes_.push_back(character.code);
      classes_.push_back(ClassOf(character.code));
      starts_.push_back(at);
      at += character.bytes;
    }
    starts_.push_back(text.size());
  }

  std::vector<std::string_view> Words(WordRule rule) const {
    std::vector<std::string_view> words;
    for (size_t at = 0; at < codes_.size();) {
      const size_t end = End(rule, at);
      words.push_back(text_.substr(starts_[at], starts_[end] - starts_[at]));
      at = end;
    }
    return words;
  }

 private:
  Class At(size_t at) const { return at < classes_.size() ? classes_[at] : Class::kEnd; }
  bool Is(size_t at, uint32_t code) const { return at < codes_.size() && codes_[at] == code; }
  bool IsNewline(size_t at) const { return Is(at, '\n') || Is(at, '\r'); }

  // Behind the last character of this class.
  size_t Run(size_t at, Class wanted) const {
    while (At(at) == wanted)
      ++at;
    return at;
  }

  size_t End(WordRule rule, size_t at) const {
    switch (rule) {
      case WordRule::kEachDigit:
        if (At(at) == Class::kNumber)
          return at + 1;
        [[fallthrough]];
      case WordRule::kDigits: {
        const bool number = At(at) == Class::kNumber;
        while (At(at) != Class::kEnd && (At(at) == Class::kNumber) == number)
          ++at;
        return at;
      }
      case WordRule::kGpt2:
        return Gpt2End(at);
      case WordRule::kLlama3:
        return Llama3End(at);
    }
    return codes_.size();
  }

  // Behind 's 't 're 've 'm 'll 'd; `at` itself where there is none.
  size_t ContractionEnd(size_t at, bool ignores_case) const {
    if (!Is(at, '\''))
      return at;
    const auto letter = [&](size_t place) -> uint32_t {
      if (place >= codes_.size())
        return 0;
      const uint32_t code = codes_[place];
      if (!ignores_case)
        return code;
      if (code == 0x17F)
        return 's';  // the long s, whose capital is S
      return code >= 'A' && code <= 'Z' ? code | 0x20 : code;
    };
    const uint32_t first = letter(at + 1), second = letter(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
      return at + 2;
    if ((first == 'r' || first == 'v') && second == 'e')
      return at + 3;
    return first == 'l' && second == 'l' ? at + 3 : at;
  }

  // \s+(?!\S)|\s+: a run of spaces leaves its last one to the word behind it.
  size_t SpacesEnd(size_t at) const {
    const size_t end = Run(at, Class::kSpace);
    return At(end) == Class::kEnd || end == at + 1 ? end : end - 1;
  }

  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  size_t Gpt2End(size_t at) const {
    if (const size_t end = ContractionEnd(at, false); end != at)
      return end;
    const size_t word = at + (Is(at, ' ') ? 1 : 0);
    const Class kind = At(word);
    return kind == Class::kSpace || kind == Class::kEnd ? SpacesEnd(at) : Run(word, kind);
  }

  size_t Llama3End(size_t at) const {
    if (const size_t end = ContractionEnd(at, true); end != at)
      return end;
    if (At(at) == Class::kLetter)
      return Run(at, Class::kLetter);
    if (At(at) == Class::kNumber)
      return std::min(Run(at, Class::kNumber), at + 3);
    if (!IsNewline(at) && At(at + 1) == Class::kLetter)
      return Run(at + 1, Class::kLetter);
    const size_t word = at + (Is(at, ' ') ? 1 : 0);
    if (At(word) == Class::kOther) {
      size_t end = Run(word, Class::kOther);
      while (IsNewline(end))
        ++end;
      return end;
    }
    for (size_t end = Run(at, Class::kSpace); end > at; --end) {
      if (IsNewline(end - 1))
        return end;
    }
    return SpacesEnd(at);
  }

  std::string_view text_;
  std::vector<uint32_t> codes_;
  std::vector<Class> classes_;
  std::vector<size_t> starts_;  // of each character in `text_`, and its end
};

void AddRules(const Json& step, std::vector<WordRule>* rules) {
  const std::string type = step["type"].StringOr("none");
  if (type == "Sequence") {
    for (const Json& one : step["pretokenizers"].Items())
      AddRules(one, rules);
  } else if (type == "ByteLevel" && !step["add_prefix_space"].BoolOr(true)) {
    if (step["use_regex"].BoolOr(true))
      rules->push_back(WordRule::kGpt2);
  } else if (type == "Digits") {
    rules->push_back(step["individual_digits"].BoolOr(false) ? WordRule::kEachDigit : WordRule::kDigits);
  } else if (type == "Split" && step["pattern"]["Regex"].StringOr("") == kLlama3Pattern &&
             step["behavior"].StringOr("") == "Isolated" && !step["invert"].BoolOr(false)) {
    rules->push_back(WordRule::kLlama3);
  } else {
    const bool prefix = type == "ByteLevel";
    throw Error("tokenizer.json: pre_tokenizer " + type + (prefix ? " with add_prefix_space" : "") +
                (type == "Split" ? " with this pattern" : "") +
                " is not covered by this example: give token ids with --ids");
  }
}

}  // namespace

std::vector<WordRule> WordRules(const Json& pre_tokenizer) {
  std::vector<WordRule> rules;
  AddRules(pre_tokenizer, &rules);
  return rules;
}

std::vector<std::string_view> Cut(std::string_view text, WordRule rule) { return Cutter(text).Words(rule); }
