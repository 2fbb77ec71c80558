#!/usr/bin/env bash
# What is published, in dist/:
#   bash scripts/wheels.sh pure      the source distribution, and the wheel without compiled kernels, for any machine
#   bash scripts/wheels.sh native    a wheel with the kernels for this machine alone, by its own compiler
#   bash scripts/wheels.sh compiled  wheels with the kernels that run on any Linux or macOS (cibuildwheel; Linux: Docker)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
tools="$(mktemp -d)"
trap 'rm -rf "$tools"' EXIT
"$PYTHON" -m venv "$tools"
install() { "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
case "${1:-}" in
  pure) install build; WALLOC_NO_NATIVE=1 "$tools/bin/python" -m build --outdir dist ;;
  native) install build; "$tools/bin/python" -m build --wheel --outdir dist ;;
  compiled) install cibuildwheel; "$tools/bin/python" -m cibuildwheel --output-dir dist ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
