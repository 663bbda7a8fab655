"""One pass of the upstream over a corpus: features, entropies and agreement, into a store."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from daisy_jax import audio, parallel
from daisy_jax.branches import frame_mean, utterance_entropy
from daisy_jax.checkpoints import named_leaves
from daisy_jax.data.batches import WholeBatches, read_whole
from daisy_jax.data.corpus import Corpus, Selection, fingerprint
from daisy_jax.data.feature_store import (
    FeatureStore,
    Row,
    bytes_needed,
    part_file,
    plan_shards,
    read_part,
    write_shard,
)
from daisy_jax.data.loading import Batch, batches
from daisy_jax.errors import InputError
from daisy_jax.hubert import Hubert, embed, tapped_layers

BATCH_SECONDS = 60.0
"""Audio in a batch: all layers' outputs are held at once."""


class Extracted(NamedTuple):
    """All that eq. (2) to (4) need of a batch."""

    items: jax.Array
    """float16 [batch, items, frames, dim], garbage on padded frames."""
    entropy: jax.Array
    """float32 [batch, L], nats; [batch, 0] without branches."""
    agreement: jax.Array
    """float32 [batch, L]; [batch, 0] without branches."""
    num_frames: jax.Array
    """int32 [batch]."""


def extract(
    model: Hubert, waveform: jax.Array, lengths: jax.Array, items: Sequence[int]
) -> Extracted:
    """Runs all layers.

    Args:
      model: any.
      waveform: float [batch, samples], 16 kHz.
      lengths: int [batch].
      items: which to keep, of 0 to L.
    """
    embedded = embed(model, waveform, lengths)
    _, tapped = tapped_layers(model, embedded)
    item0 = embedded.projected if model.config.item0 == "projection" else embedded.hidden
    kept = [item0 if item == 0 else tapped[item - 1] for item in items]
    # Half precision ends at 65 504; a value beyond is as good there as infinity is bad.
    limit = float(jnp.finfo(jnp.float16).max)
    stacked = [jnp.clip(part, -limit, limit).astype(jnp.float16) for part in kept]
    shape = (len(lengths), 0, *item0.shape[1:])
    stored = jnp.stack(stacked, axis=1) if stacked else jnp.zeros(shape, jnp.float16)
    nothing = jnp.zeros((len(lengths), 0), jnp.float32)
    num_frames = jnp.sum(embedded.frame_mask, axis=1, dtype=jnp.int32)
    if model.branches is None:
        return Extracted(stored, nothing, nothing, num_frames)

    def one_layer(branch_and_tapped):
        branch, tapped = branch_and_tapped
        logits = branch(tapped)
        return utterance_entropy(logits, embedded.frame_mask), jnp.argmax(logits, axis=-1)

    entropy, labels = jax.lax.map(one_layer, (model.branches, tapped))
    same = (labels == labels[-1:]).astype(jnp.float32)
    agreement = frame_mean(same, embedded.frame_mask[None])
    return Extracted(stored, entropy.T, agreement.T, num_frames)


def model_digest(model: Hubert) -> str:
    """A digest of trunk and branches, whatever the calibration."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config)).encode())
    for name, leaf in named_leaves(model.replace(head=None)).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def make_store(
    folder: str | pathlib.Path,
    model: Hubert,
    corpus: Corpus,
    root: str | pathlib.Path,
    items: Sequence[int],
    *,
    on_error: Callable[[str], None],
    say: Callable[[str], None] = print,
    progress: Callable[[int], Callable[[Iterable], Iterable]] = lambda count: iter,
) -> FeatureStore:
    """Makes a store, or goes on with one that was interrupted, or opens a finished one.

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
    frames = np.asarray(audio.frame_count(corpus.lengths))
    shards = plan_shards(frames, len(items) * model.config.dim * 2)
    source = {
        "model": model_digest(model),
        "tap": model.config.tap,
        "item0": model.config.item0,
        "computed": str(jax.tree.leaves(model.layers)[0].dtype),
        "items": json.dumps(list(items)),
        "dim": str(model.config.dim),
        "corpus": fingerprint(corpus),
        "shards": str(len(shards)),
    }
    missing = []
    for number in range(len(shards)):
        if not part_file(folder, number).is_file():
            missing.append(number)
            continue
        found = {k: v for k, v in read_part(part_file(folder, number))[1].items() if k != "sha256"}
        if found != source:
            changes = [f"{k} {found.get(k)} and not {v}" for k, v in source.items()]
            changes = [
                text for text, k in zip(changes, source, strict=True) if found.get(k) != source[k]
            ]
            raise InputError(
                f"{folder}: holds features of something else ({'; '.join(changes)}); give another "
                "folder, or remove this one"
            )
    if missing:
        _announce(folder, corpus, shards, missing, len(items) * model.config.dim, say)
        _write(folder, model, corpus, root, items, shards, missing, source, on_error, progress)
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


def _write(
    folder: pathlib.Path,
    model: Hubert,
    corpus: Corpus,
    root: str | pathlib.Path,
    items: Sequence[int],
    shards: list[np.ndarray],
    missing: list[int],
    source: dict[str, str],
    on_error: Callable[[str], None],
    progress: Callable[[int], Callable[[Iterable], Iterable]],
) -> None:
    # A batch never spans two shards.
    plans: list[tuple[int, list]] = []
    for number in missing:
        places = shards[number]
        draw = WholeBatches(
            corpus.lengths[places], round(BATCH_SECONDS * audio.SAMPLE_RATE), jax.device_count()
        )
        plans += [(number, draw(batch)) for batch in range(len(draw))]
    parts = {number: Selection(corpus, shards[number]) for number in missing}

    def read(position: int) -> Batch:
        number, crops = plans[position]
        mine = parallel.local_rows(len(crops))
        waveform, lengths = read_whole(parts[number], crops, on_error, mine)
        return {"waveform": waveform, "lengths": lengths}

    run = jax.jit(extract, static_argnums=3, out_shardings=parallel.replicated())
    everywhere = parallel.replicate(model)
    features: dict[str, np.ndarray] = {}
    rows: dict[int, Row] = {}
    reading = batches(read, 0, len(plans), workers=0)
    for (number, crops), batch in zip(plans, progress(len(plans))(reading), strict=True):
        placed: Any = parallel.place(batch)
        found = jax.device_get(run(everywhere, placed["waveform"], placed["lengths"], tuple(items)))
        for row, crop in enumerate(crops):
            if not crop.samples:
                continue  # fills the batch
            name = parts[number].names[crop.index]
            count = int(found.num_frames[row])
            values = ([], [])
            if count:
                values = (found.entropy[row].tolist(), found.agreement[row].tolist())
                if items and parallel.is_first():
                    features[name] = found.items[row, :, :count]
            error = None if count else "could not be read"
            path = str(pathlib.Path(root) / name)
            rows[crop.index] = Row(name, path, number, crop.samples, count, *values, error)
        if len(rows) == len(shards[number]):
            if parallel.is_first():
                ordered = [rows[place] for place in sorted(rows)]
                write_shard(folder, number, features, ordered, source)
            features, rows = {}, {}
