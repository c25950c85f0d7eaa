// Function constants of all shaders. A pipeline sets those that its kernel uses (arguments.h).
#ifndef BITNET_METAL_SHADERS_CONSTANTS_H_
#define BITNET_METAL_SHADERS_CONSTANTS_H_

#include "../arguments.h"
#include "prelude.h"

constant uint kSimdgroups [[function_constant(kConstantSimdgroups)]];
constant uint kHalf [[function_constant(kConstantHalf)]];
constant uint kBits [[function_constant(kConstantBits)]];
constant uint kScaleKind [[function_constant(kConstantScaleKind)]];
constant uint kNorm [[function_constant(kConstantNorm)]];
constant uint kBias [[function_constant(kConstantBias)]];
constant uint kPanels [[function_constant(kConstantPanels)]];
constant uint kUnroll [[function_constant(kConstantUnroll)]];
constant uint kTokens [[function_constant(kConstantTokens)]];
constant uint kMasks [[function_constant(kConstantMasks)]];
constant uint kMatrices [[function_constant(kConstantMatrices)]];
constant uint kResidual [[function_constant(kConstantResidual)]];
constant uint kInt8Cache [[function_constant(kConstantInt8Cache)]];
constant uint kRotary [[function_constant(kConstantRotary)]];
constant uint kQueryLengths [[function_constant(kConstantQueryLengths)]];
constant uint kRows [[function_constant(kConstantRows)]];
constant uint kSplit [[function_constant(kConstantSplit)]];
constant uint kOperation [[function_constant(kConstantOperation)]];

// Whether optional buffers are there.
constant bool kHasNorm = kNorm != 0;
constant bool kHasBias = kBias != 0;
constant bool kHasResidual = kResidual != 0;
constant bool kHasInt8Cache = kInt8Cache != 0;
constant bool kHasRotary = kRotary != 0;
constant bool kHasQueryLengths = kQueryLengths != 0;
constant bool kHasSplit = kSplit != 0;
constant bool kHasNoSplit = kSplit == 0;

#endif  // BITNET_METAL_SHADERS_CONSTANTS_H_
