"""Where JAX computes and how exactly: the kind of device, types and precision, kept programs."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import logging
import logging.handlers
import os
import pkgutil
import platform
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from daisy_jax.errors import InputError

Accelerator = Literal["auto", "cpu", "gpu", "tpu"]


@runtime_checkable
class Device(Protocol):
    """What is looked at of one of `jax.devices()`."""

    @property
    def platform(self) -> str:
        """As JAX calls it: "cpu", "gpu", "tpu"."""
        ...

    @property
    def device_kind(self) -> str:
        """Its name."""
        ...


def use_accelerator(
    accelerator: Accelerator,
    deterministic: bool = False,
    *,
    dtype: str = "float32",
    share_memory: bool = False,
) -> str:
    """Makes JAX compute on a kind of device; to be called before the first array exists.

    The CPU stays usable beside a GPU or a TPU. Where the model computes in float32, all products
    do: without being asked, JAX takes TF32 on GPUs and bfloat16 on TPUs in the place of float32,
    which leaves three digits. JAX_DEFAULT_MATMUL_PRECISION=default asks for that.

    Args:
      accelerator: the kind; "auto": what JAX chooses.
      deterministic: GPUs add in the same order each time, which is slower; others always do.
      dtype: what the model computes in; "auto": `trunk_dtype` of the device.
      share_memory: GPUs' memory is taken when it is needed, and not three quarters of it at once,
        so that torch finds some, too.

    Returns:
      The name of the first device.

    Raises:
      InputError: there is no such device, or JAX came without support for it.
    """
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if share_memory:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = _first_device(accelerator)
    computed = trunk_dtype(device) if dtype == "auto" else dtype
    settings: Any = jax.config
    if computed == "float32" and settings.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "highest")
    return device.device_kind


def trunk_dtype(device: Device) -> str:
    """The fastest type that a frozen trunk can be trusted to.

    NVIDIA GPUs have bfloat16 from compute capability 8.0 (Ampere) on; on older ones (V100, T4) XLA
    emulates it. Those have float16, whose smaller range holds all that a HuBERT computes:
    fairseq trained the public ones in it, and tests/test_float16.py measures it.

    Args:
      device: one of `jax.devices()`.

    Returns:
      "float32", "bfloat16" or "float16".
    """
    if device.platform == "cpu":
        return "float32"
    # 7.5 of CUDA; ROCm says gfx90a, and a TPU nothing.
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return "float16" if capability and int(capability[1]) < 8 else "bfloat16"


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, so that a later run of the same shapes need not compile.

    Programs of another machine or another JAX may not run here, so that each has a folder of its
    own inside.
    """
    inner = os.path.join(folder, f"{platform.node() or 'host'}-jax-{jax.__version__}")
    os.makedirs(inner, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", inner)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def installed_versions(*libraries: str) -> dict[str, str]:
    """Versions of Python and of those of these libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def has_plugin(kind: str) -> bool:
    """Whether JAX would find a plugin for a kind of device, such as "cuda" or "rocm"."""
    names = [entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")]
    namespace = importlib.util.find_spec("jax_plugins")
    folders = namespace.submodule_search_locations if namespace else None
    names += [module.name for module in pkgutil.iter_modules(folders or [])]
    return any(kind in name for name in names)


def has_driver() -> bool:
    """Whether the library of NVIDIA's driver can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_device_files() -> bool:
    """Whether NVIDIA's driver shows GPUs to this machine or container."""
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))  # the second: WSL


def _first_device(accelerator: Accelerator) -> Device:
    """The first device of a kind, which JAX computes on from now on.

    Raises:
      InputError: there is none; JAX's choice of platforms is as it was before.
    """
    settings: Any = jax.config
    before = settings.jax_platforms
    if accelerator in ("auto", "cpu"):
        if accelerator == "cpu":
            jax.config.update("jax_platforms", "cpu")
        try:
            return jax.devices()[0]
        except (RuntimeError, AssertionError) as error:  # JAX asserts that something was left
            raise InputError(
                f"JAX has none of the platforms it was told to use, {before!r} "
                f"({_in_one_line(error) or 'none is visible'}); unset JAX_PLATFORMS, or pass "
                "--accelerator=cpu"
            ) from None
    # A ROCm that fails says so. A CUDA without device files is passed over in silence, and JAX
    # then holds the CPU for good; so CUDA comes last.
    platforms = ["rocm", "cuda"] if has_plugin("rocm") else ["cuda"]
    reasons = {}
    for name in platforms if accelerator == "gpu" else ["tpu"]:
        jax.config.update("jax_platforms", f"{name},cpu")
        with _quiet_plugins() as held:
            try:
                return jax.devices(name)[0]
            except RuntimeError as error:
                # What went wrong in the plugin JAX only logs; afterwards it does not know it.
                faults: list[BaseException] = [
                    record.exc_info[1]
                    for record in held
                    if record.exc_info and record.exc_info[1] and name in record.getMessage()
                ]
                reasons[name] = _in_one_line((*faults, error)[0])
                held.clear()
    jax.config.update("jax_platforms", before)
    raise InputError(f"no {accelerator.upper()} for JAX here: {_advice(reasons)}")


def _advice(reasons: dict[str, str]) -> str:
    """What to do where JAX gave these reasons, by platform, for not having a device."""
    if "tpu" in reasons:
        return (
            f"{reasons['tpu']}; install jax[tpu] on a machine that has a TPU, or pass "
            "--accelerator=cpu"
        )
    if "rocm" in reasons and not has_plugin("cuda"):
        return f"{reasons['rocm']}; mend that, or pass --accelerator=cpu"
    missing = []
    if not has_plugin("cuda"):
        missing.append("JAX's CUDA plugin (pip install 'jax[cuda13]')")
    if not has_driver():
        missing.append("the NVIDIA driver (libcuda.so.1 cannot be loaded)")
    elif not has_device_files():
        missing.append("a GPU that the driver shows here (there is no /dev/nvidiactl)")
    if missing:
        return f"what is missing is {' and '.join(missing)}; add it, or pass --accelerator=cpu"
    return f"{'; '.join(reasons.values())}; mend that, or pass --accelerator=cpu"


def _in_one_line(error: BaseException) -> str:
    """What JAX says, without its own advice, which is not ours."""
    return " ".join(str(error).partition("(set JAX_PLATFORMS=")[0].split())


@contextlib.contextmanager
def _quiet_plugins() -> Iterator[list[logging.LogRecord]]:
    """Holds JAX's log back: of a plugin that does not load it prints a page, not a line.

    Yields the records so far. Those that are left in the end are logged after all.
    """
    logger, handler = logging.getLogger("jax"), logging.handlers.BufferingHandler(sys.maxsize)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        for record in handler.buffer:
            logging.getLogger(record.name).handle(record)
