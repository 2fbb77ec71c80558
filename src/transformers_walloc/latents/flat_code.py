"""The code of the processors in the folder of a model, for those who have not installed the package.

transformers loads modules of a repository that lie side by side and import each other with one dot. Here they lie in
two folders of a package; in a model's folder `from ..codec.x import` becomes `from .x import`.
"""

import os
import re
from pathlib import Path

_IMPORT = re.compile(r"^(\s*from )(\.\.codec\.|\.)(\w+)( import )", re.MULTILINE)


def auto_map(auto_class: str, own_class: type) -> dict[str, str]:
    """Where an Auto class finds a class in the folder."""
    return {auto_class: f"{own_class.__module__.rpartition('.')[2]}.{own_class.__name__}"}


def write_code(folder: str | os.PathLike[str], start: str = "processing") -> None:
    """Copy a module of this folder and all that it imports of the package, flat.

    Args:
        folder: made if it does not exist.
        start: the module.
    """
    here = Path(__file__).parent
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    pending, written = [here / f"{start}.py"], set()
    while pending:
        source = pending.pop()
        if source.name in written:
            continue
        written.add(source.name)
        text = source.read_text()
        for _, dots, module, _ in _IMPORT.findall(text):
            parent = here.parent / "codec" if dots == "..codec." else source.parent
            pending.append(parent / f"{module}.py")
        (target / source.name).write_text(_IMPORT.sub(r"\1.\3\4", text))
