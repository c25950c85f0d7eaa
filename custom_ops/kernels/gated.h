// The arithmetic of bitnet::GatedActivation, free of any runtime's types; docs/attention.md is the contract.
#ifndef BITNET_KERNELS_GATED_H_
#define BITNET_KERNELS_GATED_H_

#include <cstdint>
#include <string>

#include "bitlinear.h"

namespace bitnet {

enum class Activation { kSilu, kRelu2, kGelu, kGeluTanh };

// False for a name that is not known.
bool ParseActivation(const std::string& name, Activation& activation);
// The known names, for an error's text.
const char* ActivationNames();

// Rows of gates and ups: row r begins at gate + r * stride and up + r * stride.
struct GatedCall {
  Activation activation;
  const float* gate;
  const float* up;
  int64_t rows;
  int64_t width;
  int64_t stride;
  float* y;  // [rows, width]
};

// False if the executor failed.
bool RunGated(const GatedCall& call, const Executor& executor);

}  // namespace bitnet

#endif  // BITNET_KERNELS_GATED_H_
