#!/bin/sh
# Builds the bench, and the peers where they are built already, and packs them with what compares them into target/bench-pack.tar.xz, for
# a machine with a GPU and no Rust toolchain. There: tar xf bench-pack.tar.xz && python3 bench-pack/benches/compare.py
set -eu
cd "$(dirname "$0")/.."

pack=target/bench-pack
rm -rf "$pack" "$pack.tar.xz"
speed=$(cargo bench --no-run --bench speed --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -n "$speed" ] || exit 1
mkdir -p "$pack/benches"
cp "$speed" "$pack/speed"
cp benches/compare.py benches/torch_speed.py "$pack/benches/"
(git rev-parse --short HEAD && git status --porcelain -- src shaders 'benches/*.rs' | sed 's/.*/ with changes/' | head -n 1) | tr -d '\n' > "$pack/commit"
for peers in peers/target/release/peers peers/target/spirv/release/peers; do
  [ -x "benches/$peers" ] || continue
  mkdir -p "$pack/benches/$(dirname $peers)"
  cp "benches/$peers" "$pack/benches/$peers"
done
# Both builds of the peers are much the same bytes, far apart.
XZ_OPT=--lzma2=preset=5,dict=256MiB tar --directory target --create --xz --file "$pack.tar.xz" bench-pack
du -h "$pack.tar.xz"
