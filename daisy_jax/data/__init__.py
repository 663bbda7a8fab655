"""Corpora, batches, noise and pretraining targets."""
