"""HuBERT once more, in float64 numpy: one unpadded utterance at a time, one layer after the other.

Shares nothing with the library but the parameters' names, and where they are.
"""

import numpy as np
from flax import nnx
from scipy.special import erf, log_softmax, softmax

from daisy_jax.model.layer_arrays import stacked

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def parameters(model) -> dict:
    """Flat names to float64 arrays."""
    model = model.replace(layers=stacked(model.layers))
    return {
        ".".join(map(str, path)): np.asarray(variable[...], np.float64)
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def plain_norm(x, axis=-1):
    deviation = x - x.mean(axis, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(axis, keepdims=True) + 1e-5)


def convolve(x, kernel, stride=1, groups=1):
    """x [time, in], kernel [taps, in / groups, out] -> [(time - taps) // stride + 1, out]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, len(kernel), axis=0)[::stride]
    outputs = [
        np.einsum("tik,kio->to", part, weight)
        for part, weight in zip(
            np.split(windows, groups, axis=1), np.split(kernel, groups, axis=2), strict=True
        )
    ]
    return np.concatenate(outputs, axis=-1)


class Reference:
    """All hidden states of one model, given its configuration and parameters."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def norm(self, name, x):
        return plain_norm(x) * self.weights[name + ".scale"] + self.weights[name + ".bias"]

    def linear(self, name, x):
        return x @ self.weights[name + ".kernel"] + self.weights[name + ".bias"]

    def embed(self, waveform):
        """waveform [samples] -> projected features and the first layer's input [frames, dim]."""
        config, weights = self.config, self.weights
        x = np.asarray(waveform, np.float64)[:, None]
        if config.normalize_input:
            x = plain_norm(x, axis=0)
        for i, stride in enumerate(STRIDES):
            name = f"feature_encoder.convolutions.{i}"
            x = convolve(x, weights[name + ".kernel"], stride)
            if config.conv_bias:
                x = x + weights[name + ".bias"]
            if config.conv_norm == "layer":
                x = self.norm(f"feature_encoder.norms.{i}", x)
            elif i == 0:
                name = "feature_encoder.group_norm"
                x = plain_norm(x, axis=0) * weights[name + ".scale"] + weights[name + ".bias"]
            x = gelu(x)
        projected = self.linear("feature_projection", self.norm("feature_norm", x))
        taps, name = config.pos_conv_kernel, "positional_convolution.convolution"
        padded = np.pad(projected, [(taps // 2, taps - 1 - taps // 2), (0, 0)])
        position = convolve(padded, weights[name + ".kernel"], groups=config.pos_conv_groups)
        hidden = projected + gelu(position + weights[name + ".bias"])
        if not config.norm_first:
            hidden = self.norm("encoder_norm", hidden)
        return projected, hidden

    def layer(self, number, x):
        """Block `number`, from 1: its output and its feed-forward network's output."""
        weights = {
            name.removeprefix("layers."): value[number - 1]
            for name, value in self.weights.items()
            if name.startswith("layers.")
        }
        layer = Reference(self.config, weights)
        if self.config.norm_first:
            x = x + layer.attention(layer.norm("attention_norm", x))
            ffn = layer.ffn(layer.norm("ffn_norm", x))
            return x + ffn, ffn
        x = layer.norm("attention_norm", x + layer.attention(x))
        ffn = layer.ffn(x)
        return layer.norm("ffn_norm", x + ffn), ffn

    def attention(self, x):
        query, key, value = np.split(self.linear("attention.qkv", x), 3, axis=-1)
        heads = self.config.num_heads
        query, key, value = (
            part.reshape(len(x), heads, -1).swapaxes(0, 1) for part in (query, key, value)
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        attended = (softmax(scores, axis=-1) @ value).swapaxes(0, 1).reshape(len(x), -1)
        return self.linear("attention.out", attended)

    def ffn(self, x):
        return self.linear("ffn.down", gelu(self.linear("ffn.up", x)))

    def entropy(self, number, tapped):
        """Mean entropy of branch `number`, from 1, over frames: eq. (2)."""
        kernel = self.weights["branches.kernel"][number - 1]
        log_probs = log_softmax(tapped @ kernel + self.weights["branches.bias"][number - 1], axis=1)
        return -np.sum(np.exp(log_probs) * log_probs, axis=1).mean()

    def everything(self, waveform):
        """projected, blocks [L+1, frames, dim] from the first layer's input, taps [L, ...]."""
        projected, hidden = self.embed(waveform)
        blocks, taps = [hidden], []
        for number in range(1, self.config.num_layers + 1):
            hidden, ffn = self.layer(number, hidden)
            blocks.append(hidden)
            taps.append(ffn if self.config.tap == "ffn" else hidden)
        return projected, np.stack(blocks), np.stack(taps)

    def pooled(self, item0, taps, layer_weights):
        """Eq. (4): taps [exit, frames, dim] up to the exit, scores [L+1]."""
        scores = np.asarray(layer_weights, np.float64)[: len(taps) + 1]
        items = np.concatenate([item0[None], taps])
        if np.all(np.isneginf(scores)):
            return np.zeros_like(item0)
        return np.einsum("l,ltd->td", softmax(scores), plain_norm(items))

    def encode(self, waveform, threshold=None, allowed=None, layer_weights=None):
        """One utterance, a dictionary with the fields of `Encoded` where they differ from padding.

        `threshold` None means full depth; entropies are then not evaluated.
        """
        layers = self.config.num_layers
        allowed = np.ones(layers, bool) if allowed is None else np.asarray(allowed)
        deepest = int(np.flatnonzero(allowed)[-1]) + 1
        projected, hidden = self.embed(waveform)
        blocks, taps, entropy, fired = [hidden], [], np.full(layers, np.inf), False
        for number in range(1, deepest + 1):
            hidden, ffn = self.layer(number, hidden)
            blocks.append(hidden)
            taps.append(ffn if self.config.tap == "ffn" else hidden)
            if threshold is not None and allowed[number - 1]:
                entropy[number - 1] = self.entropy(number, taps[-1])
                fired = entropy[number - 1] < threshold
            if fired:
                break
        result = {
            "last_hidden": hidden,
            "exit_layer": len(taps),
            "forced": not fired,
            "entropy": entropy,
            "hidden_states": np.stack(blocks),
        }
        if layer_weights is not None:
            item0 = projected if self.config.item0 == "projection" else blocks[0]
            result["pooled"] = self.pooled(item0, np.stack(taps), layer_weights)
        return result


def reference_of(model) -> Reference:
    return Reference(model.config, parameters(model))
