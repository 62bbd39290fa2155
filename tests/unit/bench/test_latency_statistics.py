# SPDX-License-Identifier: Apache-2.0
"""Percentiles and intervals of the latency benchmark."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.latency.statistics import (
    Figure,
    Pool,
    draws,
    paired,
    percentile,
    quotient,
    quotient_difference,
)

ROUNDS = 27


def samples(seed: int, centre: float, factors: NDArray[np.float64]) -> list[NDArray[np.uint32]]:
    """Rounds of 300 samples around centre × factor ns."""
    dice = np.random.default_rng(seed)
    return [(dice.normal(centre * f, 0.02 * centre, 300)).astype(np.uint32) for f in factors]


@given(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_percentile_is_the_smallest_that_so_many_do_not_exceed(
    values: list[int], share: int
) -> None:
    found = percentile(np.asarray(values, dtype=np.uint32), share)
    needed = math.ceil(len(values) * share / 100)
    assert found in values
    assert sum(one <= found for one in values) >= needed
    assert sum(one < found for one in values) < needed


def test_every_resample_has_as_many_rounds_and_all_are_drawn() -> None:
    for rounds in (1, 2, 20, 61):
        drawn = draws(rounds)
        assert (drawn.sum(axis=1) == rounds).all()
        assert (drawn.sum(axis=0) > 0).all()
    assert (draws(20) == draws(20)).all(), "two analyses of one run must give the same"


def test_sittings_are_drawn_whole() -> None:
    drawn = draws(60, sittings=5).reshape(-1, 5, 12).sum(axis=2)
    assert (drawn.sum(axis=1) == 60).all()
    assert (drawn % 12 == 0).all()
    assert {0, 12, 24} <= set(drawn.flatten())
    with pytest.raises(ValueError, match="61 rounds in 5 sittings"):
        draws(61, sittings=5)


def test_what_differs_from_sitting_to_sitting_is_in_the_interval() -> None:
    """In one sitting alone it would be taken for the thing itself."""
    sittings = 9
    luck = np.repeat(np.resize([1.0, 1.1], sittings), ROUNDS // sittings)
    ours, theirs = Pool(samples(2, 6000, luck)), Pool(samples(3, 6000, np.ones(ROUNDS)))
    figure = paired(ours, theirs, 50, draws(ROUNDS, sittings))
    assert figure.low < 1.02 and figure.high > 1.08


def test_interval_surrounds_the_exact_percentile() -> None:
    pool = Pool(samples(1, 9000, np.ones(ROUNDS)))
    for share in (50, 99):
        figure = pool.figure(share, draws(ROUNDS))
        assert figure.value == percentile(pool.samples, share) / 1e3
        assert figure.low <= figure.value <= figure.high
        # The histogram's steps, and a median of 8,100 samples with 2 % deviation.
        assert figure.high / figure.low < 1.02


def test_what_disturbs_a_round_cancels_in_the_ratio_but_not_in_the_rows() -> None:
    factors = np.repeat([1.0, 3.0, 1.0], ROUNDS // 3)
    ours, theirs = Pool(samples(2, 6000, factors)), Pool(samples(3, 12000, factors))
    drawn = draws(ROUNDS)
    for ratio in (ours.over(theirs, 50, drawn), paired(ours, theirs, 50, drawn)):
        assert ratio.value == pytest.approx(0.5, rel=0.02)
        assert ratio.high / ratio.low < 1.1
    assert paired(ours, theirs, 50, drawn).high < 0.51
    alone = ours.figure(50, drawn)
    assert alone.high / alone.low > 1.5


def test_one_bad_round_moves_the_tail_and_not_the_ratio_of_medians() -> None:
    drawn = draws(ROUNDS)
    calm = Pool(samples(8, 9000, np.ones(ROUNDS)))
    bad = Pool(samples(9, 9000, np.array([1.0] * (ROUNDS - 1) + [50.0])))
    assert bad.over(calm, 99, drawn).value > 10
    assert paired(bad, calm, 50, drawn).value == pytest.approx(1, rel=0.01)
    assert paired(bad, calm, 50, drawn).low < 1 < paired(calm, bad, 50, drawn).high


def test_a_row_over_itself_is_one() -> None:
    pool = Pool(samples(4, 5000, np.ones(ROUNDS)))
    assert pool.over(pool, 99, draws(ROUNDS)) == Figure(1, 1, 1)
    assert paired(pool, pool, 50, draws(ROUNDS)) == Figure(1, 1, 1)


def test_intervals_of_different_rows_do_not_overlap_by_chance() -> None:
    drawn = draws(ROUNDS)
    a = Pool(samples(5, 9000, np.ones(ROUNDS))).figure(50, drawn)
    b = Pool(samples(6, 9900, np.ones(ROUNDS))).figure(50, drawn)
    assert not a.agrees(b) and not b.agrees(a) and a.agrees(a)


def test_rows_of_different_length_do_not_pair() -> None:
    one, other = (Pool(samples(7, 100, np.ones(n))) for n in (3, 4))
    with pytest.raises(ValueError, match="do not pair"):
        one.over(other, 99, draws(3))
    with pytest.raises(ValueError, match="do not pair"):
        paired(one, other, 50, draws(3))
    with pytest.raises(ValueError, match="without samples"):
        Pool([np.empty(0, dtype=np.uint32)])


def test_cpu_per_request_is_of_sums_not_a_mean_of_ratios() -> None:
    drawn = draws(2)
    assert quotient([10, 100], [1, 100], drawn).value == pytest.approx(110 / 101)


@pytest.mark.parametrize("data", [None, [1, 2], [1, 3, 2], ["x", 1, 2], 5])
def test_a_figure_from_elsewhere_is_checked(data: object) -> None:
    with pytest.raises(ValueError):
        Figure.from_json(data)


def test_a_difference_of_quotients_is_of_the_sums() -> None:
    rounds = np.array([[100.0, 1, 60, 1], [340, 4, 260, 4], [90, 1, 60, 1]])
    figure = quotient_difference(rounds, draws(3))
    assert figure.value == pytest.approx(530 / 6 - 380 / 6)
    assert 20 <= figure.low <= figure.value <= figure.high <= 40
