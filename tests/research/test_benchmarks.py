"""The benchmarks that need a GPU or hours run in a tiny size."""

import json

from research import benchmark_device, measure_memory


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


def test_table_of_growth_leaves_out_what_was_not_measured():
    step = {"seconds": 2.0, "processor": 1.234, "megabytes": 1400.4}
    result = {
        "codec": "`rgb-16x`",
        "machine": {"processor": "one", "load": 1.0, "cores": 2},
        "rows": [
            {"size": 0.1, "compress": step, "decompress a window": step, "decompress all": step},
            {"size": 1000, "compress": step},
        ],
    }
    lines = measure_memory.page_table(result).splitlines()
    assert lines[-2] == "| 0.1 | 1.23 s, 1,400 MB | 1.23 s, 1,400 MB |  | 1.23 s, 1,400 MB |"
    assert lines[-1] == "| 1,000 | 1.23 s, 1,400 MB |  |  |  |"
