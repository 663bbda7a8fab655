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
from typing import Annotated, Any, Literal

import tyro

from daisy_jax.errors import InputError
from daisy_jax.terminal import Accelerator, leave_out, progress_bar, run_command, use_accelerator


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
    with the clean ones' relative paths are compared utterance by utterance."""
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
        for text in self.conditions:
            name, _, folder = text.partition("=")
            if not name or not folder:
                raise InputError(f"{text!r} is no NAME=FOLDER; give for example codec=CODEC/speech")
        if not self.ratios or any(not 0 <= ratio <= 1 for ratio in self.ratios):
            raise InputError(f"ratios are {self.ratios}; each must lie between 0 and 1")
        if any(not abs(snr) < 1000 for snr in self.snrs):
            raise InputError(f"snrs are {self.snrs}; give dB, such as 10 5 0 (clean is included)")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    config.check()
    use_accelerator(config.accelerator)

    from noise_asr import asr_section
    from noise_report import pictures, report
    from pages import html_page

    from daisy_jax.checkpoints import load

    model = load(config.model or None)
    asr = asr_section([pathlib.Path(run) for run in config.asr])
    study, mixtures = measure_all(model, config)
    lines = [*report(study), *asr.lines]
    print("\n".join(lines))
    if not config.output:
        return
    folder = pathlib.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(study, asr, folder)
    lines = [*report(study, drawn), *asr.with_picture(drawn)]
    write(folder, study, asr, mixtures)
    text = "\n".join(lines) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    page = html_page("Noise study", text, folder)
    (folder / "report.html").write_text(page, encoding="utf-8")
    print(f"written: {folder / 'report.html'}, and beside it what it was made of")


def measure_all(model: Any, config: Config) -> tuple[Any, list[Any]]:
    """Every condition's entropies, the rules, and the log of the mixtures."""
    import numpy as np
    from noise_report import Study

    from daisy_jax.audio import SAMPLE_RATE
    from daisy_jax.data.corpus import corpus_name, fingerprint, open_corpus
    from daisy_jax.data.noisy import CLEAN, NoisyCorpus, draw_noises, read_speakers, speaker
    from daisy_jax.data.noisy_files import mixture_rows
    from daisy_jax.exits import Calibration, ExitRule, exit_threshold, span_rules
    from daisy_jax.noise_study import measure

    on_error = leave_out()

    def opened(folder: str, splits: tuple[str, ...] = ()) -> Any:
        return open_corpus(folder, splits, on_error, progress_bar("measuring files"))

    def measured(corpus: Any, kind: str, snr: float | None, root: str, made_of: str = "") -> Any:
        bar = f"{kind}" if snr in (None, CLEAN) else f"{kind} {snr:g} dB"
        return measure(
            model,
            corpus,
            kind,
            snr,
            root=root,
            stores=pathlib.Path(config.entropies),
            made_of=made_of,
            on_error=on_error,
            progress=lambda count: progress_bar(bar, count),
        )

    if config.threshold_from:
        found = measured(opened(config.threshold_from), "threshold", None, config.threshold_from)
        source, entropy = config.threshold_from, found.entropy
    elif model.calibration is None:
        raise InputError(
            "this model has no calibration; give --threshold-from, or run daisy-jax calibrate first"
        )
    else:
        source, entropy = model.calibration.dataset, model.calibration.entropy
    mean_entropy = Calibration(entropy).mean_entropy

    rules: dict[float, list[ExitRule]] = {}
    for ratio in dict.fromkeys(config.ratios):
        threshold = float(exit_threshold(mean_entropy, ratio))
        anywhere = ExitRule("every layer", threshold, np.ones(len(mean_entropy), bool))
        counts = np.bincount(anywhere.exits(entropy)[0], minlength=len(mean_entropy) + 1)[1:]
        said = f"ratio {ratio:g}: "
        spans = span_rules(
            counts, threshold, config.share, lambda line, said=said: print(said + line)
        )
        rules[ratio] = [anywhere, *spans]

    corpus = opened(config.data, config.splits)
    clean = measured(corpus, "clean", CLEAN, config.data)
    table = read_speakers(config.speakers) if config.speakers else {}
    kinds: dict[str, list[Any]] = {}
    mixtures = []
    for kind in config.kinds if config.musan else ():
        noises = opened(config.musan, (kind,))
        unknown = sum(speaker(name, table) is None for name in noises.names)
        if kind.split("/")[0] == "speech" and unknown:
            print(
                f"{kind}: speakers of {unknown} of {len(noises.names)} recordings are not known "
                "(--speakers), so that somebody may be mixed with himself"
            )
        draws = draw_noises(corpus, noises, config.seed, table)
        made_of = (
            f"{kind} {fingerprint(noises)} {config.seed} {config.level} {sorted(table.items())}"
        )
        kinds[kind] = [clean]
        for snr in sorted(set(config.snrs), reverse=True):
            snrs = np.full(len(corpus.names), snr)
            noisy = NoisyCorpus(corpus, noises, draws, snrs, config.level)
            kinds[kind].append(measured(noisy, kind, snr, config.data, made_of))
            mixtures += mixture_rows(noisy)
    folders = dict(text.split("=", 1) for text in config.conditions)
    others = [measured(opened(folder), name, None, folder) for name, folder in folders.items()]
    study = Study(
        model=config.model or "daisy-tiny",
        config=model.config,
        data=" ".join([corpus_name(config.data), *config.splits]),
        hours=float(corpus.lengths.sum() / SAMPLE_RATE / 3600),
        source=source,
        source_utterances=len(entropy),
        seed=config.seed,
        level=config.level,
        rules=rules,
        clean=clean,
        kinds=kinds,
        others=others,
        folders=folders,
    )
    return study, mixtures


def write(folder: pathlib.Path, study: Any, asr: Any, mixtures: list[Any]) -> None:
    """Numbers, every utterance's entropies, and the log."""
    import pyarrow
    import pyarrow.parquet
    from noise_report import results

    from daisy_jax.data.noisy_files import write_log
    from daisy_jax.json_files import write_json

    write_json(folder / "results.json", {**results(study), "asr": asr.results})
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
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "utterances.parquet")
    if mixtures:
        write_log(folder, mixtures)


if __name__ == "__main__":
    run_command(main)
