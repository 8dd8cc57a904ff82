#!/usr/bin/env bash
# Measures everything that needs a GPU; nothing is downloaded. Options: benchmarks/on_gpu.py.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
exec "$python" -m benchmarks.on_gpu "$@"
