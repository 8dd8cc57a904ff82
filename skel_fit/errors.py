"""Errors that the mathematics package raises."""


class ModelFileError(ValueError):
    """A body-model file is missing, damaged, hostile or not what it should be.

    The message is one line: the file, the key, what was expected, what was found, what to do.
    """
