#!/bin/sh
# Builds bin/gpu-check: nothing in it needs Go, a compiler or the network.
set -eu
cd "$(dirname "$0")/../.."
out=bin/gpu-check
rm -rf "$out"
mkdir -p "$out/python/esperd"
CGO_ENABLED=0 ${GO:-go} build -buildvcs=false -ldflags="-s -w" -o "$out/esperd" ./cmd/esperd
CGO_ENABLED=0 ${GO:-go} test -c -ldflags="-s -w" -o "$out/gpu.test" ./test/gpu
cp python/esperd/*.py python/esperd/*.ptx "$out/python/esperd/"
cp test/gpu/trainer.py test/gpu/run.sh "$out/"
git describe --always --dirty >"$out/version.txt" 2>/dev/null || echo unknown >"$out/version.txt"
echo "copy $out to the machine with the GPU, and run run.sh there"
