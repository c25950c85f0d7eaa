#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "error.h"

int64_t Sampler::Next(const std::vector<float>& logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  const bool usable = std::none_of(logits.begin(), logits.end(), [](float logit) { return std::isnan(logit); });
  if (!usable || !std::isfinite(*best))
    throw Error("the model gives logits that are no numbers");
  if (sampling_.temperature == 0)
    return best - logits.begin();

  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  if (sampling_.top_p < 1) {
    // Of equals the lower id comes first, everywhere.
    std::sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
      const float left = logits[static_cast<size_t>(a)], right = logits[static_cast<size_t>(b)];
      return left != right ? left > right : a < b;
    });
  }
  weights_.clear();
  double total = 0;
  for (const int64_t token : order_) {
    weights_.push_back(std::exp((logits[static_cast<size_t>(token)] - *best) / sampling_.temperature));
    total += weights_.back();
  }
  size_t kept = 0;
  double sum = 0;
  do {
    sum += weights_[kept++];
  } while (kept < weights_.size() && sum < sampling_.top_p * total);
  // Not std::discrete_distribution: what that draws differs from one standard library to the next.
  double draw = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
  for (size_t place = 0; place + 1 < kept; ++place) {
    draw -= weights_[place];
    if (draw < 0)
      return order_[place];
  }
  return order_[kept - 1];
}
