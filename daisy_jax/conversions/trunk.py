"""How the formats name HuBERT's trunk, and what the shapes of its tensors tell about it."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from daisy_jax.audio import CONV_KERNELS
from daisy_jax.conversions.rules import TRANSPOSED, WEIGHT_NORM, Rule, Transform
from daisy_jax.errors import InputError
from daisy_jax.model.config import HubertConfig

WEIGHT_NORM_NAMES = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)
"""Gain and direction, as newer and as older versions of torch name them."""
NUM_HEADS = {768: 12, 1024: 16, 1280: 16}  # of Base, Large and XLarge, by width
OTHER_MODELS = {
    "grep_linear": "WavLM",
    "relative_attention_bias": "WavLM",
    "gru_rel_pos": "WavLM",
    "rel_attn_embed": "WavLM",
    "quantizer.": "wav2vec 2.0",
    "project_q.": "wav2vec 2.0",
    "project_hid.": "wav2vec 2.0",
    "pos_conv.0.0.": "data2vec",
    "pos_conv_embed.layers.": "data2vec",
    "regression_head": "data2vec",
    "_ema": "data2vec",
    "conv_module.": "a Conformer",
    "pos_conv.0.running_mean": "a HuBERT with conv_pos_batch_norm",
    "pos_conv_embed.batch_norm.": "a HuBERT with conv_pos_batch_norm",
    "adapter_layer.": "a HuBERT with attention adapters",
}
"""Parts of tensor names that only other models have, though they look like a HuBERT otherwise."""


class TrunkNames(NamedTuple):
    """The modules of the trunk in one format. "{}" stands for the convolution or the layer."""

    convolution: str
    group_norm: str
    layer_norm: str
    """Of a convolution."""
    feature_norm: str
    feature_projection: str
    position: str
    encoder_norm: str
    layer: str
    attention: str
    """Inside of a layer, as all that follow; "{}" stands for q, k, v, out."""
    attention_norm: str
    up: str
    down: str
    ffn_norm: str


TRANSFORMERS = TrunkNames(
    convolution="feature_extractor.conv_layers.{}.conv",
    group_norm="feature_extractor.conv_layers.{}.layer_norm",
    layer_norm="feature_extractor.conv_layers.{}.layer_norm",
    feature_norm="feature_projection.layer_norm",
    feature_projection="feature_projection.projection",
    position="encoder.pos_conv_embed.conv",
    encoder_norm="encoder.layer_norm",
    layer="encoder.layers.{}",
    attention="attention.{}_proj",
    attention_norm="layer_norm",
    up="feed_forward.intermediate_dense",
    down="feed_forward.output_dense",
    ffn_norm="final_layer_norm",
)
TORCHAUDIO = TRANSFORMERS._replace(
    feature_norm="encoder.feature_projection.layer_norm",
    feature_projection="encoder.feature_projection.projection",
    position="encoder.transformer.pos_conv_embed.conv",
    encoder_norm="encoder.transformer.layer_norm",
    layer="encoder.transformer.layers.{}",
)
FAIRSEQ = TrunkNames(
    convolution="feature_extractor.conv_layers.{}.0",
    group_norm="feature_extractor.conv_layers.{}.2",
    layer_norm="feature_extractor.conv_layers.{}.2.1",
    feature_norm="layer_norm",
    feature_projection="post_extract_proj",
    position="encoder.pos_conv.0",
    encoder_norm="encoder.layer_norm",
    layer="encoder.layers.{}",
    attention="self_attn.{}_proj",
    attention_norm="self_attn_layer_norm",
    up="fc1",
    down="fc2",
    ffn_norm="final_layer_norm",
)


def find_prefix(names: Collection[str], ending: str, prefixes: tuple[str, ...]) -> str | None:
    """The first of `prefixes` with which `ending` is one of the names; None: none is."""
    return next((prefix for prefix in prefixes if prefix + ending in names), None)


def refuse_other_models(names: Collection[str]) -> None:
    """Raises an InputError that says which other model these tensors make, if any."""
    for part, model in OTHER_MODELS.items():
        example = next((name for name in names if part in name), None)
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
    names: TrunkNames,
    tensors: Collection[str],
    mask_embedding: str,
    prefix: str = "",
) -> list[Rule]:
    """The rules of the trunk.

    Args:
      config: of the model to make.
      names: of the format.
      tensors: names of the checkpoint's tensors, which decide between spellings.
      mask_embedding: name of the mask embedding, which may be absent.
      prefix: what stands before every name of the trunk.
    """
    rules = []

    def add(target: str, *sources: str, transform: Transform = TRANSPOSED) -> None:
        rules.append(Rule(target, tuple(prefix + source for source in sources), transform))

    def affine(target: str, *modules: str, weight: str = "kernel", bias: bool = True) -> None:
        add(f"{target}.{weight}", *(f"{module}.weight" for module in modules))
        if bias:
            add(f"{target}.bias", *(f"{module}.bias" for module in modules))

    def norm(target: str, module: str) -> None:
        affine(target, module, weight="scale")

    for i in range(len(CONV_KERNELS)):
        convolution = names.convolution.format(i)
        affine(f"feature_encoder.convolutions.{i}", convolution, bias=config.conv_bias)
        if config.conv_norm == "layer":
            norm(f"feature_encoder.norms.{i}", names.layer_norm.format(i))
        elif i == 0:
            norm("feature_encoder.group_norm", names.group_norm.format(i))
    norm("feature_norm", names.feature_norm)
    affine("feature_projection", names.feature_projection)
    rules.append(Rule("mask_embedding", (mask_embedding,) if mask_embedding in tensors else ()))
    pair = _weight_norm_names(names, tensors, prefix)
    add("positional_convolution.convolution.kernel", *pair, transform=WEIGHT_NORM)
    add("positional_convolution.convolution.bias", f"{names.position}.bias")
    norm("encoder_norm", names.encoder_norm)

    def inside(module: str) -> str:
        return f"{names.layer}.{module}"

    affine("layers.attention.qkv", *(inside(names.attention.format(part)) for part in "qkv"))
    affine("layers.attention.out", inside(names.attention.format("out")))
    norm("layers.attention_norm", inside(names.attention_norm))
    affine("layers.ffn.up", inside(names.up))
    affine("layers.ffn.down", inside(names.down))
    norm("layers.ffn_norm", inside(names.ffn_norm))
    return rules


def _weight_norm_names(
    names: TrunkNames, tensors: Collection[str], prefix: str = ""
) -> tuple[str, str]:
    """Names of gain and direction of the positional convolution, in the spelling that is there."""
    spellings = [
        (f"{names.position}.{gain}", f"{names.position}.{direction}")
        for gain, direction in WEIGHT_NORM_NAMES
    ]
    return next((pair for pair in spellings if prefix + pair[1] in tensors), spellings[0])


def infer_config(
    tensors: Mapping[str, np.ndarray], names: TrunkNames, prefix: str = "", num_heads: int = 0
) -> tuple[HubertConfig, tuple[str, ...]]:
    """The config of a checkpoint that has none, from the shapes of its tensors.

    Shapes tell neither the number of heads, nor the order of norms and blocks, nor the input
    normalisation: HuBERT's three published sizes are taken as the model.

    Returns:
      the config and notes on what had to be assumed.

    Raises:
      InputError: a tensor that would tell is missing, or the number of heads is unknown.
    """

    def shape(name: str) -> tuple[int, ...]:
        tensor = tensors.get(prefix + name)
        if tensor is None:
            raise InputError(f"no tensor {prefix + name}, so this is not a whole HuBERT")
        return tensor.shape

    def size(name: str, axis: int, rank: int) -> int:
        if len(shape(name)) != rank:
            raise InputError(f"{prefix + name} has the shape {shape(name)}; wanted {rank} axes")
        return shape(name)[axis]

    convolution = names.convolution.format(0)
    direction = _weight_norm_names(names, tensors, prefix)[1]
    dim = size(f"{names.feature_projection}.weight", 0, 2)
    layers = 0
    while prefix + f"{names.layer.format(layers)}.{names.up}.weight" in tensors:
        layers += 1
    heads = num_heads or NUM_HEADS.get(dim, 0)
    if not heads:
        raise InputError(
            f"the number of attention heads of a model of width {dim} cannot be read off its "
            "tensors; give it as --num-heads"
        )
    layer_norm = prefix + names.layer_norm.format(1) + ".weight" in tensors
    config = HubertConfig(
        num_layers=layers,
        dim=dim,
        ffn_dim=size(f"{names.layer.format(0)}.{names.up}.weight", 0, 2),
        num_heads=heads,
        conv_dim=size(f"{convolution}.weight", 0, 3),
        conv_norm="layer" if layer_norm else "group",
        conv_bias=f"{prefix}{convolution}.bias" in tensors,
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
