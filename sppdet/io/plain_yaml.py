"""YAML for settings: mappings, lists and scalars, read without running or expanding anything.

Scalars mean what YAML 1.2 says (its core schema): `no`, `on`, `1:30`, `1_000` and `2020-01-01` are
strings, `010` is ten, `1e-3` is a number. Anchors, aliases and tags are refused: settings need none, and
a few hundred bytes of them describe gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from sppdet.errors import ConfigError, one_line

MAX_DEPTH = 20
MAX_NODES = 30_000  # ImageNet's 21,841 class names fit
MAX_DIGITS = 100

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_Events = Iterator[Any]  # yaml.Event; its stubs know no subclass's attributes


def parse(text: str) -> Any:
    """Read one document: dicts with string keys, lists, strings, numbers, booleans, None.

    Raises:
        ConfigError: the line and what is wrong there. Not YAML, several documents, a key twice or
            that is no scalar, an anchor, alias or tag, a number of more than `MAX_DIGITS`
            characters, more than `MAX_DEPTH` levels or `MAX_NODES` values.
    """
    try:
        return _Builder().document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "syntax error"
        raise ConfigError(f"not YAML: {where}{one_line(problem, 120)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"character U+{ord(text[error.position]):04X} is not allowed"
        raise ConfigError(f"not YAML: line {line}: {reason}") from None
    except (ValueError, OverflowError) as error:  # PyYAML: "\UFFFFFFFF", %YAML 1.<5,000 digits>
        raise ConfigError(f"not YAML: {one_line(str(error), 120)}") from None


class _Builder:
    """Builder of plain data from PyYAML's events, one by one: nothing refused is ever built."""

    def __init__(self) -> None:
        self._nodes = 0

    def document(self, events: _Events) -> Any:
        value = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _problem(event, "a second document; expected one")
            elif isinstance(event, yaml.NodeEvent):
                value = self._value(event, events, MAX_DEPTH)
        return value

    def _value(self, event: Any, events: _Events, levels: int) -> Any:
        """Build the node that begins with `event`; consumes the rest of its events."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _problem(event, f"more than {MAX_NODES:,} values")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            name = one_line(f"{sign}{event.anchor}", 40)
            raise _problem(event, f"{name}: anchors and aliases are refused; write the value out")
        if event.tag is not None:
            tag = one_line(event.tag.replace("tag:yaml.org,2002:", "!!"), 40)
            raise _problem(event, f"{tag}: tags are refused; write the value alone")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event) if event.style is None else event.value
        if levels == 0:
            raise _problem(event, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, levels - 1)
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._value(event, events, levels - 1))
        return items

    def _mapping(self, events: _Events, levels: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                raise _problem(event, "a mapping or list as a key; expected the name of a setting")
            self._value(event, events, levels)  # refuses what no scalar may have
            key = event.value
            if key in mapping:
                raise _problem(event, f"{one_line(key, 60)} is given twice")
            mapping[key] = self._value(next(events), events, levels)
        return mapping


def _scalar(event: Any) -> Any:
    """Resolve a plain scalar (without quotes) by YAML 1.2's core schema."""
    text: str = event.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    integer = _INTEGER.fullmatch(text)
    if not integer and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise _problem(event, f"a number of {len(text):,} characters; expected up to {MAX_DIGITS}")
    if integer:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _problem(event: Any, text: str) -> ConfigError:
    return ConfigError(f"line {event.start_mark.line + 1}: {text}")


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `parse`, or a reader of YAML 1.1, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(f"^(?:{_INTEGER.pattern}|{_FLOAT.pattern})$"),
    list("-+.0123456789"),
)


def dump(plain: Any) -> str:
    """Write plain data so that `parse` reads the same, in the order of its keys."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False)
