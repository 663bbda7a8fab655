"""Options that `encode` and `extract` share: the model, and where utterances leave it."""

import contextlib
import dataclasses
import math
import os
from typing import Annotated, Literal, TypedDict

import numpy as np
import tyro
from jaxtyping import Bool

import daisy_jax
from daisy_jax import Hubert, InputError
from daisy_jax.accelerator import Accelerator, use_accelerator, use_compilation_cache
from daisy_jax.exits import ExitRule, fixed_layer, threshold_for_agreement
from daisy_jax.features.files import CONTEXT_SECONDS
from daisy_jax.reporting import printable
from daisy_jax.whole_files import cache_folder, read_json


class _Counts(TypedDict):
    """What is read of an exits file."""

    exit_counts: list[int]


SPANS = {
    "mean": daisy_jax.span_mean,
    "threshold": daisy_jax.span_threshold,
    "min-max": daisy_jax.span_min_max,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model, where utterances leave it, and where it is computed."""

    model: str = ""
    """A model folder, a checkpoint that daisy-jax convert reads, or OWNER/NAME[@REVISION] of the
    Hugging Face hub, converted once and kept; empty: the small pretrained model in the package."""
    ratio: float | None = None
    """Threshold as a share of the calibration's mid entropy, in [0, 1]; smaller: later exits."""
    threshold: float | None = None
    """Threshold in nats."""
    budget: float | None = None
    """Mean exit layer wanted; the threshold that reaches it on the calibration's utterances."""
    agreement: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Share of an utterance's frames, in (0, 1), that are to keep the last layer's label on
    average, on speech like the calibration's; the largest threshold that is certified to."""
    confidence: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """With --agreement: how sure that is to be, such as 0.9; else it holds on average over
    calibrations."""
    layer: int | None = None
    """Everybody leaves at this layer."""
    full: bool = False
    """Everybody goes through all layers."""
    span: Literal["mean", "threshold", "min-max"] | None = None
    """Allow only the layers that a downstream training used; needs --exits."""
    exits: str | None = None
    """A file with {"exit_counts": [L numbers]}: how many utterances of that training left at each
    layer."""
    max_seconds: float = 60.0
    """Longer files are errors; time and memory grow with the square of the length."""
    window: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Encode longer recordings in windows of S seconds, each with an exit of its own."""
    context: Annotated[float, tyro.conf.arg(metavar="S")] = CONTEXT_SECONDS
    """Seconds of audio that the model sees on each side of a window, beside it."""
    compilation_cache: Annotated[str, tyro.conf.arg(metavar="DIR")] = "auto"
    """Compiled programs are kept here, so that the next run need not compile; auto: in the user's
    cache folder, or where JAX_COMPILATION_CACHE_DIR says; empty: nowhere."""
    accelerator: Accelerator = "auto"
    """Where to compute."""

    def start(self) -> Hubert:
        """Chooses the device and loads the model."""
        if not self.max_seconds > 0:
            raise InputError(f"--max-seconds {self.max_seconds:g}: give seconds above 0")
        use_accelerator(self.accelerator)
        if self.compilation_cache == "auto":
            if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
                with contextlib.suppress(OSError):  # then programs are not kept
                    use_compilation_cache(str(cache_folder() / "compiled"))
        elif self.compilation_cache:
            use_compilation_cache(self.compilation_cache)
        return daisy_jax.load(self.model or None)

    @property
    def given_exits(self) -> list[str]:
        """The options that say where utterances leave, as far as they were given."""
        values = {"--ratio": self.ratio, "--threshold": self.threshold, "--budget": self.budget}
        values |= {"--agreement": self.agreement, "--layer": self.layer}
        values |= {"--full": self.full or None, "--span": self.span}
        return [name for name, value in values.items() if value is not None]

    def exit_rule(self, model: Hubert) -> ExitRule:
        """Threshold, allowed layers, and both in words.

        Raises:
          InputError: the options contradict one another, or ask for what the model does not have.
        """
        ways = [name for name in self.given_exits if name != "--span"]
        if len(ways) > 1:
            raise InputError(f"{' and '.join(ways)} exclude each other; give one of them")
        if self.confidence is not None and self.agreement is None:
            raise InputError("--confidence belongs to --agreement; give that, too")
        allowed, span = self._span(model.config.num_layers, ways)
        if self.full:
            return ExitRule("full depth", None, allowed)
        if self.layer is not None:
            if not 1 <= self.layer <= len(allowed):
                raise InputError(f"--layer {self.layer}: the model has layers 1 to {len(allowed)}")
            return fixed_layer(self.layer, len(allowed))._replace(name=f"layer {self.layer}")
        if model.branches is None:
            raise InputError(
                "this model has no branches, so no threshold can be met; train them with "
                "train/branches.py, or give --full or --layer"
            )
        if self.threshold is not None:
            if math.isnan(self.threshold):
                raise InputError("--threshold is nan; it must be a number of nats")
            words = f"threshold {self.threshold:.4g} nats{span}"
            return ExitRule(words, self.threshold, allowed)
        calibration = model.calibration
        if calibration is None:
            raise InputError(
                "this model has no calibration; run daisy-jax calibrate, or give --threshold, "
                "--layer or --full"
            )
        if self.budget is not None:
            if not 1 <= self.budget <= len(allowed):
                raise InputError(f"--budget {self.budget:g}: give 1 to {len(allowed)} layers")
            threshold = daisy_jax.threshold_for_budget(calibration.entropy, self.budget, allowed)
            way = f"budget {self.budget:g} layers"
        elif self.agreement is not None:
            threshold = threshold_for_agreement(
                calibration, self.agreement, self.confidence, allowed
            )
            sure = "" if self.confidence is None else f" with confidence {self.confidence:g}"
            way = f"agreement {self.agreement:g}{sure}"
        else:
            ratio = 0.7 if self.ratio is None else self.ratio
            threshold = float(daisy_jax.exit_threshold(calibration.mean_entropy, ratio))
            way = f"ratio {ratio:g}"
        source = f" on {printable(calibration.dataset)}" if calibration.dataset else ""
        words = f"threshold {threshold:.4g} nats ({way}{source}){span}"
        return ExitRule(words, threshold, allowed)

    def _span(self, num_layers: int, ways: list[str]) -> tuple[Bool[np.ndarray, " layers"], str]:
        """Allowed layers, and the span in words."""
        if (self.span is None) != (self.exits is None):
            raise InputError("--span and --exits belong together; give both or none")
        if self.span is None or self.exits is None:
            return np.ones(num_layers, bool), ""
        if ways in (["--layer"], ["--full"]):
            raise InputError(f"--span and {ways[0]} exclude each other; give one of them")
        remedy = 'give an exits file, {"exit_counts": [...]}, such as exits.json of a task head'
        counts = np.asarray(read_json(self.exits, _Counts, remedy)["exit_counts"])
        if counts.shape != (num_layers,):
            raise InputError(
                f"{self.exits}: {counts.size} counts for a model of {num_layers} layers"
            )
        allowed = SPANS[self.span](counts)
        layers = ", ".join(map(str, np.flatnonzero(allowed) + 1))
        return allowed, f", span {self.span} (layers {layers})"
