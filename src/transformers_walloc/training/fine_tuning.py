"""Fine-tuning a codec with transformers' own `Trainer`."""

from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


def prepare_for_training(codec: Any, train_encoder: bool = False) -> Any:
    """The same codec in training mode, its encoder frozen unless asked for.

    With the encoder frozen, codes keep their meaning: files of the codec open with the result and the other way round,
    and its entropy tables still fit. The decoder then learns from rounded latents, otherwise from noisy ones.

    Args:
        codec: a `WallocImageModel` or `WallocAudioModel`.
        train_encoder: whether the encoder changes as well.
    """
    codec.encoder.requires_grad_(train_encoder)
    if train_encoder:
        logger.warning(
            "The encoder is trained too: files written by codec %s will not open with the result. Fit its entropy "
            "tables again before files are written with it.",
            codec.fingerprint(),
        )
    return codec.train()
