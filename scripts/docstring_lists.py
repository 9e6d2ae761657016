"""An extension of griffe: the parameters of a docstring, a line each, become a list on the page of the reference.

A docstring here says `seeds, labels: of the images` where it describes parameters; continued lines are indented.
"""

import re

import griffe

PARAMETER = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (?=\S)")


class ParameterLists(griffe.Extension):
    """Rewrites the text of each docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = list_parameters(obj.docstring.value)


def list_parameters(text: str) -> str:
    """Give a docstring with its parameters as a list of Markdown, a blank line before it."""
    lines: list[str] = []
    listing = False
    for line in text.splitlines():
        found = PARAMETER.match(line)
        if found and not listing and lines and lines[-1].strip():
            lines.append("")
        if found:
            names = ", ".join(f"`{name}`" for name in found.group(1).split(", "))
            line = f"* {names}: {line[found.end():]}"
        listing = bool(found) or (listing and line.startswith(" "))
        if not found and not listing and lines and lines[-1].startswith("* ") and line.strip():
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
