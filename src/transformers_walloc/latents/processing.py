"""Text and images in, token ids and latents out: the processor of a model on latents."""

import copy
import functools
from types import SimpleNamespace
from typing import Any

import transformers
from transformers import ProcessorMixin

from .flat_code import auto_map, write_code
from .image_processing import WallocLatentImageProcessor
from .tiling import ARGUMENTS


class WallocLatentProcessor:
    """The processor of text and images of a model on latents.

    It is the processor of the pixel model, of that very class, with a [`WallocLatentImageProcessor`] and without
    videos, which models on latents do not take; so it needs no torchvision. [`load_processor_on_latents`] makes one,
    and `AutoProcessor.from_pretrained` loads what it saved.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises TypeError: what is loaded is of a class that `of` gives."""
        raise TypeError("use load_processor_on_latents, or AutoProcessor.from_pretrained of a folder that was saved")

    @classmethod
    def of(cls, name: str) -> Any:
        """The class for a pixel model's processor.

        Args:
            name: of that processor's class in transformers, such as `Qwen2VLProcessor`.
        """
        return _class_of(name)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Of the Auto classes, for code from a repository; what is saved has its code in any case."""

    @classmethod
    def from_pretrained(cls, pretrained: str, *args: Any, **kwargs: Any) -> Any:
        """What a folder or repository holds: a processor of text and images, or of images alone."""
        stated, _ = ProcessorMixin.get_processor_dict(pretrained, **kwargs)
        name = stated.get("pixel_processor_class")
        if name is None:
            return WallocLatentImageProcessor.from_pretrained(pretrained, *args, **kwargs)
        return cls.of(name).from_pretrained(pretrained, *args, **kwargs)


class _Made(type):
    """Of classes without videos: their bases state a video processor, and are given None for it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        processor: Any = cls.__new__(cls)  # type: ignore[call-overload]
        processor.get_attributes = super(_OnLatents, cls).get_attributes  # type: ignore[misc]
        processor.__init__(*args, **kwargs)
        del processor.get_attributes
        processor.__dict__.pop("video_processor", None)
        return processor


class _OnLatents:
    """What goes in front of a processor's class."""

    image_processor: WallocLatentImageProcessor
    pixel_processor_class: str

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]  # type: ignore[misc]

    @classmethod
    def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        stated = dict(processor_dict)
        if "video_processor" in super().get_attributes():  # type: ignore[misc]
            stated["video_processor"] = None
        return super().from_args_and_dict(args, stated, **kwargs)  # type: ignore[misc]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor" or argument is not None:
            return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]
        return type(None)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if videos is not None:
            raise ValueError("models on latents take images and no videos: pass frames as images")
        return super().__call__(images=images, text=text, **kwargs)  # type: ignore[misc]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        """What servers ask: tokens of images of given sizes. The pixel model's own image processor knows."""
        if kwargs.pop("video_sizes", None) is not None:
            raise ValueError("models on latents take images and no videos: there are no tokens of videos")
        asked, tiling = copy.copy(self), self.image_processor.tiling_of(kwargs)
        if tiling is not None:
            asked.image_processor = tiling.own
            kwargs = {name: value for name, value in kwargs.items() if name not in ("size", *ARGUMENTS)}
        return super(_OnLatents, asked)._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        self.auto_map = auto_map("AutoProcessor", WallocLatentProcessor)
        self.image_processor.auto_map = auto_map("AutoImageProcessor", WallocLatentImageProcessor)
        write_code(save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "pixel_processor_class": self.pixel_processor_class}  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{self.pixel_processor_class} on latents: {self.image_processor!r}"

    def __reduce__(self) -> Any:
        return _restore, (self.pixel_processor_class, self.__dict__)


def _restore(name: str, state: dict[str, Any]) -> Any:
    made = _class_of(name)
    processor = made.__new__(made)
    processor.__dict__.update(state)
    return processor


@functools.cache
def _class_of(name: str) -> Any:
    base = getattr(transformers, name, None)
    if not (isinstance(base, type) and issubclass(base, ProcessorMixin)):
        raise ValueError(f"pixel_processor_class is {name!r}; valid: the name of a processor's class in transformers")
    # transformers finds classes by this name in what is registered.
    shown: dict[str, Any] = {
        "pixel_processor_class": name,
        "__module__": __name__,
        "__doc__": WallocLatentProcessor.__doc__,
    }
    if name == "SmolVLMProcessor":  # whose template of chats asks for both; servers take it for videos elsewhere
        shown["video_processor"] = SimpleNamespace(num_frames=None, fps=None)
    return _Made(WallocLatentProcessor.__name__, (_OnLatents, base), shown)
