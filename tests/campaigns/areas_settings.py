"""Areas of settings: YAML files and `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from campaigns.areas import Area, reader
from campaigns.mutation import NASTY, mutants
from campaigns.verdict import judge
from campaigns.workspace import Workspace
from sppdet.classification.config import PretrainConfig, ProbeConfig
from sppdet.config import Config
from sppdet.io.settings import load_settings
from sppdet.setting_types import Section

_YAML_TOKENS = (
    *(
        b"&a ",
        b"*a",
        b"*b",
        b"!!int x",
        b"!!float x",
        b"!!python/object:os.system x",
        b"!!binary x",
        b"!x ",
    ),
    *(
        b"!!timestamp x",
        b"2020-99-99",
        b"<<: *a",
        b"- ",
        b": ",
        b"? ",
        b"| ",
        b"> ",
        b"# ",
        b"---\n",
        b"...\n",
    ),
    *(
        b"[" * 3000,
        b"{" * 3000,
        b"{a: " * 500,
        b"9" * 5000,
        b"~nosuchuser",
        b"~",
        b"null",
        b".nan",
        b".inf",
    ),
    *(
        b"1e999",
        b"0x",
        b"0o9",
        b"12:99:99",
        b"\x00",
        b"\x1b[31m",
        b"\xff\xfe",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
    ),
    *(
        b"!!set {a}",
        b"!!omap [a: b]",
        b"!!pairs [a: b]",
        b"!!null x",
        b"!!bool x",
        b"=",
        b"<<: 1",
        b"%YAML 3.0\n",
    ),
    *(
        b"base: fuzz.yaml\n",
        b"base: .\n",
        b"base: /dev/null\n",
        b"base: [1]\n",
        b"base: ''\n",
        b"'",
        b'"',
    ),
    *(
        b"\n",
        b" ",
        b"\t",
        b",",
        b"]",
        b"}",
        b"a: &a [*a]\n",
        b"b: &b {<<: *b}\n",
        b"\\ud800",
        b'"\\ud800"',
    ),
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e]\n"
    b"g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n",
)


def settings_areas(space: Workspace) -> list[Area]:
    kinds: Sequence[tuple[str, type[Section], Path]] = (
        ("detector", Config, space.run / "config.yaml"),
        ("classifier", PretrainConfig, space.classifier / "config.yaml"),
        ("probe", ProbeConfig, space.root / "probe.yaml"),
    )
    path = space.root / "fuzz.yaml"
    found = []
    for kind, model, example in kinds:
        whole = yaml.safe_load(example.read_text())
        found.append(
            Area(
                f"settings-{kind}", ".yaml", [example.read_bytes()],
                # an error in a base names the base
                reader(path, lambda model=model: load_settings(path, model), name=""),  # type: ignore[misc]
                mutants([whole], most=3).map(_yaml), _YAML_TOKENS,
            )
        )  # fmt: skip
    sections = yaml.safe_load((space.run / "config.yaml").read_text())
    keys = [f"{s}.{key}" for s, held in sections.items() if isinstance(held, dict) for key in held]
    keys += [
        "seed",
        "scales",
        "spp_levels",
        "head",
        "store",
        "base",
        "nonsense",
        "svm",
        "a.b.c.d",
        "",
        ".",
    ]
    values = st.one_of(
        NASTY.map(str),
        NASTY.map(_yaml).map(lambda data: data.decode("utf-8", "surrogatepass")),
        st.sampled_from(_YAML_TOKENS).map(lambda token: token.decode("utf-8", "surrogateescape")),
    )
    override = st.tuples(st.sampled_from(keys), st.sampled_from(["=", "=", "=", ""]), values).map(
        "".join
    )

    def check(data: bytes) -> str | None:
        item = data.decode("utf-8", "surrogateescape")
        return judge(lambda: load_settings(space.settings, Config, [item]))

    seeds = [f"{key}=1".encode() for key in keys] + [b"scales=[96, 120]", b"data.classes=[a, b]"]
    found.append(
        Area(
            "set-values", ".txt", seeds, check,
            override.filter(_encodable).map(lambda text: text.encode("utf-8", "surrogateescape")),
            _YAML_TOKENS,
        )
    )  # fmt: skip
    return found


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    except (yaml.YAMLError, TypeError):
        return repr(value).encode("utf-8", "surrogatepass")
