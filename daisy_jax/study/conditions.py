"""Conditions: clean speech, noisy versions of it, and speech of other kinds; measured once each."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from daisy_jax import InputError
from daisy_jax.data.corpus import Corpus, corpus_name, hours_of, open_corpus
from daisy_jax.data.noisy_corpus import (
    CLEAN,
    NoisyCorpus,
    draw_noises,
    label,
    read_speakers,
    require_snrs,
    unknown_speakers,
)
from daisy_jax.data.noisy_folder import NoisyFile, log_of
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, extract_corpus, store_digest
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import leave_out, logger


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """Which conditions there are."""

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
    conditions: tuple[str, ...] = ()
    """Further conditions, NAME=FOLDER each: folders of sound files, prepared folders, or
    tensorflow-datasets. Files named as clean ones, and as long, are compared with them utterance by
    utterance."""
    seed: int = 0
    """Of everything that is drawn, such as the choice of noise."""
    model: str = ""
    """A model folder with branches; empty: the packaged model."""
    entropies: str = "runs/entropies"
    """Folder of what was measured before."""

    def check(self) -> None:
        """Refuses what cannot be meant."""
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
        double = [name for n, name in enumerate(names) if name in taken | set(names[:n])]
        if double:
            raise InputError(f"condition {double[0]}: the name is taken; give another one")
        if float("inf") in self.snrs:
            raise InputError(f"snrs are {self.snrs}; clean speech is included anyway")
        require_snrs(self.snrs)


class Condition(NamedTuple):
    """One data set, or one noisy version of it."""

    kind: str
    """What was done to the speech: "clean", "noise", the name of a user's folder."""
    snr: float | None
    """dB; infinite for clean speech, None where there is none to speak of."""
    names: list[str]
    """Utterances, below the folder."""
    samples: Int[np.ndarray, " utterances"]
    entropy: Float[np.ndarray, "utterances layers"]
    """float32, nats."""
    agreement: Float[np.ndarray, "utterances layers"]
    """float32, share of the frames that have the last layer's label."""

    @property
    def title(self) -> str:
        """What the condition is called."""
        if self.snr is None or self.snr == CLEAN:
            return self.kind
        return f"{self.kind} {label(self.snr)}"

    @property
    def level(self) -> str:
        """What it is called beside others of its kind."""
        return self.kind if self.snr is None else label(self.snr)

    @property
    def ids(self) -> list[str]:
        """By which versions of an utterance find each other: file names, where all differ.

        Else paths; both without endings.
        """
        paths = [pathlib.PurePath(name).with_suffix("") for name in self.names]
        stems = [path.name for path in paths]
        return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def measure(
    model: Hubert, corpus: Corpus, kind: str, snr: float | None, *, root: str, stores: pathlib.Path
) -> Condition:
    """Entropies and labels at every layer, out of the cache or by one pass of the trunk.

    Args:
      model: with branches.
      corpus: utterances.
      kind: what to call the condition.
      snr: its signal-to-noise ratio, dB, if it has one.
      root: the corpus' folder.
      stores: where caches are; this one's folder is named after the model, the utterances and the
        samples of some of them, so that another version of the same files has another.

    Raises:
      InputError: the model has no branches, or no utterance can be read.
    """
    if model.branches is None:
        raise InputError("model has no branches; train them with train/branches.py")
    store = extract_corpus(
        stores / f"{corpus_name(root)}-{store_digest(model, corpus)}",
        Extractor(model, contents.layers(())),
        corpus,
        root,
    )
    for error in store.errors.values():
        leave_out(error)
    rows = [row for row in store.rows if row.frames]
    if not rows:
        raise InputError(f"{root}: no utterance can be read")
    return Condition(
        kind,
        snr,
        [row.id for row in rows],
        np.asarray([row.samples for row in rows]),
        np.asarray([row.entropy for row in rows], np.float32),
        np.asarray([row.agreement for row in rows], np.float32),
    )


class Conditions(NamedTuple):
    """All that was measured."""

    corpus: Corpus
    """Clean speech, with what could not be read."""
    clean: Condition
    kinds: dict[str, list[Condition]]
    """By kind of noise: clean, then from the highest SNR to the lowest."""
    others: list[Condition]
    folders: dict[str, str]
    """Of the others."""
    hours: float
    """Clean speech."""
    log: list[NoisyFile]
    """What was mixed with what."""


def measure_conditions(model: Hubert, options: ConditionOptions) -> Conditions:
    """Measures them all, with one draw of noise for each utterance and kind at all levels.

    Raises:
      InputError: as of `measure`, or a folder is not as it should be.
    """
    measured = functools.partial(measure, model, stores=pathlib.Path(options.entropies))
    corpus = open_corpus(options.data, options.splits)
    clean = measured(corpus, "clean", CLEAN, root=options.data)
    kinds, log = _noisy_conditions(options, measured, corpus, clean)
    folders = dict(text.split("=", 1) for text in options.conditions)
    others = [measured(open_corpus(at), name, None, root=at) for name, at in folders.items()]
    return Conditions(corpus, clean, kinds, others, folders, hours_of(corpus.lengths), log)


def _noisy_conditions(
    options: ConditionOptions,
    measured: Callable[..., Condition],
    corpus: Corpus,
    clean: Condition,
) -> tuple[dict[str, list[Condition]], list[NoisyFile]]:
    """Clean speech and its noisy versions by kind of noise, and the log of the latter."""
    speakers = read_speakers(options.speakers) if options.speakers else {}
    kinds: dict[str, list[Condition]] = {}
    log = []
    for kind in dict.fromkeys(options.kinds) if options.musan else ():
        noises = open_corpus(options.musan, (kind,))
        unknown = unknown_speakers(corpus, noises, speakers)
        if unknown:
            logger.warning("%s: %s", kind, unknown)
        draws = draw_noises(corpus, noises, options.seed, speakers)
        kinds[kind] = [clean]
        for snr in sorted(set(options.snrs), reverse=True):
            snrs = np.full(len(corpus.names), snr)
            noisy = NoisyCorpus(corpus, noises, draws, snrs, options.level)
            kinds[kind].append(measured(noisy, kind, snr, root=options.data))
            log += log_of(noisy)
    return kinds, log
