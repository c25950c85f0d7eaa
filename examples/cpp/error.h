// What goes wrong, as the one line that the user reads.
#ifndef BITNET_EXAMPLE_ERROR_H_
#define BITNET_EXAMPLE_ERROR_H_

#include <stdexcept>

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#endif  // BITNET_EXAMPLE_ERROR_H_
