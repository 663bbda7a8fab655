"""How the formats name HuBERT's trunk, and what the shapes of its tensors tell about it."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from daisy_jax.audio import CONV_KERNELS
from daisy_jax.conversions.rules import WEIGHT_NORM, Rule
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig

CONVOLUTIONS, NORMS = "feature_encoder.convolutions", "feature_encoder.norms"
POSITION = "positional_convolution.convolution"
MODULES = {
    # of the front end, in all formats below feature_extractor.conv_layers.{}
    CONVOLUTIONS: ("conv", "0"),
    "feature_encoder.group_norm": ("layer_norm", "2"),
    NORMS: ("layer_norm", "2.1"),
    # whose paths are whole
    "feature_norm": ("feature_projection.layer_norm", "layer_norm"),
    "feature_projection": ("feature_projection.projection", "post_extract_proj"),
    POSITION: ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
    "encoder_norm": ("encoder.layer_norm", "encoder.layer_norm"),
    # of a layer, below encoder.layers.{}; "?" stands for q, k and v
    "layers.attention.qkv": ("attention.?_proj", "self_attn.?_proj"),
    "layers.attention.out": ("attention.out_proj", "self_attn.out_proj"),
    "layers.attention_norm": ("layer_norm", "self_attn_layer_norm"),
    "layers.ffn.up": ("feed_forward.intermediate_dense", "fc1"),
    "layers.ffn.down": ("feed_forward.output_dense", "fc2"),
    "layers.ffn_norm": ("final_layer_norm", "final_layer_norm"),
}
"""Modules of ours, as transformers and as fairseq call them. "{}" stands for the number of the
convolution or of the layer, from 0."""
WEIGHT_NORM_NAMES = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)
"""Gain and direction, as newer and as older versions of torch name them."""
NUM_HEADS = {768: 12, 1024: 16, 1280: 16}  # of Base, Large and XLarge, by width
OTHER_MODELS = {
    "WavLM": ("grep_linear", "relative_attention_bias", "gru_rel_pos", "rel_attn_embed"),
    "wav2vec 2.0": ("quantizer.", "project_q.", "project_hid."),
    "data2vec": ("pos_conv.0.0.", "pos_conv_embed.layers.", "regression_head", "_ema"),
    "a Conformer": ("conv_module.",),
    "a HuBERT with conv_pos_batch_norm": ("pos_conv.0.running_mean", "pos_conv_embed.batch_norm."),
    "a HuBERT with attention adapters": ("adapter_layer.",),
    "DistilHuBERT (no norm before its projection, heads that imitate layers)": ("output_layer.",),
    "the HuBERT of soft units (bshall's, in names of its own)": (
        "feature_extractor.conv0.",
        "positional_embedding.conv.",
    ),
    "ContentVec in its own format (layers that depend on a speaker; its transformers version "
    "can be converted)": ("weight_ln.", "layer_proj."),
}
"""Models that look like a HuBERT otherwise, and parts of tensor names that only they have."""


def _whole_path(ours: str, theirs: str) -> str:
    beginnings = {
        "feature_encoder": "feature_extractor.conv_layers.{}.",
        "layers": "encoder.layers.{}.",
    }
    return beginnings.get(ours.partition(".")[0], "") + theirs


TRANSFORMERS = {ours: _whole_path(ours, theirs) for ours, (theirs, _) in MODULES.items()}
FAIRSEQ = {ours: _whole_path(ours, theirs) for ours, (_, theirs) in MODULES.items()}
TORCHAUDIO = {
    ours: path.replace("encoder.", "encoder.transformer.").replace(
        "feature_projection.", "encoder.feature_projection."
    )
    for ours, path in TRANSFORMERS.items()
}
"""The whole paths of the modules in each format, by the paths of ours."""
INSIDE_TRANSFORMERS = "hubert."
INSIDE_FAIRSEQ = "w2v_encoder.w2v_model."
INSIDE_TORCHAUDIO = "wav2vec2."
"""What stands before those paths where the trunk is a part of another model of the library: with a
downstream head, fine-tuned with CTC, with the prediction head of pretraining."""


def find_prefix(names: Collection[str], ending: str, prefixes: tuple[str, ...]) -> str | None:
    """The first of `prefixes` with which `ending` is one of the names; None: none is."""
    return next((prefix for prefix in prefixes if prefix + ending in names), None)


def refuse_other_models(names: Collection[str]) -> None:
    """Raises an InputError that says which other model these tensors make, if any."""
    for model, parts in OTHER_MODELS.items():
        example = next((name for name in names if any(part in name for part in parts)), None)
        if example:
            raise InputError(
                f"this is {model}, as its tensor {example} shows; only HuBERT models can be "
                "converted, as others compute something else"
            )


def mask_embedding_note(name: str, names: Collection[str]) -> tuple[str, ...]:
    """A note for the report if the mask embedding is absent."""
    if name in names:
        return ()
    return (f"no {name} in the weights: the mask embedding, which only pretraining needs, is zero",)


def trunk_rules(
    config: HubertConfig,
    paths: Mapping[str, str],
    tensors: Collection[str],
    mask_embedding: str,
    prefix: str = "",
) -> Iterator[Rule]:
    """The rules of the trunk.

    Args:
      config: of the model to make.
      paths: of the format's modules.
      tensors: names of the checkpoint's tensors, which decide between spellings.
      mask_embedding: name of the mask embedding, which may be absent.
      prefix: what stands before every path.
    """

    def affine(ours: str, *theirs: str, bias: bool = True) -> Iterator[Rule]:
        weight = "scale" if "norm" in ours else "kernel"
        yield Rule(f"{ours}.{weight}", tuple(f"{prefix}{path}.weight" for path in theirs))
        if bias:
            yield Rule(f"{ours}.bias", tuple(f"{prefix}{path}.bias" for path in theirs))

    for i in range(len(CONV_KERNELS)):
        convolution = paths[CONVOLUTIONS].format(i)
        yield from affine(f"{CONVOLUTIONS}.{i}", convolution, bias=config.conv_bias)
        if config.conv_norm == "layer":
            yield from affine(f"{NORMS}.{i}", paths[NORMS].format(i))
        elif i == 0:
            group_norm = "feature_encoder.group_norm"
            yield from affine(group_norm, paths[group_norm].format(0))
    yield Rule("mask_embedding", (mask_embedding,) if mask_embedding in tensors else ())
    for ours, theirs in paths.items():
        if ours == POSITION:
            pair = _weight_norm_names(theirs, tensors, prefix)
            yield Rule(f"{ours}.kernel", pair, WEIGHT_NORM)
            yield Rule(f"{ours}.bias", (f"{prefix}{theirs}.bias",))
        elif "?" in theirs:
            yield from affine(ours, *(theirs.replace("?", part) for part in "qkv"))
        elif not ours.startswith("feature_encoder."):
            yield from affine(ours, theirs)


def _weight_norm_names(position: str, tensors: Collection[str], prefix: str) -> tuple[str, str]:
    """Names of gain and direction of the positional convolution, in the spelling that is there."""
    spellings = [
        (f"{prefix}{position}.{gain}", f"{prefix}{position}.{direction}")
        for gain, direction in WEIGHT_NORM_NAMES
    ]
    return next((pair for pair in spellings if pair[1] in tensors), spellings[0])


def infer_config(
    tensors: Mapping[str, np.ndarray],
    paths: Mapping[str, str],
    prefix: str = "",
    num_heads: int = 0,
) -> tuple[HubertConfig, tuple[str, ...]]:
    """The config of a checkpoint that has none, from the shapes of its tensors.

    Shapes tell neither the number of heads, nor the order of norms and blocks, nor the input
    normalisation: HuBERT's three published sizes are taken as the model.

    Returns:
      the config and notes on what had to be assumed.

    Raises:
      InputError: a tensor that would tell is missing, or the number of heads is unknown.
    """

    def size(name: str, axis: int, rank: int) -> int:
        if name not in tensors:
            raise InputError(f"no tensor {name}, so this is not a whole HuBERT")
        shape = tensors[name].shape
        if len(shape) != rank:
            raise InputError(f"{name} has the shape {shape}; wanted {rank} axes")
        return shape[axis]

    convolution = prefix + paths[CONVOLUTIONS].format(0)
    direction = _weight_norm_names(paths[POSITION], tensors, prefix)[1]
    up = f"{prefix}{paths['layers.ffn.up']}.weight"
    dim = size(f"{prefix}{paths['feature_projection']}.weight", 0, 2)
    layers = 0
    while up.format(layers) in tensors:
        layers += 1
    heads = num_heads or NUM_HEADS.get(dim, 0)
    if not heads:
        raise InputError(
            f"the number of attention heads of a model of width {dim} cannot be read off its "
            "tensors; give it as --num-heads"
        )
    layer_norm = f"{prefix}{paths[NORMS].format(1)}.weight" in tensors
    config = HubertConfig(
        num_layers=layers,
        dim=dim,
        ffn_dim=size(up.format(0), 0, 2),
        num_heads=heads,
        conv_dim=size(f"{convolution}.weight", 0, 3),
        conv_norm="layer" if layer_norm else "group",
        conv_bias=f"{convolution}.bias" in tensors,
        pos_conv_kernel=size(direction, 2, 3),
        pos_conv_groups=dim // max(1, size(direction, 1, 3)),
        norm_first=layer_norm,
        normalize_input=layer_norm,
    )
    kind, order, switch = ("layer", "pre", "on") if layer_norm else ("group", "post", "off")
    return config, (
        f"there is no config, so the architecture was read off the tensors; {heads} heads, "
        f"{order}-LN layers and input normalisation {switch} are what HuBERT models of width {dim} "
        f"with {kind} norm in the front end have",
    )
