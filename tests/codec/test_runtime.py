"""Forked and spawned processes, hashes of processors, default dtypes, and the transforms of torch."""

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import torch
from torch.func import functional_call, grad
from transformers import AutoModel

from transformers_walloc import (
    LatentView,
    WallocAudioConfig,
    WallocAudioFeatureExtractor,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageModel,
    WallocImageProcessor,
    WallocLatentImageProcessor,
    WallocVolumeConfig,
    WallocVolumeImageProcessor,
    WallocVolumeModel,
    latent_transform,
)
from transformers_walloc.latents.datasets import encode_rows

SMALL = {"decoder_hidden_size": 8, "decoder_num_layers": 1}
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
SOUND = np.random.default_rng(0).uniform(-1, 1, (2, 3000)).astype(np.float32)


def run_with_threads(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=240, env={**environment, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are spawned here")
def test_processes_forked_after_use_go_on():
    """What web servers, loaders and `datasets.map(num_proc=2)` do after the parent has used processors and models."""
    printed = run_with_threads(
        """
        import multiprocessing, numpy as np, torch
        from transformers import AutoModel
        import transformers_walloc as tw
        picture = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
        sound = np.random.default_rng(0).uniform(-1, 1, (2, 40000))
        model, processor = AutoModel.from_pretrained("walloc/rgb-16x"), tw.WallocImageProcessor()
        extractor = tw.WallocAudioFeatureExtractor()

        def use(_=None):
            inputs = processor(picture, return_tensors="pt")
            heard = extractor(sound, sampling_rate=44100, return_tensors="pt")["input_values"]
            with torch.no_grad():
                output = model(**inputs)
            size, mean = len(model.compress(**inputs)[0]), float(output.pixel_values.mean())
            return size, round(mean, 4), round(float(heard.std()), 4), torch.get_num_threads()

        torch.set_num_threads(2)
        here = use()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            there = pool.map(use, range(4))
        assert here[3] == 2 and {result[3] for result in there} == {1}, (here, there)
        assert {result[:3] for result in there} == {here[:3]}, (here, there)
        print("went on")
        """
    )
    assert printed.strip().endswith("went on")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are spawned here")
def test_map_of_datasets_with_several_processes():
    pytest.importorskip("datasets")
    printed = run_with_threads(
        """
        import datasets, numpy as np, PIL.Image, transformers_walloc as tw
        image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8))
        processor = tw.WallocImageProcessor()
        mean = float(processor(image, return_tensors="np")["pixel_values"].mean())
        rows = datasets.Dataset.from_dict({"image": [image] * 4}).cast_column("image", datasets.Image())
        out = rows.map(
            lambda row: {"mean": float(processor(row["image"], return_tensors="np")["pixel_values"].mean())},
            num_proc=2, remove_columns=["image"],
        )
        print(set(out["mean"]) == {mean})
        """
    )
    assert printed.strip().endswith("True")


class Pictures(torch.utils.data.Dataset):
    def __init__(self, processor):
        self.processor = processor

    def __len__(self):
        return 4

    def __getitem__(self, index):
        key = self.processor.model_input_names[0]
        return self.processor(PICTURE + np.uint8(index), return_tensors="pt")[key][0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loaders_in_processes(context):
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("processes are spawned here")
    rows = Pictures(WallocImageProcessor())
    expected = [rows[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2, num_workers=1, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), torch.stack(expected))


def processors():
    image = PIL.Image.fromarray(PICTURE)
    options = {"size": {"height": 64, "width": 64}, "patch_size": 4}
    yield WallocImageProcessor(), lambda p: p(image, return_tensors="pt")
    yield WallocAudioFeatureExtractor(), lambda p: p(SOUND, sampling_rate=22050, return_tensors="pt")
    yield WallocVolumeImageProcessor(), lambda p: p(PICTURE.transpose(2, 0, 1), return_tensors="pt")
    yield WallocLatentImageProcessor(codec="walloc/rgb-16x", **options), lambda p: p(image, return_tensors="pt")
    codec = AutoModel.from_pretrained("walloc/rgb-16x")
    rows = {"latents": encode_rows([image], codec, storage="walloc")}
    yield latent_transform("walloc/rgb-16x"), lambda t: t(rows)


@pytest.mark.parametrize("index", range(5))
def test_hashes_stay_the_same_with_use(index):
    hasher = pytest.importorskip("datasets.fingerprint").Hasher
    processor, use = list(processors())[index]
    before, pickled = hasher.hash(processor), pickle.dumps(processor)
    first = use(processor)
    assert hasher.hash(processor) == before and pickle.dumps(processor) == pickled
    again = use(pickle.loads(pickle.dumps(processor)))
    for name in first:
        assert str(first[name]) == str(again[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("index", range(3))
def test_the_default_dtype_leaves_signals_in_float32(dtype, index):
    processor, use = list(processors())[index]
    expected = use(processor)
    try:
        torch.set_default_dtype(dtype)
        found = use(processor)
    finally:
        torch.set_default_dtype(torch.float32)
    name = processor.model_input_names[0]
    assert found[name].dtype == torch.float32
    assert torch.equal(found[name], expected[name])


def test_volumes_are_never_left_in_8_bits():
    for use in (
        lambda: WallocVolumeImageProcessor(do_rescale=False)(PICTURE[..., 0][None]),
        lambda: WallocVolumeImageProcessor()(PICTURE[..., 0][None], do_rescale=False),
    ):
        with pytest.raises(ValueError, match="do_rescale is False; valid for volumes: True"):
            use()


MODELS = {
    "image": (lambda: WallocImageModel(WallocImageConfig(**SMALL)), (3, 64, 80)),
    "restoration": (lambda: WallocImageModel(WallocImageConfig(decoder_type="restoration", **SMALL)), (3, 64, 80)),
    "audio": (lambda: WallocAudioModel(WallocAudioConfig(num_levels=4, latent_channels=5, **SMALL)), (2, 640)),
    "volume": (lambda: WallocVolumeModel(WallocVolumeConfig(num_levels=1, **SMALL)), (1, 8, 8, 8)),
}


@pytest.fixture(params=MODELS)
def model_and_signals(request):
    torch.manual_seed(0)
    make, shape = MODELS[request.param]
    return make().eval(), torch.rand(3, 1, *shape) - 0.5


def encode(model):
    return lambda x: model.encode(x).latents


def decode(model):
    return lambda z: model.decode(z)[0]


@torch.no_grad()
def test_vmap_is_the_loop(model_and_signals):
    model, signals = model_and_signals
    latents = torch.stack([encode(model)(x) for x in signals])
    torch.testing.assert_close(torch.vmap(encode(model))(signals), latents, atol=1e-4, rtol=1e-4)
    decoded = torch.stack([decode(model)(z) for z in latents])
    torch.testing.assert_close(torch.vmap(decode(model))(latents), decoded, atol=1e-5, rtol=0)


def test_gradients_of_each_example(model_and_signals):
    model, signals = model_and_signals
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, x):
        return functional_call(model, weights, (x,)).loss

    per_example = torch.vmap(grad(loss), in_dims=(None, 0))(weights, signals)
    for i, x in enumerate(signals):
        model.zero_grad()
        model(x).loss.backward()
        for name, weight in model.named_parameters():
            expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(per_example[name][i], expected, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_compiled_without_breaks_and_exported(model_and_signals):
    model, signals = model_and_signals
    latents = encode(model)(signals[0])
    for function, x in ((encode(model), signals[0]), (decode(model), latents)):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=False)
        torch.testing.assert_close(compiled(x), function(x), atol=1e-4, rtol=1e-4)

        class Module(torch.nn.Module):
            def __init__(self, function):
                super().__init__()
                self.codec, self.function = model, function

            def forward(self, x):
                return self.function(x)

        exported = torch.export.export(Module(function), (x,)).module()
        torch.testing.assert_close(exported(x), function(x), atol=1e-4, rtol=1e-4)


def test_views_of_latents_keep_float32_with_another_default():
    codec = AutoModel.from_pretrained("walloc/rgb-16x")
    view, z = LatentView.scaled(codec.config), torch.rand(1, 12, 4, 4)
    expected = view.from_latents(z)
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = view.from_latents(z)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected) and found.dtype == torch.float32
