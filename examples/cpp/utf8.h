// UTF-8, character by character.
#ifndef BITNET_EXAMPLE_UTF8_H_
#define BITNET_EXAMPLE_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

struct Character {
  enum class State { kWhole, kOpen, kBroken };  // kOpen: the text ends within it
  State state;
  size_t bytes;  // that it takes; of a broken one those that one U+FFFD stands for
  uint32_t code;
};

// What a text that is not empty begins with (Unicode 16, table 3-7).
inline Character FirstCharacter(std::string_view text) {
  using State = Character::State;
  const auto byte = [text](size_t at) { return static_cast<unsigned char>(text[at]); };
  const uint32_t lead = byte(0);
  if (lead < 0x80)
    return {State::kWhole, 1, lead};
  if (lead < 0xC2 || lead > 0xF4)
    return {State::kBroken, 1, 0};
  const size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes what is written longer than needed, surrogates, and what is above U+10FFFF.
  const uint32_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint32_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  uint32_t code = lead & (0x7F >> bytes);
  for (size_t at = 1; at < bytes; ++at) {
    if (at == text.size())
      return {State::kOpen, at, 0};
    if (byte(at) < (at == 1 ? least : 0x80) || byte(at) > (at == 1 ? most : 0xBF)) {
      return {State::kBroken, at, 0};
    }
    code = code << 6 | (byte(at) & 0x3F);
  }
  return {State::kWhole, bytes, code};
}

inline void AppendUtf8(std::string* text, uint32_t code) {
  const auto append = [text](uint32_t byte) { *text += static_cast<char>(byte); };
  if (code < 0x80)
    return append(code);
  if (code < 0x800) {
    append(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      append(0xE0 | code >> 12);
    } else {
      append(0xF0 | code >> 18);
      append(0x80 | (code >> 12 & 0x3F));
    }
    append(0x80 | (code >> 6 & 0x3F));
  }
  append(0x80 | (code & 0x3F));
}

#endif  // BITNET_EXAMPLE_UTF8_H_
