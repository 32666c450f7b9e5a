"""Fonts for names in any script: DejaVu Sans, and those of the system for glyphs that it lacks.

DejaVu Sans comes with matplotlib. Whether a font has a glyph is read from its character map.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import ImageFont

_log = logging.getLogger("sppdet")

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_OUTLINES = ("glyf", "CFF ", "CFF2")  # tables of fonts that can be drawn at any size
_MOST_FONTS = 400  # of the system that are searched for glyphs
# beginnings of names, without spaces and hyphens, of fonts with many glyphs
_FIRST = (
    *("notosanscjk", "notosanssc", "sourcehansans", "pingfang", "hiraginosans", "applesdgothic"),
    *("msyh", "yugoth", "meiryo", "malgun", "msgothic", "simsun", "segoeui", "arialunicode"),
    *("wqy", "droidsansfallback", "ipag", "notosansregular", "notosans", "unifont"),
)
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "medium", "mono")
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")  # of characters' names

_warned: set[str] = set()


def font_runs(text: str) -> list[tuple[Path, str]]:
    """Divide a text into runs of one font, in order.

    Text is normalised to NFC. Characters that aren't printable, or that no font has, are escaped,
    such as `\\u53ef`; a warning names what is missing once.
    """
    runs: list[tuple[Path, str]] = []
    for character in unicodedata.normalize("NFC", text):
        if 0xFE00 <= ord(character) <= 0xFE0F:  # variation selectors have no glyph of their own
            continue
        last = runs[-1][0] if runs else latin_font()
        # marks and spaces belong to what they follow
        tried = (last, latin_font()) if _follows(character) else (latin_font(), last)
        font = _font_with(character, tried) if character.isprintable() else None
        if font is None:
            character = character.encode("unicode_escape").decode("ascii")
            font = latin_font()
        if runs and runs[-1][0] == font:
            runs[-1] = (font, runs[-1][1] + character)
        else:
            runs.append((font, character))
    return runs


@lru_cache(maxsize=64)
def font_at(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    """Load a font at a size in pixels per em."""
    return ImageFont.truetype(str(path), size_px)


@cache
def latin_font() -> Path:
    """Find DejaVu Sans, which has Latin, Greek, Cyrillic, Hebrew, Arabic and symbols.

    The folder of matplotlib is found without importing it, which would make its settings' folder.
    """
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def has_glyph(path: Path, character: str) -> bool:
    """Check whether a font maps a character to a glyph."""
    return ord(character) in _characters(path)


def font_folders() -> list[Path]:
    """List the folders of the system's and the user's fonts on Linux, macOS or Windows."""
    home = Path.home()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", r"C:\Windows"))
        local = Path(os.environ.get("LOCALAPPDATA", home))
        return [windows / "Fonts", local / "Microsoft" / "Windows" / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    data = os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"
    shared = (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    return [Path(folder) / "fonts" for folder in (data, *shared) if folder] + [home / ".fonts"]


@cache
def system_fonts() -> tuple[Path, ...]:
    """List fonts of the system, those with many glyphs first; of a family's styles the regular one."""
    found: dict[str, Path] = {}
    for folder in font_folders():
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(_SUFFIXES):
                    found.setdefault(name, Path(parent, name))
    return tuple(sorted(found.values(), key=_rank)[:_MOST_FONTS])


def _rank(path: Path) -> tuple[int, bool, str]:
    name = path.stem.lower().replace("-", "").replace(" ", "").replace("_", "")
    first = next((k for k, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))
    return first, any(style in name for style in _STYLES), path.name


def _follows(character: str) -> bool:
    return unicodedata.category(character)[0] in "MZ"


def _font_with(character: str, tried: tuple[Path, ...]) -> Path | None:
    """Find a font that has a character: one of `tried`, else the system's first."""
    font = next((path for path in tried if has_glyph(path, character)), None)
    return font or _system_font_with(character)


@lru_cache(maxsize=4096)
def _system_font_with(character: str) -> Path | None:
    found = next((path for path in system_fonts() if has_glyph(path, character)), None)
    if found is None:
        _warn(character)
    return found


def _warn(character: str) -> None:
    name = unicodedata.name(character, "")
    package = "fonts-noto-cjk" if name.startswith(_CJK) else "fonts-noto-core"
    if package not in _warned:
        _warned.add(package)
        _log.warning(
            "no font has %s (U+%04X), so such characters are drawn as escapes; expected fonts such "
            "as those of Debian's package %s",
            *(character, ord(character), package),
        )


@cache
def _characters(path: Path) -> frozenset[int]:
    """Read a font's character map; empty for one that can't be read or drawn at any size."""
    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            if not any(table in font for table in _OUTLINES):
                return frozenset()
            return frozenset(font.getBestCmap() or ())
    except Exception:  # a damaged font raises anything, and must not end a drawing
        return frozenset()
