"""Stage 2 of DAISY: trains a task's head on features up to each utterance's own exit.

    python train/downstream.py --task=asr --ratio=0.7 --model runs/branches/model

The upstream stays frozen and exits while the head is trained: at the first layer whose entropy is
below a threshold (--ratio, of eq. 3 on the training set), or everybody at one layer (--layer), or
at the last one (--full). Features of every utterance are stored once and serve all ratios, all
layers and evaluation; --cache=entropies stores next to nothing and runs the upstream in each step.
When it has ended, OUTPUT/head is the head with its layer weights and exits.json: eval/downstream.py
takes it. docs/downstream.md leads through the four tasks.
"""

import dataclasses
import importlib.util
import pathlib
from typing import Any, ClassVar, Literal

import tyro

from daisy_jax import InputError
from daisy_jax.console.terminal import given_options, run_command
from daisy_jax.reporting import strictly
from daisy_jax.training.settings import DistributedOptions, own_options_first


@own_options_first
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DistributedOptions):
    """One stage 2 run."""

    task: str
    """asr (speech recognition), sid (speaker identification), se (enhancement), ss (separation), or
    MODULE:CLASS of a task of one's own."""
    preset: str = "superb"
    """Where the other defaults and the head come from: superb (most likely what the paper's numbers
    were made with), minisuperb (small heads, short runs), daisy-tiny (for the packaged model and
    minutes of speech), or a TOML file with one table [TASK.NAME] like those of
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
    layer: int | None = None
    """Everybody leaves at this layer: the static baseline."""
    full: bool = False
    """Everybody goes through all layers."""
    train: tuple[str, ...] = ()
    """Parts of the corpus to train on, in its own names."""
    dev: tuple[str, ...] = ()
    """Parts that the head is chosen by."""
    features: str = "runs/features"
    """Folder for the features of all runs, one store a task and part; or one finished store of
    daisy-jax encode --store layers that holds them all."""
    cache: Literal["layers", "entropies"] = "layers"
    """What is stored: every layer's features, or entropies alone."""
    steps: int = 0
    """Optimizer steps."""
    batch_size: int = 0
    """Utterances a step."""
    learning_rate: float = 0.0
    """Of Adam, constant."""
    criterion: str = ""
    """What the head is chosen by on the development set: a measure (wer, accuracy, pesq, stoi,
    si_sdri), or loss."""
    save_every: int = 0
    """Steps between two checkpoints, and between two validations."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the upstream computes in. With float32 all products are, the head's too; with the others
    a GPU takes TF32 and a TPU bfloat16 for the head's."""

    least: ClassVar[dict[str, float]] = {**DistributedOptions.least, "learning_rate": 0}


def defaults() -> dict:
    """What the task's preset says, for the command line's defaults."""
    from daisy_jax.tasks.presets import read_preset, task_class

    task, preset = given_options("task", "preset")
    settings = read_preset(task_class(task or "asr").name, preset or "superb")
    taken = {"steps", "batch_size", "learning_rate", "save_every", "criterion", "train", "dev"}
    values = {name: getattr(settings, name) for name in taken}
    return values | {"data": settings.corpus, "preset": preset or "superb"}


def require_measure(task: Any, criterion: str) -> None:
    """Refuses a criterion that the task has not, or that cannot be computed here."""
    known = ", ".join([*task.measures, "loss"])
    if criterion not in task.measures and criterion != "loss":
        raise InputError(f"criterion is {criterion!r}; {task.name} has {known}")
    if criterion == "pesq" and importlib.util.find_spec("pesq") is None:
        raise InputError(
            "heads of this preset are chosen by PESQ, and pesq is not installed; pip install pesq, "
            "which needs a C compiler, or pass --criterion=loss"
        )


def require_exits(config: Config, upstream: Any) -> None:
    """Refuses exits that the model does not have."""
    from daisy_jax.exits import fixed_layer

    if config.ratio is not None and upstream.branches is None:
        raise InputError(
            f"{config.model} has no branches, so no ratio can be met; train them with "
            "train/branches.py, or give --layer or --full"
        )
    if config.layer is not None:
        fixed_layer(config.layer, upstream.config.num_layers)  # a layer that there is


def with_defaults(config: Config) -> tuple[Config, Any]:
    """The configuration with what was left open, and the task's settings."""
    from daisy_jax.tasks.presets import read_preset, task_class

    if config.ratio is None and config.layer is None and not config.full:
        config = dataclasses.replace(config, ratio=0.7)
    name = task_class(config.task).name
    what = "full" if config.full else f"layer-{config.layer}"
    what = what if config.ratio is None else f"ratio-{config.ratio:g}"
    config = dataclasses.replace(config, output=config.output or f"runs/{name}-{what}")
    settings = dataclasses.replace(
        read_preset(name, config.preset),
        train=config.train,
        dev=config.dev,
        criterion=config.criterion,
    )
    return config, settings


def exit_rule(config: Config, mean_entropy: Any, num_layers: int) -> Any:
    """Where utterances leave: eq. (3) on the training set, or one layer."""
    import numpy as np

    from daisy_jax import exit_threshold
    from daisy_jax.exits import ExitRule, fixed_layer

    if config.ratio is None:
        return fixed_layer(num_layers if config.layer is None else config.layer, num_layers)
    threshold = float(exit_threshold(mean_entropy, config.ratio))
    return ExitRule(f"ratio {config.ratio:g}", threshold, np.ones(num_layers, bool))


def main() -> None:
    preset = Config(task=tyro.MISSING, **defaults())
    config = tyro.cli(Config, description=__doc__, default=preset)
    if sum([config.ratio is not None, config.layer is not None, config.full]) > 1:
        raise InputError("--ratio, --layer and --full exclude each other; give one of them")
    device = config.start(config.dtype)
    with strictly(config.strict):
        train(config, device)


def train(config: Config, device: str) -> None:
    """One run on the device of this name."""
    import jax
    import numpy as np

    from daisy_jax import audio, load, parallel
    from daisy_jax.data.batches import EpochBatches, crop_width
    from daisy_jax.data.corpus import corpus_name
    from daisy_jax.data.prefetch import Batch
    from daisy_jax.features.extract import model_digest
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

    # ---- upstream and data ----
    upstream = load(config.model, config.dtype)
    num_layers = upstream.config.num_layers
    require_exits(config, upstream)
    opened = {part: open_examples(task, part, config.data) for part in ("train", "dev")}
    run = Run(
        pathlib.Path(config.output),
        config,
        config.resume,
        data={f"{name}_data": fingerprint_of(examples) for name, examples in opened.items()}
        | {"settings": dataclasses.asdict(settings), "upstream": model_digest(upstream)},
        tensorboard=config.tensorboard,
        score=f"validation_{config.criterion}",
        higher_is_better=config.criterion != "loss"
        and task.measures[config.criterion].higher_is_better,
    )
    training, dev = (
        with_features(
            task,
            part,
            opened[part],
            config.data,
            upstream,
            pathlib.Path(config.features),
            live=config.cache == "entropies",
        )
        for part in ("train", "dev")
    )
    classes = training.examples.classes

    # ---- where utterances leave ----
    mean_entropy = training.entropy.mean(axis=0)
    rule = exit_rule(config, mean_entropy, num_layers)
    exit_layer, forced = rule.exits(training.entropy)
    exits = count_exits(exit_layer, forced, num_layers)
    dataset = f"{corpus_name(config.data)} {','.join(config.train)}"
    exits |= {"threshold": rule.threshold, "ratio": config.ratio, "dataset": dataset}
    if parallel.is_first():
        hours = training.lengths.sum() / audio.SAMPLE_RATE / 3600
        layers = f"{exits['mean']:.2f} of {num_layers} ({exits['min']} to {exits['max']})"
        print(
            f"{task.name}, {rule.name}: {len(training.lengths)} utterances, {hours:.2f} h; mean "
            f"exit layer {layers}; on {device}"
        )

    # ---- batches ----
    longest = round((settings.crop_seconds or LONGEST_SECONDS) * audio.SAMPLE_RATE)
    draw = EpochBatches(training.lengths, config.batch_size, longest, config.seed)
    mine = parallel.local_rows(config.batch_size)

    def batch(number: int) -> Batch:
        crops = draw(number)
        read = training.read(crops, crop_width(crops, longest), (exit_layer, forced), mine)
        return read | {"number": np.asarray(number, np.int32)}

    # ---- head and optimizer ----
    params = new_params(task, upstream.config.dim, num_layers, classes, config.seed)
    optimizer = head_optimizer(config.learning_rate, settings.weight_decay, settings.clip)
    step = downstream_step(task, optimizer, config.seed)
    evaluator = Evaluator(dev, config.batch_size * 15.0)

    def describe(values: dict) -> str:
        return f"loss {values['loss']:.4g}  exit layer {values['mean_exit_layer']:.2f}"

    # ---- loop ----
    params, _ = fit(
        run,
        (params, jax.jit(optimizer.init)(params)),
        lambda state, batch: step(
            state, training.upstream, rule.threshold, rule.allowed_or_all, batch
        ),
        batch,
        steps=config.steps,
        save_every=config.save_every,
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
        upstream.config.dim,
        config.preset,
        classes,
        model_digest(upstream),
        dataset,
        mean_entropy,
        rule,
        exits,
    )
    save_head(run.folder / "head", trained)
    print(f"{run.folder / 'head'}: next, python eval/downstream.py {config.output}")


if __name__ == "__main__":
    run_command(main)
