"""The `daisy-jax` program, one file a command."""
