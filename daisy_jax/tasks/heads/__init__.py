"""Downstream heads: modules and losses, from pooled features to what a task wants."""
