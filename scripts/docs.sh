#!/usr/bin/env bash
# Build the documentation into build/site; a broken link or reference is an error. To read while you write:
#   bash scripts/docs.sh serve
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
case "${1:-build}" in
  build) exec "$PYTHON" -m zensical build --clean --strict ;;
  serve) exec "$PYTHON" -m zensical serve ;;
  *) echo "bash scripts/docs.sh [build|serve], not $1" >&2; exit 2 ;;
esac
