"""Measurements that are kept, so that a run that was stopped goes on where it was."""

import json
from pathlib import Path


class FileCache:
    """Lines of JSON, one for every key; the last line of a key counts."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[str, dict] = {}
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # the run was stopped in the middle of the last line
                    continue
                self.lines[line.pop("key")] = line

    def get(self, key: str) -> dict | None:
        line = self.lines.get(key)
        return dict(line) if line is not None else None

    def put(self, key: str, line: dict) -> None:
        self.lines[key] = line
        fresh = not self.path.exists() or self.path.read_bytes()[-1:] in (b"\n", b"")
        with open(self.path, "a") as file:
            file.write(("" if fresh else "\n") + json.dumps({"key": key} | line) + "\n")
