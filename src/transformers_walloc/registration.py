"""The classes of this package in the Auto classes of transformers, without slowing anybody's start down.

transformers has no entry points for plug-ins, so `import transformers_walloc` registers. That needs torch and half of
transformers, several seconds, which programs that only read the header of a file, or print a help text, never need. So
it happens at once where transformers is loaded already, and else right after something loads its Auto classes:

    import transformers_walloc                         # a tenth of a second; a finder waits in sys.meta_path
    from transformers import AutoModel                 # loads transformers.models.auto..., then registers
    AutoModel.from_pretrained("walloc/rgb-16x")

"Right after" is the delicate part: modules of transformers import the Auto classes half way through their own import
(and ours import those), when neither can be used yet. The finder therefore counts how deep the imports of both packages
are nested, and registers when the outermost one of the thread has finished. It only looks on: modules keep their specs
and loaders, and once it has registered, it is gone.

Threads that use the Auto classes for the very first time at the same moment are not waited for (nor do the modules of
transformers support that): import what they need before they start.

Simpler ways were looked at. Registering at once, as most packages do, adds these seconds to `walloc --help` and
`walloc info`, and no program can say beforehand that it needs none of it: Python imports this package before any module
in it. The tables that transformers loads by name admit modules of `transformers.models` alone. A hook
that fires when one module was loaded, as wrapt has it, fires half way through the others.
"""

import contextlib
import importlib.abc
import sys
import threading
from importlib.machinery import ModuleSpec
from typing import Any

_PACKAGES = ("transformers", __package__)
_AUTO = "transformers.models.auto.configuration_auto"  # every module of Auto classes imports this one

_lock = threading.RLock()


def register() -> None:
    """Make the Auto classes know this package's models and processors. Calling it again does no harm."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoImageProcessor,
        AutoModel,
        AutoProcessor,
        AutoTokenizer,
    )

    from .bundled import ask_no_hub_for_bundled, say_once_that_the_hub_is_away
    from .codec.configuration_walloc import WallocAudioConfig, WallocImageConfig, WallocVolumeConfig
    from .codec.feature_extraction_walloc import WallocAudioFeatureExtractor
    from .codec.image_processing_walloc import WallocImageProcessor
    from .codec.image_processing_walloc_volume import WallocVolumeImageProcessor
    from .codec.modeling_walloc import WallocAudioModel, WallocImageModel
    from .codec.modeling_walloc_volume import WallocVolumeModel
    from .latents.image_processing import WallocLatentImageProcessor
    from .latents.modeling import WallocLatentConfig, WallocLatentModel
    from .latents.processing import WallocLatentProcessor
    from .latents.separation import WallocForAudioSourceSeparation, WallocSeparationConfig

    models: dict[type, type] = {
        WallocImageConfig: WallocImageModel,
        WallocAudioConfig: WallocAudioModel,
        WallocVolumeConfig: WallocVolumeModel,
        WallocLatentConfig: WallocLatentModel,
        WallocSeparationConfig: WallocForAudioSourceSeparation,
    }
    for config, model in models.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)  # type: ignore[attr-defined]
        AutoModel.register(config, model, exist_ok=True)
    image_processors: dict[type, type] = {
        WallocImageConfig: WallocImageProcessor,
        WallocVolumeConfig: WallocVolumeImageProcessor,
        WallocLatentConfig: WallocLatentImageProcessor,
    }
    for config, processor in image_processors.items():
        # Ours needs no torchvision, so it serves as either backend.
        classes: dict[str, type] = {"pil": processor, "torchvision": processor}
        AutoImageProcessor.register(config, image_processor_classes=classes, exist_ok=True)
        # Otherwise it would try one kind of processor after the other.
        AutoProcessor.register(config, processor, exist_ok=True)
    # Found by its name in the folders of all models on latents.
    AutoProcessor.register(WallocLatentConfig, WallocLatentProcessor, exist_ok=True)
    for config in (WallocAudioConfig, WallocSeparationConfig):
        AutoFeatureExtractor.register(config, WallocAudioFeatureExtractor, exist_ok=True)
        AutoProcessor.register(config, WallocAudioFeatureExtractor, exist_ok=True)
    # The pipeline "feature-extraction", which is the one for sound, calls what this class gives on its inputs.
    AutoTokenizer.register(WallocAudioConfig, WallocAudioFeatureExtractor, exist_ok=True)
    AutoTokenizer.register(WallocImageConfig, _NoTokenizer, exist_ok=True)
    ask_no_hub_for_bundled()
    say_once_that_the_hub_is_away()


class _NoTokenizer:
    """Stands where transformers would look for the files of a tokenizer, on the Hub as well, and miss each of them."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: an image codec has none."""
        raise ValueError(
            f'{name} is a codec for images and has no tokenizer: its pipeline is "image-feature-extraction", its '
            "processor that of AutoImageProcessor"
        )


def register_when_needed() -> None:
    """Register now if transformers is loaded, else as soon as its Auto classes are."""
    if "transformers" in sys.modules:
        register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, and learns when modules have been loaded."""

    def __init__(self) -> None:
        self.depth = threading.local()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in _PACKAGES:
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    self._watch(spec.loader)
                return spec
        return None

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            # Back to what it was, so that nothing of this can be seen later. Loaders of files belong to one module.
            vars(loader).pop("exec_module", None)
            self.depth.value = getattr(self.depth, "value", 0) + 1
            try:
                execute(module)
            finally:
                self.depth.value -= 1
            if self.depth.value == 0 and _AUTO in sys.modules:
                self._finish()

        with contextlib.suppress(AttributeError):  # a loader with slots: its module is loaded unseen
            loader.exec_module = exec_module

    def _finish(self) -> None:
        with _lock:
            if self not in sys.meta_path:
                return
            sys.meta_path.remove(self)
        register()
