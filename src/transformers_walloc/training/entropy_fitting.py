"""Fit the entropy coder's tables to the codes of a codec: one small network per pass, then the frequencies.

Run once after a codec is trained, on codes of its training data (never on the data that it is compared on):

```python
tables = fit_entropy_tables(training_codes)  # int8 arrays, each (C, h, w) or (C, t)
model.set_entropy_tables(tables)
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..codec.entropy_context import INPUT_MAX, Key, Plan, feature_counts, mean_magnitudes, walk
from ..codec.entropy_tables import (
    CLASS_BITS,
    CLASS_SHIFT,
    CLASSES_PER_E,
    EXACT,
    HIDDEN_BITS,
    HIDDEN_MAX,
    MEAN_BITS,
    NUM_CLASSES,
    NUM_PHASES,
    NUM_SYMBOLS,
    WINDOW,
    EntropyTables,
    Network,
    column_exponents,
    default_plan,
    generic_frequencies,
)

MOST_HIDDEN = 80
HIDDEN_UNIT = 64  # integer of a hidden value of 1
START_POSITIONS = 100_000  # that the least-squares start is computed from
BATCH_POSITIONS = 2048
LEARNING_RATE = 4e-3  # at its peak, of the ramps
LEAST_SPREAD = 0.3  # of a feature, so that silent ones stay small
RIDGE = 1e-3
TYPICAL = 0.6  # scale of a logistic over its mean absolute value, about
CLASS_OFFSET = 3  # class 0 is a scale of exp(-3)
LEAST_PROBABILITY = 1e-7
PRIOR_WEIGHT = 1 / 650  # the generic frequencies count as much as 100 residuals of each class and phase


def fit_entropy_tables(
    codes: Sequence[np.ndarray],
    plan: Plan | None = None,
    hidden: int = 16,
    steps: int = 2000,
    max_positions: int = 1_000_000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
) -> EntropyTables:
    """Entropy tables for codes like these.

    Args:
        codes: int8 items of one codec, each (C, h, w) or (C, t); add codes at coarser steps if it will write such.
        plan: groups of channels and halvings of their lattices; `fitted_plan` if None.
        hidden: ramps of a network are so many times the group's channels plus one, at most 80; size of the tables and
            time of coding grow with it.
        steps: optimisation steps of each network. A pass takes about 5 s for 1000 steps on one core.
        max_positions: at most so many positions of each pass are used, evenly from all items.
        seed: of the weights and of the choice of positions.
        device: where the networks are optimised.
        progress: called with a line of text after each pass.

    Raises:
        ValueError: no codes, or codes of several codecs.
        TypeError: codes that are not int8.
    """
    items = [np.asarray(item) for item in codes]
    if not items:
        raise ValueError("no codes to fit entropy tables to")
    for item in items:
        if item.dtype != np.int8:
            raise TypeError(f"codes must be int8, got {item.dtype}")
        if item.ndim not in (2, 3) or item.ndim != items[0].ndim or len(item) != len(items[0]) or item.size == 0:
            raise ValueError(f"codes must be (C, h, w) or (C, t) of one codec, got {items[0].shape} and {item.shape}")
    ndim = items[0].ndim - 1
    plan = fitted_plan(len(items[0]), ndim) if plan is None else plan
    if sum(size for size, _ in plan) != len(items[0]):
        raise ValueError(f"the plan {plan} is not for {len(items[0])} channels")
    generator = np.random.default_rng(seed)
    torch_generator = torch.Generator().manual_seed(seed)
    networks: dict[Key, Network] = {}
    counts = np.zeros((NUM_CLASSES * NUM_PHASES, NUM_SYMBOLS))
    passes = (
        found
        for group in range(len(plan))
        for found in _collect(items, plan[: group + 1], max_positions, generator).items()
    )
    for key, (features, targets) in passes:
        data = torch.from_numpy(features).to(device), torch.from_numpy(targets).to(device)
        network, bits = _fit_network(*data, min(hidden * (len(targets) + 1), MOST_HIDDEN), steps, torch_generator)
        networks[key] = network
        for start in range(0, targets.shape[1], 1 << 16):
            part = slice(start, start + (1 << 16))
            expected, rows = network(features[:, part].astype(np.float32))
            shift = np.repeat(CLASS_SHIFT, NUM_PHASES)[rows]
            residuals = targets[:, part].astype(np.int32).ravel() - expected
            bins = (residuals + (1 << shift >> 1)) >> shift
            symbols = np.where(np.abs(bins) > WINDOW, NUM_SYMBOLS - 1, bins + WINDOW)
            np.add.at(counts, (rows, symbols), 1)
        if progress:
            progress(f"group {key[0]} pass {key[1]}: {len(features)} features, {bits:.3f} bits per code")
    for key, inputs in feature_counts(plan, ndim).items():
        if key not in networks:  # the items are too small to have this pass
            size = plan[key[0]][0]
            middle = np.repeat(np.array([0, NUM_CLASSES << (CLASS_BITS - 1)], np.float32), size)
            networks[key] = Network(
                np.zeros((size + 1, inputs), np.float32),
                np.zeros(size + 1, np.float32),
                np.zeros((2 * size, 1), np.float32),
                middle,
            )
    return EntropyTables(len(items[0]), ndim, plan, networks, _frequencies(counts))


def fitted_plan(num_channels: int, ndim: int) -> Plan:
    """`default_plan`; beyond 128 channels its last groups hold 15.

    Each group sees all channels before it: many small ones take hours to fit.
    """
    return default_plan(num_channels, ndim, last=15) if num_channels > 128 else default_plan(num_channels, ndim)


def _collect(
    items: Sequence[np.ndarray], plan: Plan, max_positions: int, generator: np.random.Generator
) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
    """Features (K, n) and codes (g, n) of the last group's passes, as int8, in random order."""
    found: dict[Key, list[tuple[np.ndarray, np.ndarray]]] = {}
    total = sum(item[0].size for item in items)
    for item in items:
        planes = item.reshape(len(item), -1, item.shape[-1])

        def code(key: Key, features: np.ndarray, where: tuple, planes: np.ndarray = planes) -> np.ndarray:
            target = planes[where]
            if key[0] < len(plan) - 1:
                return target
            count = features.shape[1]
            # A pass holds at most half of the positions, so this keeps all where they fit.
            keep = min(count, int(np.ceil(2 * max_positions * planes[0].size / total)) if count > 64 else count)
            chosen = generator.permutation(count)[:keep]
            # Magnitudes reach 128 at the code -128 only, which companding never gives.
            small = np.minimum(features[:, chosen], 127).astype(np.int8)
            found.setdefault(key, []).append((small, target.reshape(len(target), -1)[:, chosen]))
            return target

        walk(item.shape, plan, mean_magnitudes(item), code)
    merged = {}
    for key in list(found):
        parts = found.pop(key)
        features, targets = (np.concatenate([part[i] for part in parts], 1) for i in (0, 1))
        order = generator.permutation(features.shape[1])[:max_positions]
        merged[key] = np.ascontiguousarray(features[:, order]), np.ascontiguousarray(targets[:, order])
    return merged


class _Predictor(nn.Module):
    """What the coder computes in integers, in floats that can be trained: the expected code and the size of its error.

    ```
    features / spread, 1 --+-- first -- ramp -- second --+-- mean of the code, added to `direct`
                           +-- direct -------------------+-- class of the logistic's scale, added to `classes`
    ```

    It starts at the least-squares prediction of the codes, and one ramp a channel at that of their errors' logarithms.

    Args:
        features: (K, n) int8, what the coder knows.
        targets: (g, n) int8, codes of a group of channels.
        hidden: ramps.
        generator: of the other ramps' weights.
    """

    def __init__(self, features: torch.Tensor, targets: torch.Tensor, hidden: int, generator: torch.Generator):
        super().__init__()
        self.group, inputs = len(targets), len(features)
        head = features[:, :START_POSITIONS].float()
        self.spread = (head - head.mean(1, keepdim=True)).square().mean(1).sqrt() + LEAST_SPREAD
        scaled = self._scaled(features[:, :START_POSITIONS])
        known = targets[:, :START_POSITIONS].float()
        gram = scaled @ scaled.T
        gram.diagonal().add_(RIDGE * head.shape[1])

        def solve(values: torch.Tensor) -> torch.Tensor:
            right = (scaled @ values.T).double().cpu()
            return torch.linalg.lstsq(gram.double().cpu(), right, driver="gelsd").solution.T.to(head)

        direct = solve(known)
        left = known - direct @ scaled
        self.unit = left.square().mean(1, keepdim=True).sqrt() * 0.3 + 0.03  # of what the ramps add to the mean
        classes = CLASSES_PER_E * ((TYPICAL * left.abs().mean(1) + 0.05).log() + CLASS_OFFSET)
        first = torch.randn(hidden, inputs + 1, generator=generator).to(head) * (0.5 / (inputs + 1)) ** 0.5
        second = torch.zeros(2 * self.group, hidden, device=head.device)
        units = min(self.group, hidden)
        sizes = CLASSES_PER_E * (TYPICAL * left.abs() + 0.1).log()
        # A ramp of slope 1/4 from its middle, read with a weight of 3, is the prediction less 12 classes.
        first[:units] = solve(sizes - sizes.mean(1, keepdim=True))[:units] / 4
        first[:units, -1] += 4
        second[self.group + torch.arange(units), torch.arange(units)] = 3.0
        classes[:units] -= 12
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.direct, self.classes = nn.Parameter(direct.clone()), nn.Parameter(classes)

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Bits per code, the negative logarithm of the logistic's probability of each code's cell."""
        x = self._scaled(features)
        out = self.second @ (self.first @ x).clamp(0, HIDDEN_MAX / HIDDEN_UNIT)
        mean = self.direct @ x + self.unit * out[: self.group]
        found = (out[self.group :] + self.classes[:, None]).clamp(0.3, NUM_CLASSES - 0.3)
        inverse = torch.exp(-(found / CLASSES_PER_E - CLASS_OFFSET))
        error = (targets.float() - mean).abs()
        probability = torch.sigmoid((0.5 - error) * inverse) - torch.sigmoid((-0.5 - error) * inverse)
        return -torch.log2(probability.clamp_min(LEAST_PROBABILITY)).mean()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.first, self.second]},
            {"params": [self.classes], "lr": 4 * LEARNING_RATE},
            {"params": [self.direct], "lr": LEARNING_RATE / 10},
        ]

    @torch.no_grad()
    def rounded(self) -> Network:
        """The same in the integers of the coder."""
        group = self.group
        return _rounded(
            *(
                values.double().cpu().numpy()
                for values in (
                    self.first[:, :-1] / self.spread * HIDDEN_UNIT * 2**HIDDEN_BITS,
                    self.first[:, -1] * HIDDEN_UNIT * 2**HIDDEN_BITS,
                    self.direct[:, :-1] / self.spread * 2**MEAN_BITS,
                    # Half an eighth more, because the coder rounds the expected value down.
                    self.direct[:, -1] * 2**MEAN_BITS + 2 ** (MEAN_BITS - 4),
                    self.second[:group] * self.unit * 2**MEAN_BITS / HIDDEN_UNIT,
                    self.second[group:] * 2**CLASS_BITS / HIDDEN_UNIT,
                    self.classes * 2**CLASS_BITS,
                )
            )
        )

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        """Features of about unit variance, and a constant that carries the biases."""
        x = features.float() / self.spread[:, None]
        return torch.cat([x, torch.ones(1, x.shape[1], device=x.device)])


def _fit_network(
    features: torch.Tensor, targets: torch.Tensor, hidden: int, steps: int, generator: torch.Generator
) -> tuple[Network, float]:
    """Minimise the cost of logistic residuals, from the least-squares prediction; the network and bits per code."""
    predictor = _Predictor(features, targets, hidden, generator)
    optimizer = torch.optim.AdamW(
        predictor.parameter_groups(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    rates = [entry["lr"] for entry in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, max(steps, 20), pct_start=0.2)
    count = targets.shape[1]
    batch = min(BATCH_POSITIONS, count)
    recent, place = 0.0, 0
    for _ in range(steps):
        place = place if place + batch <= count else 0
        part = slice(place, place + batch)
        place += batch
        loss = predictor(features[:, part], targets[:, part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent += 0.02 * (float(loss.detach()) - recent) if recent else float(loss.detach())
    return predictor.rounded(), recent


def _rounded(
    hidden: np.ndarray,
    hidden_bias: np.ndarray,
    direct: np.ndarray,
    direct_bias: np.ndarray,
    added_mean: np.ndarray,
    added_class: np.ndarray,
    class_bias: np.ndarray,
) -> Network:
    """Integers that `EntropyTables.to_arrays` can hold and whose sums stay exact."""
    hidden = _within(hidden, hidden_bias, EXACT - 1, INPUT_MAX)
    powers = 2.0 ** column_exponents(np.ceil(np.abs(hidden)))
    hidden = np.clip(np.rint(hidden / powers), -127, 127) * powers
    hidden = np.where(
        np.abs(hidden).sum(1, keepdims=True) * INPUT_MAX + np.abs(hidden_bias)[:, None] < EXACT, hidden, 0
    )
    direct = np.clip(_within(direct, direct_bias, EXACT // 2, INPUT_MAX), -32767, 32767)
    added_mean = _within(added_mean, np.zeros(len(added_mean)), EXACT // 2 - 2, HIDDEN_MAX)
    added_class = _within(added_class, class_bias, EXACT - 1, HIDDEN_MAX)
    second = np.clip(np.concatenate([added_mean, added_class]), -32767, 32767)
    return Network(
        np.concatenate([hidden, np.fix(direct)]).astype(np.float32),
        np.rint(np.concatenate([hidden_bias, direct_bias])).astype(np.float32),
        np.fix(second).astype(np.float32),
        np.rint(np.concatenate([np.zeros(len(added_mean)), class_bias])).astype(np.float32),
    )


def _within(weights: np.ndarray, bias: np.ndarray, limit: int, largest: int) -> np.ndarray:
    """Rows shrunk as far as the exact range asks for, which well-behaved weights do not."""
    room = np.maximum(limit - np.abs(bias) - 2, 0) / largest
    total = np.abs(weights).sum(1)
    return weights * np.minimum(1, room / np.maximum(total, 1e-9))[:, None]


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Counted residuals, mirrored so that both signs share what was seen, smoothed with the generic ones."""
    counts = counts.reshape(NUM_CLASSES, NUM_PHASES, NUM_SYMBOLS).copy()
    mirrored = counts[:, ::-1].copy()
    mirrored[:, :, :-1] = mirrored[:, :, -2::-1]
    counts += np.where(CLASS_SHIFT[:, None, None] == 0, mirrored, 0)
    coarse = CLASS_SHIFT > 0
    counts[coarse] = counts[coarse].sum(1, keepdims=True)  # the phase says nothing there
    counts = counts.reshape(-1, NUM_SYMBOLS) + generic_frequencies() * PRIOR_WEIGHT
    shares = counts / counts.sum(1, keepdims=True)
    return np.maximum(np.rint(shares * 65000), 1).astype(np.float32)
