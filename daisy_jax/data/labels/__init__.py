"""Labels of frames that people or other programs made."""
