"""The steps of a reproduction: every command, in order, and what each one needs."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from daisy_jax import InputError
from daisy_jax.study.reproduction import (
    FOLDERS,
    HOURS,
    LEVELS,
    MEAN_SECONDS,
    ROOT,
    RULES,
    SOURCES,
    STORED,
    TARGETS,
    WHOLE_SPEECH,
    Cost,
    Input,
    Places,
    Scale,
    Step,
    Target,
)
from daisy_jax.tasks.presets import TASKS, read_preset


def all_steps(places: Places, scale: Scale) -> list[Step]:
    """Every step, in an order in which each finds what it needs."""
    model = str(places.output / "branches" / "model")
    return [
        *_trunk_steps(places, scale),
        *_head_steps(places, scale, model),
        *_noise_steps(places, scale, model),
    ]


def _steps(places: Places) -> tuple[str, ...]:
    """Options of every training, where so many steps are to be enough."""
    return (f"--steps={places.steps}", f"--save-every={places.steps}") if places.steps else ()


def _of(options: tuple[str, ...], name: str) -> int:
    """The last value of an option; 0 if it is not given."""
    found = [option.partition("=")[2] for option in options if option.startswith(f"--{name}=")]
    return int(found[-1]) if found else 0


def _device(places: Places) -> tuple[str, ...]:
    return (f"--accelerator={places.accelerator}",)


def _trunk_steps(places: Places, scale: Scale) -> Iterable[Step]:
    """Conversion, verification, stage 1."""
    trunk, after = str(ROOT / scale.model), ()
    parts = (places.split("train"),) if scale.model else WHOLE_SPEECH
    speech = places.inputs("LibriSpeech", *parts)
    if not scale.model:
        folder = places.output / "hubert-base"
        trunk, after = str(folder), ("convert", "verify")
        checkpoint = Input(pathlib.Path(places.checkpoint), SOURCES["checkpoint"])
        yield Step(
            "convert",
            "conversions/convert.py",
            (places.checkpoint, trunk),
            (folder / "config.json", folder / "model.safetensors"),
            inputs=(checkpoint,),
            whole=True,
            cost=Cost("", "", 0, 0.4),
        )
        yield Step(
            "verify",
            "conversions/verify.py",
            (trunk, f"--against={places.checkpoint}"),
            (),
            ("convert",),
            (checkpoint,),
        )
    run = places.output / "branches"
    options = (*scale.branches, *_steps(places))
    batch = (8 * 4.0) if scale.model else 32 * MEAN_SECONDS["asr"]  # of its preset
    yield Step(
        "branches",
        "train/branches.py",
        (
            *(f"--model={trunk}", f"--data={places.corpus('LibriSpeech')}"),
            *(f"--output={run}", *options),
            *(("--splits", *parts) if scale.model else ()),
            *_device(places),
        ),
        (run / "model" / "config.json", run / "model" / "model.safetensors"),
        after,
        speech,
        run,
        cost=Cost("forward", "", (_of(options, "steps") or 88_000) * batch, 0.5),
    )


def _head(
    places: Places,
    scale: Scale,
    task: str,
    rule: str,
    model: str,
    data: pathlib.Path,
    run: pathlib.Path,
    after: tuple[str, ...],
) -> Step:
    """Training of one task head."""
    settings = read_preset(task, scale.preset)
    splits = ()
    if task == "asr":
        splits = ("--train", places.split("train"), "--dev", places.split("dev"))
    stored = places.on_cpu and not settings.crop_seconds
    way = "stored features" if stored else "with exits"
    way = "all layers" if rule.startswith("full") and not stored else way
    options = (*scale.heads[task], *_steps(places))
    count, every = _of(options, "steps"), _of(options, "save-every")
    count, every = count or settings.steps, every or settings.validate_every or settings.save_every
    batch = _of(options, "batch-size") or settings.batch_size
    seconds = count * batch * MEAN_SECONDS[task]
    seconds += count / every * HOURS[task][1] * 3600 * scale.share
    # Features are stored once for all rules.
    size = STORED * sum(HOURS[task]) * scale.share if stored and rule == next(iter(RULES)) else 0.0
    return Step(
        run.name if run.parent == places.output else f"{run.parent.name}-{run.name}",
        "train/downstream.py",
        (
            *(f"--task={task}", *RULES[rule], f"--preset={scale.preset}", f"--model={model}"),
            *(f"--data={data}", f"--features={places.output / 'features'}"),
            *(f"--output={run}", *options, *splits, *_device(places)),
        ),
        (run / "head" / "model.safetensors", run / "head" / "exits.json"),
        after,
        () if data.is_relative_to(places.output) else places.parts_of(task),
        run,
        cost=Cost(way, task, seconds, 1.0 + size),
    )


def _evaluation(
    places: Places,
    scale: Scale,
    task: str,
    run: pathlib.Path,
    after: str,
    *options: str,
    hours: float,
) -> Step:
    """The evaluation of one run."""
    return Step(
        f"evaluate-{after}",
        "eval/downstream.py",
        (str(run), *options, *_device(places)),
        (run / "evaluation" / "utterances.parquet", run / "evaluation" / "results.json"),
        (after,),
        cost=Cost("forward", task, 5 * hours * 3600 * scale.share, 0.01),
    )


def _head_steps(places: Places, scale: Scale, model: str) -> Iterable[Step]:
    """Task heads of all rules, their evaluations, Table 1 with figure 3, and figure 2."""
    timed = "20" if places.on_cpu else "all"
    evaluated, entropies = [], {}
    for task in TASKS:
        data = places.corpus(FOLDERS[task])
        for rule in RULES:
            run = places.output / f"{task}-{rule}"
            step = _head(places, scale, task, rule, model, data, run, ("branches",))
            yield step
            options = [f"--timed={timed}", *scale.evaluation]
            if task == "asr":
                options += ["--splits", places.split("test")]
            evaluation = _evaluation(
                places, scale, task, run, step.name, *options, hours=HOURS[task][2]
            )
            yield evaluation
            evaluated.append((evaluation.name, run))
            if rule == "ratio-0.7":
                entropies[task] = (step.name, run)
    report = places.output / "table1"
    yield Step(
        "table1",
        "eval/report.py",
        (*(str(run) for _, run in evaluated), f"--output={report}"),
        (report / "report.md", report / "report.json"),
        tuple(name for name, _ in evaluated),
    )
    figure = places.output / "figure2"
    yield Step(
        "figure2",
        "eval/entropy.py",
        (
            *(f"{task}={run}" for task, (_, run) in entropies.items()),
            *(f"--model={model}", f"--output={figure}", *_device(places)),
        ),
        (figure / "entropy.json",),
        tuple(name for name, _ in entropies.values()),
    )


def _noise_steps(places: Places, scale: Scale, model: str) -> Iterable[Step]:
    """Figure 4; the noisy corpora, task heads and evaluations of figure 5, and figure 5."""
    speech, musan = places.corpus("LibriSpeech"), places.corpus("MUSAN")
    heard = places.inputs("MUSAN", "noise")
    splits = {part: places.split(part) for part in ("train", "dev", "test")}
    common = (f"--data={speech}", "--splits", splits["test"])
    tested_on = places.inputs("LibriSpeech", splits["test"])
    output = places.output / "figure4"
    yield Step(
        "figure4",
        "eval/noise.py",
        (
            *(*common, f"--musan={musan}", f"--model={model}", f"--output={output}"),
            *(f"--entropies={places.output / 'entropies'}", *_device(places)),
        ),
        (output / "results.json", output / "report.html"),
        ("branches",),
        (*tested_on, *places.inputs("MUSAN", "noise", "music", "speech")),
        cost=Cost("forward", "", 10 * HOURS["asr"][2] * 3600 * scale.share, 0.1),
    )
    noisy, levels = places.output / "LibriSpeech-noisy", places.output / "LibriSpeech-levels"
    mixed = (f"--data={speech}", f"--noise={musan / 'noise'}")
    yield Step(
        "noisy",
        "train/noisy.py",
        (*mixed, "--splits", *splits.values(), f"--output={noisy}"),
        (noisy / "mixtures.tsv",),
        inputs=(*places.parts_of("asr"), *heard),
        cost=Cost("", "", 0, 7 * scale.share),
    )
    yield Step(
        "levels",
        "train/noisy.py",
        (*mixed, "--recipe=every", "--splits", splits["test"], f"--output={levels}"),
        (levels / "mixtures.tsv",),
        inputs=(*tested_on, *heard),
        cost=Cost("", "", 0, 1.5 * scale.share),
    )
    runs = []
    for rule in RULES:
        run = places.output / "noisy" / rule
        step = _head(places, scale, "asr", rule, model, noisy, run, ("branches", "noisy"))
        yield step
        tested = [f"{splits['test']}-{level}" for level in LEVELS]
        options = (f"--data={levels}", "--splits", *tested, "--timed=0", "--no-oracle")
        hours = len(LEVELS) * HOURS["asr"][2]
        evaluation = _evaluation(places, scale, "asr", run, step.name, *options, hours=hours)
        if places.on_cpu and not runs:  # features of all levels, once for all heads
            size = STORED * hours * scale.share
            evaluation = dataclasses.replace(
                evaluation, cost=evaluation.cost._replace(gigabytes=size)
            )
        yield dataclasses.replace(evaluation, after=(step.name, "levels"))
        runs.append((evaluation.name, run))
    output = places.output / "figure5"
    yield Step(
        "figure5",
        "eval/noise.py",
        (
            *(*common, f"--model={model}", f"--output={output}"),
            *(f"--entropies={places.output / 'entropies'}", "--asr", *(str(r) for _, r in runs)),
            *_device(places),
        ),
        (output / "results.json", output / "report.html"),
        tuple(name for name, _ in runs),
        tested_on,
    )


def chosen(steps: list[Step], only: Sequence[Target]) -> list[Step]:
    """The steps that some of the targets need, in order; without targets, all steps.

    Raises:
      InputError: there is no such target.
    """
    by_name = {step.name: step for step in steps}
    wanted: list[str] = []
    for target in only or TARGETS:
        if target not in TARGETS:
            raise InputError(f"only is {target!r}; give some of {', '.join(TARGETS)}")
        wanted.append("table1" if target == "figure3" else target)  # which the report draws
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            wanted += by_name[name].after
    return [step for step in steps if step.name in needed]
