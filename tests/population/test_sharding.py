"""Sums beyond 32 bits, and arrays that are divided among devices and joined again."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from intlm.population.sharding import Sharding, limbs, number
from intlm.run import population_of


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_limbs(values: list[int]) -> None:
    """Limbs hold the exact sum, and can be summed themselves."""
    assert number(limbs(jnp.array(values, jnp.int32))) == sum(values)
    both = limbs(jnp.array(values, jnp.int32)) + limbs(jnp.array(values[:1], jnp.int32))
    assert number(both) == sum(values) + values[0]


def test_limbs_of_the_most_members() -> None:
    """Limbs hold the sum for 2^20 members with the largest losses."""
    assert number(limbs(jnp.full(1 << 20, 2**31 - 1, jnp.int32))) == (2**31 - 1) << 20


def test_of_one_device_nothing_is_changed() -> None:
    """With one device, arrays are returned unchanged."""
    population = population_of(tiny.load_config(), 7)
    sharding = Sharding(population)
    x = jnp.arange(12).reshape(4, 3)
    assert sharding.there() is None and sharding.total(x) is x and sharding.put_units(x) is x
    assert sharding.own({"a": x})["a"] is x and sharding.scatter({"a": x}, x) == ({"a": x}, x)
    assert sharding.process_texts == range(population.units // population.group_size) and int(sharding.first()) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16])
def test_slices(count: int) -> None:
    """Slices: equally many elements per device, in order, padded with zeros at the end; and joined again."""
    sharding = Sharding(population_of(tiny.load_config(), 7))
    sharding.count = count
    sharding.slices = {name: -(-size // count) for name, size in sharding.sizes.items()}
    for name, shape in sharding.shapes.items():
        whole = np.random.default_rng(0).integers(-127, 127, shape)
        rows = np.asarray(sharding._rows(name, jnp.asarray(whole)))
        assert rows.shape == (count, sharding.slices[name])
        np.testing.assert_array_equal(rows.ravel()[: whole.size], whole.ravel())
        assert not rows.ravel()[whole.size :].any()
        np.testing.assert_array_equal(sharding._shaped(name, rows), whole)
