"""The package raises one kind of exception that users are meant to read, in one printable line."""

from __future__ import annotations

LONGEST = 590     # characters: names and values out of files have no bound of their own
WHOLE = 20_000    # of what code says that the user brought: weights that do not fit are a name a line


def to_line(text: str) -> str:
    """Make one printable line of a text: what cannot be printed in it becomes ?."""
    return "".join(c if c.isprintable() else "?" for c in text)


class PidistillError(Exception):
    """An input or a state is wrong. The message is one printable line: the value, what was expected, and the fix."""

    longest = LONGEST

    def __init__(self, message: str) -> None:
        line = to_line(message)
        super().__init__(line if len(line) <= self.longest else f"{line[:self.longest - 205]} ... {line[-200:]}")


class CannotWrite(PidistillError):
    """A file or folder of ours cannot be written: a full disk, no permission. A run goes on without it."""


class ForeignError(PidistillError):
    """Code that the user brought, such as a teacher's, has raised, or has given what is no answer. Its words stay whole."""

    longest = WHOLE


def words_of(error: BaseException) -> str:
    """Give an error's message and notes in one line, whole, and of a group its members; its type where it has no words."""
    try:
        words = [str(error), *map(str, getattr(error, "__notes__", ()))]
        if isinstance(error, BaseExceptionGroup):
            words += ["; ".join(map(name_error, error.exceptions))]
    except Exception:  # of a stranger's class, whose message cannot be made
        words = []
    return " ".join(" ".join(words).split()) or type(error).__name__


def explain(who: str, error: BaseException) -> str:
    """Say in one line what somebody's code has raised: `who: TYPE: words`."""
    return f"{who}: {name_error(error)}"


def name_error(error: BaseException) -> str:
    """Give an error's type and words in one line, `TYPE: words`; of one without words its type alone."""
    name, words = type(error).__name__, words_of(error)
    return words if words == name else f"{name}: {words}"
