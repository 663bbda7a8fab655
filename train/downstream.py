"""Stage 2 of DAISY: trains a task head on features up to each utterance's own exit.

    python train/downstream.py --task=asr --ratio=0.7 --model runs/branches/model

The trunk stays frozen, and utterances leave it while the task head is trained: at the first layer
whose entropy is below a threshold (--ratio, of eq. 3 on the training set; --threshold;
--compute-of-layer), or everybody at one layer (--layer), or at the last one (--full). On a CPU, for
tasks that take whole utterances, features are stored once and serve all ratios, all layers and
evaluation; else next to nothing is stored and each step runs the trunk (--cache).
When it has ended, OUTPUT/head is the task head with its layer weights and exits.json:
eval/downstream.py takes it. docs/downstream.md leads through the four tasks.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import Hubert, HubertConfig, InputError

# isort: split

import dataclasses
import importlib.util
import math
import pathlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import tyro
from jaxtyping import Float

from daisy_jax.console.terminal import given_options, run_command, say
from daisy_jax.exits import ExitRule
from daisy_jax.tasks.task import Task, TaskSettings
from daisy_jax.training.metrics_log import Values
from daisy_jax.training.settings import DistributedOptions, as_begun, own_options_first

if TYPE_CHECKING:
    from daisy_jax.tasks.task_data import TaskData


@own_options_first
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DistributedOptions):
    """One stage 2 run."""

    task: str
    """asr (speech recognition), sid (speaker identification), se (enhancement), ss (separation), or
    MODULE:CLASS of a task of one's own."""
    preset: str = "superb"
    """Where the other defaults and the task head come from: superb (most likely what the paper's
    numbers were made with), minisuperb (small heads, short runs), daisy-tiny (for the packaged
    model and minutes of speech), or a TOML file with one table [TASK.NAME] like those of
    daisy_jax/tasks/presets.toml."""
    model: str = "runs/branches/model"
    """A model folder, with branches for --ratio."""
    data: str = ""
    """The task's corpus, in its own layout."""
    output: str = ""
    """The run folder; empty: runs/TASK-RULE, such as runs/asr-ratio-0.7."""
    ratio: float | None = None
    """Threshold as a share of the training set's mid entropy (eq. 3), in [0, 1]; smaller: later
    exits. 0.7 if nothing else is said."""
    threshold: float | None = None
    """The threshold itself, nats. The authors published 0.5145 (asr), 0.7595 (sid), 1.655 (se) and
    1.13 (ss), for branches of their own."""
    compute_of_layer: int | None = None
    """The threshold with which the development set costs as much, branches included, as if
    everybody left at this layer: for comparisons with --layer at equal compute."""
    layer: int | None = None
    """Everybody leaves at this layer: the static baseline."""
    full: bool = False
    """Everybody goes through all layers."""
    normalize: bool = True
    """LayerNorm on the layers' hidden states before they are summed (eq. 4). SUPERB's own figures,
    such as HuBERT's in Table 1, are made without: --full --no-normalize."""
    train: tuple[str, ...] = ()
    """Parts of the corpus to train on, in its own names."""
    dev: tuple[str, ...] = ()
    """Parts that the task head is chosen by."""
    features: str = "runs/features"
    """Folder for the features of all runs, one store a task and part; or one finished store of
    daisy-jax extract --store layers that holds them all."""
    cache: Literal["auto", "layers", "entropies"] = "auto"
    """What is stored: every layer's features, out of which crops are cut, or entropies alone, and
    each step runs the trunk on its batch. auto: layers on a CPU, for tasks that take whole
    utterances; else entropies."""
    steps: int = 0
    """Optimizer steps."""
    batch_size: int = 0
    """Utterances a step."""
    learning_rate: float = 0.0
    """Of Adam, constant."""
    criterion: str = ""
    """What the task head is chosen by on the development set: a measure (wer, accuracy, pesq, stoi,
    si_sdri), or loss."""
    save_every: int = 0
    """Steps between two checkpoints."""
    validate_every: int = 0
    """Steps between two validations; 0: one with each checkpoint."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the trunk computes in; branches always take float32. With float32 all products are, the
    task head's too; with the others a GPU takes TF32 and a TPU bfloat16 for the task head's. auto:
    float32 on a CPU, bfloat16 on a GPU or TPU, float16 on a GPU without it."""


def defaults() -> Config:
    """What the task's preset says, for the command line."""
    from daisy_jax.tasks.presets import read_preset, task_class

    task, preset = given_options("task", "preset")
    settings = read_preset(task_class(task or "asr").name, preset or "superb")
    taken = ("steps", "batch_size", "learning_rate", "save_every", "validate_every", "criterion")
    taken += ("train", "dev")
    values = {name: getattr(settings, name) for name in taken}
    preset = preset or "superb"
    return Config(task=tyro.MISSING, data=settings.corpus, preset=preset, **values)


def require_measure(task: Task, criterion: str) -> None:
    """Refuses a criterion that the task has not, or that cannot be computed here."""
    criteria = [*task.measures, "loss"]
    if criterion not in criteria:
        raise InputError(f"criterion is {criterion!r}; {task.name} has {', '.join(criteria)}")
    if criterion == "pesq" and importlib.util.find_spec("pesq") is None:
        raise InputError(
            "heads of this preset are chosen by PESQ, and pesq is not installed; pip install pesq, "
            "which needs a C compiler, or pass --criterion=loss"
        )


def require_exits(config: Config, trunk: Hubert) -> None:
    """Refuses exits that the model does not have."""
    from daisy_jax.exits import fixed_layer

    if config.threshold is not None and math.isnan(config.threshold):
        raise InputError("threshold is NaN; give nats, such as 0.5145")
    layers = [layer for layer in (config.layer, config.compute_of_layer) if layer is not None]
    if config.layer is None and not config.full and trunk.branches is None:
        raise InputError(
            f"{config.model} has no branches, so no threshold can be met; train them with "
            "train/branches.py, or give --layer or --full"
        )
    for layer in layers:
        fixed_layer(layer, trunk.config.num_layers)  # a layer that there is


def chosen_exits(config: Config) -> dict[str, float]:
    """Which of the options that say where utterances leave are given, and what they say."""
    options = {
        "ratio": config.ratio,
        "threshold": config.threshold,
        "compute_of_layer": config.compute_of_layer,
        "layer": config.layer,
        "full": config.full or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def named(config: Config) -> Config:
    """The configuration with its rule and its run folder."""
    from daisy_jax.tasks.presets import task_class

    if not chosen_exits(config):
        config = dataclasses.replace(config, ratio=0.7)
    ((rule, value),) = chosen_exits(config).items()
    exits = "full" if rule == "full" else f"{rule.replace('_', '-')}-{value:g}"
    exits += "" if config.normalize else "-no-normalize"
    output = config.output or f"runs/{task_class(config.task).name}-{exits}"
    return dataclasses.replace(config, output=output)


def with_defaults(config: Config) -> tuple[Config, TaskSettings]:
    """The configuration with what the device decides, and the task's settings."""
    import jax

    from daisy_jax.accelerator import trunk_dtype
    from daisy_jax.tasks.presets import read_preset, task_class

    chosen = {name: getattr(config, name) for name in ("train", "dev", "criterion", "normalize")}
    settings = read_preset(task_class(config.task).name, config.preset)
    settings = dataclasses.replace(settings, **chosen)
    device = jax.devices()[0]
    in_steps = device.platform != "cpu" or settings.crop_seconds
    decided = {"cache": "entropies" if in_steps else "layers", "dtype": trunk_dtype(device)}
    left_open = {name: value for name, value in decided.items() if getattr(config, name) == "auto"}
    return dataclasses.replace(config, **left_open), settings


def exit_rule(
    config: Config, mean_entropy: Float[np.ndarray, " layers"], dev: "TaskData", model: HubertConfig
) -> ExitRule:
    """Where utterances leave: eq. (3) on the training set, equal compute on `dev`, or one layer."""
    from daisy_jax import exit_threshold
    from daisy_jax.exits import fixed_layer
    from daisy_jax.tasks.evaluation import rule_at_compute

    everywhere = np.ones(model.num_layers, bool)
    if config.ratio is not None:
        threshold = float(exit_threshold(mean_entropy, config.ratio))
        rule = ExitRule(f"ratio {config.ratio:g}", threshold, everywhere)
    elif config.threshold is not None:
        rule = ExitRule(f"threshold {config.threshold:g}", config.threshold, everywhere)
    elif config.compute_of_layer is not None:
        rule = rule_at_compute(model, dev.entropy, dev.lengths, config.compute_of_layer)
    else:
        layer = model.num_layers if config.layer is None else config.layer
        rule = fixed_layer(layer, model.num_layers)
    return rule if config.normalize else rule._replace(name=f"{rule.name}, no LayerNorm")


def main() -> None:
    config = tyro.cli(Config, description=__doc__, default=defaults())
    given = [f"--{name.replace('_', '-')}" for name in chosen_exits(config)]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them")
    config = named(config)
    config = as_begun(config, config.output)
    with config.started(config.dtype, config.strict) as device:
        train(config, device)


def train(config: Config, device: str) -> None:
    """One run on the device of this name."""
    import jax

    import daisy_jax
    from daisy_jax import load, parallel
    from daisy_jax.data.batches import EpochBatches, crop_width
    from daisy_jax.data.corpus import corpus_name, size_of
    from daisy_jax.data.side_work import Batch
    from daisy_jax.features.extractor import model_digest
    from daisy_jax.tasks.presets import make_task
    from daisy_jax.tasks.task import LONGEST_SECONDS, fingerprint_of
    from daisy_jax.tasks.task_data import open_examples, with_features
    from daisy_jax.tasks.trained_heads import TrainedHead, count_exits, save_head
    from daisy_jax.tasks.training import Evaluator, downstream_step, head_optimizer, new_params
    from daisy_jax.training.loop import fit
    from daisy_jax.training.run_folder import Run

    config, settings = with_defaults(config)
    task = make_task(config.task, settings)
    require_measure(task, config.criterion)

    # ---- trunk and data ----
    trunk = load(config.model, config.dtype)
    dim, num_layers, digest = trunk.config.dim, trunk.config.num_layers, model_digest(trunk)
    require_exits(config, trunk)
    opened = {part: open_examples(task, part, config.data) for part in ("train", "dev")}
    data = {f"{part}_data": fingerprint_of(examples) for part, examples in opened.items()}
    measure = task.measures.get(config.criterion)
    run = Run(
        pathlib.Path(config.output),
        config,
        config.resume,
        data={**data, "settings": dataclasses.asdict(settings), "upstream": digest},
        tensorboard=config.tensorboard,
        score=f"validation_{config.criterion}",
        higher_is_better=measure is not None and measure.higher_is_better,
    )
    features, live = pathlib.Path(config.features), config.cache == "entropies"
    training, dev = (
        with_features(task, part, examples, config.data, trunk, features, live=live)
        for part, examples in opened.items()
    )
    classes = training.examples.classes

    # ---- where utterances leave ----
    mean_entropy = training.entropy.mean(axis=0)
    rule = exit_rule(config, mean_entropy, dev, trunk.config)
    exit_layer, forced = rule.exits(training.entropy)
    dataset = f"{corpus_name(config.data)} {','.join(config.train)}"
    exits = count_exits(exit_layer, forced, num_layers)
    exits.update(threshold=rule.threshold, ratio=config.ratio, dataset=dataset)
    if parallel.is_first():
        layers = f"{exits['mean']:.2f} of {num_layers} ({exits['min']} to {exits['max']})"
        size = size_of(training.lengths)
        say(f"{task.name}, {rule.name}: {size}; mean exit layer {layers}; on {device}")

    # ---- batches ----
    longest = round((settings.crop_seconds or LONGEST_SECONDS) * daisy_jax.audio.SAMPLE_RATE)
    draw = EpochBatches(training.lengths, config.batch_size, longest, config.seed)
    mine = parallel.local_rows(config.batch_size)

    def batch(number: int) -> Batch:
        crops = draw(number)
        read = training.read(crops, crop_width(crops, longest), (exit_layer, forced), mine)
        return {**read, "number": np.asarray(number, np.int32)}

    # ---- task head and optimizer ----
    params = new_params(task, dim, num_layers, classes, config.seed)
    optimizer = head_optimizer(config.learning_rate, settings)
    step = downstream_step(task, optimizer, config.seed)
    evaluator = Evaluator(dev, config.batch_size * 15.0)

    def describe(values: Values) -> str:
        return f"loss {values['loss']:.4g}  exit layer {values['mean_exit_layer']:.2f}"

    # ---- loop ----
    leave = (rule.threshold, rule.allowed_or_all)
    params, _ = fit(
        run,
        (params, jax.jit(optimizer.init)(params)),
        lambda state, batch: step(state, training.trunk, *leave, batch),
        batch,
        steps=config.steps,
        save_every=config.save_every,
        validate_every=config.validate_every,
        log_every=config.log_every,
        workers=config.workers,
        validate=lambda state: evaluator.scores(state[0], rule),
        describe=describe,
    )
    if not parallel.is_first():
        return
    trained = TrainedHead(
        task,
        jax.device_get(params),
        dim,
        config.preset,
        classes,
        digest,
        dataset,
        mean_entropy,
        rule,
        exits,
    )
    save_head(run.folder / "head", trained)
    say(f"{run.folder / 'head'}: next, python eval/downstream.py {config.output}")


if __name__ == "__main__":
    run_command(main)
