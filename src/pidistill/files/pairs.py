"""Pairs of noise and the teacher's solution, (z, x(0)) with dx/dt = (x - D(x, t))/t and x(T) = z ~ N(0, T^2 I), on disk.

FOLDER/pairs.json says what the pairs are (`PairSettings`), and what is known of how they were made. Pair k is in the shard
k // `shard`, 00000.safetensors, ..., of n <= `shard` pairs:

    x       (n, C, H, W) float32 or float16, the teacher's solutions
    labels  (n,) int64, where the teacher has classes
    states  (n, M, C, H, W), where a trajectory was asked for: x(t_1), ..., x(t_M) = x(0)

Beside each is its record, 00000.json, with the SHA-256 of the shard, of the settings, and of its own rest. The noise z is
not stored: it is a function of two integers, the seed and k (`pair_noise`), and would be half of the disk. Labels are such a
function too; they are stored for those who read a shard without this package, and compared when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import MAX_SEED, pair_labels, pair_noise
from pidistill.files.archives import catch_damage
from pidistill.files.image_set import ImageSet
from pidistill.files.manifest import read_manifest
from pidistill.files.reading import sha256
from pidistill.files.safetensors_header import read_header

RECORD_NAME = "pairs.json"
FORMAT, VERSION = "pidistill-pairs", 1
STORED = {"float32": ("F32", "<f4"), "float16": ("F16", "<f2")}  # safetensors' name of the type, and numpy's
OPEN_FILES = 64  # of a set of pairs
MOST_PAIRS, MOST_TIMES, MOST_ELEMENTS, MOST_CLASSES = 10**8, 10_000, 2**26, 10**6


@dataclass(frozen=True)
class PairSettings:
    """All that pairs depend on: folders of equal settings hold the same pairs. Raises PidistillError for impossible ones.

    teacher, weights, guidance: the teacher's spec, the SHA-256 of its weights (None for a black box), and w of its guidance.
    sampler: as `parse_sampler` takes it.
    seed, num: of the pairs, and how many there are.
    shape, num_classes, t_max: of the teacher: (C, H, W), classes, T.
    times: of the states of a trajectory (M,), descending to 0; empty where there is none.
    shard: pairs of a shard. dtype: of the solutions and states on disk, `float32` or `float16`.
    """

    teacher: str
    weights: str | None
    guidance: float
    sampler: str
    seed: int
    num: int
    shape: tuple[int, ...]
    num_classes: int
    t_max: float
    times: tuple[float, ...] = ()
    shard: int = 1000
    dtype: str = "float32"

    def __post_init__(self) -> None:
        whole = lambda value, low, high: type(value) is int and low <= value <= high
        checks = {
            "teacher": isinstance(self.teacher, str), "weights": isinstance(self.weights, str | None),
            "guidance": is_number(self.guidance), "sampler": isinstance(self.sampler, str),
            "seed": whole(self.seed, 0, MAX_SEED - 1), "num": whole(self.num, 1, MOST_PAIRS),
            "shape": 0 < len(self.shape) <= 8 and all(whole(n, 1, MOST_ELEMENTS) for n in self.shape)
            and math.prod(self.shape) <= MOST_ELEMENTS,
            "num_classes": whole(self.num_classes, 0, MOST_CLASSES), "t_max": is_number(self.t_max) and self.t_max > 0,
            "times": len(self.times) <= MOST_TIMES and all(map(is_number, self.times)) and (
                not self.times or self.times[-1] == 0) and sorted({*self.times}, reverse=True) == [*self.times],
            "shard": whole(self.shard, 1, MOST_PAIRS), "dtype": isinstance(self.dtype, str) and self.dtype in STORED}
        if wrong := [name for name, right in checks.items() if not right]:
            raise PidistillError(f"pairs cannot have {wrong[0]}={str(getattr(self, wrong[0]))[:60]}")

    @classmethod
    def parse(cls, record: Any) -> PairSettings:
        """Take settings out of JSON. Raises PidistillError in one line."""
        names = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or record.keys() != names:
            raise PidistillError(f"the settings must be {', '.join(sorted(names))}")
        if not all(isinstance(record[name], list) for name in ("shape", "times")):
            raise PidistillError("shape and times must be lists")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
        return cls(**values)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.num // self.shard)

    def digest(self) -> str:
        """Give the SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def find_numbers(self, shard: int) -> range:
        """Give the numbers of the pairs in a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.num))

    def describe_tensors(self, shard: int) -> dict[str, tuple[str, list[int]]]:
        """Give type, as safetensors names it, and shape of each tensor of a shard."""
        n, kind = len(self.find_numbers(shard)), STORED[self.dtype][0]
        return {"x": (kind, [n, *self.shape])} | ({"labels": ("I64", [n])} if self.num_classes else {}) | (
            {"states": (kind, [n, len(self.times), *self.shape])} if self.times else {})


def is_number(value: Any) -> bool:
    """Tell whether a value out of JSON is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def find_difference(there: PairSettings, asked: PairSettings) -> str | None:
    """Say which setting of pairs that are there is not as asked for; None if all are."""
    for name, value in asdict(there).items():
        if value != (other := getattr(asked, name)):
            return f"their {name} is {str(value)[:80]}, not {str(other)[:80]}"
    return None


class Pairs(ImageSet):
    """Pairs of noise and solution; as a set of images, its images are the solutions, exactly.

    labels: (N,) int64, or None. t_max: T. times: of the states, (M,) descending to 0, or none.
    """

    def __init__(self, num: int, shape: Sequence[int], num_classes: int, t_max: float, seed: int,
                 times: Sequence[float] = (), licence: str = "unknown") -> None:
        """Take N pairs of a seed. Parameters: `PairSettings`; licence: as `ImageSet` has it."""
        super().__init__(num, tuple(shape), self._decode_solution, pair_labels(seed, range(num), num_classes), licence)
        self.seed, self.t_max, self.times, self._num_classes = seed, t_max, tuple(times), num_classes

    @property
    def num_classes(self) -> int:
        """The teacher's number of classes; 0 without."""
        return self._num_classes

    def sample(self, index: int, flip: bool = False) -> dict[str, Any]:
        """Give a pair: z (C, H, W) of standard deviation T, y (C, H, W), its solution; labels, an int64, and states
        (M, C, H, W) where there are any. All are float32.

        Raises PidistillError for a shard that cannot be read, and for a flip: no teacher's solution of the mirrored noise is
        the mirrored solution, but of one that treats left and right alike.
        """
        if flip:
            raise PidistillError("flip: a mirrored solution is not the solution of its noise; leave it out with pairs")
        pair: dict[str, Any] = {
            "z": (pair_noise(self.seed, [index], self.shape) * self.t_max)[0].numpy(),
            "y": self.read_tensor("x", index)}
        if self.labels is not None:
            pair["labels"] = np.int64(self.labels[index])
        if self.times:
            pair["states"] = self.read_tensor("states", index)
        return pair

    def take_solutions(self) -> ImageSet:
        """Give the solutions alone, as images, for those who need no noise."""
        return ImageSet(len(self), self.shape, self._decode_solution, self.labels, self.licence)

    @abstractmethod
    def read_tensor(self, name: str, index: int) -> np.ndarray:
        """Give `x` (C, H, W) or `states` (M, C, H, W) of a pair, float32, the caller's own."""

    def _decode_solution(self, index: int) -> np.ndarray:
        return np.moveaxis(self.read_tensor("x", index), 0, -1)


class PairSet(Pairs):
    """Pairs in a folder, read when they are asked for. A shard's SHA-256 is compared before its first pair is given.

    settings: of the pairs. record: what pairs.json says besides: `evaluations` of the teacher for a pair, `seconds` of all
    processes together, `half_error`, `provenance`.
    """

    def __init__(self, folder: Path, settings: PairSettings, record: dict[str, Any]) -> None:
        """Take the pairs of a folder, whose files are there (`open_pairs`)."""
        super().__init__(settings.num, settings.shape, settings.num_classes, settings.t_max, settings.seed, settings.times,
                         str(record.get("licence", "unknown"))[:500])
        self.folder, self.settings, self.record = folder, settings, record
        self._places: dict[int, dict[str, int]] = {}  # of a shard that was compared: where its tensors begin
        self._files: dict[int, BinaryIO] = {}  # open ones, OPEN_FILES at most

    def read_tensor(self, name: str, index: int) -> np.ndarray:
        shard, row = divmod(range(len(self))[index], self.settings.shard)
        if shard not in self._places:
            self._places[shard] = check_shard(self.folder, shard, self.settings)
        kind = np.dtype(STORED[self.settings.dtype][1])
        shape = self.shape if name == "x" else (len(self.times), *self.shape)
        size, path = math.prod(shape) * kind.itemsize, locate_shard(self.folder, shard)
        with catch_damage(str(path)):  # not mapped into memory: a mapped file that is cut short ends the process
            data = read_at(self._open(shard), self._places[shard][name] + row * size, size)
        return np.frombuffer(data, kind).reshape(shape).astype(np.float32)

    def _open(self, shard: int) -> BinaryIO:
        """Give the open file of a shard; opening one anew takes a hundred times as long as reading a small image."""
        if (file := self._files.get(shard)) is None:
            while len(self._files) >= OPEN_FILES:  # who reads one of them holds it open
                self._files.pop(next(iter(self._files)), None)
            file = self._files[shard] = locate_shard(self.folder, shard).open("rb", buffering=0)
        return file


class PlannedPairs(Pairs):
    """Pairs that are to be drawn: noise and labels are the true ones, solutions and states zeros until `open` is called."""

    drawn: PairSet | None = None

    def open(self, folder: Path) -> None:
        """Serve the pairs of a folder from now on. Raises PidistillError if they are not those that were planned."""
        drawn = open_pairs(folder)
        for name in ("shape", "num_classes", "t_max", "seed", "times"):
            if (there := getattr(drawn, name)) != (planned := getattr(self, name)):
                raise PidistillError(f"{folder} holds other pairs than planned: their {name} is {there}, not {planned}")
        if len(drawn) != len(self):
            raise PidistillError(f"{folder} holds {len(drawn)} pairs, not the {len(self)} that were planned")
        self.drawn, self.licence = drawn, drawn.licence

    def read_tensor(self, name: str, index: int) -> np.ndarray:
        if self.drawn:
            return self.drawn.read_tensor(name, index)
        return np.zeros(self.shape if name == "x" else (len(self.times), *self.shape), np.float32)


def read_at(file: BinaryIO, place: int, size: int) -> bytes:
    """Read so many bytes at a place of a file, which several threads may do at a time. Raises EOFError for fewer."""
    if hasattr(os, "pread"):
        data = os.pread(file.fileno(), size, place)
    else:  # Windows
        with open(file.name, "rb") as own:
            own.seek(place)
            data = own.read(size)
    if len(data) < size:
        raise EOFError
    return data


def is_pairs(path: str | Path) -> bool:
    """Tell whether a path is a folder of pairs, by the name of its record."""
    try:
        return (Path(path) / RECORD_NAME).is_file()
    except (OSError, ValueError):  # too long a name, a NUL
        return False


def locate_shard(folder: Path, shard: int) -> Path:
    """Give the file of a shard; its record has the same name, and the ending .json."""
    return folder / f"{shard:05d}.safetensors"


def read_settings(folder: Path) -> tuple[PairSettings, dict[str, Any]]:
    """Read pairs.json: the settings, and all else that it says. Raises PidistillError in one line."""
    path = folder / RECORD_NAME
    record = read_manifest(path)
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise PidistillError(f"{path} is of the format {str(record.get('format'))[:40]!r}, version "
                             f"{str(record.get('version'))[:40]}, not {FORMAT!r}, {VERSION}")
    try:
        return PairSettings.parse(record["settings"]), {key: value for key, value in record.items() if key != "settings"}
    except KeyError:
        raise PidistillError(f"{path} has no settings") from None
    except PidistillError as error:
        raise PidistillError(f"{path}: {error}") from None


def open_pairs(folder: str | Path) -> PairSet:
    """Open a folder of pairs, all of whose shards are there with their sizes. Raises PidistillError in one line."""
    folder = Path(folder)
    if not is_pairs(folder):
        raise PidistillError(f"{folder} holds no pairs (no {RECORD_NAME}); `pidistill pairs --out {folder}` draws them")
    settings, record = read_settings(folder)
    itemsize = np.dtype(STORED[settings.dtype][1]).itemsize * math.prod(settings.shape)
    with catch_damage(str(folder)):
        for shard in range(settings.shards):  # before anything as large as they claim to be is allocated
            path, n = locate_shard(folder, shard), len(settings.find_numbers(shard))
            if not path.is_file() or path.stat().st_size < n * itemsize * (1 + len(settings.times)):
                raise PidistillError(f"{folder} is not whole: {path.name} of {settings.shards} shards is missing or cut "
                                     "short; the same `pidistill pairs` draws it")
    return PairSet(folder, settings, record)


def check_shard(folder: Path, shard: int, settings: PairSettings) -> dict[str, int]:
    """Compare a shard with its record and with the settings; give where its tensors begin, in bytes, by name.

    Raises PidistillError, in one line, for a shard that is damaged, of other settings, or none.
    """
    path = locate_shard(folder, shard)
    record = read_manifest(path.with_suffix(".json"))
    if record.get("settings") != settings.digest():
        raise PidistillError(f"{path} is of other settings than {RECORD_NAME}; draw the pairs again")
    with catch_damage(str(path)):
        if not path.is_file():
            raise PidistillError(f"{path} is missing")
        if sha256(path) != record.get("shard_sha256"):
            raise PidistillError(f"{path} is damaged: its SHA-256 is not that of what was written; the same "
                                 "`pidistill pairs` draws it again")
        header = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
        start = path.stat().st_size - max(entry["data_offsets"][1] for entry in header.values())
    if {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} != settings.describe_tensors(shard):
        raise PidistillError(f"{path} does not hold the tensors that {RECORD_NAME} speaks of")
    places = {name: start + entry["data_offsets"][0] for name, entry in header.items()}
    labels = pair_labels(settings.seed, settings.find_numbers(shard), settings.num_classes)
    if labels is not None:
        stored = np.fromfile(path, "<i8", len(labels), offset=places["labels"])
        if not torch.equal(torch.from_numpy(stored.astype(np.int64)), labels):
            raise PidistillError(f"{path} has other labels than those of its seed, {settings.seed}")
    return places
