"""The one exception that users are meant to read."""


class PidistillError(Exception):
    """Wrong input or state. The message is one line: the value, what was expected, and the fix."""
