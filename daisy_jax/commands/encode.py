"""`daisy-jax encode`: sound files to features, each leaving at its own layer."""

import collections
import dataclasses
import errno
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
import tyro

import daisy_jax
from daisy_jax import FileResult, Hubert, InputError
from daisy_jax.commands.exit_page import ExitPage
from daisy_jax.commands.options import ModelOptions
from daisy_jax.commands.unit_lines import STDOUT, UnitLines, codebook_for
from daisy_jax.console.terminal import say
from daisy_jax.data.file_list import expand_folders
from daisy_jax.exits import ExitRule
from daisy_jax.reporting import followed, printable
from daisy_jax.whole_files import whole_files

UNFIT_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""Errors of a file system that cannot take a name."""
HEADER = f"{'seconds':>8} {'frames':>7} {'exit':>5} {'entropy':>8} {'saved':>7}  file"


@dataclasses.dataclass(frozen=True)
class Encode(ModelOptions):
    """Encodes sound files and shows where each left the model.

    Every format of libsndfile, any rate and number of channels. Prints one row a file: its seconds
    and frames, the layer where it left (with * if it was forced to, since no threshold was met),
    its entropy there in nats, and the share of the full model's multiply-adds that was saved.
    Recordings longer than --window are cut, and each window leaves by itself: their row shows the
    first and the last of their exit layers, and the entropy at the last.
    Without an option the threshold is made from the calibration that is stored with the model, at
    ratio 0.7.

    A file that cannot be read is reported on stderr; the others are encoded, and the exit status
    is 1 in the end. For whole corpora there is `daisy-jax extract`.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")] = ()
    """Sound files, or folders that are searched for them."""
    output: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Write one .npz a file here: last_hidden, exit_layer, forced, entropy, num_frames, path,
    settings; frame_exit_layer, and window_start, window_seconds, window_exit_layer, window_forced,
    window_entropy of each window. Files of that name are replaced."""
    hidden_states: bool = False
    """Write every layer's output too."""
    units: bool = False
    """Make discrete units of --centroids, at their layer, as text: --output - prints a line
    NAME|1 2 3 a file, --output FILE.txt writes them, --output FILE.km the numbers alone."""
    centroids: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """For --units: a folder of train/units.py, or a .npy file of centroids, with --layer."""
    collapse: bool = False
    """For --units: one of each run of equal units."""
    report: Annotated[str | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Write a page that shows where each file left, and plays it: one file that needs no other."""

    def run(self) -> int:
        """Encodes, prints, writes; 1 if a file could not be encoded."""
        files = expand_folders(self.files)
        self._check()
        model = self.start()
        rule, outputs = self._outputs(files, model)
        shown = functools.partial(say, flush=True, to_stderr=self.units)

        results = daisy_jax.encode_files(
            model,
            files,
            max_seconds=self.max_seconds,
            window_seconds=self.window,
            context_seconds=self.context,
            threshold=rule.threshold,
            allowed=rule.allowed,
            return_hidden_states=self.hidden_states,
        )
        config, num_layers = model.config, model.config.num_layers
        without_branches = np.zeros(num_layers, bool)
        shown(HEADER)
        rows, said, failed = [], set(), 0
        bar = followed(results, "encoding", len(files), lambda done: done.seconds)
        for number, result in enumerate(bar):
            if result.error is not None:
                say(f"error: {printable(result.error)}", to_stderr=True)
                failed += 1
                for output in outputs:
                    output.leave_out(number)
                continue
            for note in result.notes:
                if note not in said:
                    said.add(note)
                    line = f"note: {result.path}: {note} (said for the first file only)"
                    say(printable(line), to_stderr=True)
            rate = daisy_jax.audio.SAMPLE_RATE
            parts = [(round(part.seconds * rate), part.exit_layer) for part in result.windows]
            samples, layers = np.asarray(parts, np.int64).T
            cost = np.sum(daisy_jax.multiply_adds(config, samples, layers, rule.evaluated))
            full = np.sum(daisy_jax.multiply_adds(config, samples, num_layers, without_branches))
            mean_layer = np.average(layers, weights=samples)
            rows.append((result.seconds, mean_layer, cost, full))
            shown(table_row(result, 1 - cost / full, rule.threshold is not None))
            for output in outputs:
                try:
                    output.add(number, result, 1 - cost / full)
                except InputError as error:
                    say(f"error: {printable(str(error))}", to_stderr=True)
                    failed += 1
        total = f"no file of {len(files)} could be encoded"
        if rows:
            seconds, layers, costs, full_costs = np.sum(rows, axis=0)
            counts = f"{len(rows)} files" + (f", {failed} failed" if failed else "")
            saved = f"{1 - costs / full_costs:.1%} of the multiply-adds saved"
            total = (
                f"{counts}, {seconds:.1f} s, mean exit layer {layers / len(rows):.2f} of "
                f"{num_layers}, {saved}; {rule.name}"
            )
            shown(total)
        for output in outputs:
            output.finish(total)
        return 1 if failed else 0

    def _outputs(self, files: list[str], model: Hubert) -> tuple[ExitRule, list["Output"]]:
        """Where everybody leaves, and what is written beside the table."""
        outputs: list[Output] = []
        if self.units:
            codebook, rule = codebook_for(self.centroids, model, self.layer, self.given_exits)
            names = [path.with_suffix("").as_posix() for path in output_paths(files, "")]
            outputs.append(UnitLines(self.output or STDOUT, names, codebook, self.collapse))
        else:
            rule = self.exit_rule(model)
            if self.output is not None:
                os.makedirs(self.output, exist_ok=True)
                outputs.append(FeatureFiles(output_paths(files, self.output), rule.name))
        if self.report is not None:
            outputs.append(ExitPage(self.report, rule, model.config.num_layers, len(files)))
        return rule, outputs

    def _check(self) -> None:
        """Refuses options that contradict one another."""
        if self.hidden_states and (self.output is None or self.units):
            raise InputError("--hidden-states needs --output DIR, where to write them")
        if self.units and not self.centroids:
            raise InputError("--units needs --centroids DIR, which train/units.py makes")
        if not self.units and (self.centroids or self.collapse):
            raise InputError("--centroids and --collapse belong to --units; add it")


class Output(Protocol):
    """What is made of the files beside the table; they come in order."""

    def add(self, number: int, result: FileResult, saved: float) -> None:
        """One file, and the share of the full model's multiply-adds that was saved.

        Raises:
          InputError: nothing can be made of this one.
        """
        ...

    def leave_out(self, number: int) -> None:
        """A file that could not be encoded."""
        ...

    def finish(self, total: str) -> None:
        """All have come; `total` is the table's last line."""
        ...


class FeatureFiles:
    """A .npz file for each sound file."""

    def __init__(self, targets: list[pathlib.Path], setting: str):
        self._targets, self._setting = targets, setting

    def add(self, number: int, result: FileResult, saved: float) -> None:
        """As for every `Output`."""
        target = self._targets[number]
        try:
            write_features(target, result, self._setting)
        except OSError as error:
            if error.errno not in UNFIT_NAMES:
                raise
            raise InputError(f"{target}: {error.strerror}; rename the sound file") from None

    def leave_out(self, number: int) -> None:
        """As for every `Output`."""

    def finish(self, total: str) -> None:
        """As for every `Output`."""


def table_row(result: FileResult, saved: float, may_be_forced: bool) -> str:
    """One line of the table that `encode` prints, under `HEADER`."""
    assert result.entropy is not None  # as it has no error
    least = min(window.exit_layer for window in result.windows)
    layer = f"{least}-" if least < result.exit_layer else ""
    layer += f"{result.exit_layer}{'*' if result.forced and may_be_forced else ''}"
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
    sharing = collections.Counter(stem for stem, _ in set(zip(stems, paths, strict=True)))
    names = [p if sharing[s] > 1 else s for p, s in zip(paths, stems, strict=True)]
    if len(set(names)) < len(set(paths)):  # x.wav and x.flac beside x.wav.mp3
        names = paths
    tails = collections.Counter(
        name.parts[-depth:] for name in set(names) for depth in range(1, len(name.parts) + 1)
    )
    targets = []
    for name in names:
        whole = len(name.parts)  # also where it ends another path, and so is never alone
        alone = (depth for depth in range(1, whole) if tails[name.parts[-depth:]] == 1)
        tail = name.parts[-next(alone, whole) :]
        targets.append(pathlib.Path(output, *tail[:-1], f"{name.name}.npz"))
    return targets


def write_features(target: pathlib.Path, result: FileResult, setting: str) -> None:
    """Writes one file's features, whole or not at all."""
    arrays = {
        "last_hidden": result.last_hidden,
        "exit_layer": np.int32(result.exit_layer),
        "forced": np.bool_(result.forced),
        "entropy": result.entropy,
        "num_frames": np.int32(result.num_frames),
        "frame_exit_layer": result.frame_exit_layer,
        "window_start": np.asarray([window.start for window in result.windows]),
        "window_seconds": np.asarray([window.seconds for window in result.windows]),
        "window_exit_layer": np.asarray([w.exit_layer for w in result.windows], np.int32),
        "window_forced": np.asarray([window.forced for window in result.windows]),
        "window_entropy": np.stack([window.entropy for window in result.windows]),
        "path": np.str_(result.path),
        "settings": np.str_(setting),
    }
    if result.hidden_states is not None:
        arrays["hidden_states"] = result.hidden_states
    with whole_files(target) as (partial,), open(partial, "wb") as stream:
        np.savez(stream, **arrays)
