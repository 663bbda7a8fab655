"""Enhancement on VoiceBank-DEMAND (PESQ, STOI), separation on Libri2Mix (SI-SDR improvement)."""

from typing import Any, ClassVar

import numpy as np
from flax import nnx

from daisy_jax.data.mixtures import open_libri2mix, open_voicebank
from daisy_jax.tasks.heads.masks import MaskHead, MaskSettings, mask_loss, separate
from daisy_jax.tasks.metrics import short_time_intelligibility, si_sdr_improvement, wideband_pesq
from daisy_jax.tasks.spectra import Stft
from daisy_jax.tasks.task import Examples, Measure, Measured, TaskSettings, part_of, the_one


class _Masks:
    """What enhancement and separation share: a mask a source, on the input's spectrum."""

    name: str
    sources: int

    def __init__(self, settings: TaskSettings):
        self.settings = settings
        head: dict[str, Any] = dict(settings.head)
        self._head = MaskSettings(**{**head, "stft": Stft(**head["stft"])})

    def head(self, dim: int, classes: tuple[str, ...], *, rngs: nnx.Rngs) -> MaskHead:
        """As for every `Task`."""
        return MaskHead(dim, self.sources, self._head, rngs=rngs)

    def targets(self, examples, crops, rows, width):
        """As for every `Task`."""
        crops = crops[rows]
        mixture = np.zeros((len(crops), width), np.float32)
        sources = np.zeros((len(crops), self.sources, width), np.float32)
        for row, crop in enumerate(crops):
            if crop.samples:
                samples = slice(0, crop.samples)
                place = (crop.index, crop.start, crop.samples)
                mixture[row, samples] = examples.corpus.read(*place)
                sources[row, :, samples] = examples.targets.read_sources(*place)
        samples = np.asarray([crop.samples for crop in crops], np.int32)
        return {"mixture": mixture, "sources": sources, "samples": samples}

    def loss(self, head, features, num_frames, targets, key):
        """As for every `Task`."""
        mixture, sources, samples = (targets[n] for n in ("mixture", "sources", "samples"))
        return mask_loss(head, features, num_frames, mixture, sources, samples, key)

    def outputs(self, head, features, num_frames, targets):
        """The sources, float32 [batch, sources, samples]."""
        return separate(head, features, num_frames, targets["mixture"], targets["samples"])

    def cut(self, output, num_frames, samples):
        """As for every `Task`."""
        return output[:, :samples]


class Enhancement(_Masks):
    """One source, the clean recording."""

    name = "se"
    measures: ClassVar = {
        "pesq": Measure("PESQ", "", higher_is_better=True),
        "stoi": Measure("STOI", "%", higher_is_better=True, scale=100),
    }
    sources = 1

    def open(
        self,
        folder: str,
        part: str,
    ) -> Examples:
        """As for every `Task`."""
        place = the_one(getattr(self.settings, part), f"{self.name}, {part}")
        held_out = self.settings.dev_speakers
        chosen = held_out if part == "dev" else ()
        without = held_out if part == "train" else ()
        found = open_voicebank(folder, place, chosen, without)
        return Examples(found.corpus, found)

    def measure(self, examples, index, output):
        """As for every `Task`."""
        clean = examples.targets.read_sources(index)[0]
        return Measured(noisy_measures(clean, output[0]))

    def unprocessed(self, examples, index):
        """As for every `Task`."""
        samples = int(examples.corpus.lengths[index])
        noisy = examples.corpus.read(index, 0, samples)
        return Measured(noisy_measures(examples.targets.read_sources(index)[0], noisy))


def noisy_measures(clean: np.ndarray, estimate: np.ndarray) -> dict[str, tuple[float, float]]:
    """PESQ and STOI, each with weight 1."""
    found = {
        "pesq": wideband_pesq(clean, estimate),
        "stoi": short_time_intelligibility(clean, estimate),
    }
    return {name: (value, 1.0) for name, value in found.items()}


class Separation(_Masks):
    """Two sources, the speakers."""

    name = "ss"
    measures: ClassVar = {"si_sdri": Measure("SI-SDRi", "dB", higher_is_better=True)}
    sources = 2

    def open(
        self,
        folder: str,
        part: str,
    ) -> Examples:
        """As for every `Task`."""
        place = the_one(getattr(self.settings, part), f"{self.name}, {part}")
        found = open_libri2mix(folder, place)
        examples = Examples(found.corpus, found)
        limit = self.settings.dev_utterances
        if part == "dev" and limit and len(found.corpus.names) > limit:
            order = np.random.default_rng(0).permutation(len(found.corpus.names))
            examples = part_of(examples, np.sort(order[:limit]))
        return examples

    def measure(self, examples, index, output):
        """As for every `Task`."""
        mixture = examples.corpus.read(index, 0, int(examples.corpus.lengths[index]))
        sources = examples.targets.read_sources(index)
        improvement, _ = si_sdr_improvement(output, sources, mixture)
        return Measured({"si_sdri": (improvement, 1.0)})

    def unprocessed(self, examples, index):
        """As for every `Task`: the mixture improves nothing."""
        return None
