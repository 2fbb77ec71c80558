"""WaLLoC (Wavelet Learned Lossy Compression) as Hugging Face models; the import registers the Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel

from .bundled import bundled_path, link_bundled_checkpoints
from .codec.configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig
from .codec.feature_extraction_walloc import WallocAudioFeatureExtractor
from .codec.image_processing_walloc import WallocImageProcessor
from .codec.modeling_walloc import (
    WallocAudioEncoder,
    WallocAudioModel,
    WallocImageEncoder,
    WallocImageModel,
    WallocPreTrainedModel,
)
from .latents.datasets import latent_transform
from .latents.folding import latent_values, latent_windows, latents_to_pixels, load_on_latents
from .latents.image_processing import WallocLatentImageProcessor
from .latents.modeling import WallocLatentConfig, WallocLatentModel
from .latents.separation import WallocForAudioSourceSeparation, WallocSeparationConfig

__version__ = "0.1.0"

AutoConfig.register("walloc_image", WallocImageConfig, exist_ok=True)
AutoConfig.register("walloc_audio", WallocAudioConfig, exist_ok=True)
AutoModel.register(WallocImageConfig, WallocImageModel, exist_ok=True)
AutoModel.register(WallocAudioConfig, WallocAudioModel, exist_ok=True)
AutoImageProcessor.register(
    WallocImageConfig,
    image_processor_classes={"pil": WallocImageProcessor, "torchvision": WallocImageProcessor},
    exist_ok=True,
)
AutoConfig.register("walloc_latent", WallocLatentConfig, exist_ok=True)
AutoModel.register(WallocLatentConfig, WallocLatentModel, exist_ok=True)
AutoImageProcessor.register(
    WallocLatentConfig,
    image_processor_classes={"pil": WallocLatentImageProcessor, "torchvision": WallocLatentImageProcessor},
    exist_ok=True,
)
AutoFeatureExtractor.register(WallocAudioConfig, WallocAudioFeatureExtractor, exist_ok=True)
AutoConfig.register("walloc_separation", WallocSeparationConfig, exist_ok=True)
AutoModel.register(WallocSeparationConfig, WallocForAudioSourceSeparation, exist_ok=True)
AutoFeatureExtractor.register(WallocSeparationConfig, WallocAudioFeatureExtractor, exist_ok=True)
link_bundled_checkpoints()

__all__ = [
    "WallocAudioConfig",
    "WallocAudioEncoder",
    "WallocAudioFeatureExtractor",
    "WallocAudioModel",
    "WallocConfig",
    "WallocForAudioSourceSeparation",
    "WallocImageConfig",
    "WallocImageEncoder",
    "WallocImageModel",
    "WallocImageProcessor",
    "WallocLatentConfig",
    "WallocLatentImageProcessor",
    "WallocLatentModel",
    "WallocPreTrainedModel",
    "WallocSeparationConfig",
    "bundled_path",
    "latent_transform",
    "latent_values",
    "latent_windows",
    "latents_to_pixels",
    "load_on_latents",
]
