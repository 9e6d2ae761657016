"""The package raises one kind of exception that users are meant to read, in one printable line."""

LONGEST = 590  # characters: names and values out of files have no bound of their own


def to_line(text: str) -> str:
    """Make one printable line of a text: what cannot be printed in it becomes ?."""
    return "".join(c if c.isprintable() else "?" for c in text)


class PidistillError(Exception):
    """An input or a state is wrong. The message is one printable line: the value, what was expected, and the fix."""

    def __init__(self, message: str) -> None:
        line = to_line(message)
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST - 205]} ... {line[-200:]}")


class CannotWrite(PidistillError):
    """A file or folder of ours cannot be written: a full disk, no permission. A run goes on without it."""


def first_line(error: Exception) -> str:
    """Give the first line of an error's message, cut to 160 characters; the error's type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
