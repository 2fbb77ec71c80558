"""What a maintained package has beside its code: one version, a changelog, workflows whose lines run here."""

import re
from pathlib import Path

import pytest
import yaml

import transformers_walloc
from research import overview

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_one_version():
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    released = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == transformers_walloc.__version__


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_scripts_of_this_repository(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert lines
    for line in lines:
        words = line.split()
        assert words[0] == "bash" and (ROOT / words[1]).is_file(), line


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_oldest_dependencies_are_read():
    """The pattern of scripts/oldest.sh finds every dependency."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    assert re.findall(r'^ *"([A-Za-z0-9_.-]+)>=[0-9.]+', block, re.MULTILINE) == re.findall(r'"([\w-]+)', block)


def test_overview_compares_equal_numbers():
    (_, original), (resized_caption, resized), (walloc_caption, walloc) = overview.panels()
    assert resized_caption.split(": ")[1] == walloc_caption.split(": ")[1]
    assert original.size == resized.size == walloc.size
    sheet = overview.draw([("a", original), ("b", resized), ("c", walloc)])
    assert sheet.width > 3 * original.width and sheet.height > original.height
