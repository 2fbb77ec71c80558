import pytest

from transformers_walloc import native
from transformers_walloc.codec import kernels
from transformers_walloc.native.build import levels


@pytest.fixture(params=levels())
def level(request, monkeypatch):
    """Each library that this processor can run, in turn."""
    monkeypatch.setattr(native, "levels", lambda: (request.param,))
    native.load.cache_clear()
    if kernels.library() is None:
        reason = native.describe()
        monkeypatch.undo()
        native.load.cache_clear()
        pytest.skip(reason)
    yield request.param
    monkeypatch.undo()
    native.load.cache_clear()
