#!/bin/sh
# Builds bin/gpu-check: nothing in it needs Go, a compiler or the network.
set -eu
cd "$(dirname "$0")/../.."
out=bin/gpu-check
mkdir -p "$out"
CGO_ENABLED=0 ${GO:-go} test -c -o "$out/gpu.test" ./test/gpu
cp test/gpu/trainer.py test/gpu/run.sh "$out/"
git describe --always --dirty >"$out/version.txt" 2>/dev/null || echo unknown >"$out/version.txt"
echo "copy $out to the machine with the GPU, and run run.sh there"
