"""A GPU that the CPU plays, for commands that look for one: a plugin for JAX, and what runs them.

The plugin is found as NVIDIA's own is, in the namespace package jax_plugins, and takes the name
"cuda". So JAX chooses, refuses and initialises platforms by its own rules; only the arrays are the
CPU's. As a program, this file runs commands one after the other in one process.
"""

import contextlib
import io
import json
import os
import pathlib
import runpy
import sys

PLUGIN = """
from jax._src import hardware_utils, xla_bridge

FAULT = {fault!r}


def initialize():
    hardware_utils.has_visible_nvidia_gpu = lambda: True
    if FAULT:
        raise RuntimeError(FAULT)
    xla_bridge.register_backend_factory("cuda", xla_bridge.make_cpu_client, priority=200)
"""


def play_gpu(folder: pathlib.Path, fault: str = "") -> dict[str, str]:
    """Writes the plugin, and returns an environment whose JAX finds it.

    Args:
      folder: where to.
      fault: what its initialisation fails with; empty: it does not fail.
    """
    package = folder / "jax_plugins" / "xla_cuda_played"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN.format(fault=fault))
    from conftest import environment  # which this file, as a program, must not import

    # One device, which need not divide batches.
    return environment() | {"PYTHONPATH": str(folder)}


def run_here(words: list[str]) -> dict[str, object]:
    """Runs one command as if JAX had just been imported; what it chose and said.

    The packaged model is not there either, so that commands end as soon as they have a device.
    """
    import jax
    from jax._src import api

    from daisy_jax import checkpoints, parallel

    checkpoints.PACKAGED = pathlib.Path("nowhere")
    api.clear_backends()
    parallel._mesh.cache_clear()
    jax.config.update("jax_platforms", None)
    jax.config.update("jax_default_matmul_precision", None)
    os.environ.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)
    said, sys.argv = io.StringIO(), words
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if words[0] == "daisy-jax":
                from daisy_jax.commands.main import main

                main()
            else:
                sys.path[0] = str(pathlib.Path(words[0]).parent)
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            said.write(str(end.code))
        except Exception as error:
            said.write(repr(error))
    cpus = 0
    with contextlib.suppress(RuntimeError):
        cpus = len(jax.devices("cpu"))
    return {
        "said": said.getvalue(),
        "platforms": jax.config.jax_platforms,
        "precision": jax.config.jax_default_matmul_precision,
        "preallocate": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"),
        "cpus": cpus,
    }


if __name__ == "__main__":
    print(json.dumps([run_here(words) for words in json.load(sys.stdin)]))
