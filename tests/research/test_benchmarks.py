"""The benchmarks that need a GPU or hours run in a tiny size."""

import json

import numpy as np
import pytest
import torch

from research import benchmark_device, benchmark_int8, measure_memory


def test_device(tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--device", "cpu", "--size", "64", "--batches", "1", "--rounds", "1", "--eager", "--json", str(out)]
    benchmark_device.main(options)
    found = json.loads(out.read_text())
    assert found["differences"]["rgb-16x"]["codes_differ_percent"] == 0
    assert found["differences"]["rgb-4x"]["bf16_psnr"] > 50
    rows = found["speed"]
    assert [row["row"] for row in rows[:4]] == [
        "copy on the device", "8 x 8 patch convolution of a ViT", "encode", "decode"
    ]  # fmt: skip
    assert {row["dtype"] for row in rows} == {"fp32", "bf16"}
    assert all(row["gigabytes_per_second"][0] > 0 for row in rows)
    assert "GB/s" in capsys.readouterr().out


def test_large_files_are_readable(tmp_path):
    import soundfile
    import tifffile

    measure_memory.write_picture(tmp_path / "a.tif", 0.02)
    assert tifffile.imread(tmp_path / "a.tif").shape == (141, 141, 3)
    measure_memory.write_recording(tmp_path / "a.wav", 0.001)
    assert soundfile.info(tmp_path / "a.wav").frames == 158_760


def test_decoders_in_bytes_are_measured_against_floats(capsys):
    original = torch.linspace(-0.5, 0.5, 3 * 16 * 16).reshape(1, 3, 16, 16)

    def off(codes):  # by two levels of 255
        return (original + 2 / 255).clamp(-0.5, 0.5).numpy()

    found = benchmark_int8.measure({"off": off, "off too": off}, [original], [original], rounds=1)
    assert found["off"][1] == pytest.approx(20 * np.log10(255 / 2), abs=0.1)
    assert found["off"][0] > 0 and "off too" in capsys.readouterr().out
