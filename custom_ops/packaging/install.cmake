# Where the operator library goes, with what other builds need to find it: the C header, the CMake package bitnet_ops
# and the pkg-config file. Any install but that of a wheel lays them into a prefix that may be moved. A wheel carries
# them in bitnet_onnx/custom_ops/sdk, written for the flat folder that `bitnet-onnx ops --copy` makes.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(BITNET_PACKAGING ${CMAKE_CURRENT_LIST_DIR})
set(BITNET_PACKAGE ${CMAKE_CURRENT_BINARY_DIR}/package)

set(BITNET_OPS_VERSION_NUMBERS ${PROJECT_VERSION})
configure_file(${BITNET_PACKAGING}/../include/bitnet_ops.h.in ${BITNET_PACKAGE}/bitnet_ops.h @ONLY)
target_include_directories(bitnet_ops PUBLIC $<BUILD_INTERFACE:${BITNET_PACKAGE}>)
add_library(bitnet_ops::bitnet_ops ALIAS bitnet_ops)
if(WIN32 AND NOT BITNET_OPS_STATIC)
  # One name for all compilers: MinGW would call it libbitnet_ops.dll.
  set_target_properties(bitnet_ops PROPERTIES PREFIX "")
endif()

# In BITNET_TO: where the files lie from each other.
if(SKBUILD)
  set(BITNET_LIBRARY_DIR bitnet_onnx/custom_ops)
  foreach(kind IMPORT HEADER CMAKE PKGCONFIG LICENSE)
    set(BITNET_${kind}_DIR bitnet_onnx/custom_ops/sdk)
  endforeach()
  foreach(kind LIBRARY IMPORT HEADER CMAKE PKGCONFIG)
    set(BITNET_TO_${kind} sdk)
  endforeach()
else()
  set(BITNET_LIBRARY_DIR ${CMAKE_INSTALL_LIBDIR})
  if(BITNET_OPS_STATIC)
    # An archive lies where others do.
  elseif(WIN32)
    set(BITNET_LIBRARY_DIR ${CMAKE_INSTALL_BINDIR})
  else()
    # The name that programs remember when they are linked: a library of another major version has another.
    set_target_properties(bitnet_ops PROPERTIES
      VERSION ${BITNET_OPS_VERSION_NUMBERS} SOVERSION ${BITNET_OPS_VERSION_MAJOR})
  endif()
  set(BITNET_IMPORT_DIR ${CMAKE_INSTALL_LIBDIR})
  set(BITNET_HEADER_DIR ${CMAKE_INSTALL_INCLUDEDIR})
  set(BITNET_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/bitnet_ops)
  set(BITNET_PKGCONFIG_DIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  set(BITNET_LICENSE_DIR ${CMAKE_INSTALL_DATAROOTDIR}/licenses/bitnet_ops)
  foreach(kind LIBRARY IMPORT HEADER CMAKE PKGCONFIG)
    if(IS_ABSOLUTE "${BITNET_${kind}_DIR}")
      message(FATAL_ERROR "${BITNET_${kind}_DIR} is absolute, and what is installed must be movable: give "
                          "CMAKE_INSTALL_LIBDIR, CMAKE_INSTALL_BINDIR and CMAKE_INSTALL_INCLUDEDIR below the prefix")
    endif()
    set(BITNET_TO_${kind} ${BITNET_${kind}_DIR})
  endforeach()
endif()
foreach(from CMAKE PKGCONFIG)
  foreach(to LIBRARY IMPORT HEADER)
    file(RELATIVE_PATH BITNET_${from}_TO_${to} /${BITNET_TO_${from}} /${BITNET_TO_${to}})
    string(REGEX REPLACE "/$" "" BITNET_${from}_TO_${to} "./${BITNET_${from}_TO_${to}}")
  endforeach()
endforeach()

# File names are known when the build is generated: the templates ask for them with $<...>.
set(BITNET_IMPORT_LIBRARY "")
if(WIN32 AND NOT BITNET_OPS_STATIC)
  set(BITNET_IMPORT_LIBRARY "$<TARGET_LINKER_FILE_NAME:bitnet_ops>")
endif()
foreach(file bitnet_ops-config.cmake bitnet_ops.pc)
  configure_file(${BITNET_PACKAGING}/${file}.in ${BITNET_PACKAGE}/${file}.in @ONLY)
  file(GENERATE OUTPUT ${BITNET_PACKAGE}/${file} INPUT ${BITNET_PACKAGE}/${file}.in)
endforeach()
write_basic_package_version_file(${BITNET_PACKAGE}/bitnet_ops-config-version.cmake
  VERSION ${BITNET_OPS_VERSION_NUMBERS} COMPATIBILITY SameMajorVersion)

install(TARGETS bitnet_ops
  RUNTIME DESTINATION ${BITNET_LIBRARY_DIR}
  LIBRARY DESTINATION ${BITNET_LIBRARY_DIR}
  ARCHIVE DESTINATION ${BITNET_IMPORT_DIR})
install(FILES ${BITNET_PACKAGE}/bitnet_ops.h DESTINATION ${BITNET_HEADER_DIR})
install(FILES ${BITNET_PACKAGE}/bitnet_ops-config.cmake ${BITNET_PACKAGE}/bitnet_ops-config-version.cmake
  DESTINATION ${BITNET_CMAKE_DIR})
install(FILES ${BITNET_PACKAGE}/bitnet_ops.pc DESTINATION ${BITNET_PKGCONFIG_DIR})
install(FILES ${CMAKE_CURRENT_SOURCE_DIR}/LICENSE DESTINATION ${BITNET_LICENSE_DIR})

# What only Python has a use for.
if(SKBUILD)
  foreach(target bitnet_roofline bitnet_metal)
    if(TARGET ${target})
      install(TARGETS ${target} LIBRARY DESTINATION ${BITNET_LIBRARY_DIR})
    endif()
  endforeach()
endif()
