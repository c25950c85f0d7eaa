// Choosing the next token from the logits.
#ifndef BITNET_EXAMPLE_SAMPLER_H_
#define BITNET_EXAMPLE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

struct Sampling {
  double temperature = 0;  // divides the logits; 0: the most probable token, always
  double top_p = 1;        // keeps the fewest most probable tokens that reach this sum
  uint64_t seed = 0;       // the same seed gives the same text
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling), random_(sampling.seed) {}

  // Throws Error when the logits are no numbers.
  int64_t Next(const std::vector<float>& logits);

 private:
  Sampling sampling_;
  std::mt19937_64 random_;
  std::vector<int64_t> order_;
  std::vector<double> weights_;
};

#endif  // BITNET_EXAMPLE_SAMPLER_H_
