#!/bin/bash
# Makes PREFIX/bin/llama-bench: llama.cpp as Debian builds it, the version of its testing suite, with that suite's own C
# library beside it. No root; nothing outside PREFIX is touched.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 PREFIX" >&2; exit 2; }
mkdir -p "$1" && P=$(cd "$1" && pwd)
[ -x "$P/bin/llama-bench" ] && "$P/bin/llama-bench" --help > /dev/null 2>&1 && exit 0

fail() { echo "llama.cpp cannot be installed: $1" >&2; exit 1; }
for tool in apt-get dpkg-deb; do command -v $tool > /dev/null || fail "this is not a Debian system ($tool is missing)."; done
KEY=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$KEY" ] || fail "Debian's archive key $KEY is missing."
MIRROR=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' |
  awk '$2 ~ /^(bookworm|trixie|stable|testing|sid)$/ && $3 == "main" { print $1; exit }')}
[ -n "$MIRROR" ] || fail "apt knows no Debian mirror. Set DEBIAN_MIRROR to one."

W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT
mkdir -p "$W"/{lists,cache/archives/partial,deb}
echo "deb [signed-by=$KEY] $MIRROR testing main" > "$W/sources.list"
options=(-qq -o Dir::Etc::SourceList="$W/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$W/lists"
  -o Dir::Cache="$W/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User= -o Acquire::Languages=none
  -o Acquire::Retries=3)
{ apt-get "${options[@]}" update && (cd "$W/deb" && apt-get "${options[@]}" download \
  llama.cpp-tools libllama0 libggml0 libc6 libgcc-s1 libstdc++6 libgomp1 libssl3t64 libzstd1 zlib1g); } ||
  fail "apt could not fetch the packages of Debian's testing suite (its message is above)."
for deb in "$W"/deb/*.deb; do dpkg-deb -x "$deb" "$P"; done

# llama.cpp looks for its processors' variants at a fixed place or beside the program, which here is the C library's loader.
(cd "$P"/usr/lib/*-linux-gnu && ln -sf ggml/backends*/*.so .)
mkdir -p "$P/bin"
cat > "$P/bin/llama-bench" <<'SH'
#!/bin/sh
P=$(dirname "$(dirname "$(readlink -f "$0")")")
L=$(echo "$P"/usr/lib/*-linux-gnu)
exec "$L"/ld-linux-*.so.? --library-path "$L:$L/llama" "$P/usr/bin/llama-bench" "$@"
SH
chmod +x "$P/bin/llama-bench"
"$P/bin/llama-bench" --help > /dev/null || fail "the installed llama-bench does not run (its message is above)."
