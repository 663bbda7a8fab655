"""What an exit criterion says of a corpus at every layer."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from daisy_jax import audio
from daisy_jax.data.batches import WholeBatches, read_whole
from daisy_jax.data.corpus import Corpus, Selection
from daisy_jax.encode import encode
from daisy_jax.features.extractor import BATCH_SECONDS
from daisy_jax.model.criteria import Criterion
from daisy_jax.model.hubert import Hubert
from daisy_jax.reporting import followed


def criterion_scores(
    model: Hubert, corpus: Corpus, names: list[str], criterion: Callable[[int], Criterion]
) -> Float32[np.ndarray, "utterances layers"]:
    """What a criterion says of some of a corpus' utterances at every layer.

    Args:
      model: with branches.
      corpus: the utterances.
      names: of those that are wanted, all readable.
      criterion: made for batches of so many frames.
    """
    numbers = {name: number for number, name in enumerate(corpus.names)}
    chosen = Selection(corpus, np.asarray([numbers[name] for name in names]))
    scores = np.zeros((len(names), model.config.num_layers), np.float32)
    batches = WholeBatches(chosen.lengths, round(BATCH_SECONDS * audio.SAMPLE_RATE))
    for number in followed(range(len(batches)), "criteria"):
        crops = batches(number)
        waveform, lengths = read_whole(chosen, crops)
        made = criterion(int(audio.frame_count(waveform.shape[1])))
        out = encode(model, waveform, lengths, threshold=-np.inf, criterion=made)
        for crop, score in zip(crops, np.asarray(out.entropy), strict=True):
            if crop.samples:
                scores[crop.index] = score
    return scores
