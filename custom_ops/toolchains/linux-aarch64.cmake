# 64-bit Arm Linux with the cross compiler of Debian and Ubuntu (package g++-aarch64-linux-gnu). Programs that are
# built, such as the tests, run under qemu-aarch64 (package qemu-user) where that is installed.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
find_program(BITNET_QEMU qemu-aarch64)
if(BITNET_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${BITNET_QEMU} -L /usr/aarch64-linux-gnu)
endif()
