"""Pretrained pixel models on latents: against pixels for every family, saving, training, generating."""

import numpy as np
import pytest
import torch
from codec_fixtures import image_model
from pixel_models import (
    AUTO_CLASSES,
    FAMILIES,
    GRID,
    IMAGE_TOKEN,
    LANGUAGE,
    MEAN,
    PATCH,
    STD,
    inputs_of,
    latents_with_halo,
    linear_decode,
    main_output,
    normalised_pixels,
    photograph,
    relative_error,
    tokens_and_output,
)
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments

from transformers_walloc import LatentView, WallocImageConfig, WallocImageModel
from transformers_walloc.latents.families import embedding_parameters, family_of
from transformers_walloc.latents.folding import exact_halo
from transformers_walloc.latents.layouts import flatten_patches
from transformers_walloc.latents.pretrained import load_on_latents


def _windows(codec, model, latents):
    return LatentView(codec.config, **model.config.walloc_latents).from_latents(latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_fold_equals_pixels(family, codec, folders, tmp_path):
    """Tokens and output of the folded model are those of the pixel model on resized linear reconstructions."""
    folder, auto_class = folders(family), AUTO_CLASSES[family]
    halo = exact_halo(codec.config, 2, PATCH)
    x = photograph(GRID[0] * 16, (GRID[1] + 2 * FAMILIES[family].any_size) * 16)
    latents = latents_with_halo(codec, x, halo)
    pixel_model = auto_class.from_pretrained(folder)
    pixels = normalised_pixels(linear_decode(codec, latents), halo, 4, family)
    tokens, output = tokens_and_output(pixel_model, inputs_of(family, pixels, PATCH))

    model = load_on_latents(folder, codec, auto_class, halo=None, image_mean=MEAN, image_std=STD)
    assert type(model) is type(pixel_model)
    inputs = inputs_of(family, _windows(codec, model, latents), 2 + 2 * halo)
    folded_tokens, folded_output = tokens_and_output(model, inputs)
    assert relative_error(folded_tokens, tokens) < 1e-4
    assert relative_error(folded_output, output) < 1e-3
    # The position embeddings and all else are the pretrained ones.
    loaded = dict(pixel_model.named_parameters())
    changed = {
        name for name, p in model.named_parameters() if p.shape != loaded[name].shape or not p.equal(loaded[name])
    }
    assert changed and all(family_of(model.config).embedding in name for name in changed)

    model.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path)
    assert tokens_and_output(again, inputs)[1].equal(folded_output)


def test_no_report_of_what_is_as_it_should_be(codec, folders, caplog):
    from transformers.utils import logging

    verbosity = logging.get_verbosity()  # other tests may have left another
    logging.set_verbosity_warning()
    logging.enable_propagation()  # to caplog
    try:
        load_on_latents(folders("vit"), codec, AUTO_CLASSES["vit"], image_mean=MEAN, image_std=STD)
        assert "MISMATCH" not in caplog.text
        # What is really missing is still said.
        load_on_latents(
            folders("vit"), codec, AutoModelForImageClassification, image_mean=MEAN, image_std=STD, num_labels=7
        )
        assert "classifier" in caplog.text and "patch_embeddings" not in caplog.text
    finally:
        logging.disable_propagation()
        logging.set_verbosity(verbosity)


@pytest.mark.parametrize("family", ["vit", "qwen2_vl", "gemma4"])
@pytest.mark.parametrize("initialization", ["fold", "average"])
def test_scale_changes_training_only(initialization, family, codec, folders):
    """What the model computes at its start does not depend on the scale of the latents that it is given."""
    scaled = image_model(12)
    scaled.config.latents_mean = [40.0, *[-1.0] * 11]
    scaled.config.latents_std = [60.0, 30.0, *[4.0] * 9, 0.01]
    latents = latents_with_halo(codec, photograph(64, 64), 1)
    outputs, weights = [], []
    # The average divides by the deviations that the codec knows, so that it differs between codecs.
    codecs = [(scaled, "none"), (scaled, None), (scaled, "partial")] + [(codec, None)] * (initialization == "fold")
    for model_codec, scale in codecs:
        model = load_on_latents(folders(family), model_codec, AUTO_CLASSES[family], halo=1, scale=scale,
                                initialization=initialization, image_mean=MEAN, image_std=STD)  # fmt: skip
        assert ("std" in model.config.walloc_latents) == (scale != "none" and model_codec is scaled)
        outputs.append(tokens_and_output(model, inputs_of(family, _windows(model_codec, model, latents), 4)))
        weights.append(embedding_parameters(model, family_of(model.config))[0])
    for tokens, output in outputs[1:]:
        assert relative_error(tokens, outputs[0][0]) < 1e-4 and relative_error(output, outputs[0][1]) < 1e-3
    assert not weights[0].equal(weights[1])


@pytest.mark.parametrize(("codec_channels", "pixel_channels"), [(1, 3), (6, 6)])
def test_codecs_of_other_channels(codec_channels, pixel_channels, folders, tmp_path):
    """A gray codec for a model of colours, and a codec of six bands for a model that takes six."""
    torch.manual_seed(0)
    shape = {"num_channels": codec_channels, "latent_channels": 4 * codec_channels, "decoder_type": "linear"}
    codec = WallocImageModel(WallocImageConfig(**shape)).eval()
    folder = folders("vit")
    if pixel_channels != 3:
        config = AutoConfig.from_pretrained(folder, num_channels=pixel_channels)
        AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
        folder = str(tmp_path)
    halo = exact_halo(codec.config, 2, PATCH)
    gray = photograph(GRID[0] * 16, GRID[1] * 16).mean(dim=1, keepdim=True)
    x = gray * torch.linspace(0.3, 1, codec_channels)[:, None, None]
    latents = latents_with_halo(codec, x, halo)
    pixels = linear_decode(codec, latents)[:, :, 8 * halo : -8 * halo, 8 * halo : -8 * halo]
    pixels = (torch.nn.functional.avg_pool2d(pixels, 4) + 0.5 - 0.4) / 0.3
    inputs = {"pixel_values": pixels.expand(-1, pixel_channels, -1, -1)}
    tokens, output = tokens_and_output(AutoModelForImageClassification.from_pretrained(folder), inputs)
    statistics = {"image_mean": (0.4,), "image_std": (0.3,)}
    model = load_on_latents(folder, codec, AutoModelForImageClassification, patch_size=2, halo=None, **statistics)
    folded_tokens, folded_output = tokens_and_output(model, {"pixel_values": _windows(codec, model, latents)})
    assert relative_error(folded_tokens, tokens) < 1e-4 and relative_error(folded_output, output) < 1e-3


def test_model_of_text_and_images(codec, folders):
    """All of CLIP, not its vision model alone: its image features are the pixel model's."""
    model = load_on_latents(folders("clip"), codec, AutoModel, halo=None, image_mean=MEAN, image_std=STD)
    halo = model.config.walloc_latents["halo"]
    latents = latents_with_halo(codec, photograph(64, 64), halo)
    pixels = normalised_pixels(linear_decode(codec, latents), halo, ratio=4)
    ids = torch.tensor([[1, 5, 2]])
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders("clip"))(pixel_values=pixels, input_ids=ids).image_embeds
        features = model(pixel_values=_windows(codec, model, latents), input_ids=ids).image_embeds
    assert relative_error(features, expected) < 1e-3


@pytest.mark.parametrize(
    ("family", "initialization"),
    [
        *((family, "fold") for family in FAMILIES),
        *((family, plain) for family in ("vit", "clip", "qwen2_5_vl", "gemma4") for plain in ("average", "random")),
    ],
)
def test_without_halo(family, initialization, codec, folders):
    """Patches that do not overlap run too; the fold then stays near the pixel model."""
    model = load_on_latents(
        folders(family), codec, AUTO_CLASSES[family], initialization=initialization, image_mean=MEAN, image_std=STD
    )
    latents = latents_with_halo(codec, photograph(64, 64), 0)
    windows = _windows(codec, model, latents)
    assert windows.shape[2:] == latents.shape[2:]
    tokens, output = tokens_and_output(model, inputs_of(family, windows, 2))
    assert output.isfinite().all()
    pixels = normalised_pixels(linear_decode(codec, latents), 0, 4, family)
    expected, _ = tokens_and_output(
        AUTO_CLASSES[family].from_pretrained(folders(family)), inputs_of(family, pixels, PATCH)
    )
    # Patches of two latents are the smallest there are, so this is where the missing halo hurts most.
    assert (relative_error(tokens, expected) < 0.3) == (initialization == "fold")
    assert 0.05 < tokens.std() < 20


@pytest.mark.parametrize("family", LANGUAGE)
def test_generate_and_train(family, codec, folders):
    model = load_on_latents(folders(family), codec, AUTO_CLASSES[family], halo=1, image_mean=MEAN, image_std=STD)
    windows = _windows(codec, model, latents_with_halo(codec, photograph(64, 64), 1))
    inputs = inputs_of(family, windows, 4)
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3
    if family in ("paligemma", "gemma3"):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    labels = inputs["input_ids"].clone()
    labels[labels == IMAGE_TOKEN] = -100
    _check_training(model, lambda: model(**inputs, labels=labels).loss)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LANGUAGE])
def test_train_and_save(family, codec, folders, tmp_path):
    """Models without text to generate: towards an output of our own."""
    model = load_on_latents(folders(family), codec, AUTO_CLASSES[family], halo=1, image_mean=MEAN, image_std=STD)
    inputs = inputs_of(family, _windows(codec, model, latents_with_halo(codec, photograph(64, 64), 1)), 4)
    with torch.no_grad():
        start = main_output(model(**inputs))
    target = start + torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    _check_training(model, lambda: (main_output(model(**inputs)) - target).square().mean())
    model.save_pretrained(tmp_path)
    again = AUTO_CLASSES[family].from_pretrained(tmp_path)
    assert again.config.walloc_latents == model.config.walloc_latents
    assert tokens_and_output(again, inputs)[1].equal(tokens_and_output(model, inputs)[1])


def _check_training(model, loss_of):
    """Two steps bring the loss down and reach the patch embedding."""
    before = embedding_parameters(model, family_of(model.config))[0].detach().clone()
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert not embedding_parameters(model, family_of(model.config))[0].equal(before)


def test_trainer(codec, folders, tmp_path):
    """Rows of latents through `Trainer`, saved, and loaded again from its checkpoint."""
    model = load_on_latents(folders("vit"), codec, AUTO_CLASSES["vit"], image_mean=MEAN, image_std=STD)
    windows = _windows(codec, model, latents_with_halo(codec, photograph(64, 64), 0))[0]
    rows = [{"pixel_values": windows * (1 - 2 * (i % 2)), "labels": i % 2} for i in range(4)]
    args = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[],
                             save_steps=2, logging_steps=1)  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    before = model.get_parameter("vit.embeddings.patch_embeddings.projection.weight").detach().clone()
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    after = saved.get_parameter("vit.embeddings.patch_embeddings.projection.weight")
    assert after.shape == (16, 12, 2, 2) and not after.equal(before)
    assert saved.config.image_size == 8


def test_qwen_config(codec, folders):
    """Windows of attention keep their number of patches; a still image is one frame."""
    model = load_on_latents(
        folders("qwen2_5_vl"), codec, AUTO_CLASSES["qwen2_5_vl"], halo=1, image_mean=MEAN, image_std=STD
    )
    assert model.config.walloc_latents == {"patch_size": 2, "halo": 1, "constant_channel": True}
    vision = model.config.vision_config
    assert (vision.in_channels, vision.patch_size, vision.temporal_patch_size) == (13, 4, 1)
    assert vision.window_size // vision.patch_size == 4


def test_reads_normalisation_from_the_image_processor(codec, folders, tmp_path):
    from transformers import ViTImageProcessor

    model = AutoModelForImageClassification.from_pretrained(folders("vit"))
    model.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    read = load_on_latents(str(tmp_path), codec, AUTO_CLASSES["vit"])
    given = load_on_latents(folders("vit"), codec, AUTO_CLASSES["vit"], image_mean=MEAN, image_std=STD)
    for (name, a), b in zip(read.named_parameters(), given.parameters(), strict=True):
        assert a.equal(b), name


def test_options_of_the_config(folders, codec):
    """As `from_pretrained` takes them: another head, another type of the weights."""
    model = load_on_latents(folders("vit"), codec, AUTO_CLASSES["vit"], num_labels=7, dtype=torch.bfloat16,
                            image_mean=MEAN, image_std=STD)  # fmt: skip
    assert model.config.num_labels == 7 and model.dtype == torch.bfloat16
    assert model(pixel_values=torch.zeros(1, 12, 8, 8, dtype=torch.bfloat16)).logits.shape == (1, 7)


def test_average_keeps_the_bias(folders, codec):
    pixel_model = AutoModel.from_pretrained(folders("siglip"))
    model = load_on_latents(folders("siglip"), codec, initialization="average", image_mean=MEAN, image_std=STD, halo=1)
    name = "embeddings.patch_embedding.bias"
    assert torch.equal(model.get_parameter(name), pixel_model.get_parameter(name))


def test_errors(codec, folders, tmp_path):
    with pytest.raises(ValueError, match="unknown initialization 'mean'; valid: fold, average, random"):
        load_on_latents(folders("vit"), codec, initialization="mean")
    with pytest.raises(ValueError, match="no patch embedding known for model type 'walloc_image'; valid: vit, dino"):
        codec.save_pretrained(tmp_path)
        load_on_latents(str(tmp_path), codec)
    for kind, reason in (("pix2struct", "own mean and deviation"), ("resnet", "stride, padding")):
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(ValueError, match=f"a model of type '{kind}' cannot be loaded on latents: it .*{reason}"):
            load_on_latents(str(tmp_path / kind), codec)
    with pytest.raises(ValueError, match="unknown resample 'nearest'; valid: box, bilinear, bicubic"):
        load_on_latents(folders("vit"), codec, image_mean=MEAN, image_std=STD, resample="nearest")
    with pytest.raises(ValueError, match="grid of 3 x 4 patches cannot be merged by 2"):
        flatten_patches(torch.zeros(1, 12, 6, 8), 2, 2)
