"""What computes and writes one shard of a feature store: a model, and what is kept of it."""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Generator, Iterable

import jax
import numpy as np

from daisy_jax import audio, parallel
from daisy_jax.checkpoints import parameters
from daisy_jax.data.batches import WholeBatches
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.side_work import Batch, batches
from daisy_jax.errors import is_out_of_memory, said_of
from daisy_jax.features.contents import Computed, Content
from daisy_jax.features.shard_format import Row, write_shard
from daisy_jax.features.windowed import Parts
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import followed

BATCH_SECONDS = 60.0
"""Audio in a batch: all layers' outputs are held at once."""
EMPTY = np.zeros(0, np.float32)


def model_digest(model: Hubert) -> str:
    """A digest of trunk and branches, whatever the calibration."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config)).encode())
    for name, leaf in parameters(model.replace(head=None)).items():
        digest.update(name.encode())
        # In float32, so that the type that a device computes in makes no other model of it.
        digest.update(np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def model_source(model: Hubert) -> dict[str, str]:
    """What features of layers depend on, beside the audio."""
    return {
        "model": model_digest(model),
        "tap": model.config.tap,
        "item0": model.config.item0,
        "computed": str(jax.tree.leaves(model.layers)[0].dtype),
    }


class Extractor:
    """A model, and what is to be stored of it, ready for any number of shards."""

    def __init__(
        self,
        model: Hubert,
        content: Content,
        batch_seconds: float = BATCH_SECONDS,
        cut: audio.Cut | None = None,
    ):
        """Puts the model on every device; a batch has up to `batch_seconds` of audio.

        Longer recordings than `cut` says are computed window by window.

        Raises:
          InputError: the model cannot yield this content.
        """
        content.check(model)
        self.config, self.content, self.cut = model.config, content, cut
        self._widths = audio.WIDTHS if cut is None else cut.widths
        self._samples = round(batch_seconds * audio.SAMPLE_RATE)
        windows = {} if cut is None else {"window": f"{cut.frames} frames, {cut.context} beside"}
        self._source = {**model_source(model), **content.settings(model), **windows}
        self._model = parallel.replicate(model)
        self._run = jax.jit(
            parallel.over_rows(content.compute, 2), out_shardings=parallel.replicated()
        )

    def source(self, corpus: str, shards: int) -> dict[str, str]:
        """What a store's features belong to; every shard of it carries the same."""
        return {
            **self._source,
            "items": json.dumps(self.content.items),
            "dim": str(self.config.dim),
            "corpus": corpus,
            "shards": str(shards),
        }

    @property
    def bytes_per_frame(self) -> int:
        """What a frame takes in a store."""
        numbers = self.config.dim if self.content.dtype is np.float16 else 1
        return len(self.content.items) * numbers * np.dtype(self.content.dtype).itemsize

    def write_shard(
        self,
        folder: pathlib.Path,
        number: int,
        corpus: Corpus,
        paths: list[pathlib.Path],
        source: dict[str, str],
        unusable: Iterable[Row] = (),
    ) -> list[Row]:
        """Computes and writes one shard of the store in `folder`.

        The shard holds the utterances of `corpus`, of which there may be none; their files are
        `paths`. Returns their rows, in this order, and behind them those of `unusable` files.

        Raises:
          OSError: the shard cannot be written; it does not count then.
        """
        files = [_file(path) for path in paths]  # as they are now, before anything is read
        parts = Parts(corpus, paths, self.cut)
        batches_of = WholeBatches(parts.lengths, self._samples, jax.device_count(), self._widths)
        errors: dict[int, str] = {}  # by the utterance's number, as what follows
        features: dict[int, np.ndarray] = {}
        computed: dict[int, list[Computed]] = collections.defaultdict(list)

        def read(position: int) -> Batch:
            crops = batches_of(position)
            waveforms = []
            for crop in crops[parallel.local_rows(len(crops))]:
                try:
                    waveforms.append(parts.read(crop.index) if crop.samples else EMPTY)
                except Exception as error:
                    index = parts.parts[crop.index].recording
                    errors[index] = said_of(corpus.names[index], error)
                    waveforms.append(EMPTY)
            width = audio.padded_width(crops[0].samples, self._widths)
            waveform, lengths = audio.pad_batch(waveforms, width)
            return {"waveform": waveform, "lengths": lengths}

        count, what = len(batches_of), f"shard {number}/{source['shards']}"
        for position, batch in enumerate(followed(self._computed(read, count), what, count)):
            for crop, part in zip(batches_of(position), batch, strict=True):
                if not crop.samples:
                    continue  # fills the batch
                index, window = parts.parts[crop.index]
                if part is None:
                    text = (
                        f"{corpus.names[index]}: not enough memory for "
                        f"{crop.samples / audio.SAMPLE_RATE:.0f} s at once; give shorter windows "
                        "(--window)"
                    )
                    errors.setdefault(index, text)
                elif not part.num_frames:
                    errors.setdefault(index, "could not be read")
                else:
                    computed[index].append(part._replace(values=np.zeros(0)))
                    if self.content.items and parallel.is_first():
                        kept = part.values[:, window.kept]
                        if index not in features:
                            frames = audio.frame_count(int(corpus.lengths[index]))
                            shape = (len(kept), frames, *kept.shape[2:])
                            features[index] = np.empty(shape, kept.dtype)
                        features[index][:, window.frames] = kept
        rows = []
        for index, name in enumerate(corpus.names):
            row = _row(name, str(paths[index]), number, int(corpus.lengths[index]))
            if index in errors:
                row = row._replace(error=errors[index])
            else:
                row = _with_outcome(row, computed[index])
            rows.append(row._replace(**files[index]))
        if parallel.is_first():
            whole = features.keys() - errors.keys()  # of the others, some windows may be there
            named = {corpus.names[index]: features[index] for index in sorted(whole)}
            write_shard(folder, number, named, [*rows, *unusable], source)
        return [*rows, *unusable]

    def _computed(
        self, read: Callable[[int], Batch], count: int
    ) -> Generator[list[Computed | None]]:
        """What is kept of the batches 0 to count - 1, by utterance.

        A batch that does not fit into memory is computed again, one utterance at a time; None
        stands for those that do not fit even alone.
        """
        position = 0
        while position < count:
            placed = map(parallel.place, batches(read, position, count, workers=0))
            started = (self._run(self._model, at["waveform"], at["lengths"]) for at in placed)
            try:
                for computed in parallel.fetched_behind(started):
                    yield [_utterance(computed, row) for row in range(len(computed.num_frames))]
                    position += 1
            except Exception as error:
                # Other processes would wait for this one's part of the batch.
                if not is_out_of_memory(error) or jax.process_count() > 1:
                    raise
                yield self._one_by_one(read(position))
                position += 1

    def _one_by_one(self, batch: Batch) -> list[Computed | None]:
        """As `_computed`, for one batch."""
        computed = []
        for waveform, length in zip(*map(np.asarray, batch.values()), strict=True):
            width, rows = audio.padded_width(int(length), self._widths), jax.device_count()
            alone = parallel.place(audio.pad_batch([waveform[:length]], width, rows))
            try:
                out = jax.device_get(self._run(self._model, *alone))
                computed.append(_utterance(out, 0))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                computed.append(None)
        return computed


def _file(path: pathlib.Path) -> dict[str, int]:
    """What a row says of its file, if it has one."""
    try:
        status = path.stat()
    except OSError:
        return {}
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _utterance(batch: Computed, row: int) -> Computed:
    """One row of a batch, in the place of the whole."""
    return Computed(*(field[row] for field in batch))


def _row(name: str, path: str, shard: int, samples: int) -> Row:
    """An utterance's row of the index, as long as nothing was computed."""
    return Row(name, path, shard, samples, 0, 0, False, [], [], None)


def _with_outcome(row: Row, parts: list[Computed]) -> Row:
    """The row of an utterance that was computed, in one part or in several windows.

    Several have the exit, the entropy and the agreement of the one that left deepest.
    """
    deepest = max(parts, key=lambda part: int(part.exit_layer))
    return row._replace(
        frames=audio.frame_count(row.samples),
        exit_layer=int(deepest.exit_layer),
        forced=bool(deepest.forced),
        entropy=deepest.entropy.tolist(),
        agreement=deepest.agreement.tolist(),
    )
