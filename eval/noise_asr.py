"""Tables of figure 5 for eval/noise.py: word error rate by noise level, from evaluated runs."""

import json
import pathlib
from typing import NamedTuple

from daisy_jax import InputError
from daisy_jax.console.pages import escaped, ranges, table
from daisy_jax.data.noisy_folder import read_log
from daisy_jax.study.evaluated_runs import read_evaluation
from daisy_jax.study.level_errors import (
    LevelSums,
    LevelValues,
    difference,
    level_sums,
    level_values,
    over_seeds,
)
from daisy_jax.tasks.metrics import Estimate
from daisy_jax.training.run_folder import FREE_FIELDS


class Rule(NamedTuple):
    """One rule of one run, or of several runs with different seeds."""

    name: str
    preset: str
    """Of the task head."""
    settings: str
    """All that the run was trained with, but its seed."""
    seeds: tuple[int, ...]
    exits: str
    """Threshold and layers, in words."""
    sums: LevelSums
    tested_on: str
    trained_on: str
    static: bool
    """Of a head that was trained for an exit at one layer."""

    @property
    def files(self) -> tuple[str, str, list[str], list[float]]:
        """What must be the same in all rules that are compared."""
        return self.tested_on, self.trained_on, self.sums.clean, self.sums.snrs


class AsrSection(NamedTuple):
    """Figure 5; everything is empty without runs."""

    lines: list[str]
    """Markdown."""
    results: list[dict[str, object]]
    """The numbers, for results.json."""
    tested_on: str
    levels: list[str]
    rates: list[tuple[str, LevelValues]]
    """Names of the rules, and their word error rates."""

    def with_picture(self, files: dict[str, str]) -> list[str]:
        """The lines with their picture, if it was drawn, after the heading."""
        if "asr" not in files:
            return self.lines
        return [*self.lines[:2], f"![figure 5]({files['asr']})", "", *self.lines[2:]]


def read_run(run: pathlib.Path) -> list[Rule]:
    """A run's own rule, spans, other ratios and layers; oracles are left out."""
    evaluated = read_evaluation(run)
    if evaluated is None:
        raise InputError(f"{run}: not evaluated; python eval/downstream.py {run}")
    result = evaluated.result
    if result["task"] != "asr":
        raise InputError(f"{run}: a run of {result['task']}; figure 5 is about asr")
    log = read_log(result["data"])
    rules = []
    for row in result["rows"]:
        if row["kind"] == "oracle":
            continue
        layers, threshold = row["allowed"], row["threshold"]
        exits = f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
        exits += "" if threshold is None else f", threshold {threshold:.4f}"
        sums = level_sums(evaluated.utterances[row["rule"]], log)
        static = row["kind"] == "own" and result["settings"]["layer"] is not None
        settings, corpora = result["settings"], (result["tested_on"], result["trained_on"])
        trained = (settings["preset"], settings_but_seed(settings), (settings.get("seed", 0),))
        rules.append(Rule(evaluated.label(row), *trained, exits, sums, *corpora, static))
    return rules


def settings_but_seed(settings: dict[str, object]) -> str:
    """What two runs must have in common for their seeds to be averaged.

    The model goes by its digest ("upstream"), wherever it lies.
    """
    free = {*FREE_FIELDS, "seed", "model", "versions"}
    return json.dumps({name: settings[name] for name in sorted(settings.keys() - free)})


def joined(rules: list[Rule]) -> list[Rule]:
    """Rules that differ in nothing but their seeds as one; the preset where there are several."""
    alike: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        alike.setdefault((rule.settings, rule.name), []).append(rule)
    several, found = len({rule.preset for rule in rules}) > 1, []
    for (_, name), same in alike.items():
        seeds = tuple(seed for rule in same for seed in rule.seeds)
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{name}: two runs have seed {max(seeds, key=seeds.count)}; give one")
        name = f"{name} ({same[0].preset})" if several else name
        exits = "; ".join(dict.fromkeys(rule.exits for rule in same))
        sums = over_seeds([rule.sums for rule in same])
        found.append(same[0]._replace(name=name, seeds=seeds, exits=exits, sums=sums))
    return found


def asr_section(runs: list[pathlib.Path]) -> AsrSection:
    """The tables of figure 5."""
    rules = [rule for run in runs for rule in read_run(run)]
    if not rules:
        return AsrSection([], [], "", [], [])
    first = rules[0]
    for rule in rules:
        if rule.files != first.files:
            raise InputError(
                f"{rule.name}: trained on {rule.trained_on} and tested on {rule.tested_on}, others "
                f"on {first.trained_on} and {first.tested_on}; give runs of one corpus, evaluated "
                "on the same files"
            )
    rules = joined(rules)
    statics = {rule.preset: rule for rule in reversed(rules) if rule.static}
    levels, results, rates, errors, costs = first.sums.levels, [], [], [], []
    for rule in rules:
        wer = level_values(rule.sums, "errors", "words")
        layers = level_values(rule.sums, "layers", "utterances")
        compute = level_values(rule.sums, "spent", "full")
        static = statics.get(rule.preset, rule)
        apart = None if static is rule else difference(rule.sums, static.sums)
        results.append(
            {
                "rule": rule.name,
                "seeds": rule.seeds,
                "exits": rule.exits,
                "tested_on": rule.tested_on,
                "levels": levels,
                "wer": wer,
                "exit_layer": layers,
                "compute": compute,
                "minus_static": None if apart is None else (apart.plain, apart.weighted),
            }
        )
        rates.append((rule.name, wer))
        cells = [per_cent(each) for each in (*wer.levels, wer.plain, wer.weighted)]
        errors.append([rule.name, *cells, per_cent(apart and apart.plain, "+")])
        saved = [each and f"{1 - each.value:.1%}" for each in (compute.plain, compute.weighted)]
        costs.append(
            [
                rule.name,
                rule.exits,
                *(f"{each.value:.2f}" for each in (*layers.levels, layers.plain)),
                *(share or "" for share in saved),
            ]
        )
    error_header = ["rule", *(f"WER, % at {name}" for name in levels), "plain average"]
    names = " or ".join(static.name for static in statics.values())
    error_header += ["40/30/20/10 average", f"minus {names or 'static'}"]
    cost_header = ["rule", "exits, nats", *(f"exit layer at {name}" for name in levels)]
    cost_header += ["plain average", "multiply-adds saved, plain", "saved, 40/30/20/10"]
    lines = [
        "## Recognition under mixed noise",
        "",
        f"Trained on {escaped(first.trained_on)}, {int(first.sums.utterances.sum())} files of "
        f"{len(first.sums.clean)} utterances of {escaped(first.tested_on)}. Averages over the "
        "levels, plain and weighted with the paper's mixture, and over seeds, where a rule has "
        f"several (up to {max(len(rule.seeds) for rule in rules)} here). 95 % intervals by "
        "bootstrap over utterances, each with all its levels, and over seeds; the last column is "
        "the difference of the plain averages, paired by utterance.",
        *table(error_header, errors),
        "Compute: mean exit layer at each level, and multiply-adds saved against full depth, "
        'branches included. Rows are comparable where these are equal: "compute of layer n" was '
        "trained with the threshold at which the development set costs as much as that static "
        "exit.",
        *table(cost_header, costs),
    ]
    return AsrSection(lines, results, first.tested_on, levels, rates)


def per_cent(estimate: Estimate | None, sign: str = "") -> str:
    """A value and its interval in per cent; nothing where there is none."""
    if estimate is None:
        return ""
    value, low, high = (format(100 * number, f"{sign}.2f") for number in estimate)
    return f"{value} ({low} to {high})"
