r"""Names of files in other files, and names of files made from names.

A name may hold bytes that aren't UTF-8 (Python reads them as lone surrogates) and control
characters; neither JSON, XML nor CSV carries all of them. In everything that sppdet writes such a byte
stands as `{xHH}`, two hexadecimal digits. So that every name comes back exactly, the brace of a name
that has `{x` itself stands as `{x7b}`.
"""

from __future__ import annotations

import hashlib
import os
import re

MAX_NAME_BYTES = 255  # of a file's or folder's name, on the file systems in use

# control characters, lone surrogates and the two code points that XML refuses besides
_UNFIT = re.compile("\\{(?=x)|[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ESCAPED = re.compile(r"((?:\{x[0-9a-f]{2}\})+)")


def escape_name(name: str) -> str:
    """`name` as text that JSON, XML, CSV and every file system carry; `unescape_name` undoes it."""
    return _UNFIT.sub(lambda unfit: "".join(f"{{x{b:02x}}}" for b in _bytes_of(unfit[0])), name)


def unescape_name(text: str) -> str:
    """The name that `escape_name` has made `text` of."""
    parts = _ESCAPED.split(text)
    parts[1::2] = [os.fsdecode(bytes.fromhex(re.sub("[{x}]", "", part))) for part in parts[1::2]]
    return "".join(parts)


def fit_name(name: str, suffix: str = "") -> str:
    """`name` + `suffix`, of which as much gives way to a digest as is too long for a file's name."""
    room = MAX_NAME_BYTES - len(suffix.encode())
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > room:
        digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
        name = encoded[: room - 1 - len(digest)].decode("utf-8", "ignore") + f"~{digest}"
    return name + suffix


def _bytes_of(character: str) -> bytes:
    try:
        return os.fsencode(character)
    except UnicodeEncodeError:  # half of a pair, which no system but Windows has in names
        return character.encode("utf-8", "surrogatepass")
