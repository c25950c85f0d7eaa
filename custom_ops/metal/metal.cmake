# The target bitnet_metal: the execution provider BitNetMetal (docs/metal-provider.md).
set(BITNET_METAL_DIR ${CMAKE_CURRENT_SOURCE_DIR}/custom_ops/metal)
find_package(Python3 COMPONENTS Interpreter QUIET)
if(NOT Python3_Interpreter_FOUND)
  message(WARNING "No Python found, which prepares the shaders: bitnet-onnx is built without its Metal provider.")
  return()
endif()

# On a Mac the headers of metal-cpp come with the wheel mlx-metal, a requirement of the build, or from a folder that
# BITNET_METAL_CPP names.
if(NOT BITNET_METAL_EMULATION)
  set(BITNET_METAL_CPP "" CACHE PATH "The folder that holds Metal/Metal.hpp of metal-cpp")
  if(NOT BITNET_METAL_CPP)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c
        "from importlib.metadata import distribution as d; print(d('mlx-metal').locate_file('mlx/include/metal_cpp'))"
      OUTPUT_VARIABLE BITNET_METAL_CPP_FOUND OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    set(BITNET_METAL_CPP "${BITNET_METAL_CPP_FOUND}" CACHE PATH "" FORCE)
  endif()
  if(NOT EXISTS "${BITNET_METAL_CPP}/Metal/Metal.hpp")
    message(WARNING "No metal-cpp found: bitnet-onnx is built without its Metal provider. Install mlx-metal for "
                    "${Python3_EXECUTABLE}, or set BITNET_METAL_CPP to the folder that holds Metal/Metal.hpp.")
    return()
  endif()
endif()

file(GLOB BITNET_SHADERS CONFIGURE_DEPENDS ${BITNET_METAL_DIR}/shaders/*.metal)
file(GLOB BITNET_SHADER_HEADERS CONFIGURE_DEPENDS ${BITNET_METAL_DIR}/shaders/*.h)
set(BITNET_TRANSLATE ${BITNET_METAL_DIR}/emulation/translate.py)
set(BITNET_SHADER_INPUTS ${BITNET_SHADERS} ${BITNET_SHADER_HEADERS} ${BITNET_METAL_DIR}/arguments.h ${BITNET_TRANSLATE})

add_library(bitnet_metal MODULE
  custom_ops/metal/host/attention_steps.cc
  custom_ops/metal/host/build.cc
  custom_ops/metal/host/call.cc
  custom_ops/metal/host/elementwise_steps.cc
  custom_ops/metal/host/graph.cc
  custom_ops/metal/host/linear_steps.cc
  custom_ops/metal/host/memory.cc
  custom_ops/metal/host/placement.cc
  custom_ops/metal/host/plan.cc
  custom_ops/metal/host/shape_steps.cc
  custom_ops/metal/provider/allocator.cc
  custom_ops/metal/provider/ep.cc
  custom_ops/metal/provider/factory.cc
  custom_ops/metal/provider/graph_reader.cc)
target_compile_definitions(bitnet_metal PRIVATE BITNET_OPS_VERSION="${BITNET_OPS_VERSION}")
if(BITNET_METAL_EMULATION)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "BITNET_METAL_EMULATION needs clang, for the vectors of the shaders: set CMAKE_CXX_COMPILER")
  endif()
  file(GLOB BITNET_EMULATION CONFIGURE_DEPENDS ${BITNET_METAL_DIR}/emulation/*.cc)
  target_sources(bitnet_metal PRIVATE ${BITNET_EMULATION})
  target_compile_definitions(bitnet_metal PRIVATE BITNET_METAL_EMULATION)
  foreach(shader ${BITNET_SHADERS})
    get_filename_component(name ${shader} NAME_WE)
    set(translated ${CMAKE_CURRENT_BINARY_DIR}/shaders/${name}.cc)
    add_custom_command(OUTPUT ${translated}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/shaders
      COMMAND ${Python3_EXECUTABLE} ${BITNET_TRANSLATE} cpp ${shader} ${translated}
      DEPENDS ${BITNET_SHADER_INPUTS})
    target_sources(bitnet_metal PRIVATE ${translated})
    set_source_files_properties(${translated} PROPERTIES COMPILE_OPTIONS
      "-Wno-conversion;-Wno-shadow;-Wno-unknown-pragmas;-Wno-unused-function;-Wno-missing-braces")
  endforeach()
  target_include_directories(bitnet_metal PRIVATE ${BITNET_METAL_DIR}/emulation/include ${BITNET_METAL_DIR}/emulation
    ${BITNET_METAL_DIR}/shaders ${BITNET_METAL_DIR})
else()
  # One text with all shaders, which the library holds and Metal compiles when the device is opened.
  set(bundle ${CMAKE_CURRENT_BINARY_DIR}/shaders/bitnet.metal)
  set(embedded ${CMAKE_CURRENT_BINARY_DIR}/shaders/source.cc)
  add_custom_command(OUTPUT ${embedded}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/shaders
    COMMAND ${Python3_EXECUTABLE} ${BITNET_TRANSLATE} bundle ${BITNET_SHADERS} ${bundle}
    COMMAND ${Python3_EXECUTABLE} ${BITNET_METAL_DIR}/embed.py ${bundle} ${embedded}
    DEPENDS ${BITNET_SHADER_INPUTS} ${BITNET_METAL_DIR}/embed.py)
  target_sources(bitnet_metal PRIVATE custom_ops/metal/metal_device.cc ${embedded})
  target_include_directories(bitnet_metal SYSTEM PRIVATE ${BITNET_METAL_CPP})
  target_link_libraries(bitnet_metal PRIVATE "-framework Foundation" "-framework Metal" "-framework QuartzCore")
endif()

if(APPLE)
  set_target_properties(bitnet_metal PROPERTIES SUFFIX .dylib)
  foreach(symbol CreateEpFactories ReleaseEpFactory BitnetMetalVersion BitnetMetalAllocate BitnetMetalFree
                 BitnetMetalCounters)
    target_link_options(bitnet_metal PRIVATE -Wl,-exported_symbol,_${symbol})
  endforeach()
elseif(UNIX)
  set(BITNET_METAL_EXPORTS ${BITNET_METAL_DIR}/provider/exports.map)
  # nodelete: memory that it allocated may outlive its registration.
  target_link_options(bitnet_metal PRIVATE -Wl,--version-script=${BITNET_METAL_EXPORTS} -Wl,-z,nodelete)
  set_target_properties(bitnet_metal PROPERTIES LINK_DEPENDS ${BITNET_METAL_EXPORTS})
endif()
bitnet_configure(bitnet_metal)
