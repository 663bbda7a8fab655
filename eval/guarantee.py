r"""Exits with a guarantee: is the promise kept, what does it save, and where does it fail?

    python eval/guarantee.py --data corpora/LibriSpeech --splits dev-clean --musan corpora/MUSAN \
        --conditions french=FOLDER --output runs/guarantee

Measures clean speech, noisy versions of it and folders of others' speech, as eval/noise.py does,
and replays exits from what was measured: certifies thresholds (`threshold_for_risk`, where an
utterance loses the share of its frames that do not have the last layer's label) on random halves of
the clean speech, and tests them on the other half, under noise, and elsewhere. Then other exit
criteria beside DAISY's mean entropy: the largest probability, and labels that no longer change.
Prints Markdown; --output keeps it, as a page with its picture inside (report.html), too.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax import Hubert, InputError, load

# isort: split

import dataclasses
import pathlib

import tyro
from guarantee_report import Study, picture, report

from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.pages import write_report
from daisy_jax.console.pictures import save_picture
from daisy_jax.console.terminal import run_command, say, shown_after
from daisy_jax.data.corpus import corpus_name
from daisy_jax.data.noisy_folder import LOG, write_log
from daisy_jax.reporting import followed
from daisy_jax.study.conditions import ConditionOptions, Conditions, measure_conditions
from daisy_jax.study.guarantees import (
    certified,
    certified_on_halves,
    replay_of,
    with_other_criteria,
)
from daisy_jax.whole_files import write_results

PICTURE = "guarantee.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ConditionOptions):
    """What to certify, and where to test it."""

    agreements: tuple[float, ...] = (0.99, 0.95, 0.9)
    """Promises: shares of an utterance's frames that keep the last layer's label."""
    confidence: float = 0.9
    """Of promises that hold for all but a share of the calibrations; beside them those that hold
    on average."""
    halves: int = 1000
    """How often the clean utterances are divided."""
    patience: int = 3
    """Labels that have not changed for one layer, for two, up to so many."""
    output: str = ""
    """Folder for report.html, report.md, guarantee.png (where matplotlib is installed),
    results.json, utterances.parquet and mixtures.tsv; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Refuses what cannot be meant."""
        super().check()
        if not self.agreements:
            raise InputError("agreements: none is given; give at least one, such as 0.95")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it cannot be negative")
        shares = [("agreements", share) for share in self.agreements]
        for name, value in [*shares, ("confidence", self.confidence)]:
            if not 0 < value < 1:
                raise InputError(f"{name}: {value} does not lie between 0 and 1")
        if self.halves < 1 or self.patience < 1:
            least = f"--halves {self.halves}, --patience {self.patience}"
            raise InputError(f"{least}: neither can be below 1")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    config.check()
    use_accelerator(config.accelerator)
    model = load(config.model or None)
    measured = measure_conditions(model, config)
    if len(measured.clean.names) < 2:
        raise InputError(f"{config.data}: one utterance cannot be divided; give more of them")
    study = replayed(model, measured, config)
    folder = pathlib.Path(config.output)
    with shown_after("\n".join(report(study, ""))):
        if config.output:
            write(folder, study, measured)
    if not config.output:
        return
    drawn = save_picture(folder / PICTURE, lambda: picture(study))
    text = "\n".join(report(study, PICTURE if drawn else "")) + "\n"
    write_report(folder, "Exits with a guarantee", text, [PICTURE] if drawn else [])
    say(f"written: {folder / 'report.html'}, and beside it what it was made of")


def replayed(model: Hubert, measured: Conditions, config: Config) -> Study:
    """Everything that is on the page."""
    clean = measured.clean
    noisy = [level for levels in measured.kinds.values() for level in levels[1:]]
    others = [*noisy, *measured.others]
    replay = replay_of(clean, model.config)
    # First, because what follows costs no pass over the speech.
    criteria = with_other_criteria(model, measured.corpus, clean.names, replay, config.patience)
    promises = [
        certified(replay, round(1 - agreement, 9), confidence)
        for agreement in config.agreements
        for confidence in (config.confidence, None)
    ]
    halves = [
        certified_on_halves(clean, others, model.config, promise, config.halves, config.seed)
        for promise in followed(promises, "halves")
    ]
    return Study(
        model=config.model or "daisy-tiny",
        data=" ".join([corpus_name(config.data), *config.splits]),
        hours=measured.hours,
        clean=replay,
        conditions={other.title: len(other.names) for other in others},
        promises=promises,
        halves=halves,
        criteria=criteria,
        level=config.level,
        seed=config.seed,
    )


def write(folder: pathlib.Path, study: Study, measured: Conditions) -> None:
    """Numbers, every utterance's scores, and the log."""
    columns = {"loss": study.clean.loss, "mean entropy": study.clean.score}
    rows = [
        {
            **{"name": name, "samples": int(samples)},
            **{column: values[number].tolist() for column, values in columns.items()},
        }
        for number, (name, samples) in enumerate(
            zip(measured.clean.names, measured.clean.samples, strict=True)
        )
    ]
    pages = [folder / name for name in ("report.md", "report.html", PICTURE, LOG)]
    write_results(folder, study.content(), rows, replaces=pages)  # of an earlier study
    if measured.log:
        write_log(folder, measured.log)


if __name__ == "__main__":
    run_command(main)
