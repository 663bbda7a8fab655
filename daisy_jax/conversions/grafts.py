"""Puts one checkpoint's prediction head or branches onto another checkpoint's trunk."""

import dataclasses

import numpy as np

from daisy_jax.conversions.rules import Converted
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig

FIELDS = {"head": ("num_clusters", "head_dim"), "branches": ("num_classes", "tap", "item0")}
"""The fields of a config that belong to a part; the others are the trunk's."""
FREE_FIELDS = ("normalize_input", "normalize_epsilon", "conv_bias")
"""Fields of the trunk that may differ. Absent biases are zero."""
UNTRAINED = "mask_embedding"  # absent from some formats, without effect on features
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
"""Largest relative error of a number that was rounded to a type; float32 is exact."""
FOLDED = "positional_convolution.convolution.kernel"
"""Made of gain, direction and norm, so that several roundings meet, and of what size the smallest
numbers were is not known: they are taken in relation to the kernel's own size."""


def graft(part: str, donor: Converted, onto: Converted) -> Converted:
    """The checkpoint `onto` with a part, "head" or "branches", of `donor`.

    Nothing else of the donor is kept, so that the whole of a large one need not stay in memory.

    Raises:
      InputError: `donor` has no such part, `onto` has one already, or their trunks differ by more
        than the rounding of the types they are stored in.
    """
    here, there = onto.source.files[0], donor.source.files[0]
    if not donor.part(part):
        raise InputError(f"{there}: has no {part}; give a checkpoint that has")
    if onto.part(part):
        raise InputError(f"{here}: has {part} of its own; leave --{part}-from out")
    _check_trunks(donor, onto)
    fields = {name: getattr(donor.config, name) for name in FIELDS[part]}
    notes = [f"{part}: from {there}"]
    if donor.config.normalize_input != onto.config.normalize_input:
        on, off = (there, here) if donor.config.normalize_input else (here, there)
        notes.append(
            f"warning: {on} normalises its input and {off} does not, so the {part} will see "
            f"features that differ from those they were trained on; the model does as {here} says"
        )
    return onto._replace(
        source=onto.source._replace(
            notes=(*onto.source.notes, *notes),
            files=(*onto.source.files, *donor.source.files),
        ),
        config=dataclasses.replace(onto.config, **fields),
        parameters=onto.parameters | donor.part(part),
    )


def _check_trunks(donor: Converted, onto: Converted) -> None:
    here, there = onto.source.files[0], donor.source.files[0]
    free = (*FREE_FIELDS, *FIELDS["head"], *FIELDS["branches"])
    for field in dataclasses.fields(HubertConfig):
        ours, theirs = getattr(onto.config, field.name), getattr(donor.config, field.name)
        if field.name not in free and ours != theirs:
            raise InputError(
                f"{there}: another architecture than {here}: {field.name} is {theirs!r} instead "
                f"of {ours!r}"
            )
    for name in onto.parameters | donor.parameters:
        if name.startswith(("head.", "branches.", UNTRAINED)):
            continue
        ours, theirs = onto.parameters.get(name), donor.parameters.get(name)
        first = np.zeros_like(theirs) if ours is None else ours
        second = np.zeros_like(first) if theirs is None else theirs
        dtypes = onto.stored.get(name, set()) | donor.stored.get(name, set())
        rounding = max((ROUNDING.get(dtype, 0.0) for dtype in dtypes), default=0.0)
        # Of the smallest numbers of half precision, half a step is lost whatever their size.
        allowed, least = 1.001 * rounding, 2**-24 if rounding else 0.0
        if name == FOLDED:
            allowed = 4 * max(rounding, 2**-24)
            least *= 256 * float(np.sqrt(np.mean(np.square(first, dtype=np.float64))))
        size = np.maximum(np.abs(first), np.abs(second))
        with np.errstate(over="ignore", invalid="ignore"):
            apart = np.abs(first - second) > allowed * size + least
        if np.any(apart):
            raise InputError(
                f"{there}: belongs to another trunk than {here}: {np.count_nonzero(apart)} of the "
                f"{apart.size} numbers of {name} differ by more than rounding; give the "
                "checkpoint of the same model"
            )
