"""Pretrained pixel models on latents: the fold against pixels for every family, saving, training, generating."""

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from codec_fixtures import image_model
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    Idefics3Config,
    LlamaConfig,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    set_seed,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from transformers_walloc.codec.bottleneck import companding_scale, decompand
from transformers_walloc.codec.wavelets import wavelet_packet_synthesis
from transformers_walloc.latents.folding import (
    average_patch_embedding,
    equal_cost_patch_size,
    exact_halo,
    flatten_patches,
    fold_patch_embedding,
    latent_values,
    latent_windows,
    latents_to_pixels,
    load_on_latents,
    needs_constant_channel,
    pixels_to_latents,
    resize_matrix,
)

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
IMAGE_TOKEN, VOCABULARY = 90, 96
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "num_key_value_heads": 1, "vocab_size": VOCABULARY, "head_dim": 8, "pad_token_id": 0}
PATCH, GRID = 4, (4, 4)  # pixels, patches


def _vision(**more):
    return {**VISION, "image_size": PATCH * GRID[0], "patch_size": PATCH, **more}


def _qwen(config_class, **more):
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    return config_class(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, **more},
        image_token_id=IMAGE_TOKEN,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )


def _config(family: str):
    if family == "vit":
        return ViTConfig(**_vision(), num_labels=3)
    if family == "siglip":
        return SiglipVisionConfig(**_vision())
    if family == "clip":
        text = CLIPTextConfig(**VISION, vocab_size=VOCABULARY, eos_token_id=2, max_position_embeddings=8)
        return CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**_vision()).to_dict())
    if family == "paligemma":
        text = GemmaConfig(**TEXT).to_dict()
        vision = SiglipVisionConfig(**_vision(), vision_use_head=False, projection_dim=16).to_dict()
        return PaliGemmaConfig(
            text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, projection_dim=16, hidden_size=16
        )
    if family in ("idefics3", "smolvlm"):
        config_class = Idefics3Config if family == "idefics3" else SmolVLMConfig
        return config_class(
            text_config=LlamaConfig(**TEXT).to_dict(),
            vision_config=_vision(),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
        )
    if family == "qwen2_vl":
        return _qwen(Qwen2VLConfig, embed_dim=16, hidden_size=16, mlp_ratio=2)
    return _qwen(Qwen2_5_VLConfig, hidden_size=16, intermediate_size=24, out_hidden_size=16, window_size=4 * PATCH,
                 fullatt_block_indexes=[1])  # fmt: skip


FAMILIES = {
    "vit": AutoModelForImageClassification,
    "clip": CLIPVisionModel,
    "siglip": AutoModel,
    "paligemma": AutoModelForImageTextToText,
    "idefics3": AutoModelForImageTextToText,
    "smolvlm": AutoModelForImageTextToText,
    "qwen2_vl": AutoModelForImageTextToText,
    "qwen2_5_vl": AutoModelForImageTextToText,
}
LANGUAGE = [name for name, auto_class in FAMILIES.items() if auto_class is AutoModelForImageTextToText]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def codec():
    return image_model(12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A "pretrained" pixel model of each family, built once."""
    made = {}

    def folder(family: str) -> str:
        if family not in made:
            set_seed(0)
            auto_class, config = FAMILIES[family], _config(family)
            model = AutoModel.from_config(config) if family == "clip" else auto_class.from_config(config)
            for name, parameter in model.named_parameters():
                if "embed" in name:  # position and patch embeddings large enough to matter
                    torch.nn.init.normal_(parameter, std=0.2)
            made[family] = str(tmp_path_factory.mktemp(family))
            model.save_pretrained(made[family])
        return made[family]

    return folder


def _photograph(height: int, width: int) -> torch.Tensor:
    pixels = torch.from_numpy(skimage.data.astronaut()[40:, 120:].copy()).permute(2, 0, 1)[None]
    return pixels[:, :, :height, :width].float() / 255 - 0.5


def _latents(codec, x: torch.Tensor, halo: int) -> torch.Tensor:
    with torch.no_grad():
        return codec.encode(F.pad(x, (8 * halo,) * 4, mode="reflect")).latents


def _linear_decode(codec, latents: torch.Tensor) -> torch.Tensor:
    """Not clamped, as opposed to `decode`."""
    config = codec.config
    with torch.no_grad():
        subbands = codec.decoder(decompand(latents, config.latent_bits))
        return wavelet_packet_synthesis(subbands, config.num_levels, config.wavelet, config.boundary, 2)


def _pixels(reconstruction: torch.Tensor, halo: int, ratio: int) -> torch.Tensor:
    """The pixel model's input: cropped, box resized, normalised."""
    crop = reconstruction[:, :, 8 * halo :, 8 * halo :]
    crop = crop[:, :, : crop.shape[2] - 8 * halo, : crop.shape[3] - 8 * halo]
    resized = F.avg_pool2d(crop, ratio) + 0.5
    return (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _inputs(family: str, pixels: torch.Tensor, patch: int) -> dict:
    """Model inputs of an image, pixels or windows of latents alike."""
    gh, gw = pixels.shape[2] // patch, pixels.shape[3] // patch
    if family.startswith("qwen"):
        if pixels.shape[1] == 3:
            processor = Qwen2VLImageProcessorPil(patch_size=patch, temporal_patch_size=2, merge_size=2)
            image = processor(
                list(pixels.numpy()), do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False,
                input_data_format="channels_first", return_tensors="pt",
            )  # fmt: skip
            pixels, grid = image["pixel_values"], image["image_grid_thw"]
        else:
            pixels, grid = flatten_patches(pixels, patch, 2)
        assert grid.tolist() == [[1, gh, gw]]
        tokens = [92] + [IMAGE_TOKEN] * (gh * gw // 4) + [93, 5, 6]
        ids = torch.tensor([tokens])
        types = (ids == IMAGE_TOKEN).int()
        return {"pixel_values": pixels, "image_grid_thw": grid, "input_ids": ids, "mm_token_type_ids": types}
    if family not in LANGUAGE:
        return {"pixel_values": pixels}
    count = gh * gw if family == "paligemma" else gh * gw // 4
    ids = torch.tensor([[IMAGE_TOKEN] * count + [2, 5, 6]])
    pixels = pixels if family == "paligemma" else pixels[:, None]
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _run(model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch tokens as the projection gives them, rows of tokens, and the model's output."""
    names = ("patch_embeddings.projection", "embeddings.patch_embedding", "patch_embed.proj")
    projection = next(m for name, m in model.named_modules() if name.endswith(names))
    tokens = []
    handle = projection.register_forward_hook(lambda module, args, output: tokens.append(output))
    with torch.no_grad():
        output = model.eval()(**inputs)
    handle.remove()
    return tokens[0], output.logits if "logits" in output else output.last_hidden_state


def _windows(codec, model, latents, patch_size, halo):
    constant = needs_constant_channel(model.config)
    return latent_windows(latent_values(latents, codec.config), patch_size, halo, constant)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_fold_equals_pixels(family, codec, folders, tmp_path):
    """Tokens and output of the folded model are those of the pixel model on resized linear reconstructions."""
    folder, auto_class = folders(family), FAMILIES[family]
    halo = exact_halo(codec.config, 2, PATCH)
    height, width = GRID[0] * 16, GRID[1] * 16
    if family.startswith("qwen"):
        width += 32  # any even grid
    x = _photograph(height, width)
    latents = _latents(codec, x, halo)
    pixel_model = auto_class.from_pretrained(folder)
    pixels = _pixels(_linear_decode(codec, latents), halo, ratio=4)
    tokens, output = _run(pixel_model, _inputs(family, pixels, PATCH))

    model = load_on_latents(folder, codec, auto_class, halo=None, image_mean=MEAN, image_std=STD)
    assert type(model) is type(pixel_model)
    inputs = _inputs(family, _windows(codec, model, latents, 2, halo), 2 + 2 * halo)
    folded_tokens, folded_output = _run(model, inputs)
    assert _relative(folded_tokens, tokens) < 1e-4
    assert _relative(folded_output, output) < 1e-3
    # The position embeddings and all else are the pretrained ones.
    loaded = dict(pixel_model.named_parameters())
    changed = {
        name for name, p in model.named_parameters() if p.shape != loaded[name].shape or not p.equal(loaded[name])
    }
    assert all("patch_embed" in name for name in changed) and changed

    model.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path)
    assert _run(again, inputs)[1].equal(folded_output)


def test_model_of_text_and_images(codec, folders):
    """All of CLIP, not its vision model alone: its image features are the pixel model's."""
    model = load_on_latents(folders("clip"), codec, AutoModel, halo=None, image_mean=MEAN, image_std=STD)
    halo = model.config.walloc_latents["halo"]
    latents = _latents(codec, _photograph(64, 64), halo)
    pixels = _pixels(_linear_decode(codec, latents), halo, ratio=4)
    ids = torch.tensor([[1, 5, 2]])
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders("clip"))(pixel_values=pixels, input_ids=ids).image_embeds
        features = model(pixel_values=_windows(codec, model, latents, 2, halo), input_ids=ids).image_embeds
    assert _relative(features, expected) < 1e-3


@pytest.mark.parametrize(
    ("family", "initialization"),
    [
        *((family, "fold") for family in FAMILIES),
        *((family, plain) for family in ("vit", "clip", "qwen2_5_vl") for plain in ("average", "random")),
    ],
)
def test_without_halo(family, initialization, codec, folders):
    """Patches that do not overlap run too; the fold then stays near the pixel model."""
    model = load_on_latents(
        folders(family), codec, FAMILIES[family], initialization=initialization, image_mean=MEAN, image_std=STD
    )
    latents = _latents(codec, _photograph(64, 64), 0)
    windows = _windows(codec, model, latents, 2, 0)
    assert windows.shape[2:] == latents.shape[2:]
    tokens, output = _run(model, _inputs(family, windows, 2))
    assert output.isfinite().all()
    pixels = _pixels(_linear_decode(codec, latents), 0, ratio=4)
    expected, _ = _run(FAMILIES[family].from_pretrained(folders(family)), _inputs(family, pixels, PATCH))
    # Patches of two latents are the smallest there are, so this is where the missing halo hurts most.
    assert (_relative(tokens, expected) < 0.3) == (initialization == "fold")
    assert 0.05 < tokens.std() < 20


@pytest.mark.parametrize("halo", [0, 1])
def test_flat_areas_need_no_halo(halo, codec):
    """Where the image is constant a window that is too small gives the same tokens as one that is not."""
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 14, 14)
    latents = codec.encode(torch.tensor([0.3, -0.2, 0.1])[None, :, None, None].expand(1, 3, 256, 256)).latents
    values = latent_values(latents.detach(), codec.config)[:, :, 10:, 10:]
    tokens = []
    for h in (halo, exact_halo(codec.config, 7, 14)):
        folded, shift = fold_patch_embedding(weight, None, codec, 7, h, MEAN, STD)
        tokens.append(F.conv2d(values[:, :, : 7 + 2 * h, : 7 + 2 * h].double(), folded, shift))
    # The codec's subbands of a flat area are not quite zero above the lowest: the transform was fitted to photographs.
    assert _relative(*tokens) < 1e-2


@pytest.mark.parametrize("family", LANGUAGE)
def test_generate_and_train(family, codec, folders):
    model = load_on_latents(folders(family), codec, FAMILIES[family], halo=1, image_mean=MEAN, image_std=STD)
    windows = _windows(codec, model, _latents(codec, _photograph(64, 64), 1), 2, 1)
    inputs = _inputs(family, windows, 4)
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3
    if family == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    labels = inputs["input_ids"].clone()
    labels[labels == IMAGE_TOKEN] = -100
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_trainer(codec, folders, tmp_path):
    """Rows of latents through `Trainer`, saved, and loaded again from its checkpoint."""
    model = load_on_latents(folders("vit"), codec, FAMILIES["vit"], image_mean=MEAN, image_std=STD)
    windows = _windows(codec, model, _latents(codec, _photograph(64, 64), 0), 2, 0)[0]
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
        folders("qwen2_5_vl"), codec, FAMILIES["qwen2_5_vl"], halo=1, image_mean=MEAN, image_std=STD
    )
    assert model.config.walloc_latents == {"patch_size": 2, "halo": 1, "constant_channel": True}
    vision = model.config.vision_config
    assert (vision.in_channels, vision.patch_size, vision.temporal_patch_size) == (13, 4, 1)
    assert vision.window_size // vision.patch_size == 4


@pytest.mark.parametrize("resample", ["box", "bilinear", "bicubic"])
@pytest.mark.parametrize("boundary", ["symmetric", "periodization"])
@pytest.mark.parametrize(("patch_size", "pixel_patch"), [(7, 14), (3, 8)])
def test_fold_of_a_weight(resample, boundary, patch_size, pixel_patch):
    """Middle patches of a large image against torch's own antialiased resize, also at ratios that are not whole."""
    torch.manual_seed(0)
    from transformers_walloc import WallocImageConfig, WallocImageModel

    codec = WallocImageModel(WallocImageConfig(latent_channels=5, decoder_type="linear", boundary=boundary)).eval()
    with torch.no_grad():
        codec.decoder.linear.bias.normal_(std=0.1)
    weight, bias = torch.randn(3, 3, pixel_patch, pixel_patch) * 0.1, torch.randn(3)
    count = 5
    latents = torch.randn(1, 5, count * patch_size, count * patch_size) * 30
    size = count * pixel_patch
    decoded = _linear_decode(codec, latents)
    if resample == "box":
        matrix = torch.from_numpy(resize_matrix(decoded.shape[2], size)).float()
        resized = matrix @ decoded @ matrix.T
    else:
        resized = F.interpolate(decoded, (size, size), mode=resample, antialias=True)
    resized = (resized + 0.5 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = F.conv2d(resized, weight, bias, stride=pixel_patch)[:, :, 2, 2]
    folded, shift = fold_patch_embedding(weight, bias, codec, patch_size, None, MEAN, STD, resample)
    halo = (folded.shape[2] - patch_size) // 2
    assert halo == exact_halo(codec.config, patch_size, pixel_patch, resample)
    start, end = 2 * patch_size - halo, 3 * patch_size + halo
    window = latent_values(latents, codec.config)[:, :, start:end, start:end]
    assert _relative(F.conv2d(window, folded.float(), shift.float())[:, :, 0, 0], expected) < 1e-4


def test_box_is_area():
    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    matrix = torch.from_numpy(resize_matrix(12, 3))
    torch.testing.assert_close(matrix @ x @ matrix.T, F.avg_pool2d(x, 4))


def test_reads_normalisation_from_the_image_processor(codec, folders, tmp_path):
    from transformers import ViTImageProcessor

    model = AutoModelForImageClassification.from_pretrained(folders("vit"))
    model.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    read = load_on_latents(str(tmp_path), codec, FAMILIES["vit"])
    given = load_on_latents(folders("vit"), codec, FAMILIES["vit"], image_mean=MEAN, image_std=STD)
    for (name, a), b in zip(read.named_parameters(), given.parameters(), strict=True):
        assert a.equal(b), name


def test_codes_are_latents_rounded(codec):
    latents = torch.tensor([[-50.0, 0.0, 100.0]])
    assert latent_values(latents.to(torch.int8), codec.config).equal(latent_values(latents, codec.config))
    coarse = latent_values((latents / 2).to(torch.int8), codec.config, step=2.0)
    assert coarse.equal(latent_values(latents, codec.config))


def test_pixel_shuffle_view(codec):
    """12 channels at H/8 as RGB at H/4, each latent a block of 2 x 2 pixels; nothing is lost."""
    latents = _latents(codec, _photograph(64, 128), 0)
    view = latents_to_pixels(latents)
    assert view.shape == (1, 3, 16, 32)
    assert view[0, 1, 2:4, 6:8].flatten().equal(latents[0, 4:8, 1, 3])
    assert pixels_to_latents(view, 12).equal(latents)
    model = AutoModelForImageClassification.from_config(ViTConfig(**{**_vision(), "image_size": 16}, num_labels=2))
    assert model(latents_to_pixels(latents[:, :, :, :8])).logits.shape == (1, 2)
    for call in (lambda: latents_to_pixels(latents[:, :9]), lambda: pixels_to_latents(view, 9)):
        with pytest.raises(ValueError, match="9 channels of latents are not 3 times a square"):
            call()


def test_equal_cost(codec):
    assert [equal_cost_patch_size(codec.config, p) for p in (4, 14, 16)] == [2, 7, 8]
    assert equal_cost_patch_size(image_model(48).config, 16) == 4


@pytest.mark.parametrize("kernel_size", [2, 4, 16])
def test_average_of_a_weight(kernel_size):
    """Every channel has the mean over colours, and tokens of white latents vary as those of white pixels do."""
    codec = image_model(12)
    codec.decoder.latent_std = torch.linspace(40, 1, 12)  # as a decoder with a network keeps it
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    weight[5] -= weight[5].mean(dim=0)  # a filter of differences between colours
    averaged = average_patch_embedding(weight, codec, kernel_size)
    assert averaged.shape == (6, 12, kernel_size, kernel_size)
    values = torch.randn(12, 20000, kernel_size**2, generator=generator, dtype=torch.float64)
    std = codec.decoder.latent_std.double() / companding_scale(8)
    tokens = torch.einsum("dck,cnk->dn", averaged.flatten(2), values * std[:, None, None])
    expected = weight.flatten(1).square().sum(1)
    assert torch.allclose(tokens.var(dim=1)[:5], expected[:5], rtol=0.05)
    assert tokens[5].abs().max() < 1e-3
    shared = averaged[:5] * std[:, None, None]
    assert torch.allclose(shared, shared[:, :1].expand_as(shared))
    small = F.interpolate(weight.mean(1, keepdim=True), (kernel_size,) * 2, mode="area")[:5, 0]
    assert torch.allclose(F.cosine_similarity(shared[:, 0].flatten(1), small.flatten(1)), torch.ones(5).double())


def test_average_keeps_the_bias(folders, codec):
    pixel_model = AutoModel.from_pretrained(folders("siglip"))
    model = load_on_latents(folders("siglip"), codec, initialization="average", image_mean=MEAN, image_std=STD, halo=1)
    name = "embeddings.patch_embedding.bias"
    assert torch.equal(model.get_parameter(name), pixel_model.get_parameter(name))


def test_errors(codec, folders, tmp_path):
    with pytest.raises(ValueError, match="unknown initialization 'mean'; valid: fold, average, random"):
        load_on_latents(folders("vit"), codec, initialization="mean")
    with pytest.raises(ValueError, match=r"no patch embedding known for model type 'walloc_image'; valid: vit, clip"):
        codec.save_pretrained(tmp_path)
        load_on_latents(str(tmp_path), codec)
    with pytest.raises(ValueError, match="unknown resample 'nearest'; valid: box, bilinear, bicubic"):
        load_on_latents(folders("vit"), codec, image_mean=MEAN, image_std=STD, resample="nearest")
    with pytest.raises(ValueError, match="are not patches of 3 with a halo of 1"):
        latent_windows(torch.zeros(1, 12, 9, 8), 3, 1)
    with pytest.raises(ValueError, match="grid of 3 x 4 patches cannot be merged by 2"):
        flatten_patches(torch.zeros(1, 12, 6, 8), 2, 2)
