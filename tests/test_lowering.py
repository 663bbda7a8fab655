"""What GPUs and TPUs would run: programs lowered for them here, and what stands in their text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SMALL, random_model, speech_like
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from lowered import Program, fused_on_cpu, play_nvidia

from daisy_jax import encode, frame_labels, parallel
from daisy_jax.audio import frame_count, pad_batch
from daisy_jax.exits import ExitRule
from daisy_jax.features import contents
from daisy_jax.model import slices
from daisy_jax.model.branches_loss import branches_loss
from daisy_jax.model.forms import one_form
from daisy_jax.tasks.asr import CHARACTERS
from daisy_jax.tasks.presets import make_task, read_preset
from daisy_jax.tasks.training import downstream_step, head_optimizer, new_params
from daisy_jax.training.branches import branch_optimizer, branch_step
from daisy_jax.training.pretraining import masked_prediction_loss

CONFIG = dataclasses.replace(SMALL, num_heads=4)  # eight channels a head, as cuDNN's kernel wants
WAVEFORM, LENGTHS = pad_batch(speech_like((3000, 400, 2500, 0), seed=1))
FRAMES = int(frame_count(WAVEFORM.shape[1]))
THRESHOLD = np.full(4, 0.5, np.float32)
WEIGHTS = np.array([0.3, -1.0, 0.7, 1.5, -0.2], np.float32)


def bfloat16_trunk(model):
    trunk = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    return trunk.replace(head=model.head, branches=model.branches)


MODEL = bfloat16_trunk(random_model(CONFIG))


@pytest.fixture(autouse=True)
def as_elsewhere(monkeypatch):
    """JAX's own precision and promotion, an H100 to ask, and slices down to one row."""
    play_nvidia(monkeypatch)
    monkeypatch.setattr(slices, "LEAST_FRAMES", 1)
    jax.clear_caches()  # what was traced without the GPU
    with jax.default_matmul_precision(None), jax.numpy_dtype_promotion("standard"):
        yield
    jax.clear_caches()


def total(out):
    return jnp.sum(out.last_hidden.astype(jnp.float32))


def twice(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)


# ---------------------------------------------------------------- encode


OTHERS = pytest.mark.slow("lowers the same for another platform or output")
PLATFORMS = ["cuda", pytest.param("tpu", marks=OTHERS)]


@pytest.mark.parametrize("platform", [*PLATFORMS, pytest.param("rocm", marks=OTHERS)])
@pytest.mark.parametrize("hidden_states", [True, pytest.param(False, marks=OTHERS)])
def test_encode_asks_the_host_once_a_layer_and_not_at_all_at_full_depth(platform, hidden_states):
    """The one loop is the scan over layers, whose number of turns is known."""

    def run(model, waveform, lengths, threshold=None):
        options = {"threshold": threshold, "return_hidden_states": hidden_states}
        return encode(model, waveform, lengths, layer_weights=WEIGHTS, **options)

    full = Program(platform, run, MODEL, WAVEFORM, LENGTHS)
    exits = Program(platform, run, MODEL, WAVEFORM, LENGTHS, THRESHOLD)
    assert (full.count("while"), full.count("case")) == (1, 0)
    assert (exits.count("while"), exits.count("case")) == (1, 1)
    sizes = slices.switch_sizes(4, FRAMES)
    assert sizes == (1, 2, 4)
    fused = platform == "cuda"
    assert (full.fused, exits.fused) == (fused, fused * len(sizes))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_float32_product_in_a_bfloat16_trunk(platform):
    exits = Program(platform, lambda model: encode(model, WAVEFORM, threshold=0.5), MODEL)
    assert {types_of for _, types_of, _ in exits.products()} == {("bf16", "bf16")}
    # Of the labels, the two products of the prediction head.
    labels = Program(platform, lambda model: frame_labels(model, WAVEFORM), MODEL).products()
    others = {key: count for key, count in labels.items() if key[1] != ("bf16", "bf16")}
    assert others == {("dot_general", ("f32", "f32"), "HIGHEST"): 2}
    # The positional convolution is a product there.
    assert labels["convolution", ("bf16", "bf16"), "DEFAULT"] == 7


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_float32_trunk_follows_the_precision_that_is_set(platform):
    model = random_model(CONFIG)
    for precision, names in (("highest", {"HIGHEST"}), (None, {"DEFAULT", "HIGHEST"})):
        with jax.default_matmul_precision(precision):
            program = Program(platform, lambda m: encode(m, WAVEFORM, threshold=0.5), model)
            assert program.fused == 0
            assert {name for _, _, name in program.products()} == names
    # What decides is exact whatever is set: one product for each size of a slice.
    exact = sum(count for key, count in program.products().items() if key[2] == "HIGHEST")
    assert exact == len(slices.switch_sizes(4, FRAMES))


VMAPPED = {
    "waveforms": lambda t: jax.vmap(lambda w: encode(MODEL, w, threshold=t))(twice(WAVEFORM)),
    "waveforms, lengths shared": lambda t: jax.vmap(
        lambda w: encode(MODEL, w, LENGTHS, threshold=t)
    )(twice(WAVEFORM)),
    "waveforms and lengths": lambda t: jax.vmap(lambda w, n: encode(MODEL, w, n, threshold=t))(
        twice(WAVEFORM), twice(LENGTHS)
    ),
    "lengths": lambda t: jax.vmap(lambda n: encode(MODEL, WAVEFORM, n, threshold=t))(
        twice(LENGTHS)
    ),
    "thresholds": lambda t: jax.vmap(lambda s: encode(MODEL, WAVEFORM, LENGTHS, threshold=s))(
        twice(THRESHOLD)
    ),
    "allowed": lambda t: jax.vmap(
        lambda a: encode(MODEL, WAVEFORM, LENGTHS, threshold=t, allowed=a)
    )(jnp.eye(4, dtype=bool)),
    "layer weights": lambda t: jax.vmap(
        lambda w: encode(MODEL, WAVEFORM, LENGTHS, threshold=t, layer_weights=w)
    )(twice(WEIGHTS)),
    "models": lambda t: jax.vmap(lambda m: encode(m, WAVEFORM, LENGTHS, threshold=t))(twice(MODEL)),
    "thresholds of waveforms": lambda t: jax.vmap(
        lambda w: jax.vmap(lambda s: encode(MODEL, w, LENGTHS, threshold=s))(twice(THRESHOLD))
    )(twice(WAVEFORM)),
}


FEW = ["thresholds of waveforms"]
NAMES = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow("lowers every other vmap"))
    for name in VMAPPED
]


@pytest.mark.parametrize("name", NAMES)
def test_exits_save_under_vmap(name):
    """The choice of a slice stays a choice: under vmap one index serves all."""
    program = Program("cuda", VMAPPED[name], 0.5)
    assert (program.count("while"), program.count("case")) == (1, 1)
    assert program.fused == len(slices.switch_sizes(4, FRAMES))


@pytest.mark.slow("lowers every vmap")
@pytest.mark.parametrize("name", [name for name in VMAPPED if "thresholds" not in name])
def test_full_depth_under_vmap(name):
    assert Program("cuda", lambda _: VMAPPED[name](None), 0).fused == 1


@pytest.mark.parametrize("allowed", [[True] * 4, [False, False, False, True]])
def test_full_depth_by_allowed_layers_asks_nothing_either(allowed):
    allowed = np.asarray(allowed)
    assert ExitRule("", None, allowed).allowed_or_all is None
    program = Program("cuda", lambda m: encode(m, WAVEFORM, LENGTHS, allowed=allowed), MODEL)
    assert program.count("case") == 0


def test_a_static_layer_asks_once_a_layer():
    allowed = np.asarray([False, False, True, False])
    assert ExitRule("", None, allowed).allowed_or_all is allowed
    program = Program("cuda", lambda m: encode(m, WAVEFORM, LENGTHS, allowed=allowed), MODEL)
    assert (program.count("while"), program.count("case")) == (1, 1)


@pytest.mark.slow("lowers three gradients")
@pytest.mark.parametrize("platform", PLATFORMS)
def test_gradients(platform):
    def to_model(model):
        return jax.grad(lambda m: total(encode(m, WAVEFORM, LENGTHS)), allow_int=True)(model)

    def to_waveforms(model):
        loss = lambda w: total(encode(model, w, LENGTHS))  # noqa: E731
        return jax.vmap(jax.grad(loss))(twice(WAVEFORM))

    def to_many_outputs(model):
        loss = lambda w, weight: weight * total(encode(model, w, LENGTHS))  # noqa: E731
        return jax.vmap(jax.grad(loss), (None, 0))(WAVEFORM, jnp.arange(2.0))

    for gradient in (to_model, to_waveforms, to_many_outputs):
        program = Program(platform, gradient, MODEL)
        assert program.count("case") == 0
        assert program.count("while") == 2  # there and back
        assert (program.text.count("fmhaSoftmaxBackward") > 0) == (platform == "cuda")


def test_a_short_trunk_on_the_cpu_of_a_machine_with_a_gpu():
    """The platform is that of the arrays, not that of the process."""
    out = jax.jit(lambda model: encode(model, WAVEFORM, LENGTHS, threshold=0.5))(MODEL)
    assert np.isfinite(np.asarray(out.last_hidden, np.float32)).all()
    np.testing.assert_array_equal(out.num_frames, frame_count(LENGTHS))


# ---------------------------------------------------------------- meshes


@pytest.mark.parametrize("threshold", [None, THRESHOLD])
def test_explicit_meshes(threshold):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    spread = NamedSharding(mesh, P("data"))
    waveform, lengths = jax.device_put(WAVEFORM, spread), jax.device_put(LENGTHS, spread)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda m, w, n: encode(m, w, n, threshold=threshold))
        program = Program("cuda", run, MODEL, waveform, lengths)
        labels = Program("cuda", frame_labels, MODEL, waveform, lengths)
    assert program.fused == 1  # one row on each device, so one size of slice
    assert program.count("case") == (threshold is not None)
    assert "@CustomSPMDPartitioning" in labels.text


@pytest.mark.parametrize(
    "content",
    [contents.at_exit(ExitRule("", 0.5, np.ones(4, bool))), contents.layers((0, 1, 4))],
    ids=["exit", "all"],
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_extraction_on_each_devices_own_rows(content, platform):
    run = jax.jit(parallel.over_rows(content.compute, 2), out_shardings=parallel.replicated())
    batch = parallel.place({"waveform": WAVEFORM, "lengths": LENGTHS})
    program = Program(platform, run, parallel.replicate(MODEL), batch["waveform"], batch["lengths"])
    assert program.fused == (platform == "cuda")


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_of_stage_1(platform):
    optimizer = branch_optimizer(1e-3, 0.01, 10.0)
    state = parallel.replicate((MODEL.branches, optimizer.init(MODEL.branches)))
    batch = parallel.place({"waveform": WAVEFORM, "lengths": LENGTHS})
    trunk = parallel.replicate(MODEL.replace(branches=None))
    program = Program(platform, branch_step(optimizer), state, trunk, batch)
    assert (program.count("while"), program.count("case")) == (1, 0)
    others = {k: n for k, n in program.products().items() if k[1] != ("bf16", "bf16")}
    # Two products of the prediction head, and the gradient of all branches' kernels.
    assert others == {("dot_general", ("f32", "f32"), "HIGHEST"): 3}
    # XLA splits the kernel over the devices once it knows where the batch is.
    assert program.text.count("@CustomSPMDPartitioning") == (platform == "cuda")


@pytest.mark.slow("lowers a whole training step")
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_of_stage_2_with_the_trunk_inside(platform):
    settings = read_preset("asr", "daisy-tiny")
    task = make_task("asr", settings)
    params = new_params(task, CONFIG.dim, CONFIG.num_layers, CHARACTERS, 0)
    optimizer = head_optimizer(1e-3, settings)
    batch = {"waveform": WAVEFORM, "lengths": LENGTHS, "number": np.asarray(0, np.int32)}
    batch["targets"] = {"characters": np.ones((4, 5), np.int32)}
    program = Program(
        platform,
        downstream_step(task, optimizer, 0),
        parallel.replicate((params, optimizer.init(params))),
        parallel.replicate(MODEL),
        THRESHOLD,
        np.ones(4, bool),
        parallel.place(batch),
    )
    assert program.count("case") == 1
    assert program.fused == (platform == "cuda")


@pytest.mark.slow("lowers a whole training step")
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_of_pretraining(platform):
    masked, labels = np.zeros((4, FRAMES), bool), np.zeros((4, FRAMES), np.int32)

    def loss(model):
        batch = (jnp.asarray(array) for array in (WAVEFORM, LENGTHS, masked, labels, np.float32(1)))
        return masked_prediction_loss(model, *batch)

    optimizer = optax.adamw(1e-3)

    def step(model, state):
        gradients, metrics = jax.grad(loss, has_aux=True)(model)
        return optimizer.update(gradients, state, model), metrics

    state = jax.eval_shape(optimizer.init, MODEL)
    program = Program(platform, step, MODEL, state)
    assert (program.count("while"), program.count("case")) == (2, 0)
    exact = {key[2] for key in program.products() if key[1] == ("f32", "f32")}
    assert exact == {"HIGHEST"}


# ---------------------------------------------------------------- the fused kernel, played


@pytest.fixture
def kernel_on_cpu():
    """The shapes that the stand-in for the kernel sees."""
    seen = []
    with fused_on_cpu(seen):
        yield seen


@pytest.mark.slow("runs a stand-in for the fused kernel")
@pytest.mark.parametrize("lengths_on_every_device", [False, True])
def test_the_fused_kernel_on_one_and_on_four_devices(kernel_on_cpu, lengths_on_every_device):
    """Run through its own batching and partitioning, with a stand-in for the kernel itself."""
    seen = kernel_on_cpu
    lengths = (3000, 900, 3000, 0, 1200, 2000, 3000, 700)
    waveform, counts = pad_batch(speech_like(lengths, seed=2))
    arguments = [MODEL.branches, MODEL.replace(branches=None)]

    def loss(branches, trunk, waveform, lengths):
        return branches_loss(branches, trunk, waveform, lengths)[0]

    def run(form, *arguments, **options):
        with one_form("attention", form):
            return jax.jit(lambda *each: loss(*each), **options)(*arguments)

    plain = run("at_once", *arguments, waveform, counts)
    alone = run("fused", *arguments, waveform, counts)
    assert set(seen) == {(8, 8, 8)}
    seen.clear()
    lengths_placed = parallel.replicate if lengths_on_every_device else parallel.place
    placed = [*map(parallel.replicate, arguments), parallel.place(waveform), lengths_placed(counts)]
    spread = run("fused", *placed, out_shardings=parallel.replicated())
    assert set(seen) == {(2, 2, 2)}  # each device its own rows, and their counts
    np.testing.assert_allclose(alone, spread, rtol=1e-5)
    np.testing.assert_allclose(alone, plain, rtol=1e-2)  # products in float32 here, bfloat16 there


@pytest.mark.slow("runs a stand-in for the fused kernel")
def test_the_fused_kernel_under_vmap(kernel_on_cpu):
    """With counts of its own for each batch, and with counts that are shared."""
    two = jnp.stack([WAVEFORM, WAVEFORM[::-1]])

    def run(form, lengths):
        with one_form("attention", form):
            axes = (0, 0 if lengths.ndim == 2 else None)
            encoded = jax.jit(jax.vmap(lambda w, n: encode(MODEL, w, n).last_hidden, axes))
            return np.asarray(encoded(two, lengths), np.float32)

    for lengths in (np.stack([LENGTHS, LENGTHS[::-1]]), LENGTHS):
        kernel_on_cpu.clear()
        fused = run("fused", lengths)
        assert set(kernel_on_cpu) == {(8, 8, 8)}
        jax.clear_caches()
        plain = run("at_once", lengths)
        assert np.max(np.abs(fused - plain)) < 0.05 * np.max(np.abs(plain))  # bfloat16, 4 layers
        jax.clear_caches()
