"""Reads what `torch.save` wrote, without running code from the file.

torch's restricted unpickler builds tensors and plain containers. Of the few classes that HuBERT's
checkpoints mention beside these, stand-ins take the place, which only keep attributes; a file that
needs any other class or function is refused. Source: `torch.load(weights_only=True)`, and what
fairseq, s3prl and omegaconf put into checkpoints.
"""

import errno
import importlib
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from daisy_jax.conversions.pickled_tuples import refuse_large_tuples
from daisy_jax.errors import InputError

if TYPE_CHECKING:
    import torch

STAND_INS = (
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "collections.defaultdict",
    "fairseq.data.dictionary.Dictionary",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "typing.Any",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
"""Classes and functions of which a stand-in takes the place, so that none of them is called."""

MOST_UNKNOWN = 100
"""Classes that a file may name without anybody having looked at them."""


class StandIn:
    """Takes the place of what is not to be built, or cannot be held: attributes, no behaviour."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update({str(name): value for name, value in state.items()})


class Unread(StandIn):
    """Takes the place of an object of a class that nobody has looked at; none of it is kept."""

    kind = ""
    """The class."""

    def __setstate__(self, state: object) -> None:
        pass


def read_torch_file(path: pathlib.Path) -> object:
    """The content of a file: containers, plain values and numpy arrays in their stored types.

    Objects become dictionaries of their attributes, omegaconf's containers what they contain; the
    keys of dictionaries are text. A `StandIn` stays where nothing is known: in the place of a numpy
    scalar or of a sparse tensor.

    Objects of other classes are left out, each replaced by an `Unread`, and so is what depends on
    them. No code of theirs is run.

    Raises:
      InputError: the file is cut off, cannot be read without such a class, which is named, or there
        is no torch.
      OSError: the file cannot be read.
    """
    try:
        importlib.import_module("torch")
    except ImportError:
        raise InputError(
            f"{path}: needs torch to be read; pip install 'daisy-jax[convert]', or get the model "
            "as safetensors, which does not"
        ) from None
    refuse_large_tuples(path)
    try:
        content = _loaded(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a plain file of tensors, as {error}; get the model as safetensors, or "
            "copy it again"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into this machine's memory") from None
    except Exception as error:  # whatever a torn file makes torch raise, EINVAL among it
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(
            f"{path}: not a whole torch file ({_reason(error)}); copy it again"
        ) from None
    try:
        return _plain(content, {})
    except RecursionError:
        raise InputError(f"{path}: its content is nested too deeply for a checkpoint") from None


def _loaded(path: pathlib.Path) -> object:
    """What torch makes of a file, with stand-ins for all classes and functions that it names.

    Raises:
      pickle.UnpicklingError: with the reason for which that does not suffice.
    """
    import torch

    known: list[Callable | tuple[Callable, str]] = [(StandIn, name) for name in STAND_INS]
    unknown: set[str] = set()
    while True:
        unread = [(type("Unread", (Unread,), {"kind": name}), name) for name in unknown]
        try:
            with torch.serialization.safe_globals([*known, *unread]):
                # Pages of a mapped file are read when a tensor is used; old files are not zip.
                return torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
        except pickle.UnpicklingError as error:
            named = _named(path, str(error)) - unknown
            if not named or len(unknown) > MOST_UNKNOWN:
                raise pickle.UnpicklingError(_refusal(str(error), unknown)) from None
            unknown |= named


def _plain(value: object, done: dict[int, object]) -> object:
    """The value without stand-ins and tensors; `done` by identity, as objects may be shared."""
    import torch

    if id(value) in done:
        return done[id(value)]
    plain = value
    if isinstance(value, torch.Tensor):
        plain = _as_numpy(value)
    elif isinstance(value, dict):
        plain = {str(name): _plain(item, done) for name, item in value.items()}
    elif isinstance(value, list | tuple | set):
        plain = [_plain(item, done) for item in value]
    elif isinstance(value, Unread):
        pass
    elif isinstance(value, StandIn) and vars(value):
        attributes = vars(value)
        # Of omegaconf's containers and leaves, what they contain.
        inner = next((name for name in ("_content", "_val") if name in attributes), None)
        plain = _plain(attributes[inner] if inner else attributes, done)
    done[id(value)] = plain
    return plain


def _as_numpy(tensor: "torch.Tensor") -> np.ndarray | StandIn:
    import torch

    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError, ValueError):  # sparse, quantised, 8-bit and the like
        return StandIn()


def _named(path: pathlib.Path, message: str) -> set[str]:
    """Classes and functions that a file needs, for which torch refused it with this message."""
    import torch

    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(STAND_INS)
    except Exception:  # of old files, which it cannot list, and of torn ones
        names = re.findall(r"GLOBAL (\S+) (?:was|whose)", message)
        return {name if "." in name else f"builtins.{name}" for name in names}


def _refusal(message: str, unknown: set[str]) -> str:
    """Why torch refused a file, though nothing that it names is run."""
    if unknown:
        return f"it needs {', '.join(sorted(unknown))}, and code in such files is never run"
    reason = re.search(r"WeightsUnpickler error: +(\S.*)", message)
    return reason[1][:200] if reason else "torch cannot read it"


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__
