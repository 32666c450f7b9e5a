"""What the words of `detect` mean: files, folders, links, patterns, lists, and the names they get."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from sppdet.errors import ImageError
from sppdet.folders.formats import IMAGE_FORMATS
from sppdet.folders.inputs import plan_images
from sppdet.folders.sources import Film, FolderPlan, Still
from sppdet.io.finding import walk
from sppdet.io.images import IMAGE_SUFFIXES, read_image

MAX_PIXELS = 10**6
FILES = ("a.jpg", "b.PNG", "sub/a.jpg", "sub/deep/c.jpg", "sub/deep/d[1].jpg", "other/e.webp")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of empty files, which is the working directory."""
    for name in (*FILES, "notes.md", "sub/list.dat", ".hidden.jpg", ".git/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(plan: FolderPlan) -> list[str]:
    return [source.name for source in plan.sources]


def files(*words: str | Path) -> list[str]:
    """The files that are read, by their paths."""
    return [path.as_posix() for path in plan_images(words).files]


def load_error(plan: FolderPlan) -> list[str]:
    """What each image that fails on loading says."""
    said = []
    for _, load in plan.items(MAX_PIXELS):
        try:
            load().decode()
        except ImageError as error:
            said.append(str(error))
    return said


# -- patterns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    ["*.jpg", "sub/*.jpg", "*/a.jpg", "**/*.jpg", "sub/**/*.jpg", "**/deep/*", "**/deep/**/*.jpg",
     "[ab].*", "?.jpg", "**/?.jpg", "**/**/c.jpg", "**"],
)  # fmt: skip
def test_patterns_match_as_those_of_pathlib(tree: Path, pattern: str) -> None:
    matched = (path.relative_to(tree) for path in tree.glob(pattern))
    shown = (p for p in matched if not any(part.startswith(".") for part in p.parts))
    wanted = {p.as_posix() for p in shown if p.suffix.lower() in IMAGE_SUFFIXES}
    if pattern == "**":  # pathlib's matches folders alone
        wanted = set(FILES)
    if pattern == "**/deep/*" or pattern == "*":
        wanted = {p for p in FILES if "/deep/" in p}
    assert set(files(pattern)) == wanted != set()
    absolute = files(str(tree / pattern))
    assert {Path(p).relative_to(tree).as_posix() for p in absolute} == wanted


def test_a_file_whose_name_looks_like_a_pattern(tree: Path) -> None:
    assert files("sub/deep/d[1].jpg") == ["sub/deep/d[1].jpg"]


def test_a_pattern_that_matches_a_folder_searches_it(tree: Path) -> None:
    assert files("s*") == ["sub/a.jpg", "sub/deep/c.jpg", "sub/deep/d[1].jpg"]


@pytest.mark.parametrize("word", ["*.gif", "**/*.xyz", "nothing/**/*.jpg", "*.md"])
def test_a_pattern_that_matches_nothing(tree: Path, word: str) -> None:
    with pytest.raises(ImageError) as caught:
        plan_images([word])
    assert str(caught.value) == f"{word}: matches no images"


def test_each_file_comes_once(tree: Path) -> None:
    assert files("a.jpg", "*.jpg", "./a.jpg", tree / "a.jpg", "**/a.jpg") == ["a.jpg", "sub/a.jpg"]


# -- links -----------------------------------------------------------------------------------------


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("links can't be made here")


@pytest.mark.parametrize("word", ["in", "in/**/*.jpg", "in/**", "in/*"])
def test_links_lead_in_no_circle(tree: Path, word: str) -> None:
    for name in ("in/x.jpg", "in/sub/y.jpg", "far/z.jpg", "far/deep/w.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    link(tree / "in" / "up", tree / "in")  # to itself
    link(tree / "in" / "sub" / "higher", tree)  # above all
    link(tree / "in" / "beside", tree / "in" / "sub")  # listed anyway
    link(tree / "in" / "above", tree)
    link(tree / "in" / "linked", tree / "far")
    link(tree / "in" / "again", tree / "far")
    link(tree / "far" / "back", tree / "in")
    link(tree / "far" / "deep" / "down", tree / "far")
    link(tree / "in" / "broken", tree / "nowhere")
    found = files(word)
    real = sorted(os.path.relpath(os.path.realpath(path)) for path in found)
    assert real == ["far/deep/w.jpg", "far/z.jpg", "in/sub/y.jpg", "in/x.jpg"]


def test_a_folder_and_a_link_to_it(tree: Path) -> None:
    link(tree / "alias", tree / "sub")
    assert files("sub", "alias") == files("sub")
    assert files("alias", "sub", "alias/a.jpg") == [
        "alias/a.jpg", "alias/deep/c.jpg", "alias/deep/d[1].jpg",
    ]  # fmt: skip
    assert files("alias") == ["alias/a.jpg", "alias/deep/c.jpg", "alias/deep/d[1].jpg"]


def test_a_walk_comes_to_every_folder_once(tree: Path) -> None:
    link(tree / "sub" / "deep" / "top", tree)
    walked = [folder for folder, _ in walk(tree)]
    assert len(walked) == len(set(walked)) == 4  # itself, sub, sub/deep, other


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["@lists/some.txt", "lists/some.txt", "@lists/plain"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_paths_below_its_own_folder(tree: Path, word: str, encoding: str) -> None:
    (tree / "lists").mkdir()
    lines = [
        "# comment",
        "../a.jpg",
        "",
        "  ../sub/deep/c.jpg ",
        "../o*/*.webp",
        str(tree / "b.PNG"),
    ]
    (tree / word.lstrip("@")).write_text("\n".join(lines), encoding=encoding)
    plan = plan_images([word])
    found = [os.path.relpath(path) for path in plan.files]
    assert sorted(found) == ["a.jpg", "b.PNG", "other/e.webp", "sub/deep/c.jpg"]
    assert plan.searched == ()


def test_lines_that_lead_nowhere_are_images_that_fail(tree: Path) -> None:
    Image.new("RGB", (3, 2)).save(tree / "a.jpg")
    lines = ["gone.jpg", "a.jpg", "none*.jpg", "bad\0name.jpg", "-", "http://u:p@h/x.jpg"]
    (tree / "list.txt").write_text("\n".join(lines))
    said = load_error(plan_images(["@list.txt"]))
    assert [line.partition(": ")[2] for line in sorted(said)] == [
        "no such file", "no such file: the name has a NUL byte", "no such file",
        "no URL of an image: has a user's name, which isn't supported", "no such file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (None, "gone.txt: no such file"),
        (
            lambda p: p.write_text("\n# nothing\n"),
            "gone.txt: lists no images, expected a path in each",
        ),
        (lambda p: p.write_bytes(b"\xff\x00\xff"), "gone.txt: not UTF-8 text"),
        (lambda p: p.mkdir(), "gone.txt: can't be read: is a folder"),
    ],
)
def test_lists_that_are_none(
    tree: Path, make: Callable[[Path], object] | None, problem: str
) -> None:
    if make:
        make(tree / "gone.txt")
    with pytest.raises(ImageError, match=problem):
        plan_images(["@gone.txt"])


# -- what is left out, what isn't there ------------------------------------------------------------


def test_videos_of_folders_are_left_out_in_one_line(tree: Path) -> None:
    (tree / "clip.mp4").touch()
    (tree / "sub" / "other.MOV").touch()
    plan = plan_images([tree])
    assert plan.left_out == ("2 videos, which are read where they are named",)
    assert plan.films == [] and len(plan.files) == len(FILES)
    assert names(plan_images(["*.mp4"])) == ["clip.mp4"]
    assert [type(s) for s in plan_images([tree, "clip.mp4"]).sources].count(Film) == 1
    with pytest.raises(ImageError, match="no images besides 1 videos"):
        (tree / "films").mkdir()
        (tree / "clip.mp4").rename(tree / "films" / "clip.mp4")
        plan_images(["films"])


def test_heic_without_the_library_is_left_out_in_one_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x.heic", "y.HEIC", "z.hif"):
        (tree / name).touch()
    monkeypatch.setattr("sppdet.folders.inputs.reads_heif", lambda: False)
    assert plan_images([tree]).left_out == ("3 HEIC images: pip install 'sppdet[heic]'",)
    monkeypatch.setattr("sppdet.folders.inputs.reads_heif", lambda: True)
    assert plan_images([tree]).left_out == () and len(files(tree)) == len(FILES) + 3


@pytest.mark.parametrize(
    "word", ["gone.jpg", "gone/", "camera:x", "n" * 300, "a\0b.jpg", "ftp://h/x.jpg"]
)
def test_a_word_that_leads_nowhere(tree: Path, word: str) -> None:
    with pytest.raises(ImageError, match="no such file or folder"):
        plan_images(["a.jpg", word])


# -- HEIC and AVIF ---------------------------------------------------------------------------------


@pytest.fixture
def gradient() -> Image.Image:
    """An image that is like none of its turns."""
    x, y = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64))
    pixels = np.stack([x, y, np.full_like(x, 60)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("orientation", [None, 6])
def test_heic_is_read_as_its_library_shows_it(
    tmp_path: Path, gradient: Image.Image, orientation: int | None
) -> None:
    """The turn that counts is HEIC's own, which libheif applies; EXIF repeats it for information."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    gradient.save(tmp_path / "x.heic", quality=95, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / "x.heic").convert("RGB"))
    found = read_image(tmp_path / "x.heic")
    assert found.shape == np.asarray(shown).shape
    assert np.abs(found.astype(int) - np.asarray(shown)).max() <= 2
    assert np.abs(found.astype(int) - np.asarray(gradient)).mean() < 6


def test_heic_names_the_library_and_refuses_bombs(
    tmp_path: Path, gradient: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    path = tmp_path / "x.heic"
    gradient.save(path)
    with pytest.raises(ImageError, match="96x64 pixels, expected 1000 at most"):
        read_image(path, max_pixels=1000)
    data = path.read_bytes()
    (tmp_path / "cut.heic").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.heic: can't be decoded as an image"):
        read_image(tmp_path / "cut.heic")
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"x\.heic: HEIC needs pillow-heif: pip install 'sppdet"):
        read_image(path)


def test_avif_by_pillow_where_opencv_has_none(
    tmp_path: Path, gradient: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient.save(tmp_path / "x.avif", quality=95)
    by_opencv = read_image(tmp_path / "x.avif")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert np.abs(read_image(tmp_path / "x.avif").astype(int) - by_opencv).max() <= 3
    assert np.abs(by_opencv.astype(int) - np.asarray(gradient)).mean() < 6


# -- names -----------------------------------------------------------------------------------------


def test_urls_get_names_that_stay_in_the_folder() -> None:
    urls = [
        "http://host/a/b.jpg", "https://host:8080/../../etc/passwd.jpg", "http://host/%2e%2e/%2Fx.png",
        "http://host/", "http://host", "http://host/b.jpg?size=1", "http://host/b.jpg?size=2",
        "http://host/CON:.jpg", "http://[::1/x.jpg",
    ]  # fmt: skip
    plan = plan_images([*urls, urls[0]])
    assert len(plan.sources) == len(urls)
    all_names = names(plan)
    assert len({name.casefold() for name in all_names}) == len(urls)
    for item in plan.stills:
        (file,) = IMAGE_FORMATS["voc"].files(item.stem, ())
        parts = file.split("/")
        assert parts[0] == "Annotations" and not {"", ".", ".."} & set(parts)
        assert not set(item.name) & set('\\:*?"<>|')
    assert names(plan_images([urls[0]])) == ["b.jpg"]


@pytest.mark.parametrize(
    "odd",
    [
        ["clip.mp4", "clip.avi", "CLIP.mp4", "clip.jpg", "clip.avi.mp4", "clip/1.jpg", "v.mov",
         "far/clip.mp4/2.jpg", "far/v.mov/000000.jpg", "v.mov#000000"],
        ["v.mov", "far/v.mov/000000.jpg"],
        ["V.mov", "far/v.MOV/x.jpg"],
        ["clip.mp4", "far/clip.mp4/2.jpg"],
        ["clip.avi", "clip.avi.mp4"],
        ["v.mov", "v.mov#000000"],
    ],
    ids=len,
)  # fmt: skip
def test_no_file_of_one_image_stands_in_the_way_of_another(tree: Path, odd: list[str]) -> None:
    for name in odd:
        if not (tree / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).touch()
    given = [tree / name for name in odd if "far/" not in name]
    if len(given) < len(odd):
        given.append(tree / "far")
    plan = plan_images(given)
    assert len(plan.sources) >= len(odd)
    results, paths = list[str](), list[str]()
    for source in plan.sources:
        if isinstance(source, Film):
            paths.append(source.file)
            stem = source.whole.stem
            results += [f"{source.name}#{n:06d}" for n in range(2)]
            paths += [f"Annotations/{stem}/{n:06d}.xml" for n in range(2)]
        elif isinstance(source, Still):
            results.append(source.name)
            for kind in ("images", "voc"):
                paths += IMAGE_FORMATS[kind].files(source.item.stem, ())
    folded = [path.casefold() for path in paths]
    assert len(set(folded)) == len(folded) and len(set(results)) == len(results)
    for one, other in itertools.permutations(folded, 2):
        assert not other.startswith(f"{one}/")
