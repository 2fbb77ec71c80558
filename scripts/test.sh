#!/usr/bin/env bash
# Set up an environment and run the tests: bash scripts/test.sh [pytest arguments]
# The slow ones, which are left out by default: bash scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
exec "$PYTHON" -m pytest "$@"
