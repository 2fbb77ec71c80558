#!/usr/bin/env bash
# Try the oldest versions that pyproject.toml allows, in an environment of their own: bash scripts/oldest.sh
#
# PYTHON should be the oldest Python as well, python3.10. Tests of codecs and latents run; those of extras that need newer
# versions (ONNX) do not. On Linux pip downloads 3 GB: torch of that age comes with CUDA, which runs without a GPU, too.
# Where the wheels of torch for CPUs can be reached, PIP_EXTRA_INDEX_URL names them and saves most of it.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${WALLOC_VENV:-build/oldest}"
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
# The lower bounds of the dependencies, as they stand in pyproject.toml.
sed -nE '/^dependencies = \[/,/^\]/s/^ *"([A-Za-z0-9_.-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml > "$VENV/oldest.txt"
echo 'pyarrow<24' >> "$VENV/oldest.txt"  # of datasets; later ones need NumPy 2 and do not say so
cat "$VENV/oldest.txt"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -c "$VENV/oldest.txt" \
    -e '.[audio,original,train]' pytest hypothesis scikit-image PyWavelets
"$VENV/bin/python" -m research.smoke
# Graphs without a break (torch.compile with fullgraph=True) and torch.export of them need a newer torch.
"$VENV/bin/python" -m pytest -q -k 'not compiled_without_breaks' tests/codec \
    tests/latents/test_values.py tests/latents/test_folding.py tests/latents/test_symmetries.py
