r"""Who leaves early and who leaves late: figures 2, 4 and 5 of the paper, and your own conditions.

    python eval/noise.py --data corpora/LibriSpeech --splits test-clean --musan corpora/MUSAN \
        --output runs/noise
    python eval/noise.py --data CLEAN --conditions codec=FOLDER far-field=FOLDER --output runs/mine

Mixes noise, music and speech of a MUSAN folder into clean speech at --snrs, measures entropies once
for each condition, and applies one threshold a ratio to all of them: that of eq. (3) on clean
speech, the calibration stored with the model unless --threshold-from names a folder. The spans of
section 3.3 come from where that clean speech left. --conditions adds folders of your own: other
codecs, rooms, microphones, languages; the last table says whether the model leaves sensibly there.
--asr adds figure 5 from runs of train/downstream.py that eval/downstream.py has evaluated on a
corpus of train/noisy.py. Prints Markdown; --output keeps it, as a page with its pictures inside
(report.html) too, with every utterance's entropies and the log of the mixtures.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import Calibration, Hubert, InputError, exit_threshold, load

# isort: split

import dataclasses
import pathlib
from typing import Annotated

import numpy as np
import tyro
from noise_asr import asr_section
from noise_report import pictures, report

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pages import write_report
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.data.corpus import corpus_name, open_corpus
from daisy_jax.data.noisy_folder import LOG, NoisyFile, write_log
from daisy_jax.exits import ExitRule, span_rules
from daisy_jax.study.conditions import ConditionOptions, measure, measure_conditions
from daisy_jax.study.noise_results import EVERY_LAYER, RuleResults, Study, results
from daisy_jax.whole_files import write_results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ConditionOptions):
    """What to measure."""

    asr: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Evaluated speech recognition runs, for figure 5."""
    threshold_from: str = ""
    """Clean speech that thresholds and spans are made of; empty: the calibration stored with the
    model."""
    ratios: tuple[float, ...] = (0.7, 0.76, 1.0)
    """Of eq. (3)."""
    spans: bool = True
    """Compare the three spans of section 3.3 with leaving at every layer."""
    share: float = 0.15
    """Share of the exits that a layer of the span "threshold" must have."""
    output: str = ""
    """Folder for report.html, report.md, its pictures (where matplotlib is installed),
    results.json, utterances.parquet and mixtures.tsv; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Refuses what cannot be meant."""
        super().check()
        if not self.ratios or any(not 0 <= ratio <= 1 for ratio in self.ratios):
            raise InputError(f"ratios are {self.ratios}; each must lie between 0 and 1")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    config.check()
    use_accelerator(config.accelerator)
    model = load(config.model or None)
    asr = asr_section([pathlib.Path(run) for run in config.asr])
    study, log = measure_all(model, config)
    numbers = results(study)
    folder = pathlib.Path(config.output)
    with shown_after("\n".join([*report(study, numbers, {}), *asr.lines])):
        if config.output:
            write(folder, study, numbers, asr.results, log)
    if not config.output:
        return
    files = pictures(study, asr, folder)
    text = "\n".join([*report(study, numbers, files), *asr.with_picture(files)]) + "\n"
    write_report(folder, "Noise study", text, list(files.values()))
    say(f"written: {folder / 'report.html'}, and beside it what it was made of")


def measure_all(model: Hubert, config: Config) -> tuple[Study, list[NoisyFile]]:
    """Every condition's entropies with the rules, and the log of the noisy speech."""
    if config.threshold_from:
        folder, stores = config.threshold_from, pathlib.Path(config.entropies)
        condition = measure(
            model, open_corpus(folder), "threshold", None, root=folder, stores=stores
        )
        calibration = Calibration(condition.entropy, folder)
    elif model.calibration is not None:
        calibration = model.calibration
    else:
        raise InputError(
            "this model has no calibration; give --threshold-from, or run daisy-jax calibrate first"
        )
    measured = measure_conditions(model, config)
    study = Study(
        model=config.model or "daisy-tiny",
        config=model.config,
        data=" ".join([corpus_name(config.data), *config.splits]),
        hours=measured.hours,
        threshold_from=calibration.dataset,
        threshold_utterances=len(calibration.entropy),
        seed=config.seed,
        level=config.level,
        rules=exit_rules(calibration, config),
        clean=measured.clean,
        kinds=measured.kinds,
        others=measured.others,
        folders=measured.folders,
    )
    return study, measured.log


def exit_rules(calibration: Calibration, config: Config) -> dict[float, list[ExitRule]]:
    """For each ratio: every layer allowed, then the spans if they are wanted."""
    layers = len(calibration.mean_entropy)
    rules = {}
    for ratio in dict.fromkeys(config.ratios):
        threshold = float(exit_threshold(calibration.mean_entropy, ratio))
        anywhere = ExitRule(EVERY_LAYER, threshold, np.ones(layers, bool))
        counts = np.bincount(anywhere.exits(calibration.entropy)[0], minlength=layers + 1)[1:]
        spans = span_rules(counts, threshold, config.share) if config.spans else []
        rules[ratio] = [anywhere, *spans]
    return rules


def write(
    folder: pathlib.Path,
    study: Study,
    rules: list[RuleResults],
    asr: list[dict[str, object]],
    log: list[NoisyFile],
) -> None:
    """Numbers, every utterance's entropies, and the log."""
    named = ("model", "data", "hours", "threshold_from", "seed", "level", "folders")
    content = {name: getattr(study, name) for name in named}
    content["conditions"] = {
        condition.title: {
            "mean_entropy": condition.entropy.mean(axis=0, dtype=np.float64).tolist(),
            "utterances": len(condition.names),
        }
        for condition in study.conditions
    }
    content |= {"rules": [dataclasses.asdict(rule) for rule in rules], "asr": asr}
    rows = []
    for condition in study.conditions:
        columns = (condition.names, condition.samples, condition.entropy, condition.agreement)
        for name, samples, entropy, agreement in zip(*columns, strict=True):
            row = {"condition": condition.kind, "snr": condition.snr, "name": name}
            row |= {"samples": int(samples), "entropy": entropy.tolist()}
            rows.append(row | {"agreement": agreement.tolist()})
    pages = [folder / name for name in ("report.md", "report.html", LOG, "entropy.png", "asr.png")]
    pages += folder.glob("exits-*.png")
    write_results(folder, content, rows, replaces=pages)  # which would be of an earlier study
    if log:
        write_log(folder, log)


if __name__ == "__main__":
    run_command(main)
