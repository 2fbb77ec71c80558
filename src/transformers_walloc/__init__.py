"""WaLLoC (Wavelet Learned Lossy Compression) as Hugging Face models; the import registers the Auto classes.

Names are loaded when they are first used (PEP 562), so that a program that needs none of torch starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .bundled import bundled_path, link_bundled_checkpoints
from .extras import naming_extras
from .registration import register_when_needed

if TYPE_CHECKING:
    from .codec.configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig, WallocVolumeConfig
    from .codec.feature_extraction_walloc import WallocAudioFeatureExtractor
    from .codec.image_processing_walloc import WallocImageProcessor
    from .codec.image_processing_walloc_volume import WallocVolumeImageProcessor
    from .codec.modeling_walloc import (
        WallocAudioEncoder,
        WallocAudioModel,
        WallocImageEncoder,
        WallocImageModel,
        WallocPreTrainedModel,
    )
    from .codec.modeling_walloc_volume import WallocVolumeEncoder, WallocVolumeModel
    from .codec.outputs import (
        WallocAudioDecoderOutput,
        WallocEncoderOutput,
        WallocImageDecoderOutput,
        WallocModelOutput,
    )
    from .codec.varints import WallocFormatError
    from .export import export_codec
    from .latents.augmentation import LatentAugmentation
    from .latents.datasets import decode_rows, latent_transform
    from .latents.image_processing import WallocLatentImageProcessor
    from .latents.modeling import WallocLatentConfig, WallocLatentModel
    from .latents.picture import latents_to_pixels, show_latents
    from .latents.pretrained import load_on_latents
    from .latents.processors import load_processor_on_latents
    from .latents.separation import WallocForAudioSourceSeparation, WallocSeparationConfig
    from .latents.symmetries import transform_latents
    from .latents.transforms import ToLatents
    from .latents.values import LatentView, latent_values, latent_windows
    from .latents.writing import compress_dataset, write_latent_dataset
    from .loading import load_codec
    from .media.file_codec import FileCodec
    from .publishing.upload import publish
    from .training.fit import fit_codec

__version__ = "0.2.0"  # the one place; CHANGELOG.md names it first

__all__ = [
    "FileCodec",
    "LatentAugmentation",
    "LatentView",
    "ToLatents",
    "WallocAudioConfig",
    "WallocAudioDecoderOutput",
    "WallocAudioEncoder",
    "WallocAudioFeatureExtractor",
    "WallocAudioModel",
    "WallocConfig",
    "WallocEncoderOutput",
    "WallocForAudioSourceSeparation",
    "WallocFormatError",
    "WallocImageConfig",
    "WallocImageDecoderOutput",
    "WallocImageEncoder",
    "WallocImageModel",
    "WallocImageProcessor",
    "WallocLatentConfig",
    "WallocLatentImageProcessor",
    "WallocLatentModel",
    "WallocModelOutput",
    "WallocPreTrainedModel",
    "WallocSeparationConfig",
    "WallocVolumeConfig",
    "WallocVolumeEncoder",
    "WallocVolumeImageProcessor",
    "WallocVolumeModel",
    "bundled_path",
    "compress_dataset",
    "decode_rows",
    "export_codec",
    "fit_codec",
    "latent_transform",
    "latent_values",
    "latent_windows",
    "latents_to_pixels",
    "load_codec",
    "load_on_latents",
    "load_processor_on_latents",
    "publish",
    "show_latents",
    "transform_latents",
    "write_latent_dataset",
]

# Where the names above are; tests hold this against the imports for type checkers.
_MODULES = {
    "codec.configuration_walloc": ("WallocAudioConfig", "WallocConfig", "WallocImageConfig", "WallocVolumeConfig"),
    "codec.feature_extraction_walloc": ("WallocAudioFeatureExtractor",),
    "codec.image_processing_walloc": ("WallocImageProcessor",),
    "codec.image_processing_walloc_volume": ("WallocVolumeImageProcessor",),
    "codec.modeling_walloc": (
        "WallocAudioEncoder",
        "WallocAudioModel",
        "WallocImageEncoder",
        "WallocImageModel",
        "WallocPreTrainedModel",
    ),
    "codec.modeling_walloc_volume": ("WallocVolumeEncoder", "WallocVolumeModel"),
    "latents.augmentation": ("LatentAugmentation",),
    "latents.datasets": ("decode_rows", "latent_transform"),
    "latents.image_processing": ("WallocLatentImageProcessor",),
    "latents.modeling": ("WallocLatentConfig", "WallocLatentModel"),
    "latents.picture": ("latents_to_pixels", "show_latents"),
    "latents.pretrained": ("load_on_latents",),
    "latents.processors": ("load_processor_on_latents",),
    "latents.separation": ("WallocForAudioSourceSeparation", "WallocSeparationConfig"),
    "latents.symmetries": ("transform_latents",),
    "latents.transforms": ("ToLatents",),
    "latents.values": ("LatentView", "latent_values", "latent_windows"),
    "latents.writing": ("compress_dataset", "write_latent_dataset"),
    "codec.outputs": (
        "WallocAudioDecoderOutput",
        "WallocEncoderOutput",
        "WallocImageDecoderOutput",
        "WallocModelOutput",
    ),
    "codec.varints": ("WallocFormatError",),
    "export": ("export_codec",),
    "loading": ("load_codec",),
    "media.file_codec": ("FileCodec",),
    "publishing.upload": ("publish",),
    "training.fit": ("fit_codec",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with naming_extras():
        value = globals()[name] = getattr(importlib.import_module(f".{module}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
link_bundled_checkpoints()
