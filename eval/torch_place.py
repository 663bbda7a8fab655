"""Where torch computes, for scripts that time it beside JAX."""


def torch_place() -> str | None:
    """The device for torch: "cuda" where JAX has a GPU and torch can use it, else "cpu".

    None where torch is not installed. Torch's float32 is float32 afterwards, in its convolutions
    and LSTMs, too, where it would take TF32.
    """
    import jax

    try:
        import torch
    except ImportError:
        return None
    torch.backends.cudnn.allow_tf32 = False
    # A torch without CUDA is not rare beside a JAX with it: both in one environment is gigabytes.
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
