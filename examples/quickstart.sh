#!/usr/bin/env bash
# Quickstart: clones the digits 6 7 8 9 from one small classifier into another, and takes them out
# again.  Makes its own environment (VENV, default .venv) and works in a folder of its own (WORK).
#
#     bash examples/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
WORK=${WORK:-$(mktemp -d)}

[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet '.[examples]'
export PATH="$PWD/$VENV/bin:$PATH"
case $VENV in /*) export PATH="$VENV/bin:$PATH" ;; esac

echo "== two classifiers: the target knows 0-5, the source 4-9 (files in $WORK)"
python examples/digits.py "$WORK"
cd "$WORK"
run() { echo; echo "\$ $*"; "$@"; }

run pnc search source.safetensors target.safetensors --data train -o plan.json --force --top 5
run pnc clone source.safetensors target.safetensors --plan plan.json --data train -o digits6789.safetensors --force
run pnc inject target.safetensors digits6789.safetensors -o patched.safetensors --force
run pnc eval target.safetensors --data test
run pnc eval patched.safetensors --data test --fail-under average_accuracy=0.9
run pnc eject patched.safetensors -o ejected.safetensors --force

echo
sha256sum target.safetensors ejected.safetensors
cmp target.safetensors ejected.safetensors && echo "the target is back, byte for byte"
