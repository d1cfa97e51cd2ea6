#!/bin/bash
# Makes PREFIX/bin/emcc, an Emscripten that knows relaxed SIMD and atomics. No root; nothing outside PREFIX is touched.
#
#   1. the emcc named by EMCC, or found in PATH, if it compiles a three-line probe (Debian 12's own 3.1.6 does not);
#   2. else Emscripten 3.1.69 from Debian's packages: the compiler's drivers from trixie, clang 19 from bookworm, unpacked
#      into PREFIX from the mirror that this machine's apt already uses (or DEBIAN_MIRROR).
#
# Everything in PREFIX finds its neighbours by its own place, so the folder may be moved.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 PREFIX" >&2; exit 2; }
mkdir -p "$1" && P=$(cd "$1" && pwd)

fail() { echo "Emscripten is not there and cannot be installed: $1" >&2; exit 1; }

W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT

probe() { # emcc: does it compile what the engine needs?
  cat > "$W/probe.cc" <<'C'
#include <wasm_simd128.h>
v128_t dot(v128_t a, v128_t b) { return wasm_i16x8_relaxed_dot_i8x16_i7x16(a, b); }
int wait(int* at) { return __builtin_wasm_memory_atomic_wait32(at, 0, 1); }
C
  "$1" -std=c++20 -O1 -msimd128 -mrelaxed-simd -matomics -mbulk-memory -c "$W/probe.cc" -o "$W/probe.o" > "$W/probe.log" 2>&1
}

[ -x "$P/bin/emcc" ] && probe "$P/bin/emcc" && exit 0

found=${EMCC:-$(command -v emcc || true)}
if [ -n "$found" ]; then
  if probe "$found"; then
    mkdir -p "$P/bin"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v "$found")" > "$P/bin/emcc"
    chmod +x "$P/bin/emcc"
    echo "Using $found"
    exit 0
  fi
  [ -z "${EMCC:-}" ] || fail "EMCC=$EMCC does not compile relaxed SIMD and atomics ($(tail -n 1 "$W/probe.log")). Set EMCC to Emscripten 3.1.60 or newer, or unset it."
  echo "$found is too old for relaxed SIMD; installing a newer one into $P"
fi

other="Install Emscripten 3.1.60 or newer yourself and set EMCC to its emcc."
for tool in apt-get dpkg dpkg-deb; do
  command -v $tool > /dev/null || fail "this is not a Debian system ($tool is missing). $other"
done
command -v python3 > /dev/null || fail "python3 is missing. Run: apt-get install python3"
command -v node > /dev/null || fail "node is missing. Run this through make, which brings its own Node."
KEY=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$KEY" ] || fail "Debian's archive key $KEY is missing. Run: apt-get install debian-archive-keyring. Or: $other"

MIRROR=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' |
  awk '$2 ~ /^(bookworm|trixie|stable|testing|sid)$/ && $3 == "main" { print $1; exit }')}
[ -n "$MIRROR" ] || fail "apt knows no Debian mirror. Set DEBIAN_MIRROR to one. Or: $other"

# suite NAME packages...: downloads them with an apt state of their own
suite() {
  local name=$1 d=$W/$1
  shift
  mkdir -p "$d"/{lists,cache/archives/partial,deb}
  echo "deb [signed-by=$KEY] $MIRROR $name main" > "$d/sources.list"
  local options=(-qq -o Dir::Etc::SourceList="$d/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists="$d/lists" -o Dir::Cache="$d/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=
    -o Acquire::Languages=none -o Acquire::Retries=3)
  { apt-get "${options[@]}" update && (cd "$d/deb" && apt-get "${options[@]}" download "$@"); } ||
    fail "apt could not fetch Debian $name's packages (its message is above; for an https mirror, is ca-certificates installed?)."
}

echo "Installing Emscripten 3.1.69 into $P (112 MB to fetch, 0.8 GB on disk, about half a minute)"
suite trixie emscripten binaryen libc6 libstdc++6 libgcc-s1
suite bookworm clang-19 libclang-cpp19 libclang-common-19-dev libllvm19 llvm-19 llvm-19-linker-tools lld-19 \
  libz3-4 libedit2 libbsd0 libxml2 libicu72 libmd0 node-acorn

rm -rf "${P:?}"/{bin,binaryen,llvm,usr,lib,lib64,etc,var}
for deb in "$W"/bookworm/deb/*.deb; do dpkg -x "$deb" "$P/llvm"; done
# The lto and pic variants of the libraries are 1.2 of 1.7 GB and not used.
for deb in "$W"/trixie/deb/*.deb; do
  dpkg-deb --fsys-tarfile "$deb" | tar x -C "$P" --exclude='*/wasm32-emscripten/lto*' --exclude='*/wasm32-emscripten/pic' \
    --exclude='./usr/share/emscripten/test' --exclude='./usr/share/doc' --exclude='./usr/share/locale' --exclude='*/gconv'
done
# Emscripten's optimizer imports acorn the ES module way, which ignores NODE_PATH.
ln -sfn ../../../llvm/usr/share/nodejs "$P/usr/share/emscripten/node_modules"

# trixie's binaryen wants trixie's libc: start it through that libc's own loader.
mkdir -p "$P/bin" "$P/binaryen/bin"
for tool in "$P"/usr/bin/wasm*; do
  name=${tool##*/}
  cat > "$P/binaryen/bin/$name" <<C
#!/bin/sh
P=\$(dirname "\$(readlink -f "\$0")")/../..
L=\$(echo "\$P"/usr/lib/*-linux-gnu)
exec "\$L"/ld-linux-*.so.? --library-path "\$L" "\$P/usr/bin/$name" "\$@"
C
done
cat > "$P/emscripten.cfg" <<'C'
import os, shutil
P = os.environ['EMSCRIPTEN_PREFIX']
LLVM_ROOT = P + '/llvm/usr/lib/llvm-19/bin'
BINARYEN_ROOT = P + '/binaryen'
NODE_JS = shutil.which('node')
CACHE = P + '/usr/share/emscripten/cache'
FROZEN_CACHE = False
C
cat > "$P/bin/emcc" <<'C'
#!/bin/sh
export EMSCRIPTEN_PREFIX=$(dirname "$(dirname "$(readlink -f "$0")")")
export EM_CONFIG=$EMSCRIPTEN_PREFIX/emscripten.cfg
L=$EMSCRIPTEN_PREFIX/llvm/usr/lib
export LD_LIBRARY_PATH=$(echo "$L"/*-linux-gnu):$L:$L/llvm-19/lib
exec "$EMSCRIPTEN_PREFIX/usr/share/emscripten/emcc" "$@"
C
chmod +x "$P"/bin/* "$P"/binaryen/bin/*
probe "$P/bin/emcc" || { cat "$W/probe.log" >&2; fail "the compiler installed in $P does not run (its message is above)."; }
"$P/bin/emcc" --version | head -n 1
