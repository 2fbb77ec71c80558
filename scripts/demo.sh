#!/usr/bin/env bash
# Set up an environment and put a photograph through the codec: bash scripts/demo.sh [photo] [model]
set -euo pipefail
source "$(dirname "$0")/setup.sh" demo
exec "$PYTHON" scripts/demo.py "$@"
