"""Augmenting latents is augmenting pixels: against torch's operations on the pixels, encoded afterwards."""

import pickle

import pytest
import torch
from block_codecs import block_model, photographs
from codec_fixtures import image_model
from datasets import Dataset

from transformers_walloc import LatentAugmentation, transform_latents
from transformers_walloc.codec.symmetries import SYMMETRIES
from transformers_walloc.latents.augmentation import LUMA, colour_matrix
from transformers_walloc.latents.datasets import LatentTransform, encode_rows


def encode(model, unit: torch.Tensor) -> torch.Tensor:
    """Latents of pixels in [0, 1]."""
    with torch.no_grad():
        return model.encode((unit - 0.5).contiguous()).latents


def dim_pictures() -> torch.Tensor:
    return 0.1 + 0.7 * (photographs() + 0.5)  # so that nothing is clipped


@pytest.mark.parametrize("model", [block_model(), image_model()], ids=["blocks", "lapped"])
@pytest.mark.parametrize("factor", [0.6, 1.2])
def test_brightness_is_exact(model, factor):
    unit = dim_pictures()
    ours = LatentAugmentation(model).adjust(encode(model, unit), brightness=factor)
    torch.testing.assert_close(ours, encode(model, unit * factor), atol=2e-3, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_contrast_is_exact_for_the_mean_grey_of_the_linear_decoding(factor):
    model, unit = block_model(), dim_pictures()
    latents = encode(model, unit)
    decoded = model.decode(latents).pixel_values + 0.5
    grey = torch.einsum("c,bchw->b", torch.tensor(LUMA), decoded)[:, None, None, None] / decoded[0, 0].numel()
    ours = LatentAugmentation(model).adjust(latents, contrast=factor)
    torch.testing.assert_close(ours, encode(model, factor * unit + (1 - factor) * grey), atol=2e-2, rtol=0)


@pytest.mark.parametrize("change", [{"saturation": 0.3}, {"saturation": 1.4}, {"hue": 0.08}])
def test_colours_miss_little(change):
    model, unit = block_model(), dim_pictures()
    latents = encode(model, unit)
    expected = encode(model, torch.einsum("pc,bchw->bphw", colour_matrix(**change), unit))
    ours = LatentAugmentation(model).adjust(latents, **change)
    assert (ours - expected).std() < 0.15 * (expected - latents).std()


def test_colour_matrix_keeps_grey_and_turns_back():
    for saturation, hue in ((0.2, 0.1), (1.7, -0.3)):
        torch.testing.assert_close(colour_matrix(saturation, hue).sum(1), torch.ones(3))
    torch.testing.assert_close(colour_matrix(hue=0.2) @ colour_matrix(hue=-0.2), torch.eye(3))
    torch.testing.assert_close(colour_matrix(hue=1 / 3), torch.eye(3)[[2, 0, 1]], atol=1e-6, rtol=0)  # red to green


def test_draws_are_crops_and_symmetries_of_the_batch():
    model = block_model()
    latents = model.quantize(encode(model, dim_pictures()))
    augment = LatentAugmentation(model, rotations=True, crop_size=5)
    first = augment(latents, generator=torch.Generator().manual_seed(3))
    assert first.dtype == torch.int8 and first.shape == (3, 48, 5, 5)
    assert torch.equal(first, augment(latents, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, augment(latents, generator=torch.Generator().manual_seed(4)))
    for piece, whole in zip(first, latents, strict=True):
        crops = whole.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        moved = [transform_latents(crops, model.config, name) for name in SYMMETRIES]
        assert any((candidates == piece).flatten(1).all(1).any() for candidates in moved)


def test_every_picture_has_its_own_colours():
    model = block_model()
    latents = encode(model, dim_pictures())[:1].expand(8, -1, -1, -1)
    out = LatentAugmentation(model, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)(latents)
    assert len({tuple(row) for row in out.flatten(1)[:, :4].tolist()}) == 8


def test_codes_with_a_step_are_scaled():
    model = block_model()
    latents = encode(model, dim_pictures())
    augment = LatentAugmentation(model, brightness=0.3)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    by_codes = augment(model.quantize(latents, step=2.0), step=2.0, generator=generators[0])
    by_latents = augment(latents, generator=generators[1])
    assert by_codes.dtype == torch.float32
    assert (by_codes - by_latents).abs().max() < 4


def test_it_is_small_moves_and_pickles():
    augment = LatentAugmentation(block_model(), flips=True, hue=0.1)
    assert sum(buffer.numel() for buffer in augment.buffers()) < 10**5 and not augment.state_dict()
    copy = pickle.loads(pickle.dumps(augment.to("cpu")))
    latents = encode(block_model(), dim_pictures())
    torch.testing.assert_close(copy.adjust(latents, hue=0.1), augment.adjust(latents, hue=0.1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flips": True}, "move the pictures before"),
        ({"rotations": True}, "move the pictures before"),
        ({"crop_size": 4}, "crop the pictures before"),
        ({"brightness": -1}, "brightness is -1; valid"),
        ({"hue": 0.7}, "hue is 0.7; valid: 0 to 0.5"),
    ],
)
def test_lapped_codecs_and_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LatentAugmentation(image_model(), **options)


def test_shapes_that_do_not_fit_are_refused():
    latents = torch.zeros(2, 48, 4, 6)
    with pytest.raises(ValueError, match="need square latents, these are 4 x 6"):
        LatentAugmentation(block_model(), rotations=True)(latents)
    with pytest.raises(ValueError, match=r"crop_size is \(5, 5\); the latents are 4 x 6"):
        LatentAugmentation(block_model(), crop_size=5)(latents)


@pytest.mark.parametrize("storage", ["webp", "walloc", "int8"])
def test_rows_of_a_data_set_are_augmented_anew_each_time(storage):
    model = block_model()
    images = [((photo + 0.5) * 255).round().byte() for photo in photographs()]
    rows = Dataset.from_dict({"latents": encode_rows(images, model, storage), "label": [0, 1, 2]})
    plain = rows.with_transform(LatentTransform(model, content="codes"))[:]["latent_values"]
    options = {"codec": model, "output_name": "pixel_values"}
    moved = LatentTransform(content="codes", augmentation=LatentAugmentation(model, flips=True, crop_size=8), **options)
    torch.manual_seed(0)
    draws = [rows.with_transform(moved)[:]["pixel_values"] for _ in range(2)]
    assert not all(torch.equal(*pair) for pair in zip(*draws, strict=True))
    for codes, whole in zip(draws[0], plain, strict=True):
        both = torch.stack([whole, transform_latents(whole, model.config, "hflip")])
        crops = both.unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        assert (crops == codes).flatten(1).all(1).any()
    coloured = LatentTransform(augmentation=LatentAugmentation(model, brightness=0.2), **options)
    values = rows.with_transform(coloured)[:]["pixel_values"]
    assert values[0].shape == (48, 16, 16) and values[0].is_floating_point()
    with pytest.raises(ValueError, match="take content='latents'"):
        rows.with_transform(LatentTransform(model, "codes", augmentation=LatentAugmentation(model, hue=0.1)))[:]


def test_a_batch_is_augmented_in_a_collator():
    """As `Trainer` has it: rows give latents, the collator augments the batch of them."""
    model = block_model()
    augment = LatentAugmentation(model, rotations=True, crop_size=8, contrast=0.2)
    latents = [{"latents": x, "labels": i} for i, x in enumerate(encode(model, dim_pictures()))]

    def collate(examples):
        batch = augment(torch.stack([example["latents"] for example in examples]))
        return {"pixel_values": batch, "labels": torch.tensor([example["labels"] for example in examples])}

    batch = next(iter(torch.utils.data.DataLoader(latents, batch_size=3, collate_fn=collate)))
    assert batch["pixel_values"].shape == (3, 48, 8, 8)


def test_rows_with_a_halo_are_refused():
    model = block_model()
    rows = encode_rows([((photographs()[0] + 0.5) * 255).byte()], model, "int8", halo=1)
    with pytest.raises(ValueError, match="a halo of 1, with which they cannot be augmented"):
        LatentTransform(model, augmentation=LatentAugmentation(model, flips=True))({"latents": rows})
