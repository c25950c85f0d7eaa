// The tokenizer of examples/cpp alone: requests in JSON, one a line, on the standard input. {"text", "special"} is
// answered by ids, {"ids"} by the text, in hexadecimal digits after a '/' for each piece of the stream.
#include <cstdio>
#include <iostream>
#include <string>

#include "error.h"
#include "json.h"
#include "tokenizer.h"

namespace {

void PrintPiece(const std::string& piece) {
  std::putchar('/');
  for (const char c : piece) std::printf("%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
}

void Answer(const Tokenizer& tokenizer, const Json& request) {
  if (request["text"].String() != nullptr) {
    for (const int64_t id : tokenizer.Encode(*request["text"].String(), request["special"].BoolOr(false))) {
      std::printf("%lld ", static_cast<long long>(id));
    }
  } else {
    TextStream stream;
    for (const Json& id : request["ids"].Items()) PrintPiece(stream.Append(tokenizer.Bytes(id.IntOr(-1))));
    PrintPiece(stream.Finish());
  }
  std::putchar('\n');
}

}  // namespace

int main(int, char** arguments) {
  try {
    const Tokenizer tokenizer(arguments[1]);
    for (std::string line; std::getline(std::cin, line);) Answer(tokenizer, Json::Parse(line, "a request"));
    return 0;
  } catch (const Error& error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
}
