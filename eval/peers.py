"""HuBERT as others run it, for eval/speed.py: in transformers, ONNX Runtime and OpenVINO.

All of them have the same architecture with random weights, and get batches without padding.
"""

import contextlib
import importlib
import importlib.util
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from daisy_jax import InputError

Task: TypeAlias = Callable[[], object]
"""Runs what is timed, to its end."""
Batch: TypeAlias = Float[np.ndarray, "batch samples"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
FIELDS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
}
"""Of transformers' config, where they are not its defaults, by size."""


class Peer(NamedTuple):
    """Another way to run the same model."""

    name: str
    precision: Precision | Literal["int8"]
    """Of its products."""
    prepare: Callable[[Batch], Task]
    """From a batch to what encodes it; compiles for its shape, where that is the peer's way."""


def missing(*modules: str) -> list[str]:
    """Those of the modules that are not installed."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def require(size: str, backend: str) -> None:
    """Refuses what cannot be compared.

    Raises:
      InputError: transformers is not installed, or it is another model or device than theirs.
    """
    lacking = missing("torch", "transformers")
    if lacking:
        raise InputError(f"--peers needs {' and '.join(lacking)}; pip install 'daisy-jax[peers]'")
    if size not in FIELDS:
        raise InputError(f"--peers: others have no model of size {size}; give --size base or large")
    if backend != "cpu":
        raise InputError("--peers compares on a CPU; give --accelerator=cpu")


def torch_place() -> str | None:
    """The device for torch: "cuda" where JAX has a GPU and torch can use it, else "cpu".

    None where torch is not installed. Torch's float32 is float32 afterwards, in its convolutions
    and LSTMs, too, where it would take TF32.
    """
    try:
        import torch
    except ImportError:
        return None
    torch.backends.cudnn.allow_tf32 = False
    # A torch without CUDA is not rare beside a JAX with it: both in one environment is gigabytes.
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def torch_model(size: str, precision: Precision, place: str) -> Any:
    """HuBERT of transformers, eager, whose attention is torch's fused one (SDPA)."""
    import torch

    # By name, since type checkers would take twenty seconds to read all of its models.
    transformers = importlib.import_module("transformers")
    config = transformers.HubertConfig(**FIELDS[size], attn_implementation="sdpa")
    return transformers.HubertModel(config).eval().to(place, getattr(torch, precision))


def in_torch(name: str, size: str, precision: Precision, place: str, *, compiled: bool) -> Peer:
    """Transformers, as it is or through `torch.compile`."""
    import torch

    model = torch_model(size, precision, place)
    run_model = torch.compile(model, dynamic=False) if compiled else model

    def prepare(waveform: Batch) -> Task:
        batch = torch.from_numpy(waveform.copy()).to(place, getattr(torch, precision))

        def run() -> object:
            with torch.no_grad():
                hidden = run_model(batch).last_hidden_state
            if place == "cuda":
                torch.cuda.synchronize()
            return hidden

        return run

    return Peer(name, precision, prepare)


def _exported(model: Any, waveform: Batch, folder: pathlib.Path) -> pathlib.Path:
    """An ONNX file of the model for one shape."""
    import torch

    class LastHidden(torch.nn.Module):
        """The one output that is asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Any:
            return self.model(batch).last_hidden_state

    path = folder / f"{'x'.join(map(str, waveform.shape))}.onnx"
    if not path.exists():
        example = (torch.from_numpy(waveform.copy()),)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
        whole = LastHidden().eval()
        torch.onnx.export(whole, example, str(path), dynamo=True, verbose=False)
    return path


def in_onnx_runtime(
    model: Any, folder: pathlib.Path, precision: Literal["float32", "int8"]
) -> Peer:
    """ONNX Runtime; int8: weights of linear layers quantized, activations as they come."""
    onnxruntime = importlib.import_module("onnxruntime")

    def prepare(waveform: Batch) -> Task:
        path = _exported(model, waveform, folder)
        if precision == "int8":
            tools = importlib.import_module("onnxruntime.quantization")
            whole, path = path, path.with_suffix(".int8.onnx")
            products = {"weight_type": tools.QuantType.QInt8}
            tools.quantize_dynamic(whole, path, op_types_to_quantize=["MatMul", "Gemm"], **products)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: waveform}
        return lambda: session.run(None, feed)

    return Peer("ONNX Runtime", precision, prepare)


def in_openvino(
    model: Any, folder: pathlib.Path, precision: Literal["float32", "bfloat16"]
) -> Peer:
    """OpenVINO on the CPU."""
    openvino = importlib.import_module("openvino")
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]

    def prepare(waveform: Batch) -> Task:
        core = openvino.Core()
        read = core.read_model(_exported(model, waveform, folder))
        request = core.compile_model(
            read, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        ).create_infer_request()
        return lambda: request.infer({0: waveform})

    return Peer("OpenVINO", precision, prepare)


def _openvino_has_bfloat16() -> bool:
    """Whether this CPU has it; OpenVINO would silently take float32."""
    core = importlib.import_module("openvino").Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@contextlib.contextmanager
def on_cpu(size: str, *, low_precision: bool) -> Iterator[list[Peer]]:
    """What people would run on a CPU: everything that is installed, in float32 first.

    Exported models lie on the disk while this is open.
    """
    found = [
        in_torch("transformers", size, "float32", "cpu", compiled=False),
        in_torch("torch.compile", size, "float32", "cpu", compiled=True),
    ]
    if low_precision:
        found.append(in_torch("transformers", size, "bfloat16", "cpu", compiled=False))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = torch_model(size, "float32", "cpu")
        exports = not missing("onnxscript")
        if exports and not missing("onnxruntime"):
            found.append(in_onnx_runtime(model, folder, "float32"))
            found += [in_onnx_runtime(model, folder, "int8")] if low_precision else []
        if exports and not missing("openvino"):
            found.append(in_openvino(model, folder, "float32"))
            if low_precision and _openvino_has_bfloat16():
                found.append(in_openvino(model, folder, "bfloat16"))
        yield sorted(found, key=lambda peer: peer.precision != "float32")
