# Defines SEAL::seal (static) from, in this order:
#   1. the source tree in HESPLIT_SEAL_SOURCE_DIR,
#   2. an installed SEAL >= 4.1.2 with a static library,
#   3. the SEAL 4.1.2 source inside the Pyfhel 3.5.0 sdist (fetch.cmake).
# README.md beside this file says how to use each.

include("${CMAKE_CURRENT_LIST_DIR}/fetch.cmake")

set(HESPLIT_SEAL_MINIMUM 4.1.2)

# Stop unless `directory` holds a SEAL source tree of a version that we can use.
function(hesplit_seal_check_tree directory)
  set(hint "Give the top folder of a Microsoft SEAL source tree (>= ${HESPLIT_SEAL_MINIMUM}, < 5), "
    "the one that holds CMakeLists.txt and native/, or unset HESPLIT_SEAL_SOURCE_DIR.")
  list(JOIN hint "" hint)
  if(NOT EXISTS "${directory}/CMakeLists.txt" OR NOT EXISTS "${directory}/native/src/seal/seal.h")
    message(FATAL_ERROR "HESPLIT_SEAL_SOURCE_DIR=${directory} is not a SEAL source tree. ${hint}")
  endif()
  file(READ "${directory}/CMakeLists.txt" text)
  string(REGEX MATCH "project\\([ \t\r\n]*SEAL[ \t\r\n]+VERSION[ \t\r\n]+([0-9.]+)" ignored "${text}")
  set(version "${CMAKE_MATCH_1}")
  if(version VERSION_LESS HESPLIT_SEAL_MINIMUM OR version VERSION_GREATER_EQUAL 5)
    message(FATAL_ERROR "HESPLIT_SEAL_SOURCE_DIR=${directory} holds SEAL '${version}'. ${hint}")
  endif()
  message(STATUS "hesplit_native: Microsoft SEAL ${version} from ${directory}")
endfunction()

# Add a SEAL source tree as a static library without its optional dependencies.
function(hesplit_seal_add_tree directory)
  set(BUILD_SHARED_LIBS OFF)
  set(SEAL_BUILD_DEPS OFF) # or SEAL's own CMake would download
  set(SEAL_USE_MSGSL OFF)
  set(SEAL_USE_ZLIB OFF)
  set(SEAL_USE_ZSTD OFF)
  set(SEAL_USE_INTEL_HEXL OFF)
  set(SEAL_THROW_ON_TRANSPARENT_CIPHERTEXT OFF) # a zero weight is a legal weight
  set(SEAL_BUILD_SEAL_C OFF)
  set(SEAL_BUILD_EXAMPLES OFF)
  set(SEAL_BUILD_TESTS OFF)
  set(SEAL_BUILD_BENCH OFF)
  add_compile_options(-ffunction-sections -fdata-sections)
  add_subdirectory("${directory}" "${CMAKE_BINARY_DIR}/seal" EXCLUDE_FROM_ALL SYSTEM)
endfunction()

# Look for an installed SEAL with a static library.
# SEAL's version file accepts only its own minor version, so each minor is asked for. The question
# comes with a version because a rejected package must not leave its targets behind.
macro(hesplit_seal_find_installed)
  foreach(minor ${HESPLIT_SEAL_MINIMUM} 4.2 4.3 4.4 4.5 4.6 4.7 4.8 4.9)
    if(NOT TARGET SEAL::seal AND NOT TARGET SEAL::seal_shared)
      find_package(SEAL ${minor} CONFIG QUIET)
    endif()
  endforeach()
  if(TARGET SEAL::seal)
    message(STATUS "hesplit_native: installed Microsoft SEAL ${SEAL_VERSION} from ${SEAL_DIR}")
  elseif(TARGET SEAL::seal_shared)
    message(STATUS "hesplit_native: passing over the SEAL ${SEAL_VERSION} in ${SEAL_DIR}: "
      "it is a shared library and hesplit_native links SEAL statically")
  endif()
endmacro()

if(HESPLIT_SEAL_SOURCE_DIR)
  hesplit_seal_check_tree("${HESPLIT_SEAL_SOURCE_DIR}")
  hesplit_seal_add_tree("${HESPLIT_SEAL_SOURCE_DIR}")
else()
  hesplit_seal_find_installed()
  if(NOT TARGET SEAL::seal)
    hesplit_seal_unpack(seal_tree)
    message(STATUS "hesplit_native: Microsoft SEAL 4.1.2 from the Pyfhel 3.5.0 sdist")
    hesplit_seal_add_tree("${seal_tree}")
  endif()
endif()
