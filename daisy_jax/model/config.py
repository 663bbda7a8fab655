"""The architecture of a HuBERT model, as plain data that fits in a JSON file."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from daisy_jax.errors import InputError

TRUNK_SIZES = (
    *("num_layers", "dim", "ffn_dim", "num_heads"),
    *("conv_dim", "pos_conv_kernel", "pos_conv_groups"),
)
OPTIONAL_SIZES = ("num_clusters", "head_dim", "num_classes")
MOST = 1_000_000
SWITCHES = ("conv_bias", "norm_first", "normalize_input")
CHOICES = {
    "conv_norm": ("group", "layer"),
    "tap": ("block", "ffn"),
    "item0": ("input", "projection"),
}
LATER = ("normalize_epsilon",)
"""Fields that model folders of before do not have."""


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """Shapes and variants of one model. The defaults are HuBERT Base without head or branches.

    Source: fairseq's `hubert_{base,large,xlarge}` pretraining configurations.
    """

    num_layers: int = 12
    """L, transformer layers."""
    dim: int = 768
    """Width of the transformer."""
    ffn_dim: int = 3072
    """Inner width of the feed-forward networks."""
    num_heads: int = 12
    """Attention heads; divides `dim`."""
    conv_dim: int = 512
    """Channels of the seven convolutions of the front end."""
    conv_norm: Literal["group", "layer"] = "group"
    """"group": GroupNorm over time after the first convolution; "layer": LayerNorm after each."""
    conv_bias: bool = False
    """Whether the convolutions of the front end have a bias."""
    pos_conv_kernel: int = 128
    """Taps (frames) of the positional convolution."""
    pos_conv_groups: int = 16
    """Channel groups of the positional convolution; divides `dim`."""
    norm_first: bool = False
    """False: post-LN blocks (Base). True: pre-LN blocks with a final LayerNorm (Large, XLarge)."""
    normalize_input: bool = False
    """Whether each waveform is brought to zero mean and unit variance first."""
    normalize_epsilon: float = 1e-5
    """What is added to that variance: 1e-5 in fairseq, 1e-7 in transformers' feature extractor.
    They differ where recordings are very quiet."""
    num_clusters: int = 0
    """Frame labels of HuBERT's own prediction head; 0: the model has no head."""
    head_dim: int = 256
    """Width of the space in which that head compares frames with label embeddings."""
    num_classes: int = 0
    """C, classes of the early-exit branches; 0: the model has no branches."""
    tap: Literal["block", "ffn"] = "block"
    """What branches and `pooled` look at: block outputs (the paper) or feed-forward outputs."""
    item0: Literal["input", "projection"] = "input"
    """Item 0 of `pooled`: the transformer's input, or the projected front-end features."""

    def __post_init__(self) -> None:
        for name in TRUNK_SIZES + OPTIONAL_SIZES:
            value, least = getattr(self, name), 1 if name in TRUNK_SIZES else 0
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= MOST:
                raise InputError(
                    f"config {name} is {value!r}; it must be a whole number of at least {least} "
                    f"and at most {MOST}"
                )
        if self.num_clusters and not self.head_dim:
            raise InputError("config head_dim is 0; a prediction head needs at least 1")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"config {name} is {getattr(self, name)!r}; wanted true or false")
        epsilon = self.normalize_epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise InputError(
                f"config normalize_epsilon is {epsilon!r}; wanted a number between 0 and 1"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"config {name} is {getattr(self, name)!r}; it must be one of {choices}"
                )
        for name in ("num_heads", "pos_conv_groups"):
            if self.dim % getattr(self, name):
                raise InputError(
                    f"config {name} is {getattr(self, name)}; it must divide dim = {self.dim}"
                )

    @classmethod
    def base(cls, **changes: int | str) -> "HubertConfig":
        """HuBERT Base: 12 post-LN layers of width 768. `changes` override single fields."""
        return dataclasses.replace(cls(), **changes)

    @classmethod
    def large(cls, **changes: int | str) -> "HubertConfig":
        """HuBERT Large: 24 pre-LN layers of width 1024. `changes` override single fields."""
        return dataclasses.replace(_LARGE, **changes)

    @classmethod
    def xlarge(cls, **changes: int | str) -> "HubertConfig":
        """HuBERT XLarge: 48 pre-LN layers of width 1280. `changes` override single fields."""
        return dataclasses.replace(_XLARGE, **changes)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> "HubertConfig":
        """The inverse of `dataclasses.asdict`; unknown and missing fields are an error.

        Fields that older versions did not write have their default.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {name: getattr(cls, name) for name in LATER} | dict(fields)
        if known != set(fields):
            unknown, missing = sorted(set(fields) - known), sorted(known - set(fields))
            raise InputError(f"config has unknown fields {unknown} and lacks the fields {missing}")
        return dataclasses.replace(cls(), **fields)


_LARGE = HubertConfig(
    num_layers=24,
    dim=1024,
    ffn_dim=4096,
    num_heads=16,
    conv_norm="layer",
    norm_first=True,
    normalize_input=True,
    head_dim=768,
)
_XLARGE = dataclasses.replace(_LARGE, num_layers=48, dim=1280, ffn_dim=5120, head_dim=1024)
