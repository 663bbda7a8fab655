"""The network; nothing above this room is needed to read it."""
