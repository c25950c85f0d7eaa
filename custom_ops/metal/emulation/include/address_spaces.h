// Metal's address spaces, which the host does not have. After every other header.
#ifndef BITNET_METAL_EMULATION_ADDRESS_SPACES_H_
#define BITNET_METAL_EMULATION_ADDRESS_SPACES_H_

#define constant const
#define device
#define thread
#define threadgroup

#endif  // BITNET_METAL_EMULATION_ADDRESS_SPACES_H_
