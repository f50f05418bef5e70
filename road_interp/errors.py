"""What road-interp says when its input is wrong."""


class InputError(ValueError):
    """An input that cannot be used: the message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2.
    """
