"""HuBERT's activation function."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The input times the probability that a standard normal number is below it.

    By erf, in float32, as torch computes it. `jax.nn.gelu` takes erfc, which is exact in bfloat16
    too, but costs a CPU more than twice as much (measured).
    """
    half = 0.5 * x.astype(jnp.float32)
    erf = jax.lax.erf(x.astype(jnp.float32) * np.float32(math.sqrt(0.5)))
    return (half + half * erf).astype(x.dtype)
