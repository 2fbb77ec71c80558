"""Pages with measured numbers are what the results in docs/results give: no number is typed, nothing is out of date."""

import shutil

import pytest

from research import cards, pages, report, token_budgets
from research.readers import classifier, documents, music, scores
from research.tasks import summary


def test_results_and_readme():
    assert report.results_page() == (pages.ROOT / "docs" / "results.md").read_text()
    readme = (pages.ROOT / "README.md").read_text()
    assert pages.between(readme, "results", report.readme_table()) == readme


@pytest.mark.parametrize(
    "name",
    [
        "rgb-f16c12",
        "rgb-f16c48",
        "rgb-f16c192",
        "rgb-4x",
        "rgb-16x",
        "rgb-4x-klt",
        "rgb-16x-klt",
        "stereo-5x",
        "stereo-20x",
    ],
)
def test_cards(name, tmp_path):
    committed = pages.ROOT / "model_cards" / name
    shutil.copytree(committed, tmp_path / name)
    (tmp_path / name / "README.md").unlink()
    cards.write_card(tmp_path / name)
    for file in ("README.md", "results.json"):
        assert (tmp_path / name / file).read_text() == (committed / file).read_text()


def test_tasks():
    page, folder = summary.PAGE.read_text(), pages.RESULTS / "tasks"
    assert pages.between(page, "tasks", summary.summarise(folder)) == page
    assert summary.answers_table(summary.answers(summary.load_runs(folder))) in page


@pytest.mark.parametrize("study", [documents, music, classifier], ids=["documents", "music", "classifier"])
def test_frozen_readers(study, monkeypatch):
    written = {}
    monkeypatch.setattr(scores, "write_atomically", lambda path, text: written.update({path: text}))
    monkeypatch.setattr(scores, "_draw", lambda *args: None)
    study.main(["summarise"])
    assert scores.PAGE in written
    for path, text in written.items():
        assert text == path.read_text()


def test_token_budgets():
    """What families see is counted anew; times are those that were measured."""
    stored, page = pages.load("token_budgets"), token_budgets.PAGE.read_text()
    found = token_budgets.measure()
    assert found == stored["families"]
    assert pages.between(page, "tokens", token_budgets.table(found)) == page
    assert pages.between(page, "first-token", token_budgets.times_table(stored["times"])) == page
