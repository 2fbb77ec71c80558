"""Studies of this project; run from the repository's root, e.g. `python -m research.tasks.reading --help`."""
