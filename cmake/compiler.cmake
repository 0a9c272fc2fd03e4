# Paths, compiler, warnings and symbol visibility of our own targets.

include(CheckLanguage)

# Stop where `path` has what CMake or SEAL's CMake files take for syntax: they would fail later, in words
# about something else.
function(hesplit_check_path path)
  string(REGEX REPLACE "\\[[^][]*\\]" "" unpaired "${path}")
  if(path MATCHES "[;\"<>|\\\\]|\\$[({]" OR unpaired MATCHES "[][]")
    message(FATAL_ERROR
      "hesplit_native cannot be built in ${path}: CMake does not take ; \" < > | \\ $( \${ or a lone [ in a path.\n"
      "What to do: move the source to a folder with another name and run the same command again.")
  endif()
endfunction()

# Enable C and C++ (SEAL has a few C files), or stop and say what to install.
macro(hesplit_enable_languages)
  foreach(language C CXX)
    check_language(${language})
    if(NOT CMAKE_${language}_COMPILER)
      message(FATAL_ERROR
        "hesplit_native builds a C++17 extension and found no working ${language} compiler.\n"
        "What to do: install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; "
        "macOS: xcode-select --install) or name yours in the environment variables CC and CXX, "
        "then run the same command again.")
    endif()
    enable_language(${language})
  endforeach()
endmacro()

# The C++ files in these folders, from where this is called. Brackets in a whole path ("src [1]") would
# be read as part of a pattern.
function(hesplit_sources result)
  string(REGEX REPLACE "([[*?])" "[\\1]" here "${CMAKE_CURRENT_SOURCE_DIR}")
  set(patterns ${ARGN})
  list(TRANSFORM patterns REPLACE "(.+)" "${here}/\\1/*.cpp")
  file(GLOB found CONFIGURE_DEPENDS ${patterns})
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

# With HESPLIT_WERROR, turn on many warnings for one of our targets and make them errors.
# The headers of SEAL, pybind11 and Python are system headers and stay out of it.
function(hesplit_warnings target)
  if(HESPLIT_WERROR)
    # No psabi: kernels pass structs of vectors between functions of one file, where no ABI is concerned.
    target_compile_options(${target} PRIVATE
      -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -Wno-psabi)
  endif()
endfunction()

# Export the init function of an extension module and nothing else, and leave out what only debuggers read (pybind11 does
# that by a command after linking whose path it does not quote: not in a folder named "src (1)").
# Hidden visibility alone is not enough: an installed SEAL may be compiled with default visibility,
# and templates of the standard library always are.
function(hesplit_hide_symbols target)
  if(APPLE)
    target_link_options(${target} PRIVATE
      "LINKER:-exported_symbol,_PyInit_${target}" LINKER:-dead_strip
      "$<$<CONFIG:Release,MinSizeRel>:LINKER:-x>")
    return()
  endif()
  set(script "${CMAKE_CURRENT_BINARY_DIR}/${target}.map")
  file(CONFIGURE OUTPUT "${script}" CONTENT "{ global: PyInit_${target}; local: *; };\n")
  # Seen from where the linker runs: a comma in a whole path would end this option.
  set(seen_from "${CMAKE_BINARY_DIR}")
  if(CMAKE_GENERATOR MATCHES "Makefiles")
    set(seen_from "${CMAKE_CURRENT_BINARY_DIR}")
  endif()
  file(RELATIVE_PATH relative "${seen_from}" "${script}")
  target_link_options(${target} PRIVATE
    LINKER:--exclude-libs,ALL LINKER:--gc-sections "LINKER:--version-script=${relative}"
    "$<$<CONFIG:Release,MinSizeRel>:LINKER:--strip-all>")
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${script}")
endfunction()
