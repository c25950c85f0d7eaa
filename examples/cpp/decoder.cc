#include "decoder.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <utility>

#include "error.h"
#include "json.h"

namespace {

// The message of ONNX Runtime, which may have several lines, as one.
std::string OneLine(const std::exception& error) {
  std::istringstream words(error.what());
  std::string line, word;
  while (words >> word)
    line += (line.empty() ? "" : " ") + word;
  return line;
}

int64_t Number(const Json& object, const char* name, int64_t most, const std::string& file) {
  const int64_t number = object[name].IntOr(-1);
  if (number < 1 || number > most) {
    throw Error(file + ": " + name + " is missing or not a number from 1 to " + std::to_string(most));
  }
  return number;
}

std::string CacheName(const char* side, int64_t layer, const char* part) {
  return std::string(side) + "." + std::to_string(layer) + "." + part;
}

}  // namespace

PackageConfig PackageConfig::Read(const std::filesystem::path& package) {
  if (!std::filesystem::is_directory(package)) {
    throw Error(package.string() + ": no such directory; `bitnet-onnx convert` makes packages");
  }
  const std::filesystem::path path = package / "genai_config.json";
  const std::string file = path.string();
  const Json json = Json::Read(path);
  const Json& model = json["model"];
  const Json& decoder = model["decoder"];
  PackageConfig config;
  config.filename = decoder["filename"].StringOr("model.onnx");
  config.layers = Number(decoder, "num_hidden_layers", 4096, file);
  config.kv_heads = Number(decoder, "num_key_value_heads", 4096, file);
  config.head_size = Number(decoder, "head_size", 4096, file);
  config.vocab_size = Number(model, "vocab_size", 1 << 24, file);
  config.context_length = Number(model, "context_length", 1 << 26, file);
  config.max_length = std::min(Number(json["search"], "max_length", 1 << 26, file), config.context_length);
  // One id, or several.
  const Json& eos = model["eos_token_id"];
  for (const Json& id : eos.Items())
    config.eos_ids.push_back(id.IntOr(-1));
  if (config.eos_ids.empty())
    config.eos_ids.push_back(eos.IntOr(-1));
  return config;
}

Decoder::Interface::Interface() {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw Error(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                " is older than this program, which is built for 1." + std::to_string(ORT_API_VERSION));
  }
  Ort::InitApi(api);
}

Decoder::Decoder(const std::filesystem::path& package, const PackageConfig& config,
                 const std::filesystem::path& library, int64_t context, int threads)
    : config_(config), path_(package / config.filename), context_(context) {
  if (context < 1 || context > config.context_length) {
    throw Error("a context of " + std::to_string(context) + " tokens: the model has 1 to " +
                std::to_string(config.context_length));
  }
  OpenSession(library, threads);
  try {
    BindCache();
  } catch (const Ort::Exception& error) {
    throw Error(path_.string() + " is not what genai_config.json says: " + OneLine(error));
  }
}

void Decoder::OpenSession(const std::filesystem::path& library, int threads) {
  // What ONNX Runtime would log comes as an exception, too.
  env_ = Ort::Env(ORT_LOGGING_LEVEL_FATAL, "bitnet-example");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  // Shapes change from call to call; an arena would keep the memory of the longest prompt.
  options.DisableMemPattern();
  options.DisableCpuMemArena();
  if (!library.empty()) {
    if (!std::filesystem::is_regular_file(library)) {
      throw Error(library.string() + ": no such library; `bitnet-onnx ops --path` prints where it is");
    }
    try {
      options.RegisterCustomOpsLibrary(std::filesystem::absolute(library).c_str());
    } catch (const Ort::Exception& error) {
      throw Error(library.string() + " cannot be used here: " + OneLine(error));
    }
  }
  try {
    session_ = Ort::Session(env_, path_.c_str(), options);
  } catch (const Ort::Exception& error) {
    std::filesystem::path data = path_;
    data += ".data";
    if (std::filesystem::exists(path_) && !std::filesystem::exists(data)) {
      throw Error(data.string() + " is missing, which holds the weights: copy the package as a whole");
    }
    throw Error(path_.string() + " cannot be opened: " + OneLine(error));
  }
}

// One buffer of keys and one of values a layer, [1, kv_heads, context, head_size], is bound as what the graph
// reads and as what it writes: a call adds its tokens in place and copies nothing.
void Decoder::BindCache() {
  cpu_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  run_options_ = Ort::RunOptions();
  run_options_.SetRunLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
  binding_ = Ort::IoBinding(session_);
  const std::array<int64_t, 4> shape = {1, config_.kv_heads, context_, config_.head_size};
  cache_elements_ = static_cast<size_t>(config_.kv_heads) * static_cast<size_t>(context_) *
                    static_cast<size_t>(config_.head_size);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    for (const char* part : {"key", "value"}) {
      // Fresh zeros take no memory until they are written.
      cache_.emplace_back(static_cast<float*>(std::calloc(cache_elements_, sizeof(float))));
      if (cache_.back() == nullptr) {
        throw Error("no memory for the keys and values of " + std::to_string(context_) +
                    " tokens: give --context");
      }
      const auto value = Ort::Value::CreateTensor<float>(cpu_, cache_.back().get(), cache_elements_,
                                                         shape.data(), shape.size());
      binding_.BindInput(CacheName("past_key_values", layer, part).c_str(), value);
      binding_.BindOutput(CacheName("present", layer, part).c_str(), value);
    }
  }
}

const std::vector<float>& Decoder::Read(const std::vector<int64_t>& ids) {
  const auto count = static_cast<int64_t>(ids.size());
  if (count == 0)
    throw Error("the prompt has no tokens");
  for (const int64_t id : ids) {
    if (id < 0 || id >= config_.vocab_size) {
      throw Error("token " + std::to_string(id) + " is not in the vocabulary of " +
                  std::to_string(config_.vocab_size));
    }
  }
  if (count > context_ - length_) {
    const std::string room = "the context of " + std::to_string(context_) + " tokens";
    const std::string what = length_ > 0
                                 ? room + " is full"
                                 : "the prompt has " + std::to_string(count) + " tokens, more than " + room;
    throw Error(what + (context_ < config_.context_length ? ": give a larger --context" : ""));
  }
  const int64_t total = length_ + count;
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  mask_.resize(static_cast<size_t>(total), 1);
  logits_.resize(ids.size() * vocab);
  const std::array<int64_t, 2> ids_shape = {1, count}, mask_shape = {1, total};
  const std::array<int64_t, 3> logits_shape = {1, count, config_.vocab_size};
  try {
    // The graph only reads its inputs.
    binding_.BindInput("input_ids", Ort::Value::CreateTensor<int64_t>(cpu_, const_cast<int64_t*>(ids.data()),
                                                                      ids.size(), ids_shape.data(), 2));
    binding_.BindInput("attention_mask", Ort::Value::CreateTensor<int64_t>(cpu_, mask_.data(), mask_.size(),
                                                                           mask_shape.data(), 2));
    binding_.BindOutput("logits", Ort::Value::CreateTensor<float>(cpu_, logits_.data(), logits_.size(),
                                                                  logits_shape.data(), 3));
    session_.Run(run_options_, binding_);
  } catch (const Ort::Exception& error) {
    throw Error(path_.string() + " cannot be run as genai_config.json says: " + OneLine(error));
  }
  length_ = total;
  // The graph gives the logits behind every token: those of a long prompt are let go.
  if (count > 1)
    logits_ = std::vector<float>(logits_.end() - config_.vocab_size, logits_.end());
  return logits_;
}

bool Decoder::InPlace() const {
  const std::vector<std::string> names = binding_.GetOutputNames();
  const std::vector<Ort::Value> values = binding_.GetOutputValues();
  size_t found = 0;
  for (size_t index = 0; index < names.size(); ++index) {
    if (names[index] == "logits")
      continue;
    const auto* data = values[index].GetTensorData<float>();
    found += std::any_of(cache_.begin(), cache_.end(), [data](const auto& one) { return one.get() == data; });
  }
  return found == cache_.size();
}
