"""The error that a user can mend."""


class InputError(ValueError):
    """Something that the caller gave is wrong; the message is one line for a person to read.

    It says what came, what was wanted and what to do. Command lines print it without a traceback.
    """
