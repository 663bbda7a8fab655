"""What computes and writes one shard of a feature store: a model, and what is kept of it."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Generator, Iterable

import jax
import numpy as np

from daisy_jax import audio, parallel
from daisy_jax.checkpoints import named_leaves
from daisy_jax.data.batches import WholeBatches
from daisy_jax.data.corpus import Corpus
from daisy_jax.data.prefetch import Batch, batches
from daisy_jax.errors import is_out_of_memory, said_of
from daisy_jax.features.contents import Computed, Content
from daisy_jax.features.shard_format import Row, write_shard
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import followed

BATCH_SECONDS = 60.0
"""Audio in a batch: all layers' outputs are held at once."""


def model_digest(model: Hubert) -> str:
    """A digest of trunk and branches, whatever the calibration."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config)).encode())
    for name, leaf in named_leaves(model.replace(head=None)).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
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

    def __init__(self, model: Hubert, content: Content, batch_seconds: float = BATCH_SECONDS):
        """Puts the model on every device; a batch has up to `batch_seconds` of audio.

        Raises:
          InputError: the model cannot yield this content.
        """
        content.check(model)
        self.config, self.content = model.config, content
        self._samples = round(batch_seconds * audio.SAMPLE_RATE)
        self._source = {**model_source(model), **content.settings(model)}
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
        root: str | pathlib.Path,
        source: dict[str, str],
        unusable: Iterable[Row] = (),
    ) -> list[Row]:
        """Computes and writes one shard of the store in `folder`.

        The shard holds the utterances of `corpus`, of which there may be none; their folder is
        `root`. Returns their rows, in this order, and behind them those of `unusable` files.

        Raises:
          OSError: the shard cannot be written; it does not count then.
        """
        batches_of = WholeBatches(corpus.lengths, self._samples, jax.device_count())
        errors: dict[int, str] = {}

        def read(position: int) -> Batch:
            crops = batches_of(position)
            waveforms = []
            for crop in crops[parallel.local_rows(len(crops))]:
                try:
                    waveforms.append(corpus.read(crop.index, 0, crop.samples))
                except Exception as error:
                    errors[crop.index] = said_of(corpus.names[crop.index], error)
                    waveforms.append(np.zeros(0, np.float32))
            waveform, lengths = audio.pad_batch(waveforms, audio.padded_width(crops[0].samples))
            return {"waveform": waveform, "lengths": lengths}

        paths = [pathlib.Path(root) / name for name in corpus.names]
        files = [_file(path) for path in paths]  # as they are now, before anything is read
        features: dict[str, np.ndarray] = {}
        rows: dict[int, Row] = {}
        count, what = len(batches_of), f"shard {number}/{source['shards']}"
        for position, computed in enumerate(followed(self._computed(read, count), what, count)):
            for crop, utterance in zip(batches_of(position), computed, strict=True):
                if not crop.samples:
                    continue  # fills the batch
                name = corpus.names[crop.index]
                if utterance is None:
                    seconds = crop.samples / audio.SAMPLE_RATE
                    text = f"{name}: not enough memory for {seconds:.0f} s at once; split it"
                    errors.setdefault(crop.index, text)
                row = _row(name, str(paths[crop.index]), number, crop.samples, utterance)
                row = row._replace(**files[crop.index])
                if not row.frames:
                    row = row._replace(error=errors.get(crop.index, "could not be read"))
                elif utterance is not None and self.content.items and parallel.is_first():
                    # Copied, so that the batch with its padding can go.
                    features[name] = np.array(utterance.values[:, : row.frames])
                rows[crop.index] = row
        written = [*(rows[index] for index in sorted(rows)), *unusable]
        if parallel.is_first():
            write_shard(folder, number, features, written, source)
        return written

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
            width, rows = audio.padded_width(int(length)), jax.device_count()
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


def _row(name: str, path: str, shard: int, samples: int, utterance: Computed | None) -> Row:
    """An utterance's row of the index, with 0 frames if nothing was computed."""
    frames = 0 if utterance is None else int(utterance.num_frames)
    if utterance is None or not frames:
        return Row(name, path, shard, samples, 0, 0, False, [], [], None)
    return Row(
        id=name,
        path=path,
        shard=shard,
        samples=samples,
        frames=frames,
        exit_layer=int(utterance.exit_layer),
        forced=bool(utterance.forced),
        entropy=utterance.entropy.tolist(),
        agreement=utterance.agreement.tolist(),
        error=None,
    )
