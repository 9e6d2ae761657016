"""Which files of a folder or an archive are images, which of them nobody meant as data, and what classes their folders name.

Names are paths below the data set's folder, with /.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RECORD = "dataset.json"
# What systems leave in folders and archives beside the user's files, in lower case: macOS, Windows, Synology, ext4, Python.
SYSTEM_NAMES = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir",
                "#recycle", "lost+found", "__pycache__"}
PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def is_hidden(name: str) -> bool:
    """Tell whether a file is hidden, or its system's own, or lies in such a folder: `__MACOSX/._a.png`, `.cache/a.png`."""
    return any((part.startswith(".") and not part.startswith("..")) or part.lower() in SYSTEM_NAMES
               for part in name.split("/"))  # `...png` is an odd name that a user has chosen


def is_image(name: str) -> bool:
    """Tell whether a file is an image by its name's ending."""
    return PurePosixPath(name).suffix.lower() in ENDINGS


def find_root(images: Sequence[str], names: Collection[str]) -> str:
    """Find the folder, as a prefix of names, from which classes and `dataset.json` count.

    That is the first one, from the top, with a `dataset.json`, or with images or folders of images side by side: archives
    and downloads often have a folder around everything.

    images: names of the images. names: of all files.
    """
    root = ""
    while f"{root}{RECORD}" not in names:
        folders = {name[len(root):].rpartition("/")[0].partition("/")[0] for name in images}
        if len(folders) != 1 or "" in folders:
            return root
        root += f"{folders.pop()}/"
    return root


def name_classes(images: Sequence[str]) -> tuple[list[str], str]:
    """Name the classes that folders stand for, sorted; gives no classes where they stand for none, and a sentence why.

    Numbers are sorted by their size. Every image must lie in a folder, at any depth below it, and the folders must be two or
    more. Not classes are parts of a data set (`train`, `test`), and numbered folders through which the images are numbered
    on, such as EDM's 00000/img00000000.png and 00001/img00001000.png.

    images: names below the root.
    """
    folders = sorted({name.partition("/")[0] for name in images if "/" in name})
    if all(re.fullmatch("[0-9]{1,40}", folder) for folder in folders):  # 10 comes after 9, as a number
        folders.sort(key=lambda folder: (int(folder), folder))
    beside = sum("/" not in name for name in images)
    if len(folders) + (beside > 0) < 2:
        return [], ""
    if beside:
        return [], f"{beside} of {len(images)} images lie beside the folders, which are taken for no classes"
    if all(folder.lower() in PARTS for folder in folders):
        return [], f"the folders {', '.join(folders)} are taken for no classes; name one of them for its images alone"
    if are_shards(images):
        return [], f"the numbered folders {folders[0]} to {folders[-1]} are taken for no classes"
    return folders, ""


def are_shards(images: Sequence[str]) -> bool:
    """Tell whether folders are numbered with four digits or more, and the images in them on from folder to folder."""
    numbers: dict[str, list[int]] = {}
    for name in images:
        folder, _, rest = name.partition("/")
        digits = re.findall(r"[0-9]+", PurePosixPath(rest).stem)
        if not re.fullmatch(r"[0-9]{4,40}", folder) or not digits or len(digits[-1]) > 40:
            return False
        numbers.setdefault(folder, []).append(int(digits[-1]))
    spans = [(min(numbers[folder]), max(numbers[folder])) for folder in sorted(numbers, key=int)]
    return len({len(folder) for folder in numbers}) == 1 and all(a[1] < b[0] for a, b in pairwise(spans))


def describe_left_out(names: Collection[str], images: Collection[str], links: int = 0) -> str:
    """Say how many files, and linked folders, are left out, and of which kinds; nothing if none are.

    names: of all files. images: of those that are read. links: linked folders.
    """
    rest = sorted(name for name in names if name not in images)
    hidden = [name for name in rest if is_hidden(name)]
    others = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in rest if not is_hidden(name))
    parts = []
    if hidden:
        parts.append(f"{len(hidden)} hidden or the system's ({hidden[0][:60]}{', ...' * (len(hidden) > 1)})")
    if others:
        kinds = ", ".join(f"{count} {ending[:12]}" for ending, count in others.most_common(5))
        parts.append(f"{others.total()} of other kinds ({kinds}{', ...' * (len(others) > 5)})")
    parts += [f"{links} linked folder{'s' * (links > 1)}"] if links else []
    return f"left out: {'; '.join(parts)}" if parts else ""
