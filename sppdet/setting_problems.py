"""Say what is wrong with settings, in one line: keys, texts and values."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sppdet.errors import did_you_mean, name_problem, one_line
from sppdet.setting_types import Section

MAX_SHOWN = 60  # characters of a wrong value in a message


def unusable_text(raw: Any, at: tuple[str, ...], levels: int) -> str | None:
    """Find a string with a NUL byte or a lone surrogate, which no path and no file may hold."""
    if isinstance(raw, (Mapping, list)):
        if levels == 0:
            return f"{'.'.join(at[:3])}: nested too deeply"
        items = raw.items() if isinstance(raw, Mapping) else enumerate(raw)
        found = (unusable_text(v, (*at, str(k)), levels - 1) for k, v in items)
        return next((problem for problem in found if problem), None)
    problem = name_problem(raw) if isinstance(raw, str) else ""
    if problem:
        return f"{one_line('.'.join(at), MAX_SHOWN)}: {shown(raw)} {problem}"
    return None


def unknown_key(raw: Any, model: type[BaseModel], at: tuple[str, ...]) -> str | None:
    """Find a key that no setting has, and the setting that may be meant."""
    if not isinstance(raw, Mapping):
        return None
    for key, value in raw.items():
        name = ".".join((*at, str(key)))
        field = model.model_fields.get(str(key))
        if field is None:
            above = "".join(f"{part}." for part in at)
            hint = did_you_mean(str(key), model.model_fields, prefix=above, cutoff=0.5)
            hint = hint or f"; known here: {', '.join(model.model_fields)}"
            return f"{one_line(name, MAX_SHOWN) or repr(name)}: unknown{hint}"
        section = section_of(field.annotation)
        if section is not None:
            problem = unknown_key(value, section, (*at, str(key)))
            if problem:
                return problem
    return None


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a field may hold, such as HeadConfig of `HeadConfig | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((s for a in get_args(annotation) if (s := section_of(a))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first setting that is wrong, and what the types that it may have expect."""
    keyed = [(_key_of(problem["loc"], model), problem) for problem in error.errors()]
    key, first = keyed[0]
    same = [problem for k, problem in keyed if k == key or k.startswith(f"{key}.")]
    others = {k for k, _ in keyed if k != key and not k.startswith(f"{key}.")}
    message = " or ".join(dict.fromkeys(map(_expected, same)))
    given = "" if first["type"] in ("missing", "value_error") else f", got {shown(first['input'])}"
    also = f" (and {len(others)} more)" if others else ""
    return f"{key}: {message}{given}{also}" if key else f"{message}{also}"


def _key_of(location: Sequence[int | str], model: type[BaseModel] | None) -> str:
    """Name a setting; of an error's location the branches of unions are no keys."""
    keys = []
    for part in location:
        if isinstance(part, int):
            keys.append(str(part))
        elif model is not None and part in model.model_fields:
            keys.append(part)
            model = section_of(model.model_fields[part].annotation)
    return ".".join(keys)


def _expected(problem: Any) -> str:
    message: str = problem["msg"]
    if problem["type"] == "string_type" and isinstance(problem["input"], (bool, int, float)):
        message += " (in quotes)"
    message = message.replace("a valid boolean", "true or false")
    return one_line(message.removeprefix("Value error, ").replace("Input should", "should"), 160)


def shown(value: Any) -> str:
    """Format a wrong value for a message."""
    return one_line(repr(value), MAX_SHOWN)
