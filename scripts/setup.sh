# Sourced by the other scripts: a virtual environment with this package and the extras named in $1, made once.
#
# WALLOC_VENV names another folder for it, PYTHON another interpreter (3.10 or later). torch is pinned here and not in
# the package, so that everybody runs what was measured.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${WALLOC_VENV:-.venv}"
EXTRAS="$1"
STAMP="$VENV/.installed-$(printf '%s %s %s' "$EXTRAS" "$PWD" "$(cat pyproject.toml scripts/setup.sh)" | sha256sum | cut -c1-16)"

if [ ! -e "$STAMP" ]; then
  echo "Setting up $VENV (once, a few minutes) ..."
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  printf 'torch==2.13.0\n' > "$VENV/constraints.txt"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c "$VENV/constraints.txt" -e ".[$EXTRAS]"
  if [[ ",$EXTRAS," == *,dev,* ]]; then
    # The original implementation, for parity tests. It asks for packages that it needs only to train; pytorch-wavelets
    # imports pkg_resources, which newer setuptools no longer have.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps walloc==1.2.1 pytorch-wavelets==1.3.0
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check 'setuptools<80'
    # Measures of images; of torchvision, which it asks for, the ones without weights need nothing.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps piq==0.8.0
  fi
  touch "$STAMP"
fi
# The compiled kernels, anew when their sources change; without a compiler numpy and torch stand in for them.
[ -n "${WALLOC_NO_NATIVE:-}" ] || "$VENV/bin/python" src/transformers_walloc/native/build.py > "$VENV/kernels.log" 2>&1 || cat "$VENV/kernels.log"
PYTHON="$PWD/$VENV/bin/python"
[ "${VENV#/}" = "$VENV" ] || PYTHON="$VENV/bin/python"
