"""Damaged and hostile settings: one short line each, in files and in overrides; YAML 1.2's scalars."""

from __future__ import annotations

import os
import random
import string
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml

from runs import CommandLine
from sppdet.config import Config
from sppdet.errors import ConfigError, one_line
from sppdet.io import plain_yaml
from sppdet.io.settings import check_config, load_config

LEAST = "data: {root: d, train: t}\n"


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def bomb(levels: int = 30) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int = 30) -> str:
    lines = ["a0: &a0 {k0: 1}"]
    lines += [f"a{i}: &a{i} {{k{i}: 1, <<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines)


# the text of a value or of a whole file; what its message says
HOSTILE: dict[str, tuple[str, str]] = {
    "alias bomb": (bomb(), "&a0: anchors and aliases are refused"),
    "merge bomb": (merge_bomb(), "&a0: anchors and aliases are refused"),
    "circular alias": ("svm: &x {C: *x}", "&x: anchors and aliases are refused"),
    "circular list": ("&x [*x]", "&x: anchors"),
    "unknown alias": ("svm: *nobody", "*nobody: anchors and aliases are refused"),
    "deep list": ("[" * 3000, "line 1: nested more than 20 levels deep"),
    "deep list, closed": ("[" * 3000 + "]" * 3000, "nested more than 20 levels deep"),
    "deep mapping": ("{a: " * 3000, "nested more than 20 levels deep"),
    "deep blocks": ("- " * 3000 + "x", "nested more than 20 levels deep"),
    "deep indents": (
        "\n".join(" " * i + "a:" for i in range(500)),
        "nested more than 20 levels deep",
    ),
    "deep keys": ("? " * 3000 + "x", "a mapping or list as a key"),
    "tag of int": ("!!int x", "!!int: tags are refused"),
    "tag within": ("svm: {C: !!float x}", "!!float: tags are refused"),
    "tag of an object": ("!!python/object/apply:os.system [ls]", "tags are refused"),
    "tag of a timestamp": ("!!timestamp 2020-99-99", "!!timestamp: tags are refused"),
    "tag without a name": ("! x", "!: tags are refused"),
    "long tag": ("!" + "x" * 900 + " 1", "tags are refused"),
    "many digits": ("9" * 5000, "a number of 5,000 characters; expected up to 100"),
    "many hexadecimal digits": ("0x" + "f" * 5000, "a number of 5,002 characters"),
    "many decimals": ("0." + "1" * 5000, "a number of 5,002 characters"),
    "many digits of a version": ("%YAML 1." + "9" * 5000 + "\n--- 1", "not YAML: "),
    "another YAML": ("%YAML 3.0\n--- 1", "not YAML: line 1"),
    "not a character": (r'"\UFFFFFFFF"', "not YAML: "),
    "NUL": ("a: \0", "line 1: character U+0000 is not allowed"),
    "escape sequence": ("a: \x1b[31m", "character U+001B is not allowed"),
    "lone surrogate": ("a: \ud800", "character U+D800 is not allowed"),
    "tab as indent": ("svm:\n\tC: 1", "not YAML: line 2, column 1: "),
    "open quote": ("a: 'x", "not YAML: line 1"),
    "two documents": ("a: 1\n--- \nb: 1", "line 2: a second document"),
    "key twice": ("svm: {C: 1, 'C': 2}", "line 1: C is given twice"),
    "list as key": ("{[a]: 1}", "a mapping or list as a key"),
    "mapping as key": ("? {a: b}\n: 1", "a mapping or list as a key"),
    "alias as key": ("*a : 1", "anchors and aliases are refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_in_one_short_line(case: str, tmp_path: Path) -> None:
    text, expected = HOSTILE[case]
    with pytest.raises(ConfigError) as caught:
        plain_yaml.parse(text)
    assert expected in str(caught.value)
    assert one_line(str(caught.value)) == str(caught.value)

    path = tmp_path / "run.yaml"
    path.write_text(LEAST)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"svm={text}"])
    assert one_line(str(caught.value)) == str(caught.value)
    assert str(caught.value).startswith("--set svm=")

    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    message = message_of(path)
    assert one_line(message) == message and message.startswith(f"{path}: ")


def test_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_yaml, "MAX_NODES", 1000)
    assert len(plain_yaml.parse("[" + "1," * 999 + "]")) == 999
    with pytest.raises(ConfigError, match="line 2: more than 1,000 values"):
        plain_yaml.parse("[" + "1," * 999 + "\n1]")


@pytest.mark.parametrize("text", [bomb(), merge_bomb(), "[" * 300])
def test_bombs_take_no_memory(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            plain_yaml.parse(text)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LEAST.encode("utf-16"), "not UTF-8 text (byte 0)"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        (LEAST.encode() + b"store: \xe9", "not UTF-8 text (byte 33)"),
        (b"# " + b"x" * 1_000_000, "can't be read: 1000002 bytes, expected 1000000 at most"),
        (b"", "expected a mapping of settings, got NoneType"),
        (b"\0" * 100, "character U+0000"),
        (b"1: 2", "1: unknown; known here: data, "),
        (b"null: 2", "null: unknown"),
        (b"<<: {seed: 1}", "<<: unknown"),
        (b"'': 2", "'': unknown"),
        (b"? " + b"k" * 500_000 + b"\n: 1", "unknown; known here: data, "),
        (b'"\\e[31m": 1', r"\x1b[31m: unknown"),
        (b'data: {root: "a\\0b", train: t}', r"a\x00b' has a NUL byte"),
        (b'data: {root: d, train: "\\uD800"}', r"data.train: '\ud800' has a lone surrogate"),
        (b'data: {root: d, train: t, classes: ["\\uD800"]}', "data.classes.0: "),
        (b"data: {root: ~nosuchuser/x, train: t}", "data.root: ~nosuchuser: no such user's home"),
        (b'data: {root: "~a\\0b/x", train: t}', r"data.root: ~a\x00b: no such user's home"),
        (b"data: {root: [d, ~nosuchuser], train: t}", "data.root: ~nosuchuser: no such"),
        (b"data: {root: '', train: t}", "data.root: expected a path, got an empty string"),
        (b"backbone: {weights: ~nosuchuser/w.pth}", "backbone.weights: ~nosuchuser: no such"),
        (b"base: ''", "base: expected the name of a YAML file"),
        (b'base: "a\\0.yaml"', "base: expected the name of a YAML file"),
        (b"base: [a.yaml]", "base: expected the name of a YAML file"),
        (b"base: .", "can't be read: "),
        (b"base: loop", "loop: can't be read: "),
        (b"base: fifo", "fifo: can't be read: is a FIFO, expected a regular file"),
        (b"base: " + b"x" * 9999, "can't be read: "),
        (b"seed: 2020-99-99", "seed: should be a valid integer, got '2020-99-99'"),
        (b"seed: 1_000", "seed: should be a valid integer, got '1_000'"),
        (b"seed: 1:30", "seed: should be a valid integer, got '1:30'"),
        (b"seed: .inf", "seed: should be a valid integer, got inf"),
        (b"seed: -1", "seed: should be greater than or equal to 0, got -1"),
        (b"seed: 1" + b"0" * 99, "seed: should be less than 4294967296, got 1000"),
        (b"finetune: {flip: yes}", "finetune.flip: should be true or false, got 'yes'"),
        (b"svm: {C: 1e999}", "svm.C: should be a finite number, got inf"),
        (b"svm: {C: -.INF}", "svm.C: should be a finite number, got -inf"),
        (b"scales: [" + b"x, " * 5_000 + b"]", "scales.0: should be a valid integer, got 'x'"),
        (b"seed: '" + b"9" * 500_000 + b"'", "seed: should be a valid integer, got '999"),
        (b"data: {root: d, train: t, classes: [cat, 7]}", "string (in quotes), got ['cat', 7]"),
        (b"data: {root: d, train: t, classes: [true]}", "a valid string (in quotes), got [True]"),
    ],
)  # fmt: skip
def test_hostile_files(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "run.yaml"
    if not content.startswith((b"data", b"\xff", b"\0", b"# ")) and content:
        content = (b"" if b"\0" in content else LEAST.encode()) + content
    path.write_bytes(content)
    message = message_of(path)
    assert message.startswith(str(tmp_path))
    assert expected in one_line(message.replace(f"{tmp_path}/", ""))  # whose length is anyone's


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):  # a folder has labelled images
        assert one_line(message_of(path)).startswith(one_line(f"{path}: can't be read: "))
    assert "no such file" in message_of(tmp_path / ("\udcff" * 9))
    assert "no such file: the name has a NUL byte" in message_of(tmp_path / "a\0b")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.encode())
    assert load_config(path).data.train == ["t"]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("", "--set : expected key=value"),
        ("=", "--set =: expected key=value"),
        ("=1", "--set =1: expected key=value"),
        ("svm", "--set svm: expected key=value"),
        ("svm..C=1", "--set svm..C=1: expected key=value"),
        (".svm.C=1", "expected key=value"),
        ("svm.C.=1", "expected key=value"),
        (".".join("a" * 3000) + "=1", "no setting's name has 3,000 parts"),
        ("x" * 100_000 + "=1", "workers, checkpoint_minutes, store"),
        ("svm.C=" + "x" * 100_000, "svm.C: should be a valid number, got 'xxx"),
        ("svm.C=\0", "line 1: character U+0000 is not allowed"),
        ("svm.C='\udcff'", "line 1: character U+DCFF is not allowed"),
        ("sv\0m\ud800=1", r"sv\x00m\ud800: unknown"),
        ('data.train="\\uD800"', r"data.train: '\ud800' has a lone surrogate"),
        ("svm=1", "svm: should be an object, got 1"),
        ("svm.C.d=1", "svm.C: should be a valid number, got {'d': 1}"),
        ("svm.C=", "svm.C: should be a valid number, got None"),
        ("store=~nosuchuser", "store: ~nosuchuser: no such user's home"),
        ("data.root=", "data.root.0: should be a valid string, got None"),
        ("data.root=''", "data.root: expected a path"),
        ("base=other.yaml", "--set base=other.yaml: base has a meaning in files alone"),
        ("scales=" + "9" * 5000, "a number of 5,000 characters"),
    ],
)
def test_hostile_overrides(item: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(LEAST)
    message = one_line(message_of(path, item))
    assert one_line(expected) in message
    assert message.startswith(("--set ", f"{path} with --set: "))


def test_chains_of_bases(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text(LEAST + "seed: 5\nworkers: 3\n")
    for i in range(1, 1001):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i - 1}.yaml\nseed: {i}\n")
    config = load_config(tmp_path / "19.yaml")
    assert (config.seed, config.workers) == (19, 3)
    for i in (20, 1000):
        expected = f"{i - 19}.yaml: base: more than 20 files build on each other"
        assert message_of(tmp_path / f"{i}.yaml") == f"{tmp_path}/{expected}"
    (tmp_path / "0.yaml").write_text("base: link.yaml\n")
    (tmp_path / "link.yaml").symlink_to("7.yaml")
    assert message_of(tmp_path / "9.yaml").endswith(
        "0.yaml: base: the files build on each other in a circle"
    )


def test_an_error_on_the_command_line_is_one_short_line(
    sppdet: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    for case in ("alias bomb", "deep list", "escape sequence", "long tag", "many digits"):
        text, _ = HOSTILE[case]
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        status, _, err = sppdet("train", path)
        assert status == 1 and err.startswith("error: ")
        assert err.count("\n") == 1 and len(err) <= 301 and err[:-1].isprintable()


# -- scalars --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("No", "No"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("+7", 7), ("08", 8),
        ("1_000", "1_000"), ("1:30", "1:30"), ("0b11", "0b11"), ("2020-01-01", "2020-01-01"),
        ("1e-3", 1e-3), ("2E+1", 20.0), (".5", 0.5), ("5.", 5.0), ("-1.0001", -1.0001),
        ("1e5", 1e5), (".inf", float("inf")), ("-.Inf", float("-inf")), ("inf", "inf"),
        ("'no'", "no"), ('"1"', "1"), ("'~'", "~"), ("=", "="), ("<<", "<<"), ("٣", "٣"),
        ("a: {no: 1, 1: 2, null: 3}", {"a": {"no": 1, "1": 2, "null": 3}}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = plain_yaml.parse(text)
    assert found == value and type(found) is type(value)


def test_whatever_is_written_reads_back() -> None:
    rng = random.Random(0)
    names = [
        "no",
        "on",
        "yes",
        "y",
        "1e5",
        "1_000",
        "0o7",
        "08",
        "010",
        "1:30",
        "null",
        "~",
        "",
        "=",
        "<<",
    ]
    names += [
        "2020-01-01",
        ".inf",
        ".nan",
        "-",
        "- a",
        "a: b",
        "#x",
        " x ",
        "x\n",
        "*a",
        "&a",
        "!t",
    ]
    names += [
        "0x1",
        "+1",
        "1.",
        ".5",
        "5e",
        "true",
        "TRUE",
        "é",
        "🐈",
        "\x1b",
        "\u2028",
        "\ufeff",
        "٣",
    ]
    letters = "0123456789.eE+-_:xo~ '\"#&*!|>%@`{}[],?\t\n" + string.ascii_letters
    names += [
        "".join(rng.choices(letters[: rng.choice((15, 60))], k=rng.randrange(8)))
        for _ in range(2000)
    ]
    numbers = [rng.uniform(-1, 1) * 10.0 ** rng.randrange(-12, 13) for _ in range(500)]
    plain = {"names": names, "numbers": numbers, "keys": dict.fromkeys(names, 1), "again": numbers}
    text = plain_yaml.dump(plain)
    assert plain_yaml.parse(text) == plain
    assert yaml.safe_load(text)["names"] == names  # a reader of YAML 1.1 agrees


def test_a_run_keeps_names_that_look_like_numbers() -> None:
    classes = ["1e5", "no", "08", "0o7", "1_000", "~"]
    raw = {"data": {"root": "/d", "train": "2007", "classes": classes}}
    config = check_config(raw, "f", Config)
    again = check_config(plain_yaml.parse(plain_yaml.dump(config.to_plain())), "again", Config)
    assert again.data == config.data and again.data.classes == classes


def test_damaged_settings_never_leave_another_error(tmp_path: Path) -> None:
    """Cut, spliced and flipped pieces of valid files, of hostile ones and of YAML's own signs."""
    rng = random.Random(1)
    shipped = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    texts = [path.read_text() for path in shipped] + [text[:400] for text, _ in HOSTILE.values()]
    signs = [
        "[",
        "{",
        "- ",
        ": ",
        "&a ",
        "*a ",
        "!!int ",
        "? ",
        "| ",
        "> ",
        "'",
        '"',
        "\t",
        "\n",
        "%",
        "---\n",
        "\0",
    ]
    path = tmp_path / "run.yaml"
    refused = 0
    for _ in range(400):
        text = rng.choice(texts)[: rng.randrange(1, 600)]
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(text) + 1)
            text = (
                text[:at]
                + rng.choice([*signs, rng.choice(texts)[:50]])
                + text[at + rng.randrange(3) :]
            )
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        try:
            load_config(path)
        except ConfigError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert refused > 200
