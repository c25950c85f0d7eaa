# Cross-compiles with Zig's clang, which brings the C and C++ libraries of every target: no SDK is needed.
# BITNET_ZIG_TARGET is what Zig calls the target, as in aarch64-linux-gnu.2.28 or x86_64-windows-gnu. Zig is found on
# PATH, or as the Python package ziglang.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES BITNET_ZIG_TARGET BITNET_ZIG)
if(NOT BITNET_ZIG_TARGET MATCHES "^(x86_64|aarch64)-(linux|macos|windows)")
  message(FATAL_ERROR "BITNET_ZIG_TARGET is '${BITNET_ZIG_TARGET}': name a target as in aarch64-linux-gnu.2.28")
endif()
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
if(CMAKE_MATCH_2 STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
elseif(CMAKE_MATCH_2 STREQUAL "windows")
  set(CMAKE_SYSTEM_NAME Windows)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()

find_program(BITNET_ZIG zig)
if(NOT BITNET_ZIG)
  foreach(python python3 python)
    execute_process(
      COMMAND ${python} -c "from importlib.util import find_spec; print(find_spec('ziglang').submodule_search_locations[0])"
      OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_program(BITNET_ZIG zig PATHS "${folder}" NO_DEFAULT_PATH)
  endforeach()
endif()
if(NOT BITNET_ZIG)
  message(FATAL_ERROR "No zig found: put it on PATH, install ziglang for python3, or set BITNET_ZIG")
endif()
set(CMAKE_CXX_COMPILER ${BITNET_ZIG} c++ -target ${BITNET_ZIG_TARGET})
# Zig compiles the C++ library for every set of processor features that it links for: checks must not link.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# Without the debug information of that library, 5 MB.
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
# CMake demands this tool of Apple's, for which nothing here has a use.
if(CMAKE_SYSTEM_NAME STREQUAL "Darwin")
  set(CMAKE_INSTALL_NAME_TOOL ${CMAKE_COMMAND})
endif()
