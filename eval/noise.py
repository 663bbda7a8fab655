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

import dataclasses
import pathlib
import re
import sys
from typing import Annotated, Any, Literal

import tyro

from daisy_jax import InputError
from daisy_jax.accelerator import Accelerator, use_accelerator
from daisy_jax.console.terminal import run_command


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    data: str
    """Clean speech."""
    splits: tuple[str, ...] = ()
    """Its parts (folders right below it); empty: everything."""
    musan: str = ""
    """A folder in MUSAN's layout; empty: no noise is mixed."""
    kinds: tuple[str, ...] = ("noise", "music", "speech")
    """Folders below it, each a kind of noise."""
    snrs: tuple[float, ...] = (10.0, 5.0, 0.0)
    """Signal-to-noise ratios, dB, beside clean speech."""
    level: Literal["mean", "active"] = "mean"
    """The speech's power: "mean", over the whole utterance, or "active" (ITU-T P.56)."""
    speakers: str = ""
    """Speakers of the noise, NAME SPEAKER lines as Kaldi's utt2spk: nobody is mixed with
    himself."""
    conditions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER...")] = ()
    """Further conditions: folders of sound files, prepared folders, or tensorflow-datasets. Files
    named as clean ones, and as long, are compared with them utterance by utterance."""
    asr: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")] = ()
    """Evaluated speech recognition runs, for figure 5."""
    model: str = ""
    """A model folder with branches; empty: the packaged model."""
    threshold_from: str = ""
    """Clean speech that thresholds and spans are made of; empty: the calibration stored with the
    model."""
    ratios: tuple[float, ...] = (0.7, 0.76, 1.0)
    """Of eq. (3)."""
    share: float = 0.15
    """Share of the exits that a layer of the span "threshold" must have."""
    seed: int = 0
    """Of the choice of noise."""
    entropies: str = "runs/entropies"
    """Folder of what was measured before."""
    output: str = ""
    """Folder for report.html, report.md, its pictures (where matplotlib is installed),
    results.json, utterances.parquet and mixtures.tsv; empty: print only."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Refuses what cannot be meant."""
        from daisy_jax.data.noisy_corpus import require_levels

        names = []
        for text in self.conditions:
            name, _, folder = text.partition("=")
            if not re.fullmatch(r"\w[\w .+-]*", name) or not folder:
                raise InputError(
                    f"{text!r} is no NAME=FOLDER with a name of letters, digits, spaces and . + -; "
                    "give for example codec=CODEC/speech"
                )
            names.append(name)
        noisy = {f"{kind} {snr:g} dB" for kind in self.kinds for snr in self.snrs}
        taken = {"clean", *self.kinds, *noisy}
        double = [name for place, name in enumerate(names) if name in taken | set(names[:place])]
        if double:
            raise InputError(f"condition {double[0]}: the name is taken; give another one")
        if not self.ratios or any(not 0 <= ratio <= 1 for ratio in self.ratios):
            raise InputError(f"ratios are {self.ratios}; each must lie between 0 and 1")
        if float("inf") in self.snrs:
            raise InputError(f"snrs are {self.snrs}; clean speech is included anyway")
        require_levels(self.snrs)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    config.check()
    use_accelerator(config.accelerator)

    from noise_asr import asr_section
    from noise_pictures import pictures
    from noise_report import report, results

    from daisy_jax import load
    from daisy_jax.console.pages import html_page
    from daisy_jax.whole_files import write_text

    model = load(config.model or None)
    asr = asr_section([pathlib.Path(run) for run in config.asr])
    study, mixtures = measure_all(model, config)
    found = {**results(study), "asr": asr.results}
    print("\n".join([*report(study, found), *asr.lines]))
    if not config.output:
        return
    folder = pathlib.Path(config.output)
    files = pictures(study, asr, folder)
    text = "\n".join([*report(study, found, files), *asr.with_picture(files)]) + "\n"
    write(folder, study, found, mixtures)
    write_text(folder / "report.md", text)
    page = html_page("Noise study", text, folder, list(files.values()))
    write_text(folder / "report.html", page)
    print(f"written: {folder / 'report.html'}, and beside it what it was made of")


class Measuring:
    """Opens corpora and measures them with one model."""

    def __init__(self, model: Any, config: Config):
        self._model, self._stores = model, pathlib.Path(config.entropies)

    def open(self, folder: str, splits: tuple[str, ...] = ()) -> Any:
        """A corpus."""
        from daisy_jax.data.corpus import open_corpus

        return open_corpus(folder, splits)

    def __call__(self, corpus: Any, kind: str, snr: float | None, root: str) -> Any:
        """A condition."""
        from daisy_jax.study.noise_study import measure

        return measure(
            self._model,
            corpus,
            kind,
            snr,
            root=root,
            stores=self._stores,
        )


def measure_all(model: Any, config: Config) -> tuple[Any, list[Any]]:
    """Every condition's entropies with the rules, and the log of the mixtures."""
    from noise_report import Study

    from daisy_jax.audio import SAMPLE_RATE
    from daisy_jax.data.corpus import corpus_name
    from daisy_jax.data.noisy_corpus import CLEAN

    measuring = Measuring(model, config)
    calibration = clean_entropies(model, config, measuring)
    corpus = measuring.open(config.data, config.splits)
    clean = measuring(corpus, "clean", CLEAN, config.data)
    kinds, mixtures = noisy_conditions(config, measuring, corpus, clean)
    folders = dict(text.split("=", 1) for text in config.conditions)
    others = [
        measuring(measuring.open(folder), name, None, folder) for name, folder in folders.items()
    ]
    study = Study(
        model=config.model or "daisy-tiny",
        config=model.config,
        data=" ".join([corpus_name(config.data), *config.splits]),
        hours=float(corpus.lengths.sum() / SAMPLE_RATE / 3600),
        source=calibration.dataset,
        source_utterances=len(calibration.entropy),
        seed=config.seed,
        level=config.level,
        rules=exit_rules(calibration, config),
        clean=clean,
        kinds=kinds,
        others=others,
        folders=folders,
    )
    return study, mixtures


def clean_entropies(model: Any, config: Config, measuring: Measuring) -> Any:
    """A `Calibration` of the clean speech that thresholds come from."""
    from daisy_jax import Calibration

    if config.threshold_from:
        folder = config.threshold_from
        found = measuring(measuring.open(folder), "threshold", None, folder)
        return Calibration(found.entropy, folder)
    if model.calibration is None:
        raise InputError(
            "this model has no calibration; give --threshold-from, or run daisy-jax calibrate first"
        )
    return model.calibration


def exit_rules(calibration: Any, config: Config) -> dict[float, list[Any]]:
    """For each ratio: every layer allowed, then the spans."""
    import numpy as np

    from daisy_jax import exit_threshold
    from daisy_jax.exits import ExitRule, span_rules

    layers = len(calibration.mean_entropy)
    rules = {}
    for ratio in dict.fromkeys(config.ratios):
        threshold = float(exit_threshold(calibration.mean_entropy, ratio))
        anywhere = ExitRule("every layer", threshold, np.ones(layers, bool))
        counts = np.bincount(anywhere.exits(calibration.entropy)[0], minlength=layers + 1)[1:]
        rules[ratio] = [anywhere, *span_rules(counts, threshold, config.share)]
    return rules


def noisy_conditions(
    config: Config, measuring: Measuring, corpus: Any, clean: Any
) -> tuple[dict[str, list[Any]], list[Any]]:
    """Clean speech and its noisy versions by kind of noise, and the log of the mixtures."""
    import numpy as np

    from daisy_jax.data.noisy_corpus import (
        NoisyCorpus,
        draw_noises,
        read_speakers,
        unknown_speakers,
    )
    from daisy_jax.data.noisy_folder import mixture_rows

    speakers = read_speakers(config.speakers) if config.speakers else {}
    kinds: dict[str, list[Any]] = {}
    mixtures = []
    for kind in dict.fromkeys(config.kinds) if config.musan else ():
        noises = measuring.open(config.musan, (kind,))
        said = unknown_speakers(corpus, noises, speakers)
        if said:
            print(f"{kind}: {said}", file=sys.stderr)
        draws = draw_noises(corpus, noises, config.seed, speakers)
        kinds[kind] = [clean]
        for snr in sorted(set(config.snrs), reverse=True):
            snrs = np.full(len(corpus.names), snr)
            noisy = NoisyCorpus(corpus, noises, draws, snrs, config.level)
            kinds[kind].append(measuring(noisy, kind, snr, config.data))
            mixtures += mixture_rows(noisy)
    return kinds, mixtures


def write(folder: pathlib.Path, study: Any, found: dict[str, Any], mixtures: list[Any]) -> None:
    """Numbers, every utterance's entropies, and the log."""
    from daisy_jax.data.noisy_folder import LOG, write_log
    from daisy_jax.whole_files import write_json, write_rows

    write_json(folder / "results.json", found)
    rows = []
    for condition in study.conditions:
        for place, name in enumerate(condition.names):
            rows.append(
                {
                    "condition": condition.kind,
                    "snr": condition.snr,
                    "name": name,
                    "samples": int(condition.samples[place]),
                    "entropy": condition.entropy[place].tolist(),
                    "agreement": condition.agreement[place].tolist(),
                }
            )
    write_rows(folder / "utterances.parquet", rows)
    (folder / LOG).unlink(missing_ok=True)  # of an earlier study
    if mixtures:
        write_log(folder, mixtures)


if __name__ == "__main__":
    run_command(main)
