// Every shader begins with it. Each product and each sum is rounded by itself. Metal's safe mode alone still
// fuses within a statement, so there are pragmas of both spellings, for compilers that know one; the host
// compiles with fast math off as well.
#ifndef BITNET_METAL_SHADERS_PRELUDE_H_
#define BITNET_METAL_SHADERS_PRELUDE_H_

#include <metal_stdlib>

#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#pragma clang fp contract(off)

using namespace metal;

#endif  // BITNET_METAL_SHADERS_PRELUDE_H_
