"""`daisy-jax encode`: sound files to features, each leaving at its own layer."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import tyro

from daisy_jax.accelerator import Accelerator, use_accelerator, use_compilation_cache
from daisy_jax.audio import SAMPLE_RATE
from daisy_jax.commands.corpora import Corpora, Setting, content_of, prepare, run_corpus
from daisy_jax.commands.exit_choice import choose_exits
from daisy_jax.data.sound_files import expand_folders
from daisy_jax.errors import InputError
from daisy_jax.reporting import followed, printable
from daisy_jax.whole_files import whole_files

HEADER = f"{'seconds':>8} {'frames':>7} {'exit':>5} {'entropy':>8} {'saved':>7}  file"


@dataclasses.dataclass(frozen=True)
class Encode:
    """Encodes sound files and shows where each left the model.

    Every format of libsndfile, any rate and number of channels. Prints one row a file: its seconds
    and frames, the layer where it left (with * if it was forced to, since no threshold was met),
    its entropy there in nats, and the share of the full model's multiply-adds that was saved.
    Without an option the threshold is made from the calibration that is stored with the model, at
    ratio 0.7.

    A file that cannot be read is reported on stderr; the others are encoded, and the exit status
    is 1 in the end.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")] = ()
    """Sound files, or folders that are searched for them."""
    model: str = ""
    """A model folder; empty: the small pretrained model that comes with the package."""
    ratio: float | None = None
    """Threshold as a share of the calibration's mid entropy, in [0, 1]; smaller: later exits."""
    threshold: float | None = None
    """Threshold in nats."""
    budget: float | None = None
    """Mean exit layer wanted; the threshold that reaches it on the calibration's utterances."""
    layer: int | None = None
    """Everybody leaves at this layer."""
    full: bool = False
    """Everybody goes through all layers."""
    span: Literal["mean", "threshold", "min-max"] | None = None
    """Allow only the layers that a downstream training used; needs --exits."""
    exits: str | None = None
    """A file with {"exit_counts": [L numbers]}: how many utterances of that training left at each
    layer."""
    output: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Write one .npz a file here: last_hidden, exit_layer, forced, entropy, num_frames, path,
    settings. Files of that name are replaced."""
    hidden_states: bool = False
    """Write every layer's output too."""
    max_seconds: float = 60.0
    """Longer files are errors; time and memory grow with the square of the length."""
    compilation_cache: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """Keep compiled programs here, so that the next run need not compile; empty: keep none."""
    accelerator: Accelerator = "auto"
    """Where to compute."""
    corpora: Corpora = dataclasses.field(default_factory=Corpora)

    def run(self) -> int:
        """Encodes, prints, writes; 1 if a file could not be encoded."""
        if self.corpora.given:
            return self._run_corpus()
        files = expand_folders(self.files)
        if self.hidden_states and self.output is None:
            raise InputError("--hidden-states needs --output DIR, where to write them")
        require_seconds(self.max_seconds)
        use_accelerator(self.accelerator)
        if self.compilation_cache:
            use_compilation_cache(self.compilation_cache)
        from daisy_jax.checkpoints import load
        from daisy_jax.cost import multiply_adds
        from daisy_jax.features.files import encode_files

        model = load(self.model or None)
        num_layers = model.config.num_layers
        threshold, allowed, setting = choose_exits(self, model)
        targets = None
        if self.output is not None:
            os.makedirs(self.output, exist_ok=True)
            targets = output_paths(files, self.output)

        results = encode_files(
            model,
            files,
            max_seconds=self.max_seconds,
            threshold=threshold,
            allowed=allowed,
            return_hidden_states=self.hidden_states,
        )
        evaluated = np.zeros(num_layers, bool) if threshold is None else allowed
        print(HEADER, flush=True)
        rows, said, failed = [], set(), 0
        bar = followed(results, "encoding", len(files), lambda done: done.seconds)
        for number, result in enumerate(bar):
            if result.error is not None:
                print(f"error: {printable(result.error)}", file=sys.stderr)
                failed += 1
                continue
            for note in result.notes:
                if note not in said:
                    said.add(note)
                    line = f"note: {result.path}: {note} (said for the first file only)"
                    print(printable(line), file=sys.stderr)
            samples = round(result.seconds * SAMPLE_RATE)
            cost = int(multiply_adds(model.config, samples, result.exit_layer, evaluated))
            full = int(multiply_adds(model.config, samples, num_layers, np.zeros(num_layers, bool)))
            rows.append((result.seconds, result.exit_layer, cost, full))
            print(table_row(result, 1 - cost / full, threshold is not None), flush=True)
            if targets is not None:
                write_features(targets[number], result, setting)
        if rows:
            seconds, layers, costs, full_costs = np.sum(rows, axis=0)
            counts = f"{len(rows)} files" + (f", {failed} failed" if failed else "")
            print(
                f"{counts}, {seconds:.1f} s, mean exit layer {layers / len(rows):.2f} of "
                f"{num_layers}, {1 - costs / full_costs:.1%} of the multiply-adds saved; {setting}"
            )
        return 1 if failed else 0

    def _run_corpus(self) -> int:
        """Encodes a list of files into a feature store."""
        if not self.corpora.manifest:
            raise InputError(f"{', '.join(self.corpora.given)}: these options need --manifest LIST")
        if self.files:
            raise InputError("--manifest and FILE... exclude each other; give one of them")
        if self.output is None or self.hidden_states:
            raise InputError(
                "--manifest needs --output DIR, where the features go, and takes --store layers in "
                "the place of --hidden-states"
            )
        require_seconds(self.max_seconds)
        given = {"--ratio": self.ratio, "--threshold": self.threshold, "--budget": self.budget}
        given |= {"--layer": self.layer, "--full": self.full or None, "--span": self.span}
        exits = [name for name, value in given.items() if value is not None]
        prepare(self.corpora, exits, self.accelerator, self.compilation_cache)
        from daisy_jax.checkpoints import load
        from daisy_jax.exits import ExitRule

        model = load(self.model or None)

        def rule() -> ExitRule:
            threshold, allowed, words = choose_exits(self, model)
            print(words)
            return ExitRule(words, threshold, allowed)

        setting = Setting(
            self.model,
            content_of(self.corpora, model, rule, self.layer),
            self.output,
            self.max_seconds,
            self.accelerator,
            self.compilation_cache,
        )
        return run_corpus(self.corpora, model, setting)


def require_seconds(seconds: float) -> None:
    """Refuses a longest duration that nothing can have."""
    if not seconds > 0:
        raise InputError(f"--max-seconds {seconds:g}: give seconds above 0")


def table_row(result, saved: float, may_be_forced: bool) -> str:
    """One line of the table that `encode` prints, under `HEADER`."""
    layer = f"{result.exit_layer}{'*' if result.forced and may_be_forced else ''}"
    entropy = result.entropy[result.exit_layer - 1]
    shown = f"{entropy:.3f}" if np.isfinite(entropy) else "-"
    return (
        f"{result.seconds:8.2f} {result.num_frames:7d} {layer:>5} {shown:>8} {saved:7.1%}  "
        f"{printable(result.path)}"
    )


def output_paths(files: Sequence[str], output: str) -> list[pathlib.Path]:
    """One .npz path a file: its stem, with as many of its folders before it as tell it from others.

    Files of one folder that differ in their suffix alone keep the suffix.
    """
    # Without the root, so that a file there has one part too.
    paths = [pathlib.PurePath(*pathlib.Path(os.path.abspath(file)).parts[1:]) for file in files]
    stems = [path.with_suffix("") if path.name else path for path in paths]
    twins = {
        stem
        for stem in stems
        if len({p for p, s in zip(paths, stems, strict=True) if s == stem}) > 1
    }
    names = [path if stem in twins else stem for path, stem in zip(paths, stems, strict=True)]
    if len(set(names)) < len(set(paths)):  # x.wav and x.flac beside x.wav.mp3
        names = paths
    by_tail: dict[tuple[str, ...], set[pathlib.PurePath]] = {}
    for name in names:
        for depth in range(1, len(name.parts) + 1):
            by_tail.setdefault(name.parts[-depth:], set()).add(name)
    targets = []
    for name in names:
        whole = len(name.parts)  # also where it ends another path, and so is never alone
        alone = (d for d in range(1, whole) if len(by_tail[name.parts[-d:]]) == 1)
        tail = name.parts[-next(alone, whole) :]
        targets.append(pathlib.Path(output, *tail[:-1], f"{name.name}.npz"))
    return targets


def write_features(target: pathlib.Path, result, setting: str) -> None:
    """Writes one file's features, whole or not at all."""
    arrays = {
        "last_hidden": result.last_hidden,
        "exit_layer": np.int32(result.exit_layer),
        "forced": np.bool_(result.forced),
        "entropy": result.entropy,
        "num_frames": np.int32(result.num_frames),
        "path": np.str_(result.path),
        "settings": np.str_(setting),
    }
    if result.hidden_states is not None:
        arrays["hidden_states"] = result.hidden_states
    with whole_files(target) as (partial,), open(partial, "wb") as stream:
        np.savez(stream, **arrays)
