#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "error.h"
#include "utf8.h"

namespace {

constexpr std::uintmax_t kMaxBytes = 256u << 20;
constexpr int kMaxDepth = 64;

class Parser {
 public:
  Parser(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  Json Document() {
    Json json = Value(0);
    if (Peek() != '\0' || at_ != text_.size())
      Fail("text after the value");
    return json;
  }

 private:
  [[noreturn]] void Fail(const char* what) const {
    throw Error(name_ + " is not valid JSON: " + what + " at byte " + std::to_string(at_));
  }

  // The next character that is no space; '\0' at the end.
  char Peek() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos)
      ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool Take(char wanted) {
    if (Peek() != wanted)
      return false;
    ++at_;
    return true;
  }

  bool TakeWord(std::string_view word) {
    if (text_.substr(at_, word.size()) != word)
      return false;
    at_ += word.size();
    return true;
  }

  Json Value(int depth) {
    if (depth > kMaxDepth)
      Fail("more than 64 levels");
    switch (Peek()) {
      case '{':
        return {ObjectValue(depth)};
      case '[':
        return {ArrayValue(depth)};
      case '"':
        return {Text()};
      default:
        if (TakeWord("true"))
          return {true};
        if (TakeWord("false"))
          return {false};
        if (TakeWord("null"))
          return {nullptr};
        return {Number()};
    }
  }

  Json::Object ObjectValue(int depth) {
    Json::Object object;
    ++at_;
    if (Take('}'))
      return object;
    do {
      if (Peek() != '"')
        Fail("a key is missing");
      std::string key = Text();
      if (!Take(':'))
        Fail("no colon after a key");
      object.emplace_back(std::move(key), Value(depth + 1));
    } while (Take(','));
    if (!Take('}'))
      Fail("an object has no end");
    return object;
  }

  Json::Array ArrayValue(int depth) {
    Json::Array array;
    ++at_;
    if (Take(']'))
      return array;
    do {
      array.push_back(Value(depth + 1));
    } while (Take(','));
    if (!Take(']'))
      Fail("a list has no end");
    return array;
  }

  double Number() {
    const size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
    const std::string digits(text_.substr(at_, end - at_));
    char* rest = nullptr;
    const double number = std::strtod(digits.c_str(), &rest);
    if (digits.empty() || *rest != '\0' || !std::isfinite(number))
      Fail("no value");
    at_ = end;
    return number;
  }

  std::string Text() {
    std::string plain;
    for (++at_; at_ < text_.size();) {
      const char c = text_[at_++];
      if (c == '"')
        return plain;
      if (static_cast<unsigned char>(c) < 0x20)
        Fail("a control character in a text");
      if (c != '\\') {
        plain += c;
        continue;
      }
      const char escaped = at_ < text_.size() ? text_[at_++] : '\0';
      constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
      if (const size_t place = kNames.find(escaped); escaped != '\0' && place != kNames.npos) {
        plain += kValues[place];
      } else if (escaped == 'u') {
        AppendUtf8(&plain, Escape());
      } else {
        Fail("an unknown escape");
      }
    }
    Fail("a text has no end");
  }

  uint32_t Escape() {
    const uint32_t high = CodeUnit();
    if (high < 0xD800 || high > 0xDFFF)
      return high;
    if (high > 0xDBFF || !TakeWord("\\u"))
      Fail("half a surrogate pair");
    const uint32_t low = CodeUnit();
    if (low < 0xDC00 || low > 0xDFFF)
      Fail("half a surrogate pair");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  uint32_t CodeUnit() {
    const std::string digits(text_.substr(at_, 4));
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos) {
      Fail("a \\u without four digits");
    }
    at_ += 4;
    return static_cast<uint32_t>(std::strtoul(digits.c_str(), nullptr, 16));
  }

  std::string_view text_;
  std::string name_;
  size_t at_ = 0;
};

}  // namespace

Json Json::Read(const std::filesystem::path& path) {
  std::error_code failed;
  const std::uintmax_t size = std::filesystem::file_size(path, failed);
  std::ifstream file(path, std::ios::binary);
  if (failed || !file)
    throw Error(path.string() + " cannot be read: a package has it");
  if (size > kMaxBytes)
    throw Error(path.string() + " is larger than 256 MB");
  std::string text(static_cast<size_t>(size), '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(text.size()))) {
    throw Error(path.string() + " cannot be read to its end");
  }
  return Parse(text, path.string());
}

Json Json::Parse(std::string_view text, const std::string& name) { return Parser(text, name).Document(); }

const Json& Json::operator[](std::string_view key) const {
  static const Json kNull;
  const Object& members = Members();
  const auto found =
      std::find_if(members.rbegin(), members.rend(), [&](auto& one) { return one.first == key; });
  return found == members.rend() ? kNull : found->second;
}

const Json::Array& Json::Items() const {
  static const Array kNone;
  const Array* array = std::get_if<Array>(&value);
  return array == nullptr ? kNone : *array;
}

const Json::Object& Json::Members() const {
  static const Object kNone;
  const Object* object = std::get_if<Object>(&value);
  return object == nullptr ? kNone : *object;
}

std::string Json::StringOr(std::string_view otherwise) const {
  return String() == nullptr ? std::string(otherwise) : *String();
}

bool Json::BoolOr(bool otherwise) const {
  const bool* found = std::get_if<bool>(&value);
  return found == nullptr ? otherwise : *found;
}

int64_t Json::IntOr(int64_t otherwise) const {
  const double* found = std::get_if<double>(&value);
  if (found == nullptr || std::abs(*found) > 1e15 || *found != std::floor(*found))
    return otherwise;
  return static_cast<int64_t>(*found);
}
