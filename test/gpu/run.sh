#!/bin/sh
# Runs all checks on this machine's GPU, and writes report.txt beside itself.
# ESPERD_DEVICE=cuda:N for another GPU than the first; PYTHON for a Python that has
# torch, if neither the one on PATH nor /usr/bin/python3 is to be used.
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ]; then
  PYTHON=python3
  "$PYTHON" -c 'import torch' 2>/dev/null || PYTHON=/usr/bin/python3
fi
export PYTHON
export ESPERD_REQUIRE=cuda,torch ESPERD_BINARY=./esperd ESPERD_TRAINER=./trainer.py
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
{
  echo "esperd $(cat version.txt), $(date -u +%Y-%m-%dT%H:%MZ), $(uname -srm)"
  nvidia-smi --query-gpu=name,driver_version,memory.total,uuid --format=csv,noheader 2>&1
  "$PYTHON" -c 'import sys, torch; print("python %s, torch %s, CUDA %s" % (sys.version.split()[0], torch.__version__, torch.version.cuda))' 2>&1
  ./gpu.test -test.v -test.count=1
  echo "exit status $?"
} 2>&1 | tee report.txt
tail -1 report.txt | grep -q 'exit status 0'
