"""Look for .walloc files that harm the decoder, guided by what they reach (atheris, libFuzzer): `pip install atheris`.

    python -m research.fuzz_coverage -max_total_time=3600 [FOLDER of inputs to start from and to add to]

Starts from the files of `research.fuzz_bitstream`. An input is a file without its checksum, which is added, so that
every one reaches the parser; what it must end in, and how soon, is checked as there, and libFuzzer ends the run at an
input that takes 2 GB. All options of libFuzzer can be given. The entropy decoder runs in Python, where its branches
are seen.
"""

import os
import sys
import tempfile
import time
import zlib
from pathlib import Path

import atheris

os.environ["WALLOC_NO_NATIVE"] = "1"  # read when the codecs are loaded
with atheris.instrument_imports(include=["transformers_walloc"]):
    import transformers_walloc.codec.modeling_walloc  # noqa: F401 - what the fuzzer watches

import torch

from research.fuzz_bitstream import MAX_SECONDS, decode, valid_files
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.varints import WallocFormatError

_MODELS: dict[str, torch.nn.Module] = {}
_counts = {"decoded": 0, "refused": 0}


def test_one_input(body: bytes) -> None:
    """Decode with the codec that the fingerprint names, else with any."""
    data = body + zlib.crc32(body).to_bytes(4, "little")
    model = _MODELS.get(body[7:15].hex()) or next(iter(_MODELS.values()))
    start = time.process_time()
    try:
        decode(model, data)
        outcome = "decoded"
    except WallocFormatError:
        outcome = "refused"
    if time.process_time() - start > MAX_SECONDS:
        raise AssertionError(f"more than {MAX_SECONDS} s of processor time")
    _counts[outcome] += 1
    if not sum(_counts.values()) % 100_000:
        print(_counts, flush=True)


def main() -> None:
    torch.set_num_threads(1)
    corpus = Path(tempfile.mkdtemp(prefix="walloc-fuzz-"))
    for index, (model, data) in enumerate(valid_files(0)):
        _MODELS[unpack(data)[0].fingerprint] = model
        (corpus / f"valid-{index}").write_bytes(data[:-4])
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    options = ["-timeout=600", "-len_control=0", "-rss_limit_mb=2048", "-max_len=4096", *sys.argv[1:], str(corpus)]
    print(f"{len(_MODELS)} codecs, inputs in {folders[0] if folders else corpus}", flush=True)
    atheris.Setup([sys.argv[0], *options], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
