"""Options are spelt with hyphens; the underscores of earlier releases are accepted and not shown."""

import contextlib
import io
import re

import pytest

from transformers_walloc.cli.main import COMMANDS, main
from transformers_walloc.cli.options import in_kebab_case
from transformers_walloc.cli.train import parse_recipe


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_one_spelling(command):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        main([command, "--help"])
    assert re.search(r"--[a-z]+", shown.getvalue())
    assert not re.findall(r"(?<![\w-])--\w+_\w+", shown.getvalue())


def test_values_keep_their_underscores():
    words = ["--data_name=my_data", "--out_of", "a_b", "-o", "c_d"]
    assert in_kebab_case(words) == ["--data-name=my_data", "--out-of", "a_b", "-o", "c_d"]


@pytest.mark.parametrize("spelt", ["--latent-channels", "--latent_channels"])
def test_both_spellings_are_accepted(spelt, tmp_path):
    folders = ["--train", str(tmp_path), "--validation", str(tmp_path), "--output", str(tmp_path / "run")]
    assert parse_recipe(["--kind", "image", "--step", "0.1", *folders, spelt, "5"]).latent_channels == 5
