# Compile for 64-bit ARM on another Linux machine, and run what was built there in QEMU:
#   cmake -S . -B build/aarch64 --toolchain cmake/aarch64.cmake
# Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user-static

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)

# Programs of this machine, which also run the build; libraries and headers of the other one, except for a SEAL
# source tree and pybind11, which are the same for both.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
