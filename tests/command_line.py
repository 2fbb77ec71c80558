"""What tests of the command line ask of it."""

import re

import numpy as np

from transformers_walloc.cli.main import main


def said(capsys) -> str:
    """On the standard error, but for the line that says what was written."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"walloc: .* (s|min)\n", line))


def psnr(a, b) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def fails(capsys, arguments: list[str], message: str, status: int = 1) -> None:
    """One line on the standard error, nothing on the standard output."""
    capsys.readouterr()
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("walloc: error: ") and message in err, err


def there_and_back(codec: str, source: str, target: str) -> None:
    assert main(["compress", source, "-o", "between.walloc", "-f", "--model", codec]) == 0
    assert main(["decompress", "between.walloc", "-o", target, "-f", "--model", codec]) == 0
