// Continues a text with a package of bitnet-onnx, on ONNX Runtime's C++ interface; README.md tells how.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "decoder.h"
#include "error.h"
#include "sampler.h"
#include "tokenizer.h"

namespace {

constexpr const char* kUsage =
    R"(usage: bitnet_generate PACKAGE --prompt TEXT [options]

  --prompt TEXT         the text to continue
  --special             control tokens that TEXT spells, such as <|im_start|>, are those tokens
  --ids N,N,...         the prompt as token ids, of any model
  --print-ids           print the ids of the answer, one a line
  --library PATH        the operator library; '' for none: the function bodies of the package run
  --max-new-tokens N    most tokens of the answer (128)
  --context N           most tokens of prompt and answer (as genai_config.json says)
  --temperature T       0 takes the most probable token, always (0)
  --top-p P             keep the fewest tokens whose probabilities reach P (1)
  --seed N              the same seed gives the same text (0)
  --threads N           of one operator (as many as there are cores)
  --stats               what was read, written and held, on the standard error
)";

// CMakeLists.txt names the library where it has found the CMake package of bitnet-onnx.
#ifndef BITNET_OPS_LIBRARY
#define BITNET_OPS_LIBRARY ""
#endif

struct Options {
  std::filesystem::path package, library = BITNET_OPS_LIBRARY;
  std::string prompt;
  std::vector<int64_t> ids;
  bool special = false, print_ids = false, stats = false;
  int64_t max_new_tokens = 128;
  int64_t context = 0;  // 0: as the package says
  int threads = 0;
  Sampling sampling;
};

int64_t Whole(const std::string& name, std::string_view text, int64_t least, int64_t most) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, failed] = std::from_chars(text.data(), end, number);
  if (failed != std::errc() || rest != end || number < least || number > most) {
    throw Error(name + " is '" + std::string(text) + "', expected a whole number from " +
                std::to_string(least) + " to " + std::to_string(most));
  }
  return number;
}

double Fraction(const std::string& name, const std::string& text, double above, double most, bool zero) {
  char* rest = nullptr;
  const double number = std::strtod(text.c_str(), &rest);
  const bool fits = (number > above && number <= most) || (zero && number == 0);
  if (text.empty() || *rest != '\0' || !fits) {
    throw Error(name + " is '" + text + "', expected a number " + (zero ? "from 0" : "above 0") + " to " +
                (most == 1 ? "1" : "1000"));
  }
  return number;
}

std::vector<int64_t> ReadIds(std::string_view text) {
  std::vector<int64_t> ids;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    ids.push_back(Whole("--ids", text.substr(begin, end - begin), 0, std::numeric_limits<int32_t>::max()));
    begin = end + 1;
  }
  return ids;
}

Options ReadOptions(const std::vector<std::string>& arguments) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  Options options;
  bool prompted = false;
  for (size_t at = 0; at < arguments.size(); ++at) {
    const std::string& name = arguments[at];
    const auto value = [&]() -> const std::string& {
      if (at + 1 == arguments.size())
        throw Error(name + " needs a value");
      return arguments[++at];
    };
    if (name == "--prompt") {
      options.prompt = value();
      prompted = true;
    } else if (name == "--ids") {
      options.ids = ReadIds(value());
    } else if (name == "--special") {
      options.special = true;
    } else if (name == "--print-ids") {
      options.print_ids = true;
    } else if (name == "--stats") {
      options.stats = true;
    } else if (name == "--library") {
      options.library = value();
    } else if (name == "--max-new-tokens") {
      options.max_new_tokens = Whole(name, value(), 1, kMost);
    } else if (name == "--context") {
      options.context = Whole(name, value(), 1, kMost);
    } else if (name == "--threads") {
      options.threads = static_cast<int>(Whole(name, value(), 1, 1024));
    } else if (name == "--seed") {
      options.sampling.seed =
          static_cast<uint64_t>(Whole(name, value(), 0, std::numeric_limits<int64_t>::max()));
    } else if (name == "--temperature") {
      options.sampling.temperature = Fraction(name, value(), 0, 1000, true);
    } else if (name == "--top-p") {
      options.sampling.top_p = Fraction(name, value(), 0, 1, false);
    } else if (name.rfind("--", 0) == 0) {
      throw Error("unknown option " + name + "; --help lists the options");
    } else if (options.package.empty()) {
      options.package = name;
    } else {
      throw Error("unexpected argument '" + name + "': one package, options begin with --");
    }
  }
  if (options.package.empty())
    throw Error("no package given; --help tells how");
  if (prompted == !options.ids.empty())
    throw Error("give either --prompt or --ids");
  return options;
}

double Since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Generate(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const PackageConfig config = PackageConfig::Read(options.package);
  Decoder decoder(options.package, config, options.library,
                  options.context > 0 ? options.context : config.max_length, options.threads);
  // Ids in and ids out need no tokenizer, so that every model can be run.
  const bool needs_text = options.ids.empty() || !options.print_ids;
  const Tokenizer tokenizer = needs_text ? Tokenizer(options.package) : Tokenizer();
  const std::vector<int64_t> prompt =
      options.ids.empty() ? tokenizer.Encode(options.prompt, options.special) : options.ids;
  const double opened = Since(start);

  Sampler sampler(options.sampling);
  TextStream text;
  const auto read_start = std::chrono::steady_clock::now();
  const std::vector<float>* logits = &decoder.Read(prompt);
  const double read = Since(read_start);
  const auto write_start = std::chrono::steady_clock::now();
  int64_t written = 0;
  while (true) {
    const int64_t id = sampler.Next(*logits);
    if (std::find(config.eos_ids.begin(), config.eos_ids.end(), id) != config.eos_ids.end())
      break;
    if (options.print_ids) {
      std::cout << id << std::endl;
    } else {
      std::cout << text.Append(tokenizer.Bytes(id)) << std::flush;
    }
    if (++written == options.max_new_tokens || !std::cout)
      break;
    try {
      logits = &decoder.Read({id});
    } catch (const Error&) {
      std::cout << std::endl;
      throw;
    }
  }
  if (!options.print_ids)
    std::cout << text.Finish() << std::endl;
  if (!options.stats)
    return;
  const std::string operators = options.library.empty() ? "function bodies" : options.library.string();
  std::fprintf(stderr, "opened in %.3f s; read %zu tokens in %.3f s; wrote %lld in %.3f s\n", opened,
               prompt.size(), read, static_cast<long long>(written), Since(write_start));
  std::fprintf(stderr, "operators: %s\n", operators.c_str());
  std::fprintf(stderr, "keys and values: %lld of %lld tokens, %zu bytes, %s\n",
               static_cast<long long>(decoder.length()), static_cast<long long>(decoder.context()),
               decoder.cache_bytes(), decoder.InPlace() ? "in place" : "copied");
}

}  // namespace

int main(int count, char** values) {
  const std::vector<std::string> arguments(values + 1, values + count);
  if (arguments.empty() || std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    (arguments.empty() ? std::cerr : std::cout) << kUsage;
    return arguments.empty() ? 2 : 0;
  }
  try {
    Generate(ReadOptions(arguments));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "bitnet_generate: " << error.what() << std::endl;
    return 2;
  }
}
