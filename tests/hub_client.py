"""What test_hub.py runs in processes of its own: `python hub_client.py STEP [FOLDER]` prints facts as one JSON line.

The Hub client and transformers read their settings (endpoint, cache, offline) once, at import, so every situation
needs a new process. Each step below checks as much as it can in one, because the imports take seconds.
"""

import hashlib
import json
import sys

import torch

torch.set_num_threads(1)

BUNDLED = (
    "rgb-f16c48",
    "rgb-4x",
    "rgb-4x-klt",
    "rgb-16x",
    "rgb-16x-klt",
    "stereo-5x",
    "stereo-20x",
)


def online(folder: str) -> dict:
    """A user with a network: download, load again from the cache, push, shard, and meet a Hub without our codecs."""
    import transformers_walloc

    facts = {"cold": load_image("someone/codec"), "warm": load_image("someone/codec")}

    model, processor = parts("someone/codec")
    with torch.no_grad():
        model.encoder.projection.bias += 1
    facts["changed"] = digest(model)
    model.push_to_hub("walloc/pushed")
    processor.push_to_hub("walloc/pushed")
    facts["pushed"] = load_image("walloc/pushed")
    model.push_to_hub("walloc/sharded", max_shard_size="10KB")
    facts["sharded"] = digest(auto_model("walloc/sharded"))
    facts["dtypes"] = [str(auto_model("walloc/pushed", dtype=dtype).dtype) for dtype in ("auto", torch.bfloat16)]
    encoder = transformers_walloc.WallocImageEncoder.from_pretrained("walloc/pushed")
    facts["encoder_alone"] = same_latents(encoder, model)
    facts["no_such_repository"] = error_of(load_image, "walloc/nothing")

    facts["bundled"] = load_bundled()
    model, processor = parts("walloc/rgb-16x")
    with torch.no_grad():
        model.encoder.projection.bias += 1
    facts["newer_pushed"] = digest(model)
    model.push_to_hub("walloc/rgb-16x")
    processor.push_to_hub("walloc/rgb-16x")
    facts["newer"] = load_image("walloc/rgb-16x")
    facts.update(published(folder))
    return facts


def published(folder: str) -> dict:
    """`walloc publish` of a checkpoint and of a page."""
    import transformers_walloc
    from transformers_walloc.publishing.upload import publish

    rgb = transformers_walloc.bundled_path("rgb-16x")
    commit = publish(rgb, "walloc/published", eval_dataset="walloc/kodak")
    page = publish(f"{folder}/page", "walloc/page")
    return {"commits": [commit, page], "published": [digest(auto_model(name)) for name in ("walloc/published", rgb)]}


def offline(folder: str) -> dict:
    """The same cache without a network."""
    import transformers_walloc  # noqa: F401

    names = {"cold": "someone/codec", "pushed": "walloc/pushed", "newer": "walloc/rgb-16x"}
    facts = {fact: load_image(name) for fact, name in names.items()}
    facts["sharded"] = digest(auto_model("walloc/sharded"))
    facts["bundled"] = {name: loaded for name, loaded in load_bundled().items() if name != "rgb-16x"}
    return facts


def folded(folder: str) -> dict:
    """A vision-language model on latents: pushed as a whole, loaded by name, and what both make of a picture."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from transformers_walloc import load_on_latents, load_processor_on_latents

    model = load_on_latents(f"{folder}/pixels", f"{folder}/tiny", AutoModelForImageTextToText)
    processor = load_processor_on_latents(f"{folder}/pixels", model, f"{folder}/tiny")
    model.push_to_hub("walloc/answers")
    processor.push_to_hub("walloc/answers")
    again = AutoModelForImageTextToText.from_pretrained("walloc/answers")
    loaded = AutoProcessor.from_pretrained("walloc/answers")
    facts = {"pushed": answer(model, processor), "loaded": answer(again, loaded), "codec": again.config.walloc_codec}
    # Once more to the same repository, with the processor alone.
    loaded.push_to_hub("walloc/answers")
    return {**facts, "template": loaded.chat_template == processor.chat_template}


def folded_remote_code(folder: str) -> dict:
    """The same repository for somebody without the package."""
    sys.modules["transformers_walloc"] = None  # type: ignore[assignment]
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained("walloc/answers")
    return {"answer": answer(model, AutoProcessor.from_pretrained("walloc/answers", trust_remote_code=True))}


def answer(model, processor) -> list[int]:
    """Token ids of the prompt and of the answer to a question on a picture."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is the total"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    return model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()


def never_online(folder: str) -> dict:
    """A cache that has never seen a network. Also writes the codecs that the other steps use."""
    import transformers_walloc
    from transformers_walloc.cli.publish import main

    folders = {name: digest(auto_model(transformers_walloc.bundled_path(name))) for name in BUNDLED}
    main([str(transformers_walloc.bundled_path("rgb-16x")), "walloc/published", "--dry_run", f"{folder}/dry"])
    return {"bundled": load_bundled(), "folders": folders, "saved": save_with_code(folder)}


def unreachable(folder: str) -> dict:
    """The same where nobody said that there is no network."""
    return {"bundled": load_bundled()}


def unwritable(folder: str) -> dict:
    """No network, and a Hub cache that cannot be made."""
    from huggingface_hub import constants

    import transformers_walloc  # noqa: F401

    loaded = load_image("walloc/rgb-16x") | features("walloc/rgb-16x")
    return {"loaded": loaded, "cache": constants.HF_HUB_CACHE}


def remote_code(folder: str) -> dict:
    """Somebody who has transformers but not this package, and trusts the repository's code."""
    sys.modules["transformers_walloc"] = None  # type: ignore[assignment]
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    facts = {"refused": error_of(auto_model, f"{folder}/image", trust_remote_code=False)}
    facts["staged"] = digest(auto_model(f"{folder}/dry", trust_remote_code=True))
    for place, names in (
        ("folder", [f"{folder}/image", f"{folder}/audio"]),
        ("hub", ["other/image", "other/audio"]),
    ):
        image, audio = (auto_model(name, trust_remote_code=True) for name in names)
        processor = AutoImageProcessor.from_pretrained(names[0], trust_remote_code=True)
        extractor = AutoFeatureExtractor.from_pretrained(names[1], trust_remote_code=True)
        facts[place] = {
            "image": digest(image),
            "audio": digest(audio),
            "modules": [type(part).__module__.split(".")[0] for part in (image, audio, processor, extractor)],
            "round_trip": round_trip(image, processor),
        }
    return facts


def save_with_code(folder: str) -> dict:
    """Tiny codecs that carry their own code in FOLDER/image and FOLDER/audio."""
    import transformers_walloc as walloc

    torch.manual_seed(0)
    size = {"decoder_hidden_size": 16, "decoder_num_layers": 1, "num_levels": 2, "latent_channels": 4}
    image = walloc.WallocImageModel(walloc.WallocImageConfig(**size)), walloc.WallocImageProcessor(patch_size=4)
    audio = walloc.WallocAudioModel(walloc.WallocAudioConfig(**size)), walloc.WallocAudioFeatureExtractor(hop_length=4)
    parts_by_name = {"image": (*image, "AutoImageProcessor"), "audio": (*audio, "AutoFeatureExtractor")}
    for name, (model, processor, auto_class) in parts_by_name.items():
        type(model.config).register_for_auto_class()
        type(model).register_for_auto_class("AutoModel")
        type(processor).register_for_auto_class(auto_class)
        model.save_pretrained(f"{folder}/{name}")
        processor.save_pretrained(f"{folder}/{name}")
    return {name: digest(auto_model(f"{folder}/{name}")) for name in ("image", "audio")}


def auto_model(name: str, **options):
    from transformers import AutoModel

    return AutoModel.from_pretrained(name, **options)


def parts(name: str):
    from transformers import AutoImageProcessor

    return auto_model(name), AutoImageProcessor.from_pretrained(name)


def load_image(name: str) -> dict:
    """Configuration, model and image processor by name, and what they do to a picture."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name)
    model, processor = parts(name)
    return {"digest": digest(model), "round_trip": round_trip(model, processor), "model_type": config.model_type}


def load_bundled() -> dict:
    from transformers import AutoConfig, AutoFeatureExtractor

    import transformers_walloc  # noqa: F401

    facts = {name: load_image(f"walloc/{name}") for name in BUNDLED if not name.startswith(("stereo", "mono"))}
    for name in set(BUNDLED) - set(facts):
        config = AutoConfig.from_pretrained(f"walloc/{name}")
        extractor = AutoFeatureExtractor.from_pretrained(f"walloc/{name}")
        facts[name] = {
            "digest": digest(auto_model(f"walloc/{name}")),
            "model_type": config.model_type,
            "sampling_rate": extractor.sampling_rate,
        }
    for name, fact in facts.items():
        fact.update(features(f"walloc/{name}"))
    return facts


def features(name: str) -> dict:
    """What AutoProcessor and the pipeline make of an id."""
    import numpy as np
    from PIL import Image
    from transformers import AutoProcessor, pipeline

    processor = type(AutoProcessor.from_pretrained(name)).__name__
    image = processor == "WallocImageProcessor"
    signal = Image.new("RGB", (48, 40)) if image else {"array": np.zeros((2, 1024)), "sampling_rate": 44100}
    task = "image-feature-extraction" if image else "feature-extraction"
    return {"processor": processor, "features": list(np.shape(pipeline(task, model=name)(signal)))}


def digest(model) -> str:
    """Hash of all weights by name."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode() + str(tensor.dtype).encode() + tensor.float().numpy().tobytes())
    return state.hexdigest()


def same_latents(one, other) -> bool:
    x = torch.linspace(-0.5, 0.5, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        return torch.equal(one.encode(x).latents, other.encode(x).latents)


def round_trip(model, processor) -> list:
    """Size of a small picture after encoding and decoding it."""
    import numpy as np

    picture = np.arange(3 * 37 * 50, dtype=np.uint8).reshape(37, 50, 3)
    inputs = processor(picture, return_tensors="pt")
    with torch.no_grad():
        pixels = model.decode(model.quantize(model.encode(inputs["pixel_values"]).latents)).pixel_values
    return list(processor.post_process(pixels, original_sizes=inputs["original_sizes"])[0].size)


def error_of(function, *arguments, **options) -> str:
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
