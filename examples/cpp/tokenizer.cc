#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>

#include "error.h"
#include "utf8.h"

namespace {

constexpr int64_t kMaxIds = 1 << 22;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Byte-level vocabularies write a byte as a character: a printable one as itself, the others from U+0100 on.
std::array<int, 0x180> MakeAlphabet() {
  std::array<int, 0x180> byte_of{};
  byte_of.fill(-1);
  size_t hidden = 0x100;
  for (size_t byte = 0; byte < 0x100; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    byte_of[printable ? byte : hidden++] = static_cast<int>(byte);
  }
  return byte_of;
}

// The bytes that the text of a token stands for; the text itself if a character stands for none.
std::string BytesOf(const std::string& text) {
  static const std::array<int, 0x180> kByteOf = MakeAlphabet();
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const Character character = FirstCharacter(std::string_view(text).substr(at));
    if (character.code >= kByteOf.size() || kByteOf[character.code] < 0)
      return text;
    bytes += static_cast<char>(kByteOf[character.code]);
    at += character.bytes;
  }
  return bytes;
}

[[noreturn]] void NotCovered(const std::string& what) {
  throw Error("tokenizer.json: " + what + " is not covered by this example: give token ids with --ids");
}

void CheckUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Character character = FirstCharacter(text.substr(at));
    if (character.state != Character::State::kWhole)
      throw Error("the prompt is not UTF-8");
    at += character.bytes;
  }
}

}  // namespace

Tokenizer::Tokenizer(const std::filesystem::path& package) {
  const Json json = Json::Read(package / "tokenizer.json");
  if (!json["normalizer"].IsNull())
    NotCovered("normalizer " + json["normalizer"]["type"].StringOr("?"));
  const std::string decoder = json["decoder"]["type"].StringOr("none");
  if (decoder != "ByteLevel")
    NotCovered("decoder " + decoder);
  rules_ = WordRules(json["pre_tokenizer"]);
  ReadModel(json["model"]);
  ReadAdded(json["added_tokens"]);
  ReadFrame(json["post_processor"]);

  const Json config = Json::Read(package / "tokenizer_config.json");
  if (!config["add_bos_token"].BoolOr(false))
    return;
  const Json& bos = config["bos_token"];
  const std::string text = bos.StringOr(bos["content"].StringOr(""));
  const auto found = std::find_if(added_.begin(), added_.end(), [&](auto& one) { return one.text == text; });
  if (found != added_.end() && (prefix_.empty() || prefix_[0] != found->id)) {
    prefix_.insert(prefix_.begin(), found->id);
  }
}

void Tokenizer::ReadModel(const Json& model) {
  const std::string type = model["type"].StringOr("BPE");
  if (type != "BPE" || model["vocab"].Members().empty())
    NotCovered("model " + type);
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model[name].StringOr("").empty())
      NotCovered(name);
  }
  ignores_merges_ = model["ignore_merges"].BoolOr(false);
  for (const auto& [text, id] : model["vocab"].Members()) {
    std::string bytes = BytesOf(text);
    ids_[bytes] = id.IntOr(-1);
    SetBytes(id.IntOr(-1), std::move(bytes));
  }
  int64_t rank = 0;
  for (const Json& rule : model["merges"].Items()) {
    // Two texts, in older files one with a space between.
    std::string left = rule.StringOr(""), right;
    if (const size_t space = left.find(' '); space != std::string::npos) {
      right = left.substr(space + 1);
      left.resize(space);
    } else if (rule.Items().size() == 2) {
      left = rule.Items()[0].StringOr("");
      right = rule.Items()[1].StringOr("");
    }
    const std::string first = BytesOf(left), second = BytesOf(right);
    const auto a = ids_.find(first), b = ids_.find(second), both = ids_.find(first + second);
    if (a == ids_.end() || b == ids_.end() || both == ids_.end()) {
      throw Error("tokenizer.json: merge " + std::to_string(rank) + " names a token that is not there");
    }
    merges_[static_cast<uint64_t>(a->second) << 32 | static_cast<uint64_t>(b->second)] = {rank, both->second};
    ++rank;
  }
}

void Tokenizer::ReadAdded(const Json& tokens) {
  for (const Json& token : tokens.Items()) {
    const std::string text = token["content"].StringOr("");
    for (const char* name : {"lstrip", "rstrip", "single_word"}) {
      if (token[name].BoolOr(false))
        NotCovered("added token " + text + " with " + name);
    }
    const bool special = token["special"].BoolOr(false);
    SetBytes(token["id"].IntOr(-1), special ? "" : BytesOf(text));
    if (!text.empty())
      added_.push_back({text, token["id"].IntOr(-1), special});
  }
}

void Tokenizer::ReadFrame(const Json& post_processor) {
  const std::string type = post_processor["type"].StringOr("ByteLevel");
  if (type == "ByteLevel")
    return;
  if (type == "Sequence") {
    for (const Json& one : post_processor["processors"].Items())
      ReadFrame(one);
    return;
  }
  if (type != "TemplateProcessing")
    NotCovered("post_processor " + type);
  std::vector<int64_t>* side = &prefix_;
  for (const Json& item : post_processor["single"].Items()) {
    if (!item["Sequence"].IsNull())
      side = &suffix_;
    const std::string name = item["SpecialToken"]["id"].StringOr("");
    for (const Json& id : post_processor["special_tokens"][name]["ids"].Items())
      side->push_back(id.IntOr(-1));
  }
}

void Tokenizer::SetBytes(int64_t id, std::string bytes) {
  if (id < 0 || id >= kMaxIds)
    throw Error("tokenizer.json: a token has no id from 0 to " + std::to_string(kMaxIds - 1));
  if (static_cast<size_t>(id) >= bytes_.size())
    bytes_.resize(static_cast<size_t>(id) + 1);
  bytes_[static_cast<size_t>(id)] = std::move(bytes);
}

std::string_view Tokenizer::Bytes(int64_t id) const {
  return id >= 0 && static_cast<size_t>(id) < bytes_.size() ? std::string_view(bytes_[static_cast<size_t>(id)])
                                                            : "";
}

// The longest added token that `text` begins with.
const Tokenizer::Added* Tokenizer::AddedAt(std::string_view text, bool special) const {
  const Added* longest = nullptr;
  for (const Added& token : added_) {
    if (token.special && !special)
      continue;
    if (text.substr(0, token.text.size()) != token.text)
      continue;
    if (longest == nullptr || token.text.size() > longest->text.size())
      longest = &token;
  }
  return longest;
}

std::vector<int64_t> Tokenizer::Encode(std::string_view text, bool special) const {
  CheckUtf8(text);
  std::vector<int64_t> ids = prefix_;
  size_t begun = 0;
  for (size_t at = 0; at < text.size();) {
    const Added* token = AddedAt(text.substr(at), special);
    if (token == nullptr) {
      ++at;
      continue;
    }
    EncodeText(text.substr(begun, at - begun), &ids);
    ids.push_back(token->id);
    begun = at += token->text.size();
  }
  EncodeText(text.substr(begun), &ids);
  ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

void Tokenizer::EncodeText(std::string_view text, std::vector<int64_t>* ids) const {
  std::vector<std::string_view> words;
  if (!text.empty())
    words.push_back(text);
  for (const WordRule rule : rules_) {
    std::vector<std::string_view> finer;
    for (const std::string_view word : words) {
      for (const std::string_view piece : Cut(word, rule))
        finer.push_back(piece);
    }
    words = std::move(finer);
  }
  for (const std::string_view word : words)
    EncodeWord(word, ids);
}

const Tokenizer::Merge* Tokenizer::FindMerge(int64_t left, int64_t right) const {
  const auto found = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right));
  return found == merges_.end() ? nullptr : &found->second;
}

// The pair of the lowest rank is merged first, the leftmost among equals; n log n steps.
void Tokenizer::EncodeWord(std::string_view word, std::vector<int64_t>* ids) const {
  if (ignores_merges_) {
    if (const auto found = ids_.find(std::string(word)); found != ids_.end())
      return ids->push_back(found->second);
  }
  constexpr size_t kNone = static_cast<size_t>(-1);
  constexpr int64_t kMerged = -1;
  struct Part {
    int64_t id;
    size_t previous, next;
  };
  std::vector<Part> parts;
  for (const char c : word) {
    // A byte that the vocabulary lacks is left out, as the reference does where there is no unknown token.
    const auto found = ids_.find(std::string(1, c));
    if (found != ids_.end())
      parts.push_back({found->second, parts.size() - 1, parts.size() + 1});
  }
  if (parts.empty())
    return;
  parts.back().next = kNone;

  using Candidate = std::tuple<int64_t, size_t, int64_t>;  // rank, left part, result
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](size_t left) {
    if (left == kNone || parts[left].next == kNone)
      return;
    if (const Merge* merge = FindMerge(parts[left].id, parts[parts[left].next].id)) {
      queue.emplace(merge->rank, left, merge->result);
    }
  };
  for (size_t left = 0; left < parts.size(); ++left)
    offer(left);
  while (!queue.empty()) {
    const auto [rank, left, result] = queue.top();
    queue.pop();
    // The pair may be gone, or be another one by now.
    const size_t right = parts[left].id == kMerged ? kNone : parts[left].next;
    const Merge* merge = right == kNone ? nullptr : FindMerge(parts[left].id, parts[right].id);
    if (merge == nullptr || merge->rank != rank)
      continue;
    parts[left].id = result;
    parts[left].next = parts[right].next;
    parts[right].id = kMerged;
    if (parts[left].next != kNone)
      parts[parts[left].next].previous = left;
    offer(left);
    offer(parts[left].previous);
  }
  for (const Part& part : parts) {
    if (part.id != kMerged)
      ids->push_back(part.id);
  }
}

std::string TextStream::Append(std::string_view bytes) {
  pending_ += bytes;
  std::string text;
  size_t at = 0;
  while (at < pending_.size()) {
    const Character character = FirstCharacter(std::string_view(pending_).substr(at));
    if (character.state == Character::State::kOpen)
      break;
    if (character.state == Character::State::kWhole) {
      text.append(pending_, at, character.bytes);
    } else {
      text += kReplacement;
    }
    at += character.bytes;
  }
  pending_.erase(0, at);
  return text;
}

std::string TextStream::Finish() {
  const bool open = !pending_.empty();
  pending_.clear();
  return open ? std::string(kReplacement) : std::string();
}
