# Fails if an object file defines functions that the linker may share between files (see shared/products.h):
#   cmake -DNM=... -DOBJECTS=a.o;b.o -P check_symbols.cmake
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --defined-only -C "${object}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" shared "${symbols}")
  if(shared)
    list(JOIN shared "\n  " shared)
    message(FATAL_ERROR "${object}, compiled for an instruction set of its own, defines\n  ${shared}\n"
      "which the linker may run everywhere. Put it into an anonymous namespace.")
  endif()
endforeach()
