#!/usr/bin/env bash
# Installs pnc with its test requirements into VENV (default .venv) and runs the tests, a file of them
# on each processor.
#
#     bash tests/run.sh [PYTEST OPTIONS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet '.[test]'
exec "$VENV/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
