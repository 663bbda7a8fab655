"""From checkpoints of PyTorch libraries to model folders of ours. One reader for each format."""
