#!/usr/bin/env bash
# Set up an environment and run the tests, one process for each core: bash scripts/test.sh [pytest arguments]
# The slow ones, which are left out by default: bash scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # processes of many threads each would wait for one another
exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
