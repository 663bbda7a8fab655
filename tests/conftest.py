"""Strict JAX for every test, four virtual CPU devices, and small random models."""

import importlib.metadata
import logging
import os

# Before jax is imported anywhere: the flags are read once. Tests of small models spend their time
# in the compiler, which takes a third of it without optimisation, and less when it does not split
# small programs among threads.
FLAGS = [
    "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
AS_FOR_USERS: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
"""Compiler options, for jax.jit, of tests that are about rounding."""
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no such flag
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    AS_FOR_USERS["xla_cpu_use_fusion_emitters"] = True


def environment(devices: int = 1) -> dict[str, str]:
    """Of programs that tests start: so many virtual devices, compiled as here."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": " ".join([count, *FLAGS[1:]])}


os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import gc

# Of its own accord Python looks through all objects after every 700 new ones, a sixth of the time
# that tracing takes.
gc.set_threshold(50_000)

import contextlib
import dataclasses
import pathlib
import time

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from made_models import made_model

from daisy_jax import Hubert, HubertConfig

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=20,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("deterministic")


LONGEST = 10.0
"""Seconds of a processor that a test of the quick set may take on CI, with the fixtures that it is
the first to ask for: other work on the machine counts against nobody."""
_started = pytest.StashKey[float]()
_too_long: list[str] = []


def pytest_itemcollected(item):
    slow = item.get_closest_marker("slow")
    if slow is not None and not slow.args:
        raise pytest.UsageError(f"{item.nodeid} is marked as slow without a reason")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[_started] = time.process_time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        taken = time.process_time() - item.stash[_started]
        report.user_properties.append(("processor_seconds", taken))
    return report


def pytest_runtest_logreport(report):
    taken = dict(report.user_properties).get("processor_seconds", 0)
    if report.when == "call" and taken > LONGEST:
        _too_long.append(f"{report.nodeid} took {taken:.1f} s")


def pytest_sessionfinish(session):
    """On CI, a test that takes too long fails the quick set."""
    quick = session.config.option.markexpr == "not slow"
    if "CI" not in os.environ or not quick or hasattr(session.config, "workerinput"):
        _too_long.clear()
    elif _too_long:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for line in _too_long:
        terminalreporter.write_line(
            f"{line}, more than the {LONGEST:.0f} s of the quick set; make it smaller, or mark it "
            "as slow and say why"
        )


LONG = ["corpora", "stage2", "stage1", "transforms", "batch_invariance", "encode", "first_gpu"]
"""Modules that start first, so that no worker is left alone with one in the end."""


def pytest_collection_modifyitems(items):
    first = [f"test_{name}.py" for name in LONG]

    def place(item):
        return first.index(item.path.name) if item.path.name in first else len(first)

    items.sort(key=place)


GROWTH = 600e6
"""Bytes that compiled programs may take in a worker until they are forgotten."""
_kept = [0.0]


def _memory() -> int:
    """Bytes that this process takes; 0 where the system does not tell in this way."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten():
    """Those of all modules would take some 5 GB; those of a few save time."""
    yield
    if _memory() > _kept[0] + GROWTH:
        jax.clear_caches()
        gc.collect()
        _kept[0] = _memory()


@pytest.fixture(scope="session", autouse=True)
def durations_folder(tmp_path_factory):
    """Durations of sound files are remembered here, and not among the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(request, tmp_path_factory):
    """What was compiled once is kept for other workers, for scripts, and a week for later runs."""
    try:
        folder = request.config.cache.mkdir("compiled")
    except (AttributeError, OSError):  # pytest was told to keep nothing, or cannot
        folder = tmp_path_factory.mktemp("compiled")
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another worker does the same
            if path.stat().st_mtime < time.time() - 7 * 86_400:
                path.unlink()
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # of scripts that tests start


SMALL = HubertConfig(
    num_layers=4,
    dim=32,
    ffn_dim=48,
    num_heads=4,
    conv_dim=16,
    pos_conv_kernel=16,
    pos_conv_groups=4,
    num_clusters=7,
    head_dim=8,
    num_classes=12,
)
CONFIGS = {
    "base": SMALL,
    "base_authors": dataclasses.replace(SMALL, tap="ffn", item0="projection"),
    "large": dataclasses.replace(
        SMALL, conv_norm="layer", conv_bias=True, norm_first=True, normalize_input=True
    ),
    "large_ffn": dataclasses.replace(
        SMALL,
        conv_norm="layer",
        norm_first=True,
        normalize_input=True,
        tap="ffn",
        pos_conv_kernel=15,
    ),
}
"""Post-LN and pre-LN models, both taps, both kinds of item 0, even and odd positional kernels."""


def random_model(config: HubertConfig, seed: int = 0) -> Hubert:
    """A model in which every parameter matters and layers change what passes through them.

    Norms have scales and offsets, biases are not zero, and each residual branch is as large as
    what it is added to. Branches sharpen with depth, from 1 to 4 times unit logits, so that
    entropies fall from layer to layer and differ from one utterance to the next.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if "branches" in name and "kernel" in name:
            sharpness = np.linspace(1, 4, config.num_layers, dtype=np.float32)
            # Blocks without a norm at their end grow; their logits shall not.
            growth = 3 if config.norm_first and config.tap == "block" else 1
            scale = sharpness[:, None, None] / (growth * np.float32(np.sqrt(leaf.shape[1])))
            return jnp.asarray(noise * scale)
        if "kernel" in name:
            fan_in = leaf.shape[-2] if "layers" in name else np.prod(leaf.shape[:-1])
            return jnp.asarray(noise * np.float32(np.sqrt(2 / fan_in)))
        if "scale" in name:
            return jnp.asarray(1 + 0.2 * noise)
        return jnp.asarray(noise if "embedding" in name else 0.2 * noise)

    empty = nnx.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(draw, empty)


def speech_like(lengths, seed: int = 0) -> list[np.ndarray]:
    """Waveforms of these lengths that differ in pitch, loudness and noise: float32 [samples]."""
    rng = np.random.default_rng(seed)
    waveforms = []
    for length in lengths:
        time = np.arange(length) / 16_000
        pitch, loudness, noise = rng.uniform(80, 2000), rng.uniform(0.05, 0.8), rng.uniform(0, 1)
        tone = np.sin(2 * np.pi * pitch * time) * np.cos(2 * np.pi * rng.uniform(1, 9) * time)
        mixed = (1 - noise) * tone + noise * rng.standard_normal(length) / 3
        waveforms.append((loudness * mixed).astype(np.float32))
    return waveforms


@pytest.fixture(scope="session")
def small_models() -> dict[str, Hubert]:
    return {name: random_model(config) for name, config in CONFIGS.items()}


LIBROSA = pytest.mark.slow("librosa is compiled, in a new environment for half a minute")
COMBINATIONS = pytest.mark.slow("the other combinations of what the quick ones have")
SOME = ["base_authors", "large"]
"""Post-LN and pre-LN, both taps, both kinds of item 0, both norms of the front end."""
ALL = [name if name in SOME else pytest.param(name, marks=COMBINATIONS) for name in CONFIGS]


@pytest.fixture(scope="session", params=ALL)
def any_model(request, small_models) -> Hubert:
    """Each of the small models in turn."""
    return small_models[request.param]


@pytest.fixture(scope="session")
def base_model(small_models) -> Hubert:
    return small_models["base"]


@pytest.fixture(scope="session")
def model() -> Hubert:
    """The small model of `made_models`, for stores."""
    return made_model()


@pytest.fixture
def unchecked_annotations():
    """As in users' programs, for tests that give what annotations forbid to see our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def left_out():
    """What the library has left out since the test began: its lines, in order."""
    lines: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record):
            if getattr(record, "left_out", False):
                lines.append(record.getMessage())

    handler = Collecting()
    logging.getLogger("daisy_jax").addHandler(handler)
    yield lines
    logging.getLogger("daisy_jax").removeHandler(handler)
