"""Entropy coder: lossless for any codes, exact sums, bounded and well-behaved on damaged data, and a fixed format."""

import hashlib

import numpy as np
import pytest

from transformers_walloc.codec.entropy_coding import EntropyTables, decode_codes, encode_codes
from transformers_walloc.codec.entropy_context import INPUT_MAX, MAGNITUDE, feature_counts, lattice, walk
from transformers_walloc.codec.entropy_tables import (
    CLASS_BITS,
    HIDDEN_MAX,
    MEAN_BITS,
    NUM_SYMBOLS,
    Network,
    default_plan,
    generic_frequencies,
)


def random_codes(rng: np.random.Generator, max_size: int = 2000) -> np.ndarray:
    """Codes of a random shape and distribution, smooth or not, up to the extremes of int8."""
    channels = int(rng.integers(1, 30))
    side = max(1, int((max_size / channels) ** 0.5))
    shape = (
        (channels, *rng.integers(1, 2 * side, 2)) if rng.random() < 0.6 else (channels, rng.integers(1, side**2 + 2))
    )
    kind = rng.integers(6)
    if kind == 0:
        return rng.integers(-128, 128, shape).astype(np.int8)
    if kind == 1:
        return np.full(shape, rng.choice([-128, -127, 0, 1, 127]), np.int8)
    if kind == 2:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    scale = 10 ** rng.uniform(-2, 2) * 0.8 ** np.arange(channels).reshape(-1, *[1] * (len(shape) - 1))
    noise = rng.standard_t(2, shape) if kind == 3 else rng.laplace(size=shape)
    if kind == 5:
        noise = np.cumsum(noise, -1) / 4
    return np.clip(np.rint(noise * scale), -128, 127).astype(np.int8)


def fitted_like(num_channels: int, ndim: int, seed: int = 0) -> EntropyTables:
    """Tables with random weights: useless for compression, but every part of the fitted format is in use."""
    rng = np.random.default_rng(seed)
    plan = default_plan(num_channels, ndim)
    networks = {}
    for (group, index), inputs in feature_counts(plan, ndim).items():
        size, hidden = plan[group][0], 5
        first = rng.integers(-60, 61, (hidden + size, inputs)).astype(np.float32)
        second = rng.integers(-300, 301, (2 * size, hidden)).astype(np.float32)
        bias = np.concatenate([np.zeros(size), np.full(size, 14 << CLASS_BITS)]).astype(np.float32)
        networks[group, index] = Network(first, np.zeros(hidden + size, np.float32), second, bias)
    return EntropyTables(num_channels, ndim, plan, networks)


@pytest.mark.parametrize("count", [120, pytest.param(10_000, marks=pytest.mark.slow)])
def test_round_trip_of_random_codes(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        codes = random_codes(rng)
        tables = EntropyTables.default(len(codes) + int(rng.integers(3)))
        data = encode_codes(codes, tables)
        decoded = decode_codes(data, codes.shape, tables)
        assert decoded.dtype == np.int8 and np.array_equal(decoded, codes)
        assert len(data) < 3.2 * codes.size + 5 * len(codes) + 8


@pytest.mark.parametrize("shape", [(12, 9, 14), (7, 1, 1), (30, 3, 2), (27, 41), (1, 1), (5, 1, 33), (4, 33, 1)])
def test_round_trip_with_fitted_tables(shape):
    rng = np.random.default_rng(1)
    tables = EntropyTables.from_arrays(fitted_like(shape[0], len(shape) - 1).to_arrays())
    for scale in (0.3, 3, 60):
        codes = np.clip(np.rint(rng.laplace(size=shape) * scale), -128, 127).astype(np.int8)
        for count in {1, (shape[0] + 1) // 2, shape[0]}:
            data = encode_codes(codes[:count], tables)
            assert np.array_equal(decode_codes(data, (count, *shape[1:]), tables), codes[:count])


def test_generic_tables_compress():
    """Smooth codes take far fewer bytes than their channels' entropy; noise, even or patchy, only a little more."""
    rng = np.random.default_rng(2)
    tables = EntropyTables.default(3)
    noise = np.rint(rng.laplace(size=(3, 64, 64)) * 3).astype(np.int8)
    y, x = np.mgrid[:64, :64]
    smooth = np.rint(60 * np.sin(x / 9 + np.arange(3)[:, None, None]) * np.cos(y / 12)).astype(np.int8)
    patchy = np.rint(rng.laplace(size=(3, 64, 64)) * np.where((x // 16 + y // 16) % 2, 6, 0.5)).astype(np.int8)
    for codes, most in ((noise, 1.06), (smooth, 0.55), (patchy, 1.06)):
        assert 8 * len(encode_codes(codes, tables)) < most * entropy(codes)


def entropy(codes: np.ndarray) -> float:
    bits = 0.0
    for channel in codes:
        counts = np.unique(channel, return_counts=True)[1]
        bits -= (counts * np.log2(counts / counts.sum())).sum()
    return bits


def test_walk_visits_each_code_once_and_features_are_only_of_the_past():
    """Changing a code must not change the features of any code that comes before it or with it."""
    shape, plan = (5, 11, 14), ((3, 2), (2, 0))
    rng = np.random.default_rng(3)

    def record(codes):
        seen, features = np.zeros(shape, int), []

        def code(key, values, where):
            seen[where] += 1
            assert len(values) == feature_counts(plan, 2)[key] and np.abs(values).max(initial=0) <= INPUT_MAX
            features.append((values.copy(), where))
            return codes[where]

        walk(shape, plan, np.arange(5, dtype=np.uint8), code)
        assert (seen == 1).all()
        return features

    codes = rng.integers(-128, 128, shape).astype(np.int8)
    base = record(codes)
    for _ in range(60):
        place = tuple(rng.integers(0, shape))
        changed = codes.copy()
        changed[place] ^= 0x55
        mask = np.zeros(shape, bool)
        mask[place] = True
        for (before, where), (after, _) in zip(base, record(changed), strict=True):
            assert np.array_equal(before, after)
            if mask[where].any():
                break


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_neighbours_of_a_pass_are_known(ndim, halvings):
    """On an unbounded grid each neighbour lies in an earlier pass."""
    size = 32
    known = np.zeros((1 if ndim == 1 else size, size), bool)
    for rows, columns, stride, neighbours, _ in lattice(halvings, ndim):
        for y in range(rows[0], known.shape[0], rows[1]):
            for x in range(columns[0], size, columns[1]):
                for dy, dx in neighbours:
                    assert known[(y + dy * stride) % known.shape[0], (x + dx * stride) % size]
        known[rows[0] :: rows[1], columns[0] :: columns[1]] = True
    assert known.all()


def test_magnitudes():
    codes = np.arange(-128, 128)
    expected = np.floor(16 * np.log2(1 + 2 * np.abs(codes.astype(float))) + 1e-9)
    assert np.array_equal(MAGNITUDE[codes & 255], expected) and MAGNITUDE.max() <= INPUT_MAX


def test_sums_are_exact_in_any_order():
    """float32 sums equal those of 64-bit integers at the limit that `Network` accepts, and it refuses more."""
    rng = np.random.default_rng(4)
    inputs, hidden = 100, 6
    limit = (1 << 24) // INPUT_MAX // inputs - 1
    first = rng.choice([-limit, limit], (hidden + 1, inputs)).astype(np.float32)
    second = rng.choice([-1, 1], (2, hidden)).astype(np.float32) * 40
    first[hidden] = np.sign(first[hidden]) * (limit // 2)
    network = Network(first, np.zeros(hidden + 1, np.float32), second, np.array([0, 14 << CLASS_BITS], np.float32))
    features = rng.integers(-128, 129, (inputs, 500)).astype(np.float32)
    sums = first.astype(np.int64) @ features.astype(np.int64)
    units = np.clip(sums[:hidden] >> 5, 0, HIDDEN_MAX)
    out = second.astype(np.int64) @ units + np.array([[0], [14 << CLASS_BITS]])
    eighths = np.clip((out[0] + sums[hidden]) >> (MEAN_BITS - 3), -1024, 1016)
    rows = np.clip(out[1] >> CLASS_BITS, 0, 31) * 8 + ((eighths + 4) & 7)
    expected, actual_rows = network(features)
    assert np.array_equal(expected, (eighths + 4) >> 3) and np.array_equal(actual_rows, rows)
    with pytest.raises(ValueError, match="too large"):
        Network(first * 2, np.zeros(hidden + 1, np.float32), second, np.zeros(2, np.float32))


def test_generic_frequencies():
    table = generic_frequencies()
    assert table.min() >= 1 and table.max() < 1 << 16 and (table == np.floor(table)).all()
    assert np.allclose(table.sum(1), 65000, rtol=0.001)
    mirrored = table.reshape(32, 8, NUM_SYMBOLS)[:, ::-1, -2::-1]
    assert np.abs(mirrored - table.reshape(32, 8, NUM_SYMBOLS)[:, :, :-1]).max() <= 1


@pytest.mark.parametrize("tables", [EntropyTables.default(12), fitted_like(12, 2), fitted_like(27, 1)])
def test_tables_survive_their_arrays(tables):
    arrays = tables.to_arrays()
    assert all(array.dtype.kind in "iu" for array in arrays.values())
    again = EntropyTables.from_arrays(arrays)
    assert (again.num_channels, again.ndim, again.plan) == (tables.num_channels, tables.ndim, tables.plan)
    for key, network in tables.networks.items():
        for name in ("first", "first_bias", "second", "second_bias"):
            assert np.array_equal(getattr(network, name), getattr(again.networks[key], name))
    assert np.array_equal(tables.frequencies, again.frequencies)


def damage(arrays, name, change):
    return {**arrays, name: change(arrays[name].copy())}


def set_to(array, value):
    array.flat[0] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {}, "missing"),
        (lambda a: {**a, "more": np.zeros(1, np.int8)}, "unknown"),
        (lambda a: damage(a, "header", lambda x: set_to(x, 9)), "format 9"),
        (lambda a: damage(a, "header", lambda x: x[:2]), "header"),
        (lambda a: damage(a, "header", lambda x: x.astype(np.float32)), "header"),
        (lambda a: damage(a, "header", lambda x: x * [1, -1, 1]), "header"),
        (lambda a: damage(a, "plan", lambda x: set_to(x, 99)), "plan"),
        (lambda a: damage(a, "plan", lambda x: x[:0]), "plan"),
        (lambda a: damage(a, "frequencies", lambda x: set_to(x, 0)), "positive"),
        (lambda a: damage(a, "network.0.1.hidden", lambda x: x[:, 1:]), "network.0.1.hidden"),
        (lambda a: damage(a, "network.0.1.exponents", lambda x: set_to(x, 77)), "exponents"),
        (lambda a: damage(a, "network.0.1.exponents", lambda x: x * 0 + 16), "too large"),
        (lambda a: damage(a, "network.0.1.bias", lambda x: set_to(x, -(2**31))), "too large"),
        (lambda a: {k: v for k, v in a.items() if k != "network.2.0.second"}, "missing"),
    ],
)
def test_malformed_tables_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EntropyTables.from_arrays(change(fitted_like(12, 2).to_arrays()))


@pytest.mark.parametrize("shape", [(3,), (3, 0), (0, 4), (3, 4, 0), (3, 2, 2, 2), (4, 5)])
def test_impossible_shapes(shape):
    tables = EntropyTables.default(3)
    with pytest.raises(ValueError, match="codes"):
        encode_codes(np.zeros(shape, np.int8), tables)
    with pytest.raises(ValueError, match="codes"):
        decode_codes(b"", shape, tables)


def test_other_misuse():
    with pytest.raises(TypeError, match="int8"):
        encode_codes(np.zeros((3, 4), np.float32), EntropyTables.default(3))
    with pytest.raises(ValueError, match="axes"):
        encode_codes(np.zeros((3, 4), np.int8), fitted_like(3, 2))
    with pytest.raises(ValueError, match="num_channels"):
        EntropyTables.default(0)


@pytest.mark.parametrize("tables", [EntropyTables.default(6), fitted_like(6, 2)], ids=["generic", "fitted"])
@pytest.mark.parametrize("rounds", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_bytes_give_codes_or_value_error(tables, rounds):
    rng = np.random.default_rng(5)
    codes = np.rint(rng.laplace(size=(6, 10, 12)) * 9).astype(np.int8)
    data = encode_codes(codes, tables)
    noticed = 0
    for i in range(rounds):
        bad = bytearray(data)
        if i % 3 == 0:
            bad = bad[: rng.integers(0, len(bad))]
        elif i % 3 == 1:
            for place in rng.integers(0, 8 * len(bad), rng.integers(1, 9)):
                bad[place // 8] ^= 1 << place % 8
        else:
            bad = bytearray(rng.bytes(int(rng.integers(0, 2 * len(data)))))
        try:
            decoded = decode_codes(bytes(bad), codes.shape, tables)
            assert decoded.shape == codes.shape and decoded.dtype == np.int8
        except ValueError:
            noticed += 1
    assert noticed > 0
    with pytest.raises(ValueError, match="left over"):
        decode_codes(data + bytes(range(1, 65)), codes.shape, tables)


def test_format_is_fixed():
    """Golden bytes: files written today must open for ever. If these must change, raise FORMAT and keep the reader."""
    codes = (np.arange(4 * 6 * 7).reshape(4, 6, 7) * 37 % 23 - 11) // np.arange(1, 5).reshape(4, 1, 1)
    codes = codes.astype(np.int8)
    codes[0, 0, 0], codes[3, 5, 6] = -128, 127
    golden = {"generic": "652e0770cf57b13c", "fitted": "e1c1f49b6c65e6ce", "audio": "f8e18bfa122e6e39"}
    actual = {
        "generic": encode_codes(codes, EntropyTables.default(4)),
        "fitted": encode_codes(codes, fitted_like(4, 2)),
        "audio": encode_codes(codes.reshape(4, 42), fitted_like(4, 1)),
    }
    assert {name: hashlib.sha256(data).hexdigest()[:16] for name, data in actual.items()} == golden


@pytest.mark.parametrize("shape", [(2, 3, 9000), (2, 9000), (2, 70, 90), (2, 9000, 1)])
def test_items_of_many_blocks(shape):
    """Longer than one block along either axis."""
    codes = np.clip(np.rint(np.random.default_rng(6).laplace(size=shape) * 4), -127, 127).astype(np.int8)
    tables = fitted_like(2, len(shape) - 1)
    assert np.array_equal(decode_codes(encode_codes(codes, tables), shape, tables), codes)


def test_impossible_levels():
    tables = fitted_like(4, 2)
    data = encode_codes(np.zeros((4, 5, 6), np.int8), tables)
    with pytest.raises(ValueError, match="level of 200"):
        decode_codes(bytes([200]) + data[1:], (4, 5, 6), tables)
    with pytest.raises(ValueError, match="too short"):
        decode_codes(data[:3], (4, 5, 6), tables)
