"""Self-contained HTML pages: templates in which every value is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sppdet.errors import printable

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template of this package.

    Text is escaped, and so are control and bidirectional characters, as `printable` does; a missing
    value is an error. The page's only scripts are those of the package, which its policy names by digest.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("sppdet.pages")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "span": span, "number": number}
    environment.globals |= {
        "script": lambda name: Markup(_source(environment, name)),
        "script_digest": lambda name: _digest(_source(environment, name)),
    }
    return environment


def script_digest(name: str) -> str:
    """Return the SHA-256 of a script of this package, in base64, as a page's policy names it."""
    return _digest(_source(_environment(), name))


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _finalize(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction in per cent; a dash for None and NaN."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


def span(interval: tuple[float, float] | list[float] | None) -> str:
    """Format an interval of fractions in per cent: "55.1 to 67.0"; empty for None and NaN."""
    if interval is None or math.isnan(interval[0]):
        return ""
    return " to ".join(f"{100 * bound:.1f}" for bound in interval)


def number(value: float | None, digits: int = 2) -> str:
    """Format a number; a dash for None and NaN, a minus sign for negative ones."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")
