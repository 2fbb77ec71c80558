"""`python -m transformers_walloc.native`: compile the kernels into the user's cache and say what runs."""

from . import BuildError, build, describe

try:
    build()
except (BuildError, OSError) as failure:
    raise SystemExit(f"The kernels are not compiled; numpy and torch stand in for them. {failure}") from failure
print(describe())
