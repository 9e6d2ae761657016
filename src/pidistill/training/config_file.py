"""Configuration of a run: one YAML file or preset, `--set a.b=c` overrides, unknown keys refused."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from pidistill.core.errors import PidistillError
from pidistill.core.registry import suggest_choices
from pidistill.files.folders import PRESETS
from pidistill.files.reading import DEPTH, read_bytes
from pidistill.training.config import DistillConfig, RunConfig, TeacherConfig

YAML_LIMIT, NUMBER = 256_000, 400  # bytes of a configuration; characters of a number, or of any scalar with a tag
STRING = "tag:yaml.org,2002:str"
PAIR = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")

Config = TypeVar("Config", bound=RunConfig)
PRESET_FOLDERS = {DistillConfig: PRESETS / "distill", TeacherConfig: PRESETS / "train_teacher"}


def preset_names(model: type[RunConfig]) -> list[str]:
    """List the presets of a kind of run, sorted."""
    return sorted(path.stem for path in PRESET_FOLDERS[model].glob("*.yaml"))


def load_config(model: type[Config], source: str | Path,
                overrides: Sequence[str | tuple[str, Any]] | dict[str, Any] | None = None) -> Config:
    """Read a preset name or YAML file, apply overrides in turn, and check it. Every mistake is one line.

    model: the kind of run.
    source: the preset's name, or the file.
    overrides: `a.b=c`, whose value is YAML (`_read_value`), or (a.b, value), whose value is taken as it is.
    """
    path = Path(source)
    if isinstance(source, str) and source in preset_names(model):
        path = PRESET_FOLDERS[model] / f"{source}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise suggest_choices("preset", str(source), preset_names(model))
    values = read_yaml(path)
    for key, field in model.model_fields.items():
        if isinstance(field.default, dict):  # a part: --set objective.distance=l1 changes an option and keeps the name
            values.setdefault(key, dict(field.default))
    if isinstance(overrides, dict):
        pairs = list(overrides.items())
    else:
        pairs = [_parse_override(model, item) if isinstance(item, str) else item for item in overrides or []]
    for key, value in pairs:
        _assign(values, key, value)
    return check_values(model, values, str(source))


def find_differences(old: dict[str, Any], new: RunConfig) -> list[str]:
    """List the dotted keys in which a run's configuration (a checkpoint's, a file's) and a new one differ; `out` may."""
    with suppress(ValidationError):  # of one that had keys which are gone: those are named
        old = type(new).model_validate(old).model_dump(mode="json")  # an older file lacks what has a default
    before, after = flatten(old), flatten(new.model_dump(mode="json"))
    return sorted(key for key in (before.keys() | after.keys()) - {"out"} if before.get(key) != after.get(key))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys; `prefix` goes before each."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def given_keys(overrides: list[str] | dict[str, Any] | None) -> list[str]:
    """List the keys of `--set key=value`, or of a mapping of overrides."""
    return [key.partition("=")[0].strip() for key in overrides or []]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file, a mapping. Raises PidistillError in one line."""
    try:
        values = parse_yaml(read_bytes(path, YAML_LIMIT).decode())
    except UnicodeDecodeError as error:
        raise PidistillError(f"cannot read the configuration {path}: {error}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PidistillError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(values, dict):
        raise PidistillError(f"{path}: a configuration is a mapping of keys to values, got {type(values).__name__}")
    return values


def check_values(model: type[Config], values: dict[str, Any], where: str) -> Config:
    """Make a configuration of values; the first mistake is one line, which names `where` they were read."""
    try:
        config = model.model_validate(values)
        if "\0" in config.out or not config.out or re.search(r"[\ud800-\udc7f\udd00-\udfff]", config.out):
            raise PidistillError(f"out must be the name of a folder, got {config.out!r} ({where})")
        return config
    except ValidationError as error:
        first = error.errors()[0]
        # A value that may be of several types adds the type to the place of its error: `microbatch.constrained-int`.
        key = ".".join(str(part) for part in first["loc"] if re.fullmatch(r"\w+", str(part)))
        if first["type"] == "extra_forbidden":
            fields: Any = model
            for part in first["loc"][:-1]:
                fields = fields.model_fields[part].annotation
            prefix = key.removesuffix(str(first["loc"][-1]))
            names = [prefix + name for name in sorted(fields.model_fields)]
            raise suggest_choices("configuration key", key, names) from None
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("Field required", "is required")
        raise PidistillError(f"{key} {message[0].lower() + message[1:]}{got} ({where})") from None


class _Composer(Composer):
    """Values are as many as are written: no aliases, which a few lines can multiply to billions."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.parser.peek_event().start_mark
        if self.parser.check_event(AliasEvent):
            raise ComposerError(None, None, "an alias, which is not read: write the value again", mark)
        if self.depth >= DEPTH:
            raise ComposerError(None, None, f"more than {DEPTH} levels of values in each other", mark)
        self.depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        if isinstance(node, ScalarNode) and node.tag != STRING and len(node.value) > NUMBER:
            raise ComposerError(None, None, f"a number of more than {NUMBER} characters", mark)
        if isinstance(node, ScalarNode):  # "\\ud83d\\ude00", as JSON writes one character, is two halves to YAML
            node.value = PAIR.sub(lambda pair: pair.group().encode("utf-16", "surrogatepass").decode("utf-16"), node.value)
        if isinstance(node, MappingNode) and not all(isinstance(key, ScalarNode) for key, _ in node.value):
            raise ComposerError(None, None, "a key that is a list or a mapping", mark)
        return node


def parse_yaml(text: str) -> Any:
    """Read YAML 1.2 without objects: numbers, text, lists and mappings, no key twice. Raises YAMLError alone."""
    parser = YAML(typ="safe", pure=True)
    parser.Composer = _Composer
    try:
        return parser.load(text)
    except YAMLError:
        raise
    except Exception as error:  # a value that does not fit its tag, such as the date 2001-02-30: half a dozen classes
        raise ComposerError(None, None, f"a value that cannot be read: {error}", None) from None


def _parse_override(model: type[RunConfig], text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"\w+(\.\w+)*", key.strip()):
        raise PidistillError(f"--set takes key=value, such as train.steps=100, got {text!r}")
    return key.strip(), _read_value(model, key.strip(), value.strip())


def _read_value(model: type[RunConfig], key: str, text: str) -> Any:
    """Read a value of the command line, which is YAML; but what is to be text, such as a path, is taken as it stands.

    Else `runs/a #1` would lose its end, `1e3` would be a thousand and `a: b` a mapping. Quotes are YAML's nevertheless, and
    `null` is none where a key may have none.

    model: the kind of run. key: the dotted key. text: the value, without space around it.
    """
    types = _find_types(model, key)
    try:
        value = parse_yaml(text)
    except YAMLError:
        raise PidistillError(f"--set {key}: cannot read the value {text!r}; as text it needs quotes") from None
    if isinstance(value, str):
        quoted = text[0] in "'\"!" or (text[0] in "|>" and "\n" in text)
        return value if quoted or (types and str not in types) else text
    if str not in types or text == "" or (NoneType in types and text in ("~", "null", "Null", "NULL")):
        return value
    return text


def _find_types(model: type[RunConfig], key: str) -> set[Any]:
    """Find the types that a key's value may be of; none for options of a member, which know their own."""
    annotation: Any = model
    for part in key.split("."):
        fields = getattr(annotation, "model_fields", {})
        if part not in fields:
            return set()
        annotation = fields[part].annotation
    return set(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else {annotation}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if isinstance(inner, str):  # `objective: pid` and --set objective.distance=l1
            inner = values[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise PidistillError(f"cannot set {key}: {parent} is {inner!r}, not a mapping")
        values = inner
    if last != "name" and isinstance(values.get(last), dict) and isinstance(value, str):
        value = {"name": value}
    values[last] = value


class _Representer(SafeRepresenter):
    """Text with characters that are not printable is quoted, and these are escaped: some would be line breaks to YAML."""

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar(STRING, data, style=None if data.isprintable() else '"')


_Representer.add_representer(str, _Representer.represent_str)


def dump_yaml(config: RunConfig) -> str:
    """Write the resolved configuration as YAML; reading it back gives the same run."""
    writer: Any = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = writer.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    writer.dump(config.model_dump(mode="json"), text)
    return text.getvalue()


def flatten_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
