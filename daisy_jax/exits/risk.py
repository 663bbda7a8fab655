"""The cheapest threshold that is certified to lose little on new utterances of the same kind."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from daisy_jax.errors import InputError
from daisy_jax.exits.calibrated import Calibration
from daisy_jax.exits.steps import ExitSteps, exit_steps

MOST_UTTERANCES = 1 << 40
"""More than anybody will ever have: where the search for a sufficient number ends."""


def threshold_for_risk(
    entropy: Float[np.ndarray, "utterances layers"] | npt.ArrayLike,
    loss: Float[np.ndarray, "utterances layers"] | npt.ArrayLike,
    level: float | np.number,
    confidence: float | np.number | None = None,
    allowed: npt.ArrayLike | None = None,
) -> float:
    """The largest threshold, with the earliest exits, whose expected loss is certified.

    What is certified is the mean loss of new utterances that come from where the given ones come
    from: utterances have to be exchangeable, as independent recordings under one condition are.
    Pieces of one recording, or frames in the place of utterances, are not; nor are utterances that
    the model was trained on or chosen by. What is certified on clean speech is not certified under
    noise, nor one language's in another. It is a mean over utterances: nothing is promised for a
    single one. Each promise holds by itself; several at once may fail more often.

    Args:
      entropy: float [utterances, L], nats, as in `Calibration.entropy`.
      loss: float [utterances, L], in [0, 1]: what an utterance loses by leaving at each layer, such
        as the share of frames whose label differs from the last layer's.
      level: the largest expected loss wanted, in (0, 1).
      confidence: in (0, 1). The promise holds for all but a share of 1 - confidence of such
        calibrations, of which those count as kept that certify nothing (Learn then Test:
        thresholds are tested from the safest on, with Hoeffding-Bentkus p-values, up to the first
        that fails). None: it holds on average over calibrations (conformal risk control), which
        usually certifies earlier exits.
      allowed: bool [L], where an utterance may leave; None: everywhere.

    Returns:
      The threshold, nats, a float32 value; -inf: everybody runs to the deepest allowed layer.

    Raises:
      InputError: not even the deepest allowed layer can be certified: there are too few utterances,
        or they lose too much there. It says what would do. Or an argument is out of its range.

    Sources: Angelopoulos, Bates, Candes, Jordan and Lei 2021, "Learn then Test"; Bates et al. 2021,
    "Distribution-free, risk-controlling prediction sets", eq. (12); Angelopoulos et al. 2022,
    "Conformal risk control".
    """
    steps = exit_steps(entropy, allowed)
    loss = _checked_loss(loss, np.shape(entropy))[:, steps.layers - 1]
    level = _in_unit_interval(level, "level")
    sure = None if confidence is None else _in_unit_interval(confidence, "confidence")
    if sure is None:
        # The proof wants each utterance's loss to grow with the threshold: the largest so far.
        loss = _largest_so_far(loss, _leaves_there(steps))
        certified = _by_conformal_risk_control
    else:

        def certified(total, count, level):
            return p_value(total, count, level) <= 1 - sure

    # An utterance's exit moves only at a step, so that these stand for all thresholds there are.
    passes = certified(np.maximum(steps.totals(loss), 0), len(loss), level)
    if not passes[0]:
        deepest = float(np.sum(loss[:, -1]))
        raise InputError(_what_would_do(certified, deepest, len(loss), level, sure))
    first_failure = len(passes) if passes.all() else int(np.argmin(passes))
    return float(steps.thresholds[first_failure - 1])


def threshold_for_agreement(
    calibration: Calibration,
    agreement: float | np.number,
    confidence: float | np.number | None = None,
    allowed: npt.ArrayLike | None = None,
) -> float:
    """The largest threshold with which so many frames keep the last layer's label.

    Args:
      calibration: of utterances like those to come; with agreements.
      agreement: the smallest expected share of an utterance's frames whose label, by the branch of
        the layer where it leaves, is the one that the last layer's branch gives; in (0, 1).
      confidence: as of `threshold_for_risk`.
      allowed: bool [L], where an utterance may leave; None: everywhere.

    Returns:
      The threshold, nats, as of `threshold_for_risk`.

    Raises:
      InputError: the calibration has no agreements, or nothing can be certified.
    """
    if calibration.agreement is None:
        raise InputError(
            "calibration has no agreements, as it is from before they were kept; run daisy-jax "
            "calibrate again"
        )
    agreement = _in_unit_interval(agreement, "agreement")
    loss = 1 - calibration.agreement.astype(np.float64)
    return threshold_for_risk(calibration.entropy, loss, 1 - agreement, confidence, allowed)


Certified = Callable[[Float[np.ndarray, " steps"], int, float], Bool[np.ndarray, " steps"]]
"""Whether total losses of so many utterances certify a level."""


def p_value(
    total: Float[np.ndarray, " steps"], count: int, level: float
) -> Float[np.ndarray, " steps"]:
    """Hoeffding-Bentkus p-values of the hypotheses that the expected loss is above a level.

    Args:
      total: sums of `count` losses in [0, 1].
      count: utterances.
      level: in (0, 1).
    """
    from scipy.special import bdtr, rel_entr  # comes with JAX

    mean = np.minimum(total / count, level)
    divergence = rel_entr(mean, level) + rel_entr(1 - mean, 1 - level)
    # A whole number may have been rounded up a little; it must not count as the next one.
    bentkus = math.e * bdtr(np.ceil(np.round(total, 9)), count, level)
    return np.minimum(np.exp(-count * divergence), np.minimum(bentkus, 1))


def _by_conformal_risk_control(
    total: Float[np.ndarray, " steps"], count: int, level: float
) -> Bool[np.ndarray, " steps"]:
    # One more utterance, of which the worst is assumed. Totals are rounded, levels too.
    return (total + 1) / (count + 1) <= level + 1e-12


def _leaves_there(steps: ExitSteps) -> Bool[np.ndarray, "utterances allowed"]:
    """Whether there is a threshold at which an utterance leaves at an allowed layer."""
    before = np.pad(steps.lowest, ((0, 0), (1, 0)), constant_values=np.inf)
    after = np.pad(steps.lowest, ((0, 0), (0, 1)), constant_values=-np.inf)
    return after < before


def _largest_so_far(
    loss: Float[np.ndarray, "utterances allowed"], leaves: Bool[np.ndarray, "utterances allowed"]
) -> Float[np.ndarray, "utterances allowed"]:
    """The largest loss at a layer and all deeper ones at which an utterance ever leaves."""
    met = np.where(leaves, loss, 0)
    return np.maximum.accumulate(met[:, ::-1], axis=1)[:, ::-1]


def _what_would_do(
    certified: Certified, deepest: float, count: int, level: float, confidence: float | None
) -> str:
    """What is missing where not even the deepest layer is certified."""

    def passes(count: int, level: float) -> bool:
        return bool(certified(np.array([mean * count]), count, level)[0])

    mean = deepest / count
    low, high = level, 1.0  # the smallest level that would do lies between them, if there is one
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if passes(count, middle) else (middle, high)
    enough = count
    while enough < MOST_UTTERANCES and not passes(enough, level):
        enough *= 2
    fewer = enough // 2
    while enough - fewer > 1:
        middle = (fewer + enough) // 2
        fewer, enough = (fewer, middle) if passes(middle, level) else (middle, enough)
    # Rounded up, so that what is advised does.
    least = math.ceil(high * 1e4) / 1e4
    ways = [f"{enough} such utterances would do"] if enough < MOST_UTTERANCES else []
    ways += [f"a loss of at most {least:g} can be certified"] if least < 1 else []
    sure = "" if confidence is None else f" with a confidence of {confidence:g}"
    return (
        f"{count} utterances cannot certify a loss of at most {level:g}{sure}: at the deepest "
        f"allowed layer they lose {mean:.3g}; {', or '.join(ways) or 'give others'}"
    )


def _checked_loss(
    loss: npt.ArrayLike, shape: tuple[int, ...]
) -> Float[np.ndarray, "utterances layers"]:
    loss = np.asarray(loss, np.float64)
    if loss.shape != shape:
        raise InputError(f"loss has the shape {loss.shape}; it must be that of entropy, {shape}")
    if not np.all((loss >= 0) & (loss <= 1)):
        raise InputError("loss must lie between 0 and 1 everywhere; clip or scale it")
    return loss


def _in_unit_interval(value: float | np.number, name: str) -> float:
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}; it must lie between 0 and 1")
    return float(value)
