"""What trained heads do on a test set, and what leaving early saves: rows of Table 1.

    python eval/downstream.py runs/asr-ratio-1 runs/asr-ratio-0.7 runs/asr-full runs/asr-layer-6

For each run of train/downstream.py: the task's measures with 95 % intervals (bootstrap over
utterances), the mean exit layer, forced exits, multiply-adds saved (branches included) and the time
that the trunk saves against full depth (one utterance at a time, warm, in turns). A run with a
threshold is evaluated as it was trained, with the three spans of section 3.3, as Table 1's rows,
and with oracles. Model, corpus and features are those of the run unless others are given. Writes
results.json and utterances.parquet, a row an utterance and rule, into RUN/evaluation;
eval/report.py collects them.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import InputError, load, parallel

# isort: split

import dataclasses
import pathlib
from typing import Annotated, Any, Literal, TypedDict

import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pages import table
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.data.corpus import corpus_name, hours_of
from daisy_jax.exits import fixed_layer
from daisy_jax.reporting import followed
from daisy_jax.study.evaluated_runs import Result, fields_of, input_cells, rule_cells, rule_header
from daisy_jax.study.task_risk import at_risk, task_losses, why_no_risk
from daisy_jax.tasks.evaluation import (
    Choice,
    at_ratio,
    best_layers,
    label_oracle,
    spans,
    summary,
    time_trunk,
    utterance_rows,
)
from daisy_jax.tasks.task_data import TaskData, open_examples, with_features
from daisy_jax.tasks.trained_heads import TrainedHead, load_head, require_trunk
from daisy_jax.tasks.training import Evaluator, Params
from daisy_jax.whole_files import checked, read_json, write_results


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders of train/downstream.py."""
    part: Literal["test", "dev", "train"] = "test"
    """Part of the corpus."""
    splits: tuple[str, ...] = ()
    """That part in the corpus' own names; empty: as the preset has it."""
    ratios: tuple[float, ...] = ()
    """Further ratios at inference, of the same head."""
    layers: tuple[int, ...] = ()
    """Further static layers at inference, of the same head."""
    risks: Annotated[tuple[float, ...], tyro.conf.arg(name="risk")] = ()
    """The most that leaving early may cost, such as 0.01: by how much worse the first measure may
    be than at the last layer, on average over utterances, as a share of its bounds (a point of
    word error rate or accuracy; 3.6 of PESQ; 20 dB). The cheapest threshold with which the run's
    development set certifies that."""
    confidence: float | None = None
    """With --risk: how sure that is to be, such as 0.9; else it holds on average over development
    sets."""
    share: float = 0.15
    """Share of the exits that a layer of the span "threshold" must have."""
    oracle: bool = True
    """Also two oracles that leave where frame labels no longer change, and one that leaves at the
    best layer for each utterance (an evaluation a layer); they need stored features."""
    model: str = ""
    """The trunk's model folder; empty: the run's."""
    data: str = ""
    """The corpus; empty: the run's."""
    features: str = ""
    """Folder of feature stores; empty: the run's."""
    lexicon: str = ""
    """For asr: words to decode with, a line a word (extra decode); empty: greedy decoding."""
    language_model: str = ""
    """For asr, with a lexicon: a KenLM file over upper-case words."""
    timed: int | Literal["all"] = 20
    """Utterances that are timed, spread over the part's durations, or all of them; 0: none."""
    timing_runs: int = 5
    """Measurements of each, after a warm-up."""
    batch_seconds: float = 60.0
    """Audio in a batch, for the heads."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        least = {"timing_runs": 1, "batch_seconds": 1, "share": 0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        if self.timed != "all" and self.timed < 0:
            raise InputError(f"timed is {self.timed}; it must be at least 0, or all")
        shares = [("risk", risk) for risk in self.risks] + [("confidence", self.confidence)]
        for name, value in shares:
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name} is {value}; it must lie between 0 and 1")
        if self.confidence is not None and not self.risks:
            raise InputError("--confidence belongs to --risk; give that, too")
        if self.risks and self.part == "dev":
            raise InputError("--risk is certified on the development set; test it on another part")


class Trained(TypedDict):
    """What is read of a run's config.json."""

    model: str
    dtype: str
    data: str
    cache: str
    features: str
    preset: str


LABEL_SHARES = (1.0, 0.9)  # of the frames, for the oracles by labels
FOLDERS = {"test": "evaluation", "dev": "evaluation-dev", "train": "evaluation-train"}


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if not config.runs:
        raise InputError("RUNS: none is given; give at least one folder of train/downstream.py")
    if config.language_model and not config.lexicon:
        raise InputError("--language-model needs --lexicon, the words to decode with")
    device = use_accelerator(config.accelerator)
    for run in config.runs:
        evaluate_run(pathlib.Path(run), config, device)


def evaluate_run(run: pathlib.Path, config: Config, device: str) -> None:
    """Evaluates one run, prints its table, writes its files."""
    # ---- the run ----
    if not (run / "config.json").is_file():
        raise InputError(f"{run}: no run of train/downstream.py there (no config.json)")
    if not (run / "head").is_dir():
        raise InputError(f"{run}: the run has not ended; train/downstream.py --resume goes on")
    place, remedy = run / "config.json", "give a run of train/downstream.py"
    trained = read_json(place, dict[str, Any], remedy)
    checked(str(place), trained, Trained, remedy)
    head = load_head(run / "head")
    model_path = config.model or trained["model"]
    trunk = load(model_path, trained["dtype"])
    require_trunk(head, trunk, f"{model_path}: is not the model of {run}; give --model")

    # ---- what it is evaluated on ----
    folder, task = config.data or trained["data"], head.task
    if config.splits:
        chosen = dataclasses.replace(task.settings, **{config.part: config.splits})
        task = type(task)(chosen)
    if config.lexicon:
        task.use_lexicon(config.lexicon, config.language_model)
    try:
        examples = open_examples(task, config.part, folder)
    except InputError as error:
        raise InputError(f"{error} (--splits names other parts, --data another folder)") from None
    if examples.classes != head.classes:
        raise InputError(f"{folder}: its classes are not those that {run} was trained on")
    live = trained["cache"] == "entropies"
    features = pathlib.Path(config.features or trained["features"])
    data = with_features(task, config.part, examples, folder, trunk, features, live=live)

    # ---- rules ----
    choices = chosen_rules(head, config)
    params = parallel.replicate(head.params)
    why_not = why_no_risk(head, trunk)
    if config.risks and why_not:
        say(f"no rows for --risk: {why_not}")
    elif config.risks:
        dev = open_examples(task, "dev", trained["data"])
        dev_data = with_features(task, "dev", dev, trained["data"], trunk, features, live=live)
        choices += certified(head, dev_data, params, config)
    evaluator = Evaluator(data, config.batch_seconds)
    timing = None
    if config.timed:
        timed = (len(data.lengths) if config.timed == "all" else config.timed, config.timing_runs)
        timing = time_trunk(trunk, head.params, data, choices, *timed)
    if config.oracle and head.rule.threshold is not None:
        if live:
            say("no oracle rows: they need stored features (--cache=layers in training)")
        else:
            choices += [label_oracle(head, data, share) for share in LABEL_SHARES]
            choices.append(best_layers(head, evaluator, params))
    rows, utterances = [], []
    for choice in followed(choices, f"{run.name}: rules"):
        evaluation = evaluator(params, choice.rule, choice.exits)
        rows.append(summary(choice, evaluation, trunk.config, task.measures, timing))
        utterances += utterance_rows(choice, evaluation, trunk.config, timing)

    # ---- files ----
    result: Result = {
        "run": run.name,
        "task": task.name,
        "title": task.title,
        "whole": task.whole,
        "trained": head.rule.name,
        "trained_on": head.dataset,
        "training_utterances": sum(head.exits["exit_counts"]),
        "data": folder,
        "tested_on": f"{corpus_name(folder)} {','.join(getattr(task.settings, config.part))}",
        "utterances": len(data.lengths),
        "hours": hours_of(data.lengths),
        "upstream": {
            "path": model_path,
            "digest": head.trunk,
            "layers": trunk.config.num_layers,
            "dim": trunk.config.dim,
        },
        "settings": trained,
        "mean_entropy": head.mean_entropy.tolist(),
        "exits": head.exits,
        "decoder": task.decoding,
        "device": device,
        "measures": {name: fields_of(measure) for name, measure in task.measures.items()},
        "unprocessed": evaluator.unprocessed(),
        "rows": rows,
    }
    lines = [
        f"\n{task.name}, {trained['preset']}, trained with {head.rule.name} on {head.dataset}; "
        f"{len(data.lengths)} utterances of {result['tested_on']}"
    ]
    body = [row for row in [input_cells(task.measures, result)] if row]
    body += [rule_cells(task.measures, row) for row in rows]
    folder = run / FOLDERS[config.part]
    with shown_after("\n".join(lines + table(rule_header(task.measures), body))):
        write_results(folder, result, utterances)
    say(f"written: {folder / 'results.json'}, {folder / 'utterances.parquet'}")


def certified(head: TrainedHead, data: TaskData, params: Params, config: Config) -> list[Choice]:
    """A rule for each risk that the development set can certify."""
    choices = []
    try:
        losses = task_losses(head, data, params, config.batch_seconds)
    except InputError as error:
        say(f"no rows for --risk: {error}")
        return []
    for risk in config.risks:
        try:
            choices.append(at_risk(losses, risk, config.confidence))
        except InputError as error:
            say(f"no row for a risk of {risk:g}: {error}")
    return choices


def chosen_rules(head: TrainedHead, config: Config) -> list[Choice]:
    """What a user can do: the rule of training, spans, other ratios and layers."""
    layers = len(head.rule.allowed)
    choices = [Choice(head.rule.name, "own", None, head.rule)]
    if head.rule.threshold is not None:
        choices += spans(head, config.share)
    choices += [at_ratio(head, ratio) for ratio in config.ratios]
    return choices + [
        Choice(f"at layer {n}", "layer", n, fixed_layer(n, layers)) for n in config.layers
    ]


if __name__ == "__main__":
    run_command(main)
