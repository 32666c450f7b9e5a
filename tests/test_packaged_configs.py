"""Packaged configs: found by name, printed with comments, and part of the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runs import CommandLine
from sppdet.classification.config import PretrainConfig
from sppdet.cli.init import commented_config, config_list
from sppdet.cli.options import default_run
from sppdet.errors import ConfigError
from sppdet.io.packaged_configs import find_config, packaged_configs
from sppdet.io.settings import load_config, load_settings, read_with_bases

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_every_config_has_a_name_and_a_comment() -> None:
    assert sorted(packaged_configs()) == NAMES and "squeezenet_small" in NAMES
    listed = dict(line.split(maxsplit=1) for line in config_list())
    assert sorted(listed) == NAMES  # `split` fails where there is no comment


def test_tuned_layers_have_windows_of_five_colour_spaces() -> None:
    modes = {name: read_with_bases(path) for name, path in packaged_configs().items()}
    found = {name: raw.get("proposals", {}).get("mode", "fast") for name, raw in modes.items()}
    assert found == {**dict.fromkeys(NAMES, "fast"), "lite0_tuned": "diverse"}


def test_paths_of_a_packaged_config_start_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("voc07_alexnet_1scale"), ["svm.C=0.5"])
    assert config.data.root == [tmp_path / "data" / "VOCdevkit" / "VOC2007"]
    assert config.scales == [688] and config.svm.C == 0.5
    assert load_config(Path("voc07_alexnet_1scale.yaml")).scales == [688]


def test_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voc07").mkdir()  # a folder isn't a file of settings
    packaged = packaged_configs()["voc07"]
    assert find_config(Path("voc07")) == (packaged, tmp_path / "configs")
    own = tmp_path / "voc07.yaml"
    own.write_text("data: {root: mine}\n")
    assert (
        find_config(Path("voc07")) == find_config(Path("voc07.yaml")) == (Path("voc07.yaml"), None)
    )
    assert load_config(Path("voc07")).data.root == [tmp_path / "mine"]
    own.rename(tmp_path / "voc0712_alexnet")
    assert load_config(Path("voc0712_alexnet")).data.root == [tmp_path / "mine"]


def test_paths_are_never_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"voc07\.yaml: no such file$"):
        load_config(tmp_path / "voc07.yaml")


@pytest.mark.parametrize("command", ["train", "propose", "init"])
def test_an_unknown_name_is_one_line(
    sppdet: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = sppdet(command, "squeezenet_smal")
    assert (status, out) == (1, "")
    assert err == (
        "error: squeezenet_smal: no such file, and no packaged config of that name; did you mean "
        "squeezenet_small or squeezenet_tuned?\n"
    )
    status, _, err = sppdet(command, "qqq")
    assert err.endswith("; `sppdet init --list` has them all\n")


@pytest.mark.parametrize("name", NAMES)
def test_printed_configs_are_the_packaged_ones(
    sppdet: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text, err = sppdet("init", name)
    assert (status, err) == (0, "") and text.startswith("# ")
    (tmp_path / "mine.yaml").write_text(text)
    packaged = read_with_bases(packaged_configs()[name], tmp_path / "configs")
    assert read_with_bases(tmp_path / "mine.yaml") == packaged


def test_the_users_own_folder(
    sppdet: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text, _ = sppdet("init", "squeezenet_small", "--data", "my-folder")
    assert status == 0 and "  # Layout of the data set. voc: " in text
    (tmp_path / "my.yaml").write_text(text)
    config = load_config(tmp_path / "my.yaml")
    assert config.data.root == [tmp_path / "my-folder"] and config.head is None
    (tmp_path / "two.yaml").write_text(commented_config("voc0712_alexnet", Path("no: number")))
    both = load_config(tmp_path / "two.yaml").data
    assert both.root == [tmp_path / "no: number"] and both.test == ["test"]
    (tmp_path / "c.yaml").write_text(commented_config("pretrain_small"))
    load_settings(tmp_path / "c.yaml", PretrainConfig)


def test_init_lists_or_prints(sppdet: CommandLine) -> None:
    assert sppdet("init", "--list") == (0, "\n".join(config_list()) + "\n", "")
    assert sppdet("init") == (1, "", "error: init: expected NAME or --list\n")


def test_the_wheel_has_the_configs(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    sources = tmp_path / "sources"  # pip would leave its build folders here
    for folder in ("sppdet", "configs"):
        shutil.copytree(ROOT / folder, sources / folder)
    for file in ("pyproject.toml", "setup.py", "README.md"):
        (sources / file).write_bytes((ROOT / file).read_bytes())
    subprocess.run([*build, "--wheel-dir", tmp_path, sources], check=True)
    (wheel,) = tmp_path.glob("sppdet-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"sppdet/configs/{name}.yaml" for name in NAMES} <= names
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sppdet").rglob("*.py")}
    assert modules <= names and "sppdet/py.typed" in names
    templates = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("sppdet/pages/templates/*")}
    assert templates <= names and len(templates) > 3


@pytest.mark.parametrize(
    ("config", "run"), [("exp.1", "exp.1"), ("a/exp.1.yaml", "exp.1"), ("b", "b")]
)
def test_the_default_run_has_the_whole_name(config: str, run: str) -> None:
    assert default_run(Path(config)) == Path("runs") / run
