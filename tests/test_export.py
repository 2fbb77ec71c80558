"""Exported graphs against the models themselves, in onnxruntime, at sizes that the export never saw.

The modules that are exported run here as they are; making graphs of them takes half a minute each, so that is slow.
"""

import re
from pathlib import Path

import PIL.Image
import pytest
import skimage.data
import torch
from codec_fixtures import image_inputs, pictures, sound

from transformers_walloc import (
    WallocAudioConfig,
    WallocAudioFeatureExtractor,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageModel,
)
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.wavelets import wavelet_packet_analysis, wavelet_packet_synthesis
from transformers_walloc.export import PARTS, export_codec, export_program
from transformers_walloc.export_modules import (
    ExportDecoder,
    ExportEncoder,
    ExportLatentDecoder,
    ExportQuantizer,
    PacketAnalysis,
    PacketSynthesis,
    decompand_by_polynomial,
)


def image_codec(decoder_type: str) -> WallocImageModel:
    torch.manual_seed(0)
    config = WallocImageConfig(decoder_type=decoder_type, decoder_hidden_size=8, decoder_num_layers=1)
    return _active(WallocImageModel(config).eval())


def audio_codec() -> WallocAudioModel:
    torch.manual_seed(0)
    config = WallocAudioConfig(num_levels=3, latent_channels=6, decoder_hidden_size=8, decoder_num_layers=1)
    return _active(WallocAudioModel(config).eval())


def _active(model):
    """A codec whose latents use their range and whose decoder's network does something."""
    with torch.no_grad():
        model.encoder.projection.weight.mul_(100.0)
        for name, weight in model.decoder.named_parameters():
            if "linear" in name:
                weight.mul_(0.01)
            elif "head.weight" in name:
                weight.normal_(0, 0.01)
    return model


@pytest.mark.parametrize("boundary", ["symmetric", "periodization"])
@pytest.mark.parametrize(("num_dims", "sizes"), [(2, (8, 16)), (2, (72, 104)), (1, (8,)), (1, (376,))])
def test_transform(boundary, num_dims, sizes):
    config_class = WallocImageConfig if num_dims == 2 else WallocAudioConfig
    config = config_class(num_levels=3, latent_channels=4, boundary=boundary)
    x = torch.rand(2, 3, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    subbands = wavelet_packet_analysis(x, 3, "bior4.4", boundary, num_dims)
    torch.testing.assert_close(PacketAnalysis(config)(x.float()).double(), subbands, atol=1e-5, rtol=0)
    signal = wavelet_packet_synthesis(subbands, 3, "bior4.4", boundary, num_dims)
    torch.testing.assert_close(PacketSynthesis(config)(subbands.float()).double(), signal, atol=1e-5, rtol=0)


def test_decompanding():
    latents = torch.linspace(-127.0, 127.0, 20001)
    exact = decompand(latents.double(), 8)
    error = (decompand_by_polynomial(latents, 8).double() - exact).abs()
    assert (error <= 1e-6 * exact.abs()).all()


@pytest.mark.parametrize("decoder_type", ["linear", "residual", "restoration"])
@pytest.mark.parametrize("size", [(8, 8), (16, 200), (72, 64)])
def test_image_modules(decoder_type, size):
    codec = image_codec(decoder_type)
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        latents = codec.encode(pixels).latents
        assert latents.std() > 10
        torch.testing.assert_close(ExportEncoder(codec)(pixels), latents, atol=1e-4, rtol=0)
        for step in (1.0, 2.5):
            codes = codec.quantize(latents, step)
            assert torch.equal(ExportQuantizer(codec.config)(latents, torch.tensor([step])), codes)
            decoded = ExportDecoder(codec)(codes, torch.tensor([step]))
            torch.testing.assert_close(decoded, codec.decode(codes, step=step).pixel_values, atol=1e-4, rtol=0)
        decoded = ExportLatentDecoder(codec)(latents)
        torch.testing.assert_close(decoded, codec.decode(latents).pixel_values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [8, 376])
def test_audio_modules(length):
    codec = audio_codec()
    samples = torch.rand(2, 2, length, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        latents = codec.encode(samples).latents
        torch.testing.assert_close(ExportEncoder(codec)(samples), latents, atol=1e-4, rtol=0)
        codes = codec.quantize(latents)
        decoded = ExportDecoder(codec)(codes, torch.ones(1))
        torch.testing.assert_close(decoded, codec.decode(codes).audio_values, atol=1e-4, rtol=0)


def run(path, **inputs) -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {name: value.numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, names)[0])


@pytest.mark.slow
def test_image_graphs(tmp_path):
    pytest.importorskip("onnxscript")
    codec = image_codec("restoration")
    paths = export_codec(codec, tmp_path, parts=PARTS)
    assert WallocImageConfig.from_pretrained(tmp_path).latent_fingerprint == codec.fingerprint()
    expected = [*(path.name for path in paths.values()), "config.json", "preprocessor_config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    for size in ((2, 8, 8), (1, 16, 200), (3, 64, 72)):
        pixels = torch.rand(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0)) - 0.5
        with torch.no_grad():
            latents = codec.encode(pixels).latents
            exported = run(paths["encoder"], pixel_values=pixels)
            torch.testing.assert_close(exported, latents, atol=1e-4, rtol=0)
            for step in (1.0, 2.5):
                codes = codec.quantize(latents, step)
                again = run(paths["quantizer"], latents=latents, step=torch.tensor([step]))
                assert again.dtype == torch.int8 and torch.equal(again, codes)
                decoded = run(paths["decoder"], codes=codes, step=torch.tensor([step]))
                torch.testing.assert_close(decoded, codec.decode(codes, step=step).pixel_values, atol=1e-4, rtol=0)
            decoded = run(paths["latent_decoder"], latents=latents)
            torch.testing.assert_close(decoded, codec.decode(latents).pixel_values, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_audio_graphs(tmp_path):
    pytest.importorskip("onnxscript")
    codec = audio_codec()
    paths = export_codec(codec, tmp_path)
    for length in (8, 376):
        samples = torch.rand(2, 2, length, generator=torch.Generator().manual_seed(0)) - 0.5
        with torch.no_grad():
            latents = codec.encode(samples).latents
            torch.testing.assert_close(run(paths["encoder"], input_values=samples), latents, atol=1e-4, rtol=0)
            codes = codec.quantize(latents)
            decoded = run(paths["decoder"], codes=codes, step=torch.ones(1))
            torch.testing.assert_close(decoded, codec.decode(codes).audio_values, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_graphs_of_a_bundled_audio_codec(tmp_path):
    pytest.importorskip("onnxscript")
    codec = WallocAudioModel.from_pretrained("walloc/stereo-20x")
    paths = export_codec(codec, tmp_path)
    inputs = WallocAudioFeatureExtractor.from_pretrained(tmp_path)(sound(1.0), sampling_rate=44100, return_tensors="pt")
    with torch.no_grad():
        latents = codec.encode(inputs["input_values"]).latents
        exported = run(paths["encoder"], input_values=inputs["input_values"])
        torch.testing.assert_close(exported, latents, atol=1e-4, rtol=0)
        codes = codec.quantize(latents)
        assert torch.equal(run(paths["quantizer"], latents=latents, step=torch.ones(1)), codes)
        decoded = run(paths["decoder"], codes=codes, step=torch.ones(1))
        torch.testing.assert_close(decoded, codec.decode(codes).audio_values, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_program_of_photographs():
    codec = image_codec("linear")
    program = export_program(codec, "encoder").module()
    for picture in pictures()[:2]:
        pixels = image_inputs(picture)["pixel_values"]
        with torch.no_grad():
            torch.testing.assert_close(program(pixels), codec.encode(pixels).latents, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_documentation(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    page = (Path(__file__).parents[1] / "docs" / "guides" / "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(skimage.data.astronaut()[:250, 100:401]).save("photo.png")
    namespace: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(code, namespace)
    inputs = image_inputs(PIL.Image.open("photo.png"))["pixel_values"]
    model = namespace["transformers_walloc"].WallocImageEncoder.from_pretrained("walloc/rgb-16x")
    with torch.no_grad():
        codes = model.quantize(model.encode(inputs).latents).numpy()
    assert (codes == namespace["codes"]).mean() > 0.9999  # ties apart


def test_refusals(tmp_path):
    codec = image_codec("linear")
    with pytest.raises(ValueError, match="unknown format 'tflite'; valid: onnx"):
        export_codec(codec, tmp_path, format="tflite")
    with pytest.raises(ValueError, match="unknown part 'head'; valid: encoder"):
        export_codec(codec, tmp_path, parts=["head"])
    with pytest.raises(TypeError, match="encoder and decoder"):
        export_codec(torch.nn.Identity(), tmp_path)
    assert not list(tmp_path.iterdir())
