// The decoder of a package, opened in ONNX Runtime: token ids in, logits out.
#ifndef BITNET_EXAMPLE_DECODER_H_
#define BITNET_EXAMPLE_DECODER_H_

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

// The interface is asked for in decoder.cc, where an ONNX Runtime that is too old can be refused politely.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

// What the program reads of a package's genai_config.json.
struct PackageConfig {
  std::string filename;                 // of the graph
  int64_t layers, kv_heads, head_size;  // of the keys and values
  int64_t vocab_size, context_length,
      max_length;  // `max_length`: tokens to make room for, unless told otherwise
  std::vector<int64_t> eos_ids;

  // Throws Error: the file is missing, or a number in it is missing or impossible.
  static PackageConfig Read(const std::filesystem::path& package);
};

class Decoder {
 public:
  // Opens the graph; with `library`, an operator library, its kernels run, without it (empty) the function
  // bodies. Makes room for `context` tokens. `threads`: 0 for as many as there are cores. Throws Error.
  Decoder(const std::filesystem::path& package, const PackageConfig& config,
          const std::filesystem::path& library, int64_t context, int threads);

  // Reads `ids` behind what was read so far, in one call. Returns the logits behind the last of them, for
  // what comes next. Throws Error: an id that is none, or no room.
  const std::vector<float>& Read(const std::vector<int64_t>& ids);

  int64_t length() const { return length_; }
  int64_t context() const { return context_; }
  size_t cache_bytes() const { return cache_.size() * cache_elements_ * sizeof(float); }
  // Whether what the graph gives as `present` is the memory that it took as `past`.
  bool InPlace() const;

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };

  // Has to be there before the members that use the interface, and be destroyed after them.
  struct Interface {
    Interface();
  };

  void OpenSession(const std::filesystem::path& library, int threads);
  void BindCache();

  Interface interface_;
  PackageConfig config_;
  std::filesystem::path path_;  // of the graph
  int64_t context_;
  int64_t length_ = 0;
  size_t cache_elements_;  // of one buffer
  std::vector<std::unique_ptr<float, Free>> cache_;
  std::vector<int64_t> mask_;
  std::vector<float> logits_;
  // Destroyed in the reverse order: bindings and the session before the environment.
  Ort::Env env_{nullptr};
  Ort::MemoryInfo cpu_{nullptr};
  Ort::Session session_{nullptr};
  Ort::IoBinding binding_{nullptr};
  Ort::RunOptions run_options_{nullptr};
};

#endif  // BITNET_EXAMPLE_DECODER_H_
