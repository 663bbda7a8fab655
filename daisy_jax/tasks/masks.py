"""Enhancement on VoiceBank-DEMAND (PESQ, STOI), separation on Libri2Mix (SI-SDR improvement)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from daisy_jax import audio
from daisy_jax.data.batches import Crop
from daisy_jax.data.libri2mix import open_libri2mix
from daisy_jax.data.voicebank import open_voicebank
from daisy_jax.errors import InputError
from daisy_jax.model.feature_encoder import valid_positions
from daisy_jax.reporting import leave_out_item
from daisy_jax.tasks.losses import Counts, Features, best_permutation, utterance_mean
from daisy_jax.tasks.lstm import BidirectionalLstm
from daisy_jax.tasks.metrics import (
    HIGHEST_PESQ,
    LOWEST_PESQ,
    say_if_no_pesq,
    short_time_intelligibility,
    si_sdr_improvement,
    wideband_pesq,
)
from daisy_jax.tasks.spectra import Stft
from daisy_jax.tasks.task import Examples, Measure, Measured, Task, TaskSettings, part_of, the_one

CHOICES = {
    "activation": ("relu", "sigmoid"),
    "target": ("magnitude", "phase"),
    "scale": ("linear", "log1p"),
    "distance": ("squared", "absolute"),
}
"""Of some settings, by name."""


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """Size of the head, its spectra and its loss."""

    units: int
    """Of each direction."""
    layers: int
    dropout: float
    """Behind each BLSTM layer, in training."""
    stft: Stft
    activation: str
    """What makes masks out of the last layer's outputs, as `CHOICES` has it."""
    target: str
    """Magnitude of the source's spectrum, or the part of it that is in phase with the input's,
    where that is positive (NPSM)."""
    scale: str
    """In what magnitudes of input and source are given; masks apply to them there, in the loss and
    when audio is made."""
    distance: str

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                wrong = f"{name} is {getattr(self, name)!r}"
                raise InputError(f"{wrong}; it must be {' or '.join(choices)}")
        if audio.FRAME_HOP % self.stft.hop:
            raise InputError(
                f"the spectrum's hop is {self.stft.hop}; it must divide {audio.FRAME_HOP}, the "
                "samples between two frames of HuBERT"
            )


class MaskHead(nnx.Module):
    """BLSTM layers, linear to one mask a source."""

    def __init__(self, dim: int, sources: int, settings: MaskSettings, *, rngs: nnx.Rngs):
        self.lstm = BidirectionalLstm(
            dim, settings.units, settings.layers, settings.dropout, rngs=rngs
        )
        self.output = nnx.Linear(2 * settings.units, sources * settings.stft.bins, rngs=rngs)
        self.settings = settings

    def __call__(
        self,
        features: Features,
        num_frames: Counts,
        lengths: Counts,
        steps: int,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch sources {steps} bins"]:
        """Masks on the input's spectrum of so many steps; `key` is of dropout, in training.

        A centred spectrum has a frame or two more than HuBERT; their features are zero.
        """
        valid = valid_positions(features.shape[1], num_frames)
        features = jnp.where(valid[..., None], features, 0)
        features = jnp.repeat(features, audio.FRAME_HOP // self.settings.stft.hop, axis=1)
        missing = max(steps - features.shape[1], 0)
        features = jnp.pad(features, ((0, 0), (0, missing), (0, 0)))[:, :steps]
        mask = valid_positions(steps, self.settings.stft.frames(lengths))
        hidden = self.lstm(features, mask, key)
        if key is not None:
            hidden = self.lstm.drop(hidden, jax.random.fold_in(key, 0))
        scores = self.output(hidden)
        scores = scores.reshape(*scores.shape[:2], -1, self.settings.stft.bins)
        activation = jax.nn.relu if self.settings.activation == "relu" else jax.nn.sigmoid
        return jnp.moveaxis(activation(scores), 2, 1)


def mask_loss(
    head: MaskHead,
    features: Features,
    num_frames: Counts,
    mixture: Float[Array, "batch samples"],
    sources: Float[Array, "batch sources samples"],
    lengths: Counts,
    key: Key[Array, ""] | None,
) -> Float[Array, ""]:
    """Distance between masked and true magnitudes, over the best assignment of the sources.

    Rows of no `lengths`, samples, do not count.

    Returns:
      float32: the mean over utterances of each one's mean over sources and frames, summed over
      bins.

    Source: utterance-level permutation invariant training, Kolbaek et al. 2017; the scale, which
    decides what clipping does, is s3prl's.
    """
    settings, batch = head.settings, len(mixture)
    spectrum = settings.stft.forward(mixture, lengths)
    flat = sources.reshape(-1, sources.shape[-1])
    true = settings.stft.forward(flat, jnp.repeat(lengths, sources.shape[1]))
    true = true.reshape(batch, -1, *spectrum.shape[1:])
    magnitude = jnp.abs(spectrum)
    if settings.target == "phase":
        # |S| cos(phase of S - phase of Y), without a quotient for silence's sake
        aligned = jnp.real(true * jnp.conj(spectrum)[:, None])
        target = jnp.maximum(aligned, 0) / jnp.maximum(magnitude, 1e-8)[:, None]
    else:
        target = jnp.abs(true)
    if settings.scale == "log1p":
        magnitude, target = jnp.log1p(magnitude), jnp.log1p(target)
    masks = head(features, num_frames, lengths, spectrum.shape[1], key)
    estimate = masks * magnitude[:, None]
    # Of each estimate (second axis) to each target (third): [batch, sources, sources]
    difference = estimate[:, :, None] - target[:, None]
    distance = difference**2 if settings.distance == "squared" else jnp.abs(difference)
    frames = settings.stft.frames(lengths)
    inside = valid_positions(spectrum.shape[1], frames)[:, None, None, :, None]
    total = jnp.sum(jnp.where(inside, distance, 0), axis=(-2, -1))
    means = total / frames.astype(jnp.float32)[:, None, None]
    return utterance_mean(-best_permutation(-means)[0], lengths > 0)


def separate(
    head: MaskHead,
    features: Features,
    num_frames: Counts,
    mixture: Float[Array, "batch samples"],
    lengths: Counts,
) -> Float[Array, "batch sources samples"]:
    """The sources' waveforms, float32, with the input's phase.

    A mask of log(1 + magnitude) is taken back to magnitudes, as MiniSUPERB does:
    exp(mask log(1 + magnitude)) - 1.
    """
    stft = head.settings.stft
    spectrum = stft.forward(mixture, lengths)
    masks = head(features, num_frames, lengths, spectrum.shape[1])
    batch, sources = masks.shape[:2]
    magnitude = jnp.abs(spectrum)[:, None]
    if head.settings.scale == "log1p":
        # To a share of the magnitude itself; where there is none, there is no phase either.
        estimate = jnp.expm1(masks * jnp.log1p(magnitude))
        masks = estimate / jnp.maximum(magnitude, 1e-8)
    masked = (masks.astype(spectrum.dtype) * spectrum[:, None]).reshape(
        batch * sources, *spectrum.shape[1:]
    )
    waveforms = stft.inverse(masked, jnp.repeat(lengths, sources), mixture.shape[1])
    return waveforms.reshape(batch, sources, -1)


class _Masks(Task[MaskHead]):
    """What enhancement and separation share: a mask a source, on the input's spectrum."""

    sources: ClassVar[int]

    def __init__(self, settings: TaskSettings):
        super().__init__(settings)
        head: dict[str, Any] = settings.head | {"stft": Stft(**settings.head["stft"])}
        self._head = MaskSettings(**head)

    def head(self, dim: int, classes: tuple[str, ...], *, rngs: nnx.Rngs) -> MaskHead:
        """As for every `Task`."""
        return MaskHead(dim, self.sources, self._head, rngs=rngs)

    def targets(self, examples, crops, rows, width):
        """As for every `Task`."""
        crops = crops[rows]
        mixture = np.zeros((len(crops), width), np.float32)
        sources = np.zeros((len(crops), self.sources, width), np.float32)
        samples = np.zeros(len(crops), np.int32)
        for row, crop in enumerate(crops):
            read = _read(examples, crop) if crop.samples else None
            if read is not None:
                mixture[row, : crop.samples], sources[row, :, : crop.samples] = read
                samples[row] = crop.samples
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

    def measure(self, examples, index, output):
        """As for every `Task`; nothing is defined for what cannot be read."""
        read = _read(examples, Crop(index, 0, int(examples.corpus.lengths[index])))
        if read is None:
            return Measured(dict.fromkeys(self.measures, (np.nan, np.nan)))
        return Measured(self.compared(output, *read))

    def compared(
        self,
        output: Float[np.ndarray, "sources samples"],
        mixture: Float[np.ndarray, " samples"],
        sources: Float[np.ndarray, "sources samples"],
    ) -> dict[str, tuple[float, float]]:
        """Totals and weights of the measures, of estimates against the sources of a mixture."""
        raise NotImplementedError


def _read(
    examples: Examples, crop: Crop
) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, "sources samples"]] | None:
    """Mixture and sources of a crop; None if they cannot be read, which is said."""
    part = (crop.index, crop.start, crop.samples)
    try:
        return examples.corpus.read(*part), examples.targets.read_sources(*part)
    except Exception as error:
        leave_out_item(examples.corpus.names[crop.index], error)
        return None


class Enhancement(_Masks):
    """One source, the clean recording."""

    name = "se"
    title = "Speech enhancement"
    whole = (10_000, 824)  # of the training set at least so many
    measures: ClassVar = {
        "pesq": Measure("PESQ", "", higher_is_better=True, bounds=(LOWEST_PESQ, HIGHEST_PESQ)),
        "stoi": Measure("STOI", "%", higher_is_better=True, scale=100, bounds=(0, 1)),
    }
    sources = 1

    def open(self, folder: str, part: str) -> Examples:
        """As for every `Task`."""
        name = the_one(getattr(self.settings, part), f"{self.name}, {part}")
        held_out = self.settings.dev_speakers
        chosen = held_out if part == "dev" else ()
        without = held_out if part == "train" else ()
        recordings = open_voicebank(folder, name, chosen, without)
        return Examples(recordings.corpus, recordings)

    def compared(self, output, mixture, sources):
        """As for all masks."""
        return {
            "pesq": (wideband_pesq(sources[0], output[0]), 1.0),
            "stoi": (short_time_intelligibility(sources[0], output[0]), 1.0),
        }

    def measure_beside(self, examples, index, output, processes):
        """As for every `Task`: PESQ takes a second for 44 s of audio."""
        read = _read(examples, Crop(index, 0, int(examples.corpus.lengths[index])))
        if read is None:
            return lambda: Measured(dict.fromkeys(self.measures, (np.nan, np.nan)))
        say_if_no_pesq()
        values = processes.begin(self.compared, output, *read)
        return lambda: Measured(values())

    def unprocessed(self, examples, index):
        """As for every `Task`."""
        read = _read(examples, Crop(index, 0, int(examples.corpus.lengths[index])))
        return None if read is None else read[0][None]


class Separation(_Masks):
    """Two sources, the speakers."""

    name = "ss"
    title = "Speech separation"
    whole = (13_900, 3_000)
    measures: ClassVar = {
        "si_sdri": Measure("SI-SDRi", "dB", higher_is_better=True, bounds=(0, 20))
    }
    sources = 2

    def open(self, folder: str, part: str) -> Examples:
        """As for every `Task`."""
        mixtures = open_libri2mix(
            folder, the_one(getattr(self.settings, part), f"{self.name}, {part}")
        )
        examples = Examples(mixtures.corpus, mixtures)
        count, limit = len(mixtures.corpus.names), self.settings.dev_utterances
        if part == "dev" and 0 < limit < count:
            order = np.random.default_rng(0).permutation(count)
            examples = part_of(examples, np.sort(order[:limit]))
        return examples

    def compared(self, output, mixture, sources):
        """As for all masks."""
        improvement, _ = si_sdr_improvement(output, sources, mixture)
        return {"si_sdri": (improvement, 1.0)}
