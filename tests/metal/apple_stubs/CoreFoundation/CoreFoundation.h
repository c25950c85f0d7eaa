#pragma once
#include <cmath>
typedef const void* CFTypeRef;
typedef double CFTimeInterval;
typedef struct CGSize {
  double width, height;
} CGSize;
