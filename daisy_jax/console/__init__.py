"""What a person sees: errors in one line, signals, progress, the choice of a device."""
