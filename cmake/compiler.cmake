# Compiler, warnings and symbol visibility of our own targets.

include(CheckLanguage)

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

# With HESPLIT_WERROR, turn on many warnings for one of our targets and make them errors.
# The headers of SEAL, pybind11 and Python are system headers and stay out of it.
function(hesplit_warnings target)
  if(HESPLIT_WERROR)
    target_compile_options(${target} PRIVATE
      -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror)
  endif()
endfunction()

# Export the init function of an extension module and nothing else. Hidden visibility alone is not enough: an installed SEAL
# may be compiled with default visibility, and templates of the standard library always are.
function(hesplit_hide_symbols target)
  if(APPLE)
    target_link_options(${target} PRIVATE
      "LINKER:-exported_symbol,_PyInit_${target}" LINKER:-dead_strip)
    return()
  endif()
  set(script "${CMAKE_CURRENT_BINARY_DIR}/${target}.map")
  file(CONFIGURE OUTPUT "${script}" CONTENT "{ global: PyInit_${target}; local: *; };\n")
  target_link_options(${target} PRIVATE
    LINKER:--exclude-libs,ALL LINKER:--gc-sections "LINKER:--version-script=${script}")
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${script}")
endfunction()
