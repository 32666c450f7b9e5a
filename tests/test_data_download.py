"""Fetching PASCAL VOC, with torchvision's part replaced."""

from __future__ import annotations

import hashlib
import tarfile
import urllib.error
from pathlib import Path

import pytest
from torchvision import datasets
from torchvision.datasets import voc

from sppdet.errors import DataError
from sppdet.io.download import download_voc


def _make(root: Path, year: str, image_set: str) -> None:
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text(f"{image_set}1\n")
    (folder / "JPEGImages" / f"{image_set}1.jpg").touch()
    (folder / "Annotations" / f"{image_set}1.xml").touch()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The (year, set) of every download, which makes a tiny set."""
    calls: list[tuple[str, str]] = []

    def fake(root: Path, *, year: str, image_set: str, download: bool) -> None:
        assert download
        calls.append((year, image_set))
        _make(Path(root), year, image_set)

    monkeypatch.setattr(datasets, "VOCDetection", fake)
    return calls


def test_2007_has_both_sets_in_one_root(tmp_path: Path, fetched: list[tuple[str, str]]) -> None:
    root = tmp_path / "new"
    assert download_voc("2007", root) == [root / "VOCdevkit" / "VOC2007"]
    assert fetched == [("2007", "trainval"), ("2007", "test")]


def test_2012_has_trainval(tmp_path: Path, fetched: list[tuple[str, str]]) -> None:
    assert download_voc("2012", tmp_path) == [tmp_path / "VOCdevkit" / "VOC2012"]
    assert fetched == [("2012", "trainval")]


def test_what_is_there_is_not_fetched(
    tmp_path: Path, fetched: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    _make(tmp_path, "2007", "trainval")
    with caplog.at_level("INFO", logger="sppdet"):
        download_voc("2007", tmp_path)
    assert fetched == [("2007", "test")]
    assert "VOC 2007 trainval is already in" in caplog.text


def test_half_extracted_set_is_fetched_again(
    tmp_path: Path, fetched: list[tuple[str, str]]
) -> None:
    _make(tmp_path, "2012", "trainval")
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages" / "trainval1.jpg").unlink()
    corrected = folder / "Annotations" / "trainval1.xml"
    corrected.write_text("<annotation/>")
    download_voc("2012", tmp_path)
    assert fetched == [("2012", "trainval")]
    assert corrected.read_text() == "<annotation/>"  # only what is missing is unpacked
    assert [path.name for path in tmp_path.iterdir()] == ["VOCdevkit"]


def test_an_archive_that_is_there_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path / "made", "2012", "trainval")
    archive = tmp_path / "VOCtrainval_11-May-2012.tar"
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "made" / "VOCdevkit", "VOCdevkit")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "md5", digest)
    monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "url", "http://127.0.0.1:9/none.tar")
    assert download_voc("2012", tmp_path) == [tmp_path / "VOCdevkit" / "VOC2012"]
    assert {path.name for path in tmp_path.iterdir()} == {"made", "VOCdevkit", archive.name}


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route to host"),
        RuntimeError("File not found or corrupted."),
        tarfile.ReadError("unexpected end\nof data"),
        TimeoutError(),
    ],
)
def test_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "VOCDetection", fail)
    with pytest.raises(DataError, match=r"^VOC 2012 trainval: download failed: \S.*$") as caught:
        download_voc("2012", tmp_path)
    assert "\n" not in str(caught.value)


def test_incomplete_after_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "VOCDetection", lambda *args, **kwargs: None)
    with pytest.raises(DataError, match="is not complete"):
        download_voc("2012", tmp_path)


def test_unknown_year(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="VOC 1999: expected one of 2007, 2012"):
        download_voc("1999", tmp_path)  # type: ignore[arg-type]
