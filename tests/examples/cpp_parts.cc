// The parts of examples/cpp that need no ONNX Runtime: requests in JSON, one a line, on the standard input.
// {"text", "special"} is answered by ids; {"ids"} by the text, in hexadecimal digits after a '/' for each piece
// of the stream; {"logits", "temperature", "top_p", "seed", "draws"} by as many tokens.
#include <cmath>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "error.h"
#include "json.h"
#include "sampler.h"
#include "tokenizer.h"

namespace {

void PrintPiece(const std::string& piece) {
  std::putchar('/');
  for (const char c : piece)
    std::printf("%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
}

double Number(const Json& json) { return std::get<double>(json.value); }

void Draw(const Json& request) {
  std::vector<float> logits;
  for (const Json& logit : request["logits"].Items()) {
    logits.push_back(logit.IsNull() ? std::nanf("") : static_cast<float>(Number(logit)));
  }
  Sampler sampler({Number(request["temperature"]), Number(request["top_p"]),
                   static_cast<uint64_t>(request["seed"].IntOr(0))});
  for (int64_t draw = 0; draw < request["draws"].IntOr(1); ++draw) {
    std::printf("%lld ", static_cast<long long>(sampler.Next(logits)));
  }
}

void Answer(const Tokenizer& tokenizer, const Json& request) {
  if (request["text"].String() != nullptr) {
    for (const int64_t id : tokenizer.Encode(*request["text"].String(), request["special"].BoolOr(false))) {
      std::printf("%lld ", static_cast<long long>(id));
    }
  } else if (!request["logits"].IsNull()) {
    Draw(request);
  } else {
    TextStream stream;
    for (const Json& id : request["ids"].Items())
      PrintPiece(stream.Append(tokenizer.Bytes(id.IntOr(-1))));
    PrintPiece(stream.Finish());
  }
  std::putchar('\n');
}

}  // namespace

int main(int, char** arguments) {
  try {
    const Tokenizer tokenizer(arguments[1]);
    for (std::string line; std::getline(std::cin, line);)
      Answer(tokenizer, Json::Parse(line, "a request"));
    return 0;
  } catch (const Error& error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
}
