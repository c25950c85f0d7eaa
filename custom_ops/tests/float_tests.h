// The float kernels' tests, run by the main program of kernel_tests.cc.
#ifndef BITNET_TESTS_FLOAT_TESTS_H_
#define BITNET_TESTS_FLOAT_TESTS_H_

namespace bitnet {

// Prints what fails and returns how often.
int TestFloatKernels();

}  // namespace bitnet

#endif  // BITNET_TESTS_FLOAT_TESTS_H_
