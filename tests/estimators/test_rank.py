"""Low-rank updates against full-rank ones, as benchmarks/learning/rank.py compares them, at its smallest dimension."""

import importlib.util
import sys
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAIRS = 2**15


def load_rank() -> ModuleType:
    """benchmarks/learning/rank.py, which is a script."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "learning" / "rank.py"
    specification = importlib.util.spec_from_file_location("learning_rank", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


study = load_rank()


@cache
def estimate(rank: int) -> np.ndarray:
    """Estimates the mean update, by rank; 0 is full rank."""
    return study.estimate(study.Setting(8, rank), PAIRS)


def explicit(setting: Any, drawn: Any) -> np.ndarray:
    """The perturbations as matrices: float64 [pairs, 8, 8]."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), drawn)
    return np.einsum("pko,pki->poi", *wide) * study.scale(setting) if setting.rank else wide


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_second_moments_are_those_of_full_rank_and_fourth_are_not(rank: int) -> None:
    """An element's fourth moment is 3 for a Gaussian and 3 + 6/r for r products (2.89 and the like with 256 values)."""
    setting = study.Setting(8, rank)
    drawn = jax.jit(study.noise, static_argnums=0)(setting, jnp.uint32(0), jnp.arange(PAIRS, dtype=jnp.uint32))
    elements = explicit(setting, drawn).reshape(PAIRS, -1) / study.variance(setting) ** 0.5
    covariance = elements.T @ elements / PAIRS
    of_chance = 3 / PAIRS**0.5  # of a square, at rank 1: sqrt(9 - 1)
    np.testing.assert_allclose(covariance, np.eye(64), atol=5 * of_chance)
    assert abs(np.mean(np.diag(covariance)) - 1) < of_chance
    gaussian = 2.892
    expected = 3 + (gaussian**2 - 3) / rank if rank else gaussian
    assert np.mean(elements**4) == pytest.approx(expected, rel=0.04)


def test_the_variance_is_nearly_the_specified() -> None:
    """256 for standard deviations of 16; less by the quantiles' largest being 46, and by the rounding of c_r."""
    for rank in (0, 1, 2, 4, 8, 16):
        assert study.variance(study.Setting(8, rank)) == pytest.approx(256, rel=0.025)


@partial(jax.jit, static_argnums=0)
def seen(setting: Any, number: jax.Array) -> Any:
    """A problem, some pairs' noise, their accumulators and outputs, and their fitness."""
    given = study.problem(setting.dimension, number)
    drawn = study.noise(setting, jnp.uint32(1), jnp.arange(64, dtype=jnp.uint32))
    accumulators = study.accumulators(setting, drawn, given.w, given.x)
    return given, drawn, accumulators, study.output(accumulators), study.fitness(setting, drawn, given)


@pytest.mark.parametrize("rank", [0, 4])
def test_fitness_by_hand(rank: int) -> None:
    """Fitness of explicit W + E and W - E; rounding t_k of a low rank moves it by up to half a unit of A's 46."""
    setting = study.Setting(8, rank)
    given, drawn, accumulators, outputs, scores = jax.tree.map(np.asarray, seen(setting, jnp.uint32(0)))
    w, x, target = (v.astype(np.float64) for v in given)
    change = explicit(setting, drawn)
    for member, sign in ((0, 1), (1, -1)):
        expected = np.einsum("mi,poi->mpo", x, w + sign * change)
        np.testing.assert_allclose(accumulators[:, :, member], expected, atol=23 * rank)
    difference = np.abs(outputs - target[:, None, None]).sum((0, 3)) @ [-1, 1]
    np.testing.assert_array_equal(scores, np.floor(difference / 64 + 0.5))
    assert scores.dtype == np.int8 and np.abs(scores).max() > 8


def test_the_distance_falls_as_the_rank_rises() -> None:
    """It falls nearly as 1/r, from 0.22 at rank 1, which is far above the noise. The noise comes from the counter, so
    nothing is left to chance."""
    one, four = (study.compare(estimate(rank), estimate(0)) for rank in (1, 4))
    assert one.distance > 4 * one.floor
    assert one.corrected == pytest.approx(0.22, abs=0.03)
    assert 2.4 < one.corrected / four.corrected < 4.4
    assert one.length < four.length < 1
    assert one.cosine > 0.99 and one.direction < one.corrected / 2  # shorter far more than turned


def test_full_rank_against_itself_is_noise() -> None:
    """For two independent estimates of the same rank, the distance without noise is less than the noise."""
    full = estimate(0)
    other = study.estimate(study.Setting(8, 0), 2 * PAIRS)  # the first half of each is the same
    late = 2 * other - full
    comparison = study.compare(late, full)
    assert comparison.corrected < comparison.floor and comparison.distance < 2 * comparison.floor
    assert comparison.length == pytest.approx(1, abs=0.03)
