"""The pages of this project that programs write: where they lie, their templates, their parts between markers."""

import json
import re
from pathlib import Path

import jinja2

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values) -> str:
    """A template of research/templates with values filled in; a name without a value is an error."""
    text = _TEMPLATES.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def load(name: str) -> dict | None:
    """A result of docs/results; None if it has not been measured yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def between(text: str, name: str, new: str) -> str:
    """The text with the part between the markers of a name replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no <!-- {name}:begin --> ... <!-- {name}:end --> to write between")
    return pattern.sub(lambda match: match[1] + new.strip("\n") + "\n" + match[2], text)
