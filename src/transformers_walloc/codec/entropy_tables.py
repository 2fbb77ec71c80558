"""The tables of the entropy coder: context networks in exact integers and frequencies, fitted or generic."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

import numpy as np

from .entropy_context import INPUT_MAX, Key, Plan, feature_counts, lattice, magnitude_features, mean_magnitudes
from .entropy_kernel import EntropyKernel, fits_kernel

FORMAT = 1
NUM_CLASSES, NUM_PHASES, WINDOW = 32, 8, 12  # scales, eighths of a code, residuals -12..12 and one escape
NUM_SYMBOLS = 2 * WINDOW + 2
CLASSES_PER_E = 4.5  # class k: logistic scale exp((k + 1/2) / 4.5 - 3) codes
HIDDEN_MAX = 511
HIDDEN_BITS, MEAN_BITS, CLASS_BITS = 5, 13, 15  # binary digits after the point of the three kinds of sums
MAX_CHANNELS, MAX_GROUP, MAX_HALVINGS, MAX_HIDDEN = 1024, 16, 6, 255
EXACT = 1 << 24
_ZERO, _HIDDEN_MAX, _CLASS_MAX = np.float32(0), np.float32(HIDDEN_MAX), np.float32(NUM_CLASSES - 1)
_LOWEST, _HIGHEST = np.float32(8 * -128), np.float32(8 * 127)  # in eighths

# Residuals of class k are coded as a multiple of 2**shift with the table, and shift plain bits.
CLASS_SHIFT = np.array([0] * 17 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3, np.int32)


@functools.lru_cache(maxsize=1)
def generic_frequencies() -> np.ndarray:
    """Logistic residuals with a tenth of a wider one, in decimal arithmetic: the same integers on all machines."""
    table = np.empty((NUM_CLASSES, NUM_PHASES, NUM_SYMBOLS), np.float32)
    with localcontext() as context:
        context.prec = 20

        def cdf(x: Decimal) -> Decimal:
            return 1 / (1 + (-x).exp())

        for k in range(NUM_CLASSES):
            scale = ((2 * k + 1) / Decimal(9) - 3).exp() / (1 << int(CLASS_SHIFT[k]))
            for phase in range(NUM_PHASES):
                mean = Decimal(2 * phase - 7) / 16 if CLASS_SHIFT[k] == 0 else Decimal(0)
                edges = [i - WINDOW - Decimal("0.5") - mean for i in range(NUM_SYMBOLS)]
                below = [cdf(x / scale) * Decimal("0.9") + cdf(x / scale / 3) / 10 for x in edges]
                inside = [b - a for a, b in itertools.pairwise(below)]
                for i, p in enumerate([*inside, 1 - below[-1] + below[0]]):
                    table[k, phase, i] = max(1, int(p * 65000))
    return table.reshape(-1, NUM_SYMBOLS)


@dataclass(frozen=True)
class Network:
    """The context network of one pass: (K, n) features -> expected values and scale classes of (g, n) codes.

    `first` (H + g, K) holds the hidden layer and the direct, linear prediction; `second` (2 g, H) what the hidden layer
    adds to the expected values and the scale classes. All are integers in float32.
    """

    first: np.ndarray
    first_bias: np.ndarray
    second: np.ndarray
    second_bias: np.ndarray

    def __post_init__(self) -> None:
        for weights, bias, largest in (
            (self.first, self.first_bias, INPUT_MAX),
            (self.second, self.second_bias, HIDDEN_MAX),
        ):
            if (np.abs(weights.astype(np.float64)).sum(1) * largest + np.abs(bias.astype(np.float64)) >= EXACT).any():
                raise ValueError("entropy tables: the weights of a context network are too large for exact sums")
        group = len(self.second) // 2
        direct = np.abs(self.first[-group:].astype(np.float64)).sum(1) * INPUT_MAX + np.abs(self.first_bias[-group:])
        added = np.abs(self.second[:group].astype(np.float64)).sum(1) * HIDDEN_MAX + np.abs(self.second_bias[:group])
        if (direct + added >= EXACT).any():
            raise ValueError("entropy tables: the weights of a context network are too large for exact sums")

    # The vector lanes beyond the edge of a small matrix raise flags in some BLAS libraries; their values go nowhere.
    @np.errstate(invalid="ignore", over="ignore")
    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected values, rounded to codes, and rows of the frequency table, both int32 (g * n,)."""
        first, first_bias, second, second_bias = self._scaled
        group = len(second) // 2
        sums = first @ features
        sums += first_bias
        hidden, eighths = sums[:-group], sums[-group:]
        np.floor(hidden, out=hidden)
        np.clip(hidden, _ZERO, _HIDDEN_MAX, out=hidden)
        out = second @ hidden
        out += second_bias
        eighths += out[:group]
        np.floor(eighths, out=eighths)
        np.clip(eighths, _LOWEST, _HIGHEST, out=eighths)
        scale = out[group:]
        np.floor(scale, out=scale)
        np.clip(scale, _ZERO, _CLASS_MAX, out=scale)
        shifted = eighths.astype(np.int32)
        shifted += 4
        rows = scale.astype(np.int32)
        rows <<= 3
        rows += shifted & 7
        shifted >>= 3
        return shifted.ravel(), rows.ravel()

    @functools.cached_property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        # Powers of two in the weights in place of products afterwards: the same digits, so as exact as the integers.
        group = len(self.second) // 2
        units = len(self.first) - group
        scale = np.float32(2.0) ** np.array([-HIDDEN_BITS] * units + [3 - MEAN_BITS] * group, np.float32)[:, None]
        added = np.float32(2.0) ** np.array([3 - MEAN_BITS] * group + [-CLASS_BITS] * group, np.float32)[:, None]
        return (
            self.first * scale,
            self.first_bias[:, None] * scale,
            self.second * added,
            self.second_bias[:, None] * added,
        )


@dataclass(frozen=True)
class EntropyTables:
    """What encoder and decoder must share, kept with the codec's weights.

    Attributes:
        num_channels: C; fewer channels, the first ones, can be coded with the same tables.
        ndim: axes of the codes behind the channels: 2 images, 1 audio; 0 for generic tables, which take both.
        plan: of each group of channels: its size, halvings of its lattice (see `entropy_context`).
        networks: by (group, pass).
        frequencies: (classes * phases, symbols) float32, integers of at least 1.
    """

    num_channels: int
    ndim: int
    plan: Plan = ()
    networks: dict[Key, Network] = field(default_factory=dict)
    frequencies: np.ndarray = field(default_factory=generic_frequencies)

    @classmethod
    def default(cls, num_channels: int) -> EntropyTables:
        """Generic tables for a codec that nobody has fitted tables to: scales and smoothness go into each file."""
        if not 1 <= num_channels <= MAX_CHANNELS:
            raise ValueError(f"num_channels must lie in 1..{MAX_CHANNELS}, got {num_channels}")
        return cls(num_channels, 0)

    @functools.cached_property
    def kernel(self) -> EntropyKernel | None:
        """These tables for the compiled coder; None where its weights of 16 bits are too narrow for them."""
        return EntropyKernel(self, np.repeat(CLASS_SHIFT, NUM_PHASES)) if fits_kernel(self) else None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """A flat dict of small integer arrays, fit for safetensors; `from_arrays` reads it."""
        arrays: dict[str, np.ndarray] = {"header": np.array([FORMAT, self.num_channels, self.ndim], np.int32)}
        if self.ndim:
            arrays["plan"] = np.array(self.plan, np.uint8).reshape(-1, 2)
            arrays["frequencies"] = self.frequencies.astype(np.uint16)
            for (group, index), network in self.networks.items():
                name = f"network.{group}.{index}."
                rows = len(network.second) // 2
                hidden = network.first[:-rows].astype(np.int64)
                exponents = column_exponents(hidden)
                arrays[name + "hidden"] = (hidden >> exponents).astype(np.int8)
                arrays[name + "exponents"] = exponents.astype(np.uint8)
                arrays[name + "direct"] = network.first[-rows:].astype(np.int16)
                arrays[name + "second"] = network.second.astype(np.int16)
                arrays[name + "bias"] = np.concatenate([network.first_bias, network.second_bias]).astype(np.int32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EntropyTables:
        """The inverse of `to_arrays`.

        Raises:
            ValueError: a missing, unknown or malformed array, or weights whose sums would not be exact.
        """
        reader = _ArrayReader(arrays)
        version, channels, ndim = reader.take("header", np.int32, (3,)).tolist()
        if version != FORMAT:
            raise ValueError(f"entropy tables of format {version}; this version reads format {FORMAT}")
        if not 1 <= channels <= MAX_CHANNELS or ndim not in (0, 1, 2):
            raise ValueError(f"entropy tables: impossible header {[version, channels, ndim]}")
        if ndim == 0:
            reader.done()
            return cls.default(channels)
        groups = reader.take("plan", np.uint8, (None, 2))
        plan = tuple((int(size), int(halvings)) for size, halvings in groups)
        if sum(size for size, _ in plan) != channels or not all(
            1 <= size <= MAX_GROUP and halvings <= MAX_HALVINGS for size, halvings in plan
        ):
            raise ValueError(f"entropy tables: the plan {plan} does not fit {channels} channels")
        frequencies = reader.take("frequencies", np.uint16, (NUM_CLASSES * NUM_PHASES, NUM_SYMBOLS)).astype(np.float32)
        if frequencies.min() < 1:
            raise ValueError("entropy tables: frequencies must be positive")
        networks: dict[Key, Network] = {}
        for (group, index), inputs in feature_counts(plan, ndim).items():
            name, size = f"network.{group}.{index}.", plan[group][0]
            hidden = reader.take(name + "hidden", np.int8, (None, inputs)).astype(np.int64)
            units = len(hidden)
            exponents = reader.take(name + "exponents", np.uint8, (inputs,)).astype(np.int64)
            if exponents.max(initial=0) > 16 or units > MAX_HIDDEN:
                raise ValueError(f"entropy tables: {name}hidden or {name}exponents out of range")
            direct = reader.take(name + "direct", np.int16, (size, inputs))
            second = reader.take(name + "second", np.int16, (2 * size, units))
            bias = reader.take(name + "bias", np.int32, (units + 3 * size,)).astype(np.float32)
            networks[group, index] = Network(
                np.concatenate([(hidden << exponents).astype(np.float32), direct.astype(np.float32)]),
                bias[: units + size],
                second.astype(np.float32),
                bias[units + size :],
            )
        reader.done()
        return cls(channels, ndim, plan, networks, frequencies)


def default_plan(num_channels: int, ndim: int, last: int = 6) -> Plan:
    """Groups for codes in order of variance: careful with the first channels, which are smooth and hold most bits.

    `last`: channels of each group behind them. Generic tables, and so their files, have groups of 6.
    """
    first = ((3, 3), (1, 2), (2, 1), (2, 1), (2, 1), (2, 1)) if ndim == 2 else ((1, 4), (2, 4), (3, 4))
    plan: list[tuple[int, int]] = []
    left = num_channels
    for size, halvings in first:
        if left:
            plan.append((min(size, left), halvings))
            left -= plan[-1][0]
    while left:
        # In time the neighbours tell most: what a channel does goes on.
        plan.append((min(last, left), 0 if ndim == 2 else 4))
        left -= plan[-1][0]
    return tuple(plan)


def column_exponents(weights: np.ndarray) -> np.ndarray:
    """Smallest e of each column such that its weights / 2**e fit int8."""
    largest = np.abs(weights).max(0, initial=0)
    return np.array([max(int(value // 128).bit_length(), 0) if value > 127 else 0 for value in largest], np.int64)


@dataclass(frozen=True)
class GenericHeader:
    """What generic tables put before the codes of a file: (C, 4) uint8.

    Smoothness in quarters (weight of the neighbours' mean in the prediction), scale class of the codes, scale class of
    what that prediction leaves, mean magnitude.
    """

    values: np.ndarray

    @classmethod
    def measure(cls, codes: np.ndarray) -> GenericHeader:
        """The header that suits (channels, *grid) int8 codes."""
        values = np.zeros((len(codes), 4), np.uint8)
        for row, channel in zip(values, codes.astype(np.float64), strict=True):
            around = [np.roll(channel, shift, axis) for axis in range(channel.ndim) for shift in (1, -1)]
            left = [np.abs(channel - quarters / 4 * np.mean(around, axis=0)).mean() for quarters in range(5)]
            row[0] = np.argmin(left)
            row[1:3] = [
                np.clip(np.rint(CLASSES_PER_E * (np.log(0.72 * x + 0.04) + 3) - 0.5), 0, NUM_CLASSES - 1)
                for x in (left[0], min(left))
            ]
        values[:, 3] = mean_magnitudes(codes)
        return cls(values)

    @classmethod
    def parse(cls, data: bytes, num_channels: int) -> tuple[GenericHeader, bytes]:
        """The header at the start of a payload, and what follows it.

        Raises:
            ValueError: the payload is shorter than its header, or the header holds numbers that it cannot.
        """
        size = 4 * num_channels
        if len(data) < size:
            raise ValueError(
                f"damaged codes: {len(data)} bytes are too short for the header of {num_channels} channels"
            )
        values = np.frombuffer(data[:size], np.uint8).reshape(-1, 4)
        if (values.max(0) > (4, NUM_CLASSES - 1, NUM_CLASSES - 1, INPUT_MAX)).any():
            raise ValueError("damaged codes: impossible scales in the header")
        return cls(values), data[size:]

    def tables(self, ndim: int) -> EntropyTables:
        """Networks written down by hand: neighbours' mean, and scales that follow the magnitudes nearby."""
        channels, networks = len(self.values), {}
        plan = default_plan(channels, ndim)
        for (group, index), inputs in feature_counts(plan, ndim).items():
            size, halvings = plan[group]
            begin = sum(size for size, _ in plan[:group])
            step = lattice(halvings, ndim)[index]
            own = inputs - 2 * size * len(step.neighbours)
            earlier = [(c, size + place) for c, place in enumerate(magnitude_features(plan[:group]))][-4:]
            first = np.zeros((3 * size, inputs), np.float32)
            second = np.zeros((2 * size, 2 * size), np.float32)
            bias = np.zeros(2 * size, np.float32)
            for i, (smooth, scale, left, mean) in enumerate(self.values[begin : begin + size].astype(int)):
                bias[size + i] = (2 * (left if step.near else scale) + 1) << (CLASS_BITS - 1)
                if step.near:
                    near = own + 2 * size * np.arange(step.near) + i
                    first[2 * size + i, near] = (smooth << (MEAN_BITS - 2)) // step.near
                    first[i, near + size] = (4 << HIDDEN_BITS) // step.near
                    second[size + i, i] = 320 * (4 - smooth)
                    bias[size + i] -= 4 * mean * 320 * (4 - smooth)
                if earlier:
                    first[size + i, [plane for _, plane in earlier]] = 1 << HIDDEN_BITS
                    second[size + i, size + i] = 500
                    bias[size + i] -= 500 * sum(int(self.values[channel, 3]) for channel, _ in earlier)
            networks[group, index] = Network(first, np.zeros(3 * size, np.float32), second, bias)
        return EntropyTables(channels, ndim, plan, networks)


class _ArrayReader:
    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)

    def take(self, name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
        if name not in self.arrays:
            raise ValueError(f"entropy tables: the array {name!r} is missing")
        array = np.asarray(self.arrays.pop(name))
        fits = array.ndim == len(shape) and all(
            n == m or (n is None and m > 0) for n, m in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            raise ValueError(
                f"entropy tables: {name!r} must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} {array.shape}"
            )
        return array

    def done(self) -> None:
        if self.arrays:
            raise ValueError(f"entropy tables: unknown arrays {sorted(self.arrays)}")
