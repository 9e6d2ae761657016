"""The one exception that users are meant to read."""

LONGEST = 590  # characters: names and values out of files have no bound of their own


class PidistillError(Exception):
    """Wrong input or state. The message is one printable line: the value, what was expected, and the fix."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else "?" for c in message)
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST - 205]} ... {line[-200:]}")


class CannotWrite(PidistillError):
    """A file or folder of ours: a full disk, no permission. A run goes on without it."""


def shorten_error(error: Exception) -> str:
    """What went wrong, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
