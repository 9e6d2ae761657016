"""A hook of mkdocs: what a page links to outside of docs/ (code, results of benchmarks) is named there, not linked.

Readers of the repository follow such links. A site has only what lies in docs/, and no address of the repository is assumed.
"""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Give a page's text with the links out of docs/ as plain words."""
    return OUTSIDE.sub(r"\1", markdown)
