"""The upstream over a corpus, shard by shard, into a feature store."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from daisy_jax import audio, parallel
from daisy_jax.checkpoints import named_leaves
from daisy_jax.data.batches import WholeBatches, read_whole
from daisy_jax.data.corpus import Corpus, Selection, fingerprint, sound_fingerprint
from daisy_jax.data.loading import Batch, batches
from daisy_jax.devices import fetched_behind
from daisy_jax.errors import InputError
from daisy_jax.features.contents import Content, Layers
from daisy_jax.features.feature_shards import (
    Row,
    bytes_needed,
    finished_part,
    plan_shards,
    write_shard,
)
from daisy_jax.features.feature_store import FeatureStore
from daisy_jax.model.hubert import Hubert

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


def corpus_source(corpus: Corpus) -> str:
    """What tells corpora apart: names, lengths, and how some of them sound."""
    return f"{fingerprint(corpus)}, {sound_fingerprint(corpus)}"


def store_digest(model: Hubert, corpus: Corpus) -> str:
    """Of the names of stores: another model, type, selection or version has one of its own."""
    belongs = json.dumps([model_source(model), corpus_source(corpus)])
    return hashlib.sha256(belongs.encode()).hexdigest()[:12]


class Extractor:
    """A model, and what is to be stored of it, ready for any number of shards."""

    def __init__(self, model: Hubert, content: Content):
        """Puts the model on every device.

        Raises:
          InputError: the model cannot yield this content.
        """
        content.check(model)
        self.config, self.content = model.config, content
        self._source = {**model_source(model), **content.settings(model)}
        self._model = parallel.replicate(model)
        self._run = jax.jit(
            parallel.over_rows(content.__call__, 2), out_shardings=parallel.replicated()
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

    def plan(self, lengths: np.ndarray) -> WholeBatches:
        """The batches of a shard."""
        samples = round(BATCH_SECONDS * audio.SAMPLE_RATE)
        return WholeBatches(lengths, samples, jax.device_count())

    def shard(
        self,
        folder: pathlib.Path,
        number: int,
        corpus: Corpus,
        root: str | pathlib.Path,
        source: dict[str, str],
        *,
        on_error: Callable[[str], None],
        unusable: Iterable[Row] = (),
    ) -> Iterator[None]:
        """Computes and writes one shard; yields after each batch.

        Args:
          folder: the store.
          number: of the shard.
          corpus: the shard's utterances.
          root: the corpus' folder, for the manifest's paths.
          source: from `source`.
          on_error: called with one line for each utterance that cannot be read.
          unusable: rows of files that are no utterances, for the manifest.
        """
        readable, draw = _Remembering(corpus), self.plan(corpus.lengths)

        def read(position: int) -> Batch:
            crops = draw(position)
            mine = parallel.local_rows(len(crops))
            waveform, lengths = read_whole(readable, crops, on_error, mine)
            return {"waveform": waveform, "lengths": lengths}

        features: dict[str, np.ndarray] = {}
        rows: dict[int, Row] = {}
        placed = map(parallel.place, batches(read, 0, len(draw), workers=0))
        started = (self._run(self._model, at["waveform"], at["lengths"]) for at in placed)
        for position, found in enumerate(fetched_behind(started)):
            for row, crop in enumerate(draw(position)):
                if not crop.samples:
                    continue  # fills the batch
                name = corpus.names[crop.index]
                count = int(found.num_frames[row])
                rows[crop.index] = Row(
                    id=name,
                    path=str(pathlib.Path(root) / name),
                    shard=number,
                    samples=crop.samples,
                    frames=count,
                    exit_layer=int(found.exit_layer[row]),
                    forced=bool(count and found.forced[row]),
                    entropy=found.entropy[row].tolist() if count else [],
                    agreement=found.agreement[row].tolist() if count else [],
                    error=None if count else readable.errors.get(crop.index, "could not be read"),
                )
                if count and self.content.items and parallel.is_first():
                    # Copied, so that the batch with its padding can go.
                    features[name] = np.array(found.values[row, :, :count])
            yield
        if parallel.is_first():
            ordered = [rows[place] for place in sorted(rows)]
            write_shard(folder, number, features, [*ordered, *unusable], source)


class _Remembering:
    """A corpus that remembers why an utterance could not be read."""

    def __init__(self, corpus: Corpus):
        self._corpus, self.names, self.lengths = corpus, corpus.names, corpus.lengths
        self.errors: dict[int, str] = {}

    def read(self, index: int, start: int, samples: int) -> np.ndarray:
        """As for every `Corpus`."""
        try:
            return self._corpus.read(index, start, samples)
        except (InputError, OSError) as error:
            self.errors[index] = str(error)
            raise


def make_store(
    folder: str | pathlib.Path,
    model: Hubert,
    corpus: Corpus,
    root: str | pathlib.Path,
    items: Iterable[int],
    *,
    on_error: Callable[[str], None],
    say: Callable[[str], None] = print,
    progress: Callable[[int], Callable[[Iterable], Iterable]] = lambda count: iter,
) -> FeatureStore:
    """Makes a store of layers, or goes on with one that was interrupted, or opens a finished one.

    Args:
      folder: the store.
      model: the upstream.
      corpus: whole utterances, at most a minute long.
      root: the corpus' folder, for the manifest's paths.
      items: which to store, of 0 to L; none: entropies alone.
      on_error: called with one line for each utterance that cannot be read.
      say: what will be written, and how large.
      progress: from a number of batches to what wraps them.

    Raises:
      InputError: the disk has no room, or the folder holds another model's or corpus' features.
      OSError: a shard could not be written; those before it are whole.
    """
    folder = pathlib.Path(folder)
    for name in corpus.names:
        if not name.isprintable():
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{shown}: no store can have this name; rename the file")
    extractor = Extractor(model, Layers(tuple(items)))
    values = len(extractor.content.items) * model.config.dim
    shards = plan_shards(np.asarray(audio.frame_count(corpus.lengths)), 2 * values)
    source = extractor.source(corpus_source(corpus), len(shards))
    missing = [n for n in range(len(shards)) if finished_part(folder, n, source) is None]
    if missing:
        _announce(folder, corpus, shards, missing, values, say)
        parts = {number: Selection(corpus, shards[number]) for number in missing}
        work = itertools.chain.from_iterable(
            extractor.shard(folder, number, part, root, source, on_error=on_error)
            for number, part in parts.items()
        )
        for _ in progress(sum(len(extractor.plan(part.lengths)) for part in parts.values()))(work):
            pass
    parallel.any_process(False)  # the others wait until the first has written
    return FeatureStore(folder)


def _announce(folder, corpus, shards, missing, values, say) -> None:
    chosen = np.concatenate([shards[number] for number in missing])
    size = bytes_needed(corpus.lengths[chosen], values, 1)
    above = folder.resolve()
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    hours = corpus.lengths[chosen].sum() / audio.SAMPLE_RATE / 3600
    stored = f"{size / 1e9:.3g} GB of features" if size else "entropies alone"
    text = f"{folder}: {hours:.3g} h of speech, {stored}"
    if parallel.is_first():
        say(f"{text}; {free / 1e9:.0f} GB are free")
    if free < size + size // 50 + 10_000_000:
        raise InputError(
            f"{text}, and {free / 1e9:.3g} GB are free; make room, give another folder, or store "
            "entropies alone (--cache=entropies) and run the upstream in each step"
        )
