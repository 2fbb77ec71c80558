"""What publishing leaves behind in its process; tests/test_hub.py has the uploads."""

from transformers import AutoModel

from transformers_walloc import bundled_path
from transformers_walloc.publishing.upload import publish


def test_later_checkpoints_are_saved_without_code(tmp_path):
    publish(bundled_path("gray-16x"), "somebody/gray", dry_run=tmp_path / "staged")
    assert (tmp_path / "staged" / "modeling_walloc.py").exists()
    AutoModel.from_pretrained(bundled_path("gray-16x")).save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))
