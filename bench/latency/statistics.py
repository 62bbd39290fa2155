# SPDX-License-Identifier: Apache-2.0
"""Percentiles of all samples of a row, and what they are worth: intervals by resampling rounds.

A percentile is of the pooled samples: the smallest that so many per cent do not exceed. Intervals
(95 %) come from drawing whole sittings again, since where a process's memory happens to lie makes
some per cent for as long as it lives, and in each of them whole rounds, in blocks of neighbours,
since what disturbs a machine lasts longer than a round. Medians of two rows are compared round by
round, which takes out what disturbs a whole round; tails, which a few bad rounds may make, as those
of all samples, both rows drawn alike. Draws are made of histograms with steps of 0.1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.latency.generator import Nanoseconds

RESAMPLES = 1000
_STEP = np.log(1.001)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"no interval: {self.low} to {self.high}")

    def agrees(self, other: Figure) -> bool:
        """Whether the intervals have anything in common."""
        return self.low <= other.high and other.low <= self.high

    def as_json(self) -> list[float]:
        """[value, low, high]."""
        return [self.value, self.low, self.high]

    @classmethod
    def from_json(cls, data: Any) -> Figure:
        """Raises ValueError."""
        try:
            value, low, high = (float(one) for one in data)
        except TypeError:
            raise ValueError(f"no figure: {data!r}") from None
        return cls(value, low, high)


def percentile(samples: Nanoseconds, share: float) -> float:
    """The smallest sample that `share` per cent of all do not exceed."""
    if not len(samples):
        raise ValueError("no samples")
    rank = max(0, int(np.ceil(len(samples) * share / 100)) - 1)
    return float(np.partition(samples, rank)[rank])


def draws(rounds: int, sittings: int = 1, seed: int = 1) -> Counts:
    """How often each round is in each resample: (RESAMPLES, rounds). Rounds come sitting by
    sitting, equally many of each. In a sitting, blocks of neighbours, about the cube root of their
    number long, around the end to the beginning. Raises ValueError where rounds do not make
    sittings."""
    each, odd = divmod(rounds, sittings)
    if odd:
        raise ValueError(f"{rounds} rounds in {sittings} sittings")
    length = max(1, round(each ** (1 / 3)))
    blocks = -(-each // length)
    dice = np.random.default_rng(seed)
    starts = dice.integers(0, each, size=(RESAMPLES, sittings, blocks))
    drawn = (starts[..., None] + np.arange(length)) % each
    drawn = drawn.reshape(RESAMPLES, sittings, -1)[:, :, :each]
    drawn = drawn + each * dice.integers(0, sittings, size=(RESAMPLES, sittings, 1))
    drawn = drawn.reshape(RESAMPLES, -1)
    counts: Counts = np.zeros((RESAMPLES, rounds), dtype=np.int64)
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1)
    return counts


class Pool:
    """All samples of a row, and its histogram round by round."""

    def __init__(self, rounds: Sequence[Nanoseconds]) -> None:
        if not rounds or not all(map(len, rounds)):
            raise ValueError("a round without samples")
        self.samples: Nanoseconds = np.concatenate(list(rounds))
        self._rounds = list(rounds)
        bins = [np.rint(np.log(np.maximum(one, 1)) / _STEP).astype(np.int64) for one in rounds]
        self._values = np.unique(np.concatenate(bins))
        self._counts: Counts = np.stack(
            [np.bincount(np.searchsorted(self._values, b), minlength=len(self._values))
             for b in bins]
        )  # fmt: skip

    @property
    def rounds(self) -> int:
        """How many there are."""
        return len(self._counts)

    def resampled(self, share: float, drawn: Counts) -> Floats:
        """The percentile in each resample."""
        cumulated = np.cumsum(drawn @ self._counts, axis=1)
        ranks = np.maximum(np.ceil(cumulated[:, -1:] * share / 100), 1)
        found: Floats = np.exp(self._values[(cumulated >= ranks).argmax(axis=1)] * _STEP)
        return found

    def figure(self, share: float, drawn: Counts) -> Figure:
        """A percentile with its interval, in µs."""
        return _figure(percentile(self.samples, share) / 1e3, self.resampled(share, drawn) / 1e3)

    def each(self, share: float) -> Floats:
        """The percentile of each round, in ns."""
        return np.array([percentile(one, share) for one in self._rounds])

    def over(self, other: Pool, share: float, drawn: Counts) -> Figure:
        """This row's percentile of all samples over another's, drawn alike. Raises ValueError."""
        if self.rounds != other.rounds:
            raise ValueError(f"{self.rounds} and {other.rounds} rounds do not pair")
        value = percentile(self.samples, share) / percentile(other.samples, share)
        return _figure(value, self.resampled(share, drawn) / other.resampled(share, drawn))


def paired(ours: Pool, theirs: Pool, share: float, drawn: Counts) -> Figure:
    """The median over rounds of one row's percentile over another's in the same round.

    Raises ValueError for rows of different length.
    """
    above, below = ours.each(share), theirs.each(share)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} rounds do not pair")
    ratios = above / below
    order = np.argsort(ratios)
    reached = np.cumsum(drawn[:, order], axis=1) * 2 >= len(ratios)
    return _figure(float(np.median(ratios)), ratios[order][reached.argmax(axis=1)])


def quotient(above: Sequence[float], below: Sequence[float], drawn: Counts) -> Figure:
    """Sum over sum, one of each per round: CPU time per request, bytes per time."""
    a, b = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    return _figure(float(a.sum() / b.sum()), (drawn @ a) / (drawn @ b))


def quotient_difference(rounds: Floats, drawn: Counts) -> Figure:
    """(rounds, 4): a, b, c, d of each. Sum a over sum b, less sum c over sum d."""
    a, b, c, d = rounds.T
    value = a.sum() / b.sum() - c.sum() / d.sum()
    return _figure(float(value), (drawn @ a) / (drawn @ b) - (drawn @ c) / (drawn @ d))


def _figure(value: float, resampled: Floats) -> Figure:
    low, high = np.quantile(resampled, (0.025, 0.975))
    # The steps of the histogram must not put the figure itself outside.
    return Figure(value, min(float(low), value), max(float(high), value))
