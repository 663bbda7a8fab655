r"""Makes a noisy version of a corpus, once, with a log of what each file was mixed from.

    python train/noisy.py --data corpora/LibriSpeech --noise corpora/MUSAN/noise \
        --splits train-clean-100 dev-clean test-clean --output corpora/LibriSpeech-noisy

--recipe paper (section 4.3) leaves 40 % of each split's utterances clean, 30 % get noise at 10 dB,
20 % at 5 dB and 10 % at 0 dB. --recipe every writes each utterance once for each of --snrs, into
splits of their own (test-clean-clean, test-clean-10dB, ...). Training, development and test hear
different recordings of noise. The same seeds give the same mixtures on every machine. Files are
16-bit FLAC in the corpus' layout, transcripts are copied, and OUTPUT/mixtures.tsv names each file's
clean utterance, SNR, noise recording, offset and scale.
"""

# First, so that Ctrl-C ends the program while everything else is loaded.
from daisy_jax.console.terminal import run_command, say

# isort: split

import collections
import dataclasses
import pathlib
import sys
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """What to mix."""

    data: str = "corpora/LibriSpeech"
    """Clean speech."""
    noise: str = "corpora/MUSAN/noise"
    """Recordings of noise, music or speech; drawn for each utterance, looped where they are shorter
    and cropped where they are longer, from a drawn offset on."""
    output: str = "corpora/LibriSpeech-noisy"
    """The folder to write."""
    splits: tuple[str, ...] = ()
    """Parts of the clean corpus (folders right below it); empty: all of it."""
    recipe: Literal["paper", "every"] = "paper"
    """One ratio for each utterance, in the paper's shares, or every ratio for each."""
    snrs: tuple[float, ...] = (float("inf"), 10.0, 5.0, 0.0)
    """Of the recipe "every": signal-to-noise ratios, dB; inf is clean."""
    level: Literal["mean", "active"] = "mean"
    """The speech's power: over the whole utterance, or where somebody speaks (ITU-T P.56)."""
    speakers: str = ""
    """A table of speakers, NAME SPEAKER lines as Kaldi's utt2spk, for noise that is speech: nobody
    is mixed with himself. LibriSpeech's and VoxCeleb's own names need none."""
    noise_part: Literal["auto", "train", "dev", "test"] = "auto"
    """Which of the noise recordings: those of training, development and test are different ones.
    auto: by the split's name, dev... or test...; every other split gets those of training."""
    noise_seed: int = 0
    """Of the three parts of the noise recordings: the same in all corpora of one experiment."""
    seed: int = 0
    """Of everything else that is drawn."""


def main() -> None:
    config = tyro.cli(Config, description=__doc__)

    import numpy as np

    from daisy_jax.data.corpus import corpus_name, fingerprint, open_corpus
    from daisy_jax.data.noisy_corpus import (
        RECIPES,
        NoisyCorpus,
        draw_noises,
        draw_snrs,
        label,
        noise_part,
        part_for,
        read_speakers,
        require_snrs,
        unknown_speakers,
    )
    from daisy_jax.data.noisy_folder import write_noisy

    if config.recipe == "every":
        require_snrs(config.snrs)
    speakers = read_speakers(config.speakers) if config.speakers else {}
    noises = open_corpus(config.noise)
    corpora: list[tuple[NoisyCorpus, list[str]]] = []
    used, parts = {}, {}
    for split in [str(pathlib.PurePath(split)) for split in config.splits] or [""]:
        clean = open_corpus(config.data, (split,) if split else ())
        used[split] = fingerprint(clean)
        part = part_for(split) if config.noise_part == "auto" else config.noise_part
        heard = noise_part(noises, part, config.noise_seed)
        parts[split] = {"part": part, "recordings": fingerprint(heard)}
        draws = draw_noises(clean, heard, config.seed, speakers)
        said = unknown_speakers(clean, heard, speakers)
        if said:
            say(f"{split or config.data}: {said}", to_stderr=True)
        if config.recipe == "paper":
            versions = {split: draw_snrs(clean.names, RECIPES["paper"], config.seed)}
        else:
            prefix = f"{split}-" if split else ""
            versions = {
                prefix + label(snr).replace(" ", ""): np.full(len(clean.names), snr)
                for snr in config.snrs
            }
        files = [pathlib.PurePath(name).with_suffix(".flac") for name in clean.names]
        inside = [file.relative_to(split) if split else file for file in files]
        for folder, snrs in versions.items():
            noisy = NoisyCorpus(clean, heard, draws, snrs, config.level)
            corpora.append((noisy, [str(pathlib.PurePath(folder, file)) for file in inside]))
    settings = {
        "clean": corpus_name(config.data),
        "clean_utterances": used,
        "noise": corpus_name(config.noise),
        "noise_recordings": fingerprint(noises),
        "noise_parts": parts,
        "noise_seed": config.noise_seed,
        "recipe": config.recipe,
        "snrs": [label(snr) for snr in config.snrs] if config.recipe == "every" else None,
        "level": config.level,
        "speakers": speakers,
        "seed": config.seed,
    }
    rows = write_noisy(config.output, corpora, config.data, settings)
    quieter = sum(row.scale != 1 for row in rows)
    say(f"{config.output}: {len(rows)} files, {quieter} made quieter to stay within full scale")
    for split, heard in parts.items():
        say(f"  {split or 'all'}: noise for {heard['part']}, {heard['recordings']}")
    for snr, count in collections.Counter(row.snr for row in rows).items():
        say(f"  {label(snr):>8}: {count}")
    if not any(pathlib.Path(config.output).rglob("*.trans.txt")):
        say("no transcripts beside the clean speech, so that none were copied")
    if not rows:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
