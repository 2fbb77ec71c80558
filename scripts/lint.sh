#!/usr/bin/env bash
# Lint and types: Python, and where there is node the page for browsers.
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
if command -v npm > /dev/null; then
  [ -d page/node_modules ] || npm --prefix page ci --omit=optional
  npm --prefix page run --silent lint
else
  echo "no npm: the page is not linted"
fi
