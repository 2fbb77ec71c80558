#!/usr/bin/env bash
# Build the documentation into build/site; a broken link, reference or docstring is an error. To read while you write:
#   bash scripts/docs.sh serve
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
case "${1:-build}" in
  build)
    log="$(mktemp)"
    trap 'rm -f "$log"' EXIT
    "$PYTHON" -m zensical build --clean --strict 2>&1 | tee "$log"
    ! grep '^griffe:' "$log"  # what it says of docstrings is no warning to zensical
    ;;
  serve) exec "$PYTHON" -m zensical serve ;;
  *) echo "bash scripts/docs.sh [build|serve], not $1" >&2; exit 2 ;;
esac
