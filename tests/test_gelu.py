"""GELU against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from daisy_jax.model.gelu import gelu

POINTS = np.linspace(-12, 12, 20_001)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gelu_is_exact_up_to_rounding(dtype):
    x = jnp.asarray(POINTS, dtype)
    actual = gelu(x)
    assert actual.dtype == dtype
    given = np.asarray(x, np.float64)
    wanted = given * special.ndtr(given)
    # A rounding of the result, and one of the probability in float32, which x multiplies.
    allowed = jnp.finfo(dtype).eps * np.abs(wanted) + 2e-7 * np.abs(given)
    assert (np.abs(np.asarray(actual, np.float64) - wanted) <= allowed + 1e-7).all()


def test_its_slope_is_that_of_the_definition():
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(POINTS, jnp.float32))
    given = np.asarray(POINTS, np.float32).astype(np.float64)
    density = np.exp(-(given**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(slope, special.ndtr(given) + given * density, rtol=0, atol=5e-7)
