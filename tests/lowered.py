"""Programs as they are lowered for machines that are not here, and what their text says."""

import collections
import contextlib
import re
import types

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo
from jax._src.interpreters import mlir
from jax.experimental import rnn
from jaxlib.mlir import ir

from daisy_jax.model import attention


def play_nvidia(monkeypatch) -> None:
    """Everything that asks for a GPU while tracing finds an H100 with its libraries."""
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91900)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(
        fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False
    )
    monkeypatch.setattr(attention, "_fused_kernel_runs", lambda: True)


class Program:
    """A function lowered for a platform."""

    def __init__(self, platform: str, function, *arguments):
        jitted = function if hasattr(function, "trace") else jax.jit(function)
        lowering = jitted.trace(*arguments).lower(lowering_platforms=(platform,))
        self.text = lowering.as_text()
        self.operations: list = []
        module = lowering.compiler_ir("stablehlo")

        def note(operation):
            self.operations.append(operation.operation)
            return ir.WalkResult.ADVANCE

        with module.context:
            module.operation.walk(note)
        self._module = module  # which the operations live in

    def count(self, name: str) -> int:
        """How often an operation such as "while" stands there.

        Of a "case" only where data decide. A choice by platform leaves others behind, with one
        branch or with nothing but constants in all of them; compilers take these out.
        """
        found = [each for each in self.operations if each.name == f"stablehlo.{name}"]
        if name == "case":
            found = [each for each in found if len(each.regions) > 1 and _computes(each)]
        return len(found)

    def products(self) -> collections.Counter:
        """Matrix products and convolutions: (name, types of the factors, precision) -> count."""
        found = collections.Counter()
        for each in self.operations:
            name = each.name.removeprefix("stablehlo.")
            if name in ("dot_general", "convolution"):
                types_of = tuple(
                    str(ir.RankedTensorType(factor.type).element_type) for factor in each.operands
                )
                precision = "DEFAULT"
                if "precision_config" in each.attributes:
                    precision = re.search(r"(\w+)>", str(each.attributes["precision_config"][0]))[1]
                found[name, types_of, precision] += 1
        return found

    @property
    def fused(self) -> int:
        """How often cuDNN's fused attention is called."""
        return self.text.count("@__cudnn$fmha")


def _computes(case) -> bool:
    inside = (operation.name for region in case.regions for operation in region.blocks[0])
    return not set(inside) <= {"stablehlo.constant", "stablehlo.return"}


@contextlib.contextmanager
def fused_on_cpu(seen: list):
    """Gives the fused kernel a CPU lowering of plain JAX, which notes the shapes it is given."""

    def attend(query, key, value, bias, query_counts, key_counts, *rest, scale, **settings):
        del bias, rest, settings
        # As the kernel reads them: entry i is of row i of this device.
        seen.append((len(query), len(query_counts), len(key_counts)))
        key_counts = key_counts[: len(query)]
        mask = jnp.arange(key.shape[1])[None] < key_counts[:, None]
        query, key, value = (array.astype(jnp.float32) for array in (query, key, value))
        scores = jnp.einsum("btnh,bsnh->bnts", query * scale, key)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30))
        return [jnp.einsum("bnts,bsnh->btnh", weights, value).astype(jnp.bfloat16)]

    primitive = fused_attention_stablehlo._dot_product_attention_fwd_p
    rule = mlir.lower_fun(attend, multiple_results=True)
    mlir.register_lowering(primitive, rule, platform="cpu")
    try:
        yield
    finally:
        del mlir._platform_specific_lowerings["cpu"][primitive]


def cudnn_as_documented(x, h, c, weights, lengths, inputs, units, layers, dropout, both, precision):
    """What cuDNN does with these arguments, as JAX writes it down for its own tests."""
    unpacked = rnn.unpack_lstm_weights(weights, inputs, units, layers, both)
    return rnn.lstm_ref(x, h, c, *unpacked, lengths, inputs, units, layers, dropout, both)
