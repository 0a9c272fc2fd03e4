#!/usr/bin/env bash
# The core for 64-bit ARM, built and run on another Linux machine: every kernel against the portable one, then the
# extension in an ARM Python, where layers are computed under encryption. Called by `make test-aarch64`:
#   cpp/checks/aarch64.sh PYTHON     a Python with CMake, ninja, pybind11 and pip
# Debian or Ubuntu; what is for ARM is unpacked into build/aarch64, and the machine's own packages stay as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(realpath -s "$1")
PATH="$(dirname "$python"):$PATH"
out=$PWD/build/aarch64
root=$out/root site=$out/site
system_python=/usr/bin/python3 # of the release whose ARM packages are taken: interpreter and headers are of one version
apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
  -o Dir::State="$out/apt" -o Dir::State::status="$out/apt/status" -o Dir::Cache="$out/apt")

missing() {
  echo "test-aarch64: $1" >&2
  exit 1
}

configure() {
  cmake -S . -B "$out" -G Ninja --toolchain cmake/aarch64.cmake -DCMAKE_BUILD_TYPE=Release -DHESPLIT_WERROR=ON \
    -DHESPLIT_CHECKS=ON -DHESPLIT_TESTING=OFF -DPython_EXECUTABLE="$system_python" "$@" >"$out/configure.log"
}

# An ARM Python and what it depends on, by lists of packages of our own.
unpack_python() {
  mkdir -p "$out"/apt/{lists,archives}/partial
  : >"$out/apt/status"
  "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends --download-only \
    "libpython$version-dev" "python$version-minimal" libstdc++6 || missing "no packages for ARM: see above"
  for package in "$out"/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
  done
  # Its header chooses among architectures by a path that lies beside all of the C library's.
  cp -r "$root/usr/include/aarch64-linux-gnu" "$root/usr/include/python$version/"
}

unpack_numpy() {
  "$python" -m pip download -q --no-deps -d "$out/wheels" --only-binary=:all: --python-version "$version" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 numpy ||
    missing "no numpy for ARM: see above"
  "$python" -m zipfile -e "$out"/wheels/numpy-*.whl "$site"
}

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static apt-get dpkg-deb "$system_python"; do
  command -v "$tool" >/dev/null ||
    missing "no $tool. Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user-static python3"
done
version=$("$system_python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
mkdir -p "$out"

configure -DHESPLIT_PYTHON=OFF
cmake --build "$out" --target kernels
qemu-aarch64-static -L /usr/aarch64-linux-gnu "$out/cpp/kernels"

[ -x "$root/usr/bin/python$version" ] || unpack_python
[ -d "$site/numpy" ] || unpack_numpy
configure -DHESPLIT_PYTHON=ON -DPython_INCLUDE_DIR="$root/usr/include/python$version" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$out" --target _core
rm -rf "$site/hesplit_native"
cp -r python/hesplit_native "$site/"
rm -f "$site"/hesplit_native/*.so
cp "$out"/cpp/_core*.so "$site/hesplit_native/_core.so" # a name that Python reads on every machine
for variant in '' scalar; do
  HESPLIT_CPU=$variant PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 \
    qemu-aarch64-static -L "$root" "$root/usr/bin/python$version" cpp/checks/aarch64_forward.py
done
