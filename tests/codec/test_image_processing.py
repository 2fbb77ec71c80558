"""Images in, batches out, and back to the identical images."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch

from transformers_walloc.codec.image_processing_walloc import WallocImageProcessor

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (7, 9), (8, 8), (8, 16), (15, 17), (16, 5), (33, 64), (100, 3), (61, 67)]


@pytest.fixture(scope="module")
def processor():
    return WallocImageProcessor()


@pytest.fixture(scope="module")
def photo():
    return skimage.data.astronaut()[:200, :301]  # (200, 301, 3) uint8


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_values_and_shapes(processor, photo):
    inputs = processor(photo, return_tensors="pt")
    assert list(inputs) == ["pixel_values", "original_sizes"]
    pixels = inputs["pixel_values"]
    assert pixels.shape == (1, 3, 200, 304) and pixels.dtype == torch.float32
    assert inputs["original_sizes"].tolist() == [[200, 301]] and inputs["original_sizes"].dtype == torch.int64
    expected = np.pad(photo.astype(np.float64) / 255 - 0.5, ((0, 0), (0, 3), (0, 0)), mode="reflect")
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0).numpy(), expected, atol=1e-7)
    assert pixels.min() >= -0.5 and pixels.max() <= 0.5


@pytest.mark.parametrize("patch_size", [1, 8, 32])
@pytest.mark.parametrize("size", SIZES)
def test_padding_is_the_reflection_of_numpy(size, patch_size):
    image = random_image(*size, 3)
    pixels = WallocImageProcessor(patch_size=patch_size)(image, input_data_format="channels_last")["pixel_values"][0]
    right, bottom = -size[1] % patch_size, -size[0] % patch_size
    expected = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(np.rint((pixels.permute(1, 2, 0).numpy() + 0.5) * 255).astype(np.uint8), expected)


@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_round_trip_is_exact(num_channels):
    processor = WallocImageProcessor(num_channels=num_channels)
    images = [random_image(*size, num_channels, seed=i) for i, size in enumerate(SIZES)]
    inputs = processor(images, return_tensors="pt", input_data_format="channels_last")
    assert inputs["pixel_values"].shape == (len(SIZES), num_channels, 104, 72)
    decoded = processor.post_process(inputs["pixel_values"], original_sizes=inputs["original_sizes"])
    for image, result in zip(images, decoded, strict=True):
        assert isinstance(result, np.ndarray if num_channels == 5 else PIL.Image.Image)
        np.testing.assert_array_equal(np.asarray(result).reshape(image.shape), image)


def test_every_level_of_8_bits_survives(processor):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = processor.post_process(processor(levels, return_tensors="pt")["pixel_values"])[0]
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[:, :, 1], levels)


def test_padding_does_not_depend_on_the_batch(processor):
    small, large = random_image(5, 7, 3), random_image(50, 70, 3)
    alone = processor(small, return_tensors="pt")["pixel_values"]
    together = processor([small, large], return_tensors="pt")["pixel_values"]
    assert torch.equal(alone[0], together[0, :, :8, :8])


def test_kinds_of_input_agree(processor, photo, tmp_path):
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(photo).save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    expected = processor(photo, return_tensors="pt")["pixel_values"]
    tensor = torch.from_numpy(photo)
    for image in (
        PIL.Image.fromarray(photo),
        str(path),
        path,
        data,
        "data:image/png;base64," + data,
        photo[None],
        [photo],
        [[photo]],
        (photo.transpose(2, 0, 1),),
        tensor,
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1)[None],
        photo[:, ::-1][:, ::-1],
        photo / 255,
        (photo / 255).astype(np.float32),
        photo.astype(np.uint16) * 257,
        photo.astype(">u2") * 257,
        photo.astype(np.uint32) * 16843009,
        tensor.permute(2, 0, 1).double() / 255,
    ):
        inputs = processor(image, return_tensors="pt")
        torch.testing.assert_close(inputs["pixel_values"], expected, atol=1e-6, rtol=0)
        assert inputs["original_sizes"].tolist() == [[200, 301]]


def test_batches_and_nesting(processor):
    images = torch.from_numpy(random_image(4, 3, 16, 24))
    expected = processor(images, return_tensors="pt")
    assert expected["pixel_values"].shape == (4, 3, 16, 24)
    nested = processor([[images[0], images[1]], [images[2], images[3]]], return_tensors="pt")
    assert torch.equal(nested["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_integers_are_mapped_by_their_full_range(dtype):
    limits = np.iinfo(dtype)
    pixels = WallocImageProcessor(num_channels=1)(np.array([[limits.min, limits.max]], dtype))["pixel_values"][0]
    assert pixels[0, 0, :2].tolist() == [-0.5, 0.5]


def test_booleans(processor):
    pixels = processor(np.array([[False, True]]), return_tensors="np")["pixel_values"]
    assert pixels[0, :, 0, :2].tolist() == [[-0.5, 0.5]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_pil_modes(processor, photo, mode):
    image = PIL.Image.fromarray(photo).convert(mode)
    pixels = processor(image, return_tensors="pt")
    expected = image.convert("RGB")
    (result,) = processor.post_process(pixels["pixel_values"], pixels["original_sizes"])
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
    gray = WallocImageProcessor(num_channels=1)
    pixels = gray(image, return_tensors="pt")
    (result,) = gray.post_process(pixels["pixel_values"], pixels["original_sizes"])
    assert result.mode == "L"
    np.testing.assert_array_equal(np.asarray(result), np.asarray(image.convert("L")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_composited_on_white(processor, mode):
    opaque = PIL.Image.new("L", (8, 8), 40).convert(mode)
    clear = opaque.copy()
    clear.putalpha(0)
    half = opaque.copy()
    half.putalpha(128)
    levels = (processor([opaque, clear, half], return_tensors="pt")["pixel_values"] + 0.5)[:, 0, 0, 0] * 255
    assert levels[:2].round().tolist() == [40, 255]
    assert abs(levels[2].item() - (40 * 128 + 255 * 127) / 255) <= 1


def test_transparent_palette(processor):
    image = PIL.Image.new("P", (8, 8), 3)
    image.putpalette([10, 20, 30] * 256)
    opened = PIL.Image.open(io.BytesIO(encoded(image, format="PNG", transparency=3)))
    assert opened.mode == "P"
    assert processor(opened)["pixel_values"][0].unique().tolist() == [0.5]


def test_bands_of_other_channel_counts(photo):
    processor = WallocImageProcessor(num_channels=4)
    for mode in ("CMYK", "RGBA"):
        image = PIL.Image.fromarray(photo).convert(mode)
        inputs = processor(image, return_tensors="pt")
        (result,) = processor.post_process(inputs["pixel_values"], inputs["original_sizes"])
        np.testing.assert_array_equal(result, np.asarray(image))
    with pytest.raises(ValueError, match=r"mode 'RGB' has 3 bands; num_channels is 4"):
        processor(PIL.Image.fromarray(photo))


def test_16_bits_keep_their_precision(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (24, 40), dtype=np.uint16)
    path = tmp_path / "deep.png"
    PIL.Image.fromarray(levels).save(path)
    processor = WallocImageProcessor(num_channels=1)
    for image in (path, PIL.Image.open(path), PIL.Image.open(path).convert("I")):
        pixels = processor(image, return_tensors="np")["pixel_values"][0, 0]
        np.testing.assert_array_equal(np.rint((pixels.astype(np.float64) + 0.5) * 65535), levels)
    assert WallocImageProcessor()(path)["pixel_values"][0].shape == (3, 24, 40)
    with pytest.raises(ValueError, match="mode 'I'"):
        processor(PIL.Image.fromarray(np.full((8, 8), 70000, np.int32)))
    with pytest.raises(ValueError, match=r"spans \[0, 200\]"):
        processor(PIL.Image.fromarray(np.linspace(0, 200, 64, dtype=np.float32).reshape(8, 8)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation(processor, photo, orientation, format):
    image = PIL.Image.fromarray(photo)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = PIL.Image.open(io.BytesIO(encoded(image, format=format, exif=exif)))
    inputs = processor(stored, return_tensors="pt")
    # The definition of the tag: where the 0th row and the 0th column of the stored picture are seen.
    seen = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, -1),
        7: photo[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(photo),
    }[orientation]
    assert inputs["original_sizes"].tolist() == [list(seen.shape[:2])]
    (result,) = processor.post_process(inputs["pixel_values"], inputs["original_sizes"])
    np.testing.assert_array_equal(np.asarray(result), seen)


def test_url(processor, photo, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    body = encoded(PIL.Image.fromarray(photo), format="PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        inputs = processor(f"http://127.0.0.1:{server.server_port}/photo.png", return_tensors="pt")
    finally:
        server.shutdown()
        server.server_close()
    assert torch.equal(inputs["pixel_values"], processor(photo, return_tensors="pt")["pixel_values"])


def test_return_types(processor, photo):
    as_torch = processor([photo, photo[:9]], return_tensors="pt")
    as_numpy = processor([photo, photo[:9]], return_tensors="np")
    as_list = processor([photo, photo[:9]])
    assert isinstance(as_numpy["pixel_values"], np.ndarray) and isinstance(as_numpy["original_sizes"], np.ndarray)
    np.testing.assert_array_equal(as_numpy["pixel_values"], as_torch["pixel_values"].numpy())
    assert as_list["original_sizes"] == [(200, 301), (9, 301)]
    assert torch.equal(torch.stack(as_list["pixel_values"]), as_torch["pixel_values"])
    from_numpy = processor.post_process(as_numpy["pixel_values"], as_numpy["original_sizes"])
    assert [image.size for image in from_numpy] == [(301, 200), (301, 9)]


def test_post_process_takes_what_the_model_gives(processor):
    pixels = torch.tensor([-0.7, -0.5, 0.0, 0.3, 0.5, 0.9]).reshape(1, 1, 6).expand(3, 2, 6)
    for given in (pixels, pixels[None], [pixels], (pixels.requires_grad_(),), pixels.double().detach()):
        (image,) = processor.post_process(given)
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 204, 255, 255]
    (image,) = processor.post_process(pixels, original_sizes=torch.tensor([1, 4]))
    assert image.size == (4, 1)
    images = processor.post_process([torch.zeros(3, 5, 6), torch.zeros(3, 9, 2)])
    assert [image.size for image in images] == [(6, 5), (2, 9)]


def test_post_process_does_not_change_its_input(processor):
    pixels = torch.rand(1, 3, 8, 8) - 0.5
    before = pixels.clone()
    processor.post_process(pixels)
    assert torch.equal(pixels, before)


def test_options_per_call(processor):
    image = random_image(9, 9, 5)
    pixels = processor(image, num_channels=5, patch_size=4, return_tensors="pt", device="cpu")["pixel_values"]
    assert pixels.shape == (1, 5, 12, 12)
    assert processor.num_channels == 3 and processor.patch_size == 8


def test_device_is_kept(processor):
    # The meta device stands in for an accelerator: it would fail on any silent move to the CPU.
    assert processor(torch.zeros(3, 5, 5, dtype=torch.uint8, device="meta"))["pixel_values"][0].device.type == "meta"
    pixels = processor(np.zeros((5, 5, 3), np.uint8), device="meta", return_tensors="pt")["pixel_values"]
    assert pixels.device.type == "meta"
    with pytest.raises(ValueError, match="several devices"):
        processor([torch.zeros(3, 5, 5, dtype=torch.uint8, device="meta"), torch.zeros(3, 5, 5, dtype=torch.uint8)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu(processor, photo):
    images = [photo, photo[:9, :11]]
    expected = processor(images, return_tensors="pt")
    on_gpu = [torch.from_numpy(image).cuda() for image in images]
    for inputs in (processor(images, device="cuda", return_tensors="pt"), processor(on_gpu, return_tensors="pt")):
        assert inputs["pixel_values"].is_cuda
        torch.testing.assert_close(inputs["pixel_values"].cpu(), expected["pixel_values"], atol=1e-7, rtol=0)
        decoded = processor.post_process(inputs["pixel_values"], inputs["original_sizes"])
        for image, result in zip(images, decoded, strict=True):
            np.testing.assert_array_equal(np.asarray(result), image)
    assert isinstance(processor(on_gpu, return_tensors="np")["pixel_values"], np.ndarray)


def test_save_and_load(tmp_path):
    processor = WallocImageProcessor(num_channels=7, patch_size=16)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored == {"image_processor_type": "WallocImageProcessor", "num_channels": 7, "patch_size": 16}
    loaded = WallocImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert WallocImageProcessor.from_pretrained(tmp_path, patch_size=4).patch_size == 4
    assert WallocImageProcessor.from_dict(json.loads(processor.to_json_string())).to_dict() == processor.to_dict()
    json.loads(WallocImageProcessor(device=torch.device("cpu")).to_json_string())


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "empty batch"),
        (np.zeros((0, 3, 8, 8), np.uint8), ValueError, "empty batch"),
        (np.zeros((3, 0, 8), np.uint8), ValueError, "empty image: height 0, width 8"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"\(8, 8, 4\) has no axis of 3 channels"),
        (np.zeros((3, 8, 3), np.uint8), ValueError, "ambiguous; pass input_data_format"),
        (np.zeros((8,), np.uint8), ValueError, r"an image of shape \(8,\)"),
        (np.zeros((1, 1, 3, 8, 8), np.uint8), ValueError, r"an image of shape \(1, 1, 3, 8, 8\)"),
        (np.full((8, 8, 3), 1.5), ValueError, r"must lie in \[0, 1\]; this one spans \[1.5, 1.5\]"),
        (np.full((8, 8, 3), -0.25, np.float32), ValueError, r"spans \[-0.25, -0.25\]"),
        (np.full((8, 8, 3), np.nan), ValueError, "NaN or infinite"),
        (np.full((8, 8, 3), np.inf), ValueError, "NaN or infinite"),
        (np.zeros((8, 8, 3), np.int64), TypeError, "int64 have no known range; convert them to one of bool, uint8"),
        (np.zeros((8, 8, 3), complex), TypeError, "complex128"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), TypeError, "int32"),
        (np.array([["a"]]), TypeError, "dtype <U1"),
        (None, TypeError, "NoneType"),
        ([1, 2], TypeError, "type int"),
        ("no_such_file.png", ValueError, "'no_such_file.png' is no image"),
        ("bm90IGFuIGltYWdl", ValueError, "cannot read"),
    ],
)
def test_bad_images(processor, images, error, message):
    with pytest.raises(error, match=message):
        processor(images, return_tensors="pt")


def test_truncated_file(processor, photo, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(PIL.Image.fromarray(photo), format="JPEG")[:2000])
    with pytest.raises(ValueError, match="cannot read"):
        processor(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"do_resize": True}, TypeError, "unknown option 'do_resize'.*valid: num_channels, patch_size"),
        ({"patch_size": 0}, ValueError, "patch_size is 0"),
        ({"patch_size": 8.0}, ValueError, r"patch_size is 8\.0; valid: whole numbers"),
        ({"num_channels": True}, ValueError, "num_channels is True; valid: whole numbers"),
        ({"input_data_format": "hwc"}, ValueError, "'hwc'; valid: channels_first, channels_last"),
        ({"return_tensors": "tf"}, ValueError, "'tf'"),
    ],
)
def test_bad_options(processor, photo, options, error, message):
    with pytest.raises(error, match=message):
        processor(photo, **options)
    with pytest.raises(error, match=message):
        WallocImageProcessor(**options)


@pytest.mark.parametrize(
    ("pixels", "sizes", "error", "message"),
    [
        (torch.zeros(1, 1, 8, 8), None, ValueError, "1 channels; this processor has 3"),
        (torch.zeros(8, 8), None, ValueError, r"shape \(8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int8), None, TypeError, "decode codes first"),
        (torch.full((1, 3, 8, 8), torch.nan), None, ValueError, "NaN"),
        ([], None, ValueError, "empty batch"),
        (torch.zeros(2, 3, 8, 8), [(8, 8)], ValueError, "1 entries for a batch of 2"),
        (torch.zeros(1, 3, 8, 8), [(9, 8)], ValueError, "size 9x8: the pixels are 8x8"),
        (torch.zeros(1, 3, 8, 8), [(0, 8)], ValueError, "size 0x8"),
    ],
)
def test_bad_pixels(processor, pixels, sizes, error, message):
    with pytest.raises(error, match=message):
        processor.post_process(pixels, sizes)


def test_large_images_in_files_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "white.png"
    PIL.Image.new("1", (13000, 13000)).save(path)
    assert path.stat().st_size < 2**16
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    for source in (path, base64.b64encode(path.read_bytes()).decode()):
        with pytest.raises(ValueError, match="13000 x 13000 pixels, more than the limit"):
            WallocImageProcessor()(source)
