"""What trained heads do on a test set, and what leaving early saves: rows of Table 1.

    python eval/downstream.py runs/asr-ratio-1 runs/asr-ratio-0.7 runs/asr-full runs/asr-layer-6

For each run of train/downstream.py: the task's measures with 95 % intervals (bootstrap over
utterances), the mean exit layer, forced exits, multiply-adds saved (branches included) and upstream
time saved against full depth (one utterance at a time, warm, in turns). A run with a ratio is
evaluated as it was trained and with the three spans of section 3.3, as Table 1's rows, then at the
compute of a static exit, and with an oracle that leaves where the labels no longer change. Model,
corpus and features are those of the run unless others are given. Writes results.json and
utterances.parquet, a row an utterance and rule, into RUN/evaluation.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from daisy_jax.errors import InputError
from daisy_jax.terminal import Accelerator, leave_out, progress_bar, run_command, use_accelerator
from daisy_jax.timing import medians


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders of train/downstream.py."""
    part: str = "test"
    """Part of the corpus: test, dev or train."""
    splits: tuple[str, ...] = ()
    """That part in the corpus' own names; empty: as the preset has it."""
    ratios: tuple[float, ...] = ()
    """Further ratios at inference, of the same head."""
    layers: tuple[int, ...] = ()
    """Further static layers at inference, of the same head."""
    equal_compute: int = 0
    """Also the threshold at which a ratio's head costs what a static exit at this layer costs; 0:
    at the middle layer."""
    oracle: tuple[float, ...] = (1.0, 0.9)
    """Shares of the frames whose label must be the last layer's for an oracle to leave."""
    model: str = ""
    """The upstream; empty: the run's."""
    data: str = ""
    """The corpus; empty: the run's."""
    features: str = ""
    """Folder of feature stores; empty: the run's."""
    lexicon: str = ""
    """For asr: words to decode with, a line a word (extra decode); empty: greedy decoding."""
    language_model: str = ""
    """For asr, with a lexicon: a KenLM file over upper-case words."""
    timed: int = 20
    """Utterances that are timed, spread over the part's durations; 0: none."""
    timing_runs: int = 3
    """Measurements of each, after a warm-up."""
    batch_seconds: float = 60.0
    """Audio in a batch, for the heads."""
    accelerator: Accelerator = "auto"
    """Where to compute."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if not config.runs:
        raise InputError("no run; give at least one folder of train/downstream.py")
    device = use_accelerator(config.accelerator)
    for run in config.runs:
        evaluate_run(pathlib.Path(run), config, device)


def evaluate_run(run: pathlib.Path, config: Config, device: str) -> None:
    """Evaluates one run, prints its table, writes its files."""
    import numpy as np

    from daisy_jax import parallel
    from daisy_jax.checkpoints import load
    from daisy_jax.data.corpus import corpus_name
    from daisy_jax.downstream import Evaluator
    from daisy_jax.extraction import model_digest
    from daisy_jax.lexicon_decoding import lexicon_decoder
    from daisy_jax.task_data import open_task_data
    from daisy_jax.tasks.asr import Asr
    from daisy_jax.tasks.presets import make_task
    from daisy_jax.trained_heads import load_head

    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    head = load_head(run / "head")
    model_path = config.model or settings["model"]
    upstream = load(model_path, settings["dtype"])
    if model_digest(upstream) != head.upstream:
        raise InputError(f"{model_path}: is not the model that {run} was trained on; give --model")
    folder = config.data or settings["data"]
    task = head.task
    if config.splits:
        chosen = dataclasses.replace(task.settings, **{config.part: config.splits})
        task = make_task(task.name, chosen)
    if isinstance(task, Asr) and config.lexicon:
        task.decoder = lexicon_decoder(config.lexicon, config.language_model)
    data = open_task_data(
        task,
        config.part,
        folder,
        upstream,
        pathlib.Path(config.features or settings["features"]),
        live=settings["cache"] == "entropies",
        on_error=leave_out(),
    )
    if data.examples.classes != head.classes:
        raise InputError(f"{folder}: its classes are not those that {run} was trained on")
    rules = chosen_rules(head, data, upstream.config, config)
    params = parallel.replicate(head.params)
    evaluator = Evaluator(data, config.batch_seconds)
    times = timed(upstream, head.params, data, rules, config) if config.timed else {}
    found, tables = [], []
    for label, rule, exits in progress_bar(f"{run.name}: rules")(rules):
        evaluation = evaluator(params, rule, exits)
        found.append(summary(label, rule, evaluation, data, upstream.config, times, exits))
        tables += [{"rule": label, **row} for row in evaluation.rows]
    result = {
        "run": run.name,
        "task": task.name,
        "preset": head.preset,
        "trained": head.rule.name,
        "trained_on": head.dataset,
        "training_utterances": sum(head.exits["exit_counts"]),
        "tested_on": f"{corpus_name(folder)} {','.join(getattr(task.settings, config.part))}",
        "utterances": len(data.lengths),
        "mean_entropy": np.asarray(head.mean_entropy).tolist(),
        "exits": head.exits,
        "decoding": "lexicon" if config.lexicon else "greedy",
        "device": device,
        "timed_utterances": min(config.timed, len(data.lengths)),
        "measures": task.measures,
        "unprocessed": unprocessed(data),
        "rows": found,
    }
    print_table(result)
    write(run / "evaluation", result, tables)


def chosen_rules(head: Any, data: Any, model_config: Any, config: Config) -> list[tuple]:
    """Label, rule, and exits in its place (or None) of every row."""
    import numpy as np

    from daisy_jax.cost import multiply_adds, threshold_for_cost
    from daisy_jax.exits import (
        ExitRule,
        exit_threshold,
        fixed_layer,
        span_mean,
        span_min_max,
        span_threshold,
    )

    num_layers = model_config.num_layers
    everywhere = np.ones(num_layers, bool)
    rules: list[tuple] = [(head.rule.name, head.rule, None)]
    if head.rule.threshold is not None:
        counts = np.asarray(head.exits["exit_counts"])
        for name, span in (
            ("mean", span_mean),
            ("threshold", span_threshold),
            ("min-max", span_min_max),
        ):
            try:
                allowed = span(counts)
            except InputError as error:  # no layer has 15 % of the exits
                print(f"no row for span {name}: {error}")
                continue
            rules.append((f"span {name}", ExitRule(name, head.rule.threshold, allowed), None))
    for ratio in config.ratios:
        threshold = float(exit_threshold(head.mean_entropy, ratio))
        rules.append((f"at ratio {ratio:g}", ExitRule("", threshold, everywhere), None))
    for layer in config.layers:
        rules.append((f"at layer {layer}", fixed_layer(layer, num_layers), None))
    if head.rule.threshold is not None:
        layer = config.equal_compute or num_layers // 2
        none = np.zeros(num_layers, bool)
        budget = int(multiply_adds(model_config, data.lengths, layer, none).sum())
        threshold = threshold_for_cost(model_config, data.entropy, data.lengths, budget)
        rules.append((f"compute of layer {layer}", ExitRule("", threshold, everywhere), None))
        if data.upstream is None:  # an oracle's exits cannot be told to the upstream
            for share in config.oracle:
                agrees = data.agreement >= share
                exits = (agrees.argmax(axis=1) + 1, ~agrees.any(axis=1))
                rules.append((f"oracle, {share:.0%} of labels", head.rule, exits))
    return rules


def timed(
    upstream: Any, params: Any, data: Any, rules: list[tuple], config: Config
) -> dict[str, float]:
    """Seconds of the upstream over some utterances, by rule; "full depth" among them."""
    import jax
    import numpy as np

    from daisy_jax.audio import batch_of_one
    from daisy_jax.encode import encode
    from daisy_jax.exits import fixed_layer

    order = np.argsort(data.lengths, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, config.timed).round().astype(int))
    wanted = {label: rule for label, rule, exits in rules if exits is None}
    layers = upstream.config.num_layers
    wanted["reference"] = fixed_layer(layers, layers)
    weights = jax.numpy.asarray(params["layer_weights"])
    totals = dict.fromkeys(wanted, 0.0)
    for index in progress_bar("timing")(order[places]):
        batch = batch_of_one(data.examples.corpus.read(int(index), 0, int(data.lengths[index])))
        placed = jax.device_put(batch)

        def task(rule: Any, placed: Any = placed) -> Callable[[], object]:
            options = {"threshold": rule.threshold, "allowed": rule.allowed}
            return lambda: jax.block_until_ready(
                encode(upstream, *placed, layer_weights=weights, **options).pooled
            )

        tasks = {label: task(rule) for label, rule in wanted.items()}
        for label, seconds in medians(tasks, config.timing_runs).items():
            totals[label] += seconds
    return totals


def summary(
    label: str,
    rule: Any,
    evaluation: Any,
    data: Any,
    model_config: Any,
    times: dict[str, float],
    exits: tuple | None,
) -> dict[str, Any]:
    """One row of the table; costs are added to the evaluation's rows."""
    import numpy as np

    from daisy_jax.audio import SAMPLE_RATE
    from daisy_jax.cost import multiply_adds
    from daisy_jax.metrics import bootstrap_interval

    layers = np.asarray([row["exit_layer"] for row in evaluation.rows])
    samples = np.asarray([round(row["seconds"] * SAMPLE_RATE) for row in evaluation.rows])
    none = np.zeros(model_config.num_layers, bool)
    # An oracle is told where to leave and needs no branch.
    costs = multiply_adds(model_config, samples, layers, none if exits else rule.evaluated)
    full = multiply_adds(model_config, samples, model_config.num_layers, none)
    for row, cost in zip(evaluation.rows, costs, strict=True):
        row["multiply_adds"] = int(cost)
    measures = {}
    for name in data.task.measures:
        low, high = bootstrap_interval(*evaluation.measure(name))
        measures[name] = {
            "value": evaluation.value(name),
            "interval": [low, high],
            "undefined": len(evaluation.rows) - len(evaluation.measure(name)[0]),
        }
    return {
        "rule": label,
        "threshold": rule.threshold,
        "allowed": (np.flatnonzero(rule.allowed) + 1).tolist(),
        "measures": measures,
        "mean_exit_layer": float(layers.mean()),
        "forced": float(np.mean([row["forced"] for row in evaluation.rows])),
        "multiply_adds_saved": float(1 - costs.sum() / full.sum()),
        "layers_saved": float(1 - layers.mean() / model_config.num_layers),
        "time_saved": 1 - times[label] / times["reference"] if label in times else None,
    }


def unprocessed(data: Any) -> dict[str, float]:
    """The measures of the input itself, where a task has such: enhancement."""
    import numpy as np

    measured = [data.task.unprocessed(data.examples, n) for n in range(len(data.lengths))]
    found = [each.values for each in measured if each is not None]
    if not found:
        return {}
    return {name: float(np.nanmean([values[name][0] for values in found])) for name in found[0]}


def print_table(result: dict[str, Any]) -> None:
    """Markdown."""
    names = [name for name in result["measures"] if name != "error"]
    print(
        f"\n{result['task']}, {result['preset']}, trained with {result['trained']} on "
        f"{result['trained_on']}; {result['utterances']} utterances of {result['tested_on']}\n"
    )
    print(
        f"| rule | {' | '.join(names)} | exit layer | forced | multiply-adds saved | time saved |"
    )
    print("| --- |" + " ---: |" * (len(names) + 4))
    if result["unprocessed"]:
        cells = " | ".join(f"{result['unprocessed'][name]:.3f}" for name in names)
        print(f"| the input itself | {cells} | | | | |")
    for row in result["rows"]:
        cells = []
        for name in names:
            low, high = row["measures"][name]["interval"]
            cells.append(f"{row['measures'][name]['value']:.3f} ({low:.3f} to {high:.3f})")
        saved = "" if row["time_saved"] is None else f"{row['time_saved']:.1%}"
        print(
            f"| {row['rule']} | {' | '.join(cells)} | {row['mean_exit_layer']:.2f} "
            f"| {row['forced']:.0%} | {row['multiply_adds_saved']:.1%} | {saved} |",
            flush=True,
        )


def write(folder: pathlib.Path, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """results.json and utterances.parquet."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "utterances.parquet")
    print(f"written: {folder / 'results.json'}, {folder / 'utterances.parquet'}")


if __name__ == "__main__":
    run_command(main)
