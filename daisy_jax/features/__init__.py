"""The model over many recordings, and the one home of stored arrays."""
