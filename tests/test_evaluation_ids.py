"""Which image and class an entry of a results file is of."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation_samples import make_detections, make_image
from sppdet.data_config import DataConfig
from sppdet.errors import ConfigError, DataError
from sppdet.io.coco_results import CocoResults, default_image_ids, write_coco_results
from sppdet.io.comp4 import write_comp4
from sppdet.io.detection_files import read_detections
from sppdet.io.image_ids import (
    IdMeaning,
    IdTables,
    ids_to_write,
    labels_of_ids,
    meaning_of,
    rows_of_ids,
    tables_of_split,
)
from sppdet.io.image_names import ImageNames, distinct_names
from sppdet.io.names import unique_ids
from sppdet.io.records import read_number, stated_size
from sppdet.io.splits import read_split
from sppdet.types import Dataset

BOX = [0, 0, 5, 5]


def a_set(*paths: str, classes: tuple[str, ...] = ("cat",)) -> Dataset:
    images = tuple(
        replace(make_image(f"id{row}", []), path=Path(path)) for row, path in enumerate(paths)
    )
    return Dataset("val", classes, images)


def entry(**keys: Any) -> dict[str, Any]:
    return {"bbox": BOX, "score": 1, "category_name": "cat", **keys}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names", "rows"),
    [
        (["s/1.jpg", "s/10.jpg"], ["10.jpg", "1.jpg"], [1, 0]),
        (["s/1.jpg", "s/2.jpg"], ["1", "2.png", "s/3.jpg"], [0, 1, None]),  # other suffix, or none
        (["s/1.JPG"], ["1.jpg"], [0]),
        (["s/1.jpg"], ["1.JPEG"], [0]),
        (["s/a.b.jpg", "s/a.jpg"], ["a.b", "a"], [0, 1]),  # .b is no image's suffix
        (["s/a.jpg"], ["a.b"], [None]),
        (["s/a.jpg", "s/a.png"], ["a.png", "a.jpg"], [1, 0]),
        (["s/1.jpg"], ["1.jpg", "1.png"], [0, None]),  # the second is another image
        (["x/1.jpg", "y/1.jpg"], ["y/1.jpg", "x/1.jpg"], [1, 0]),
        (["r/x/1.jpg"], ["y/1.jpg"], [None]),  # not by the base name alone
        (["r/x/1.jpg"], ["x/1.jpg", "1.jpg"], [0, None]),  # 1.jpg lies above x
        (["r/1.jpg", "r/y/1.jpg"], ["1.jpg", "y/1.jpg"], [0, 1]),
        (["r/x/1.jpg"], ["x\\1.jpg"], [0]),
        (["r/x/1.jpg"], ["./x/1.jpg", "id0", "../x/1.jpg"], [0, 0, 0]),
        (["s/caf\u00e9.jpg"], ["cafe\u0301.jpg"], [0]),
        (["s/ 1.jpg", "s/IMG 2.jpg"], ["IMG 2.jpg", " 1.jpg"], [1, 0]),
        ([], ["a"], [None]),
        (["s/a.jpg"], ["", "/", ".."], [None, None, None]),
    ],
)
def test_names(paths: list[str], names: list[str], rows: list[int | None]) -> None:
    assert ImageNames(a_set(*paths)).match([(name,) for name in names]) == rows
    backwards = ImageNames(a_set(*paths)).match([(name,) for name in names[::-1]])
    assert backwards == rows[::-1]  # the order of the entries has no say


@pytest.mark.parametrize(
    ("paths", "names", "problem"),
    [
        (["x/1.jpg", "y/1.jpg"], ["1.jpg"], "'1.jpg' could be .*/x/1.jpg or .*/y/1.jpg"),
        (["x/1.jpg", "y/1.jpg"], ["1"], "'1' could be .*/x/1.jpg or .*/y/1.jpg"),
        (["r/1.jpg", "r/y/1.jpg"], ["1.jpg"], "could be .*/r/1.jpg or r/y/1.jpg"),
        (["s/1.jpg"], ["1.png", "1.bmp"], "s/1.jpg could be meant by 1.bmp or 1.png"),
    ],
)
def test_names_of_two_images(paths: list[str], names: list[str], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        ImageNames(a_set(*paths)).match([(name,) for name in names])


def test_the_best_name_that_fits_is_taken() -> None:
    names = ImageNames(a_set("/r/x/1.jpg", "/r/y/1.jpg"))
    assert names.match([("/r/y/1.jpg", "1.jpg"), ("/other/1.jpg", "x/1.jpg")]) == [1, 0]
    assert names.match([("/r/y/1.jpg", "1.jpg"), ("/other/1.jpg", "1.jpg")]) == [1, 0]
    assert names.match([("/r/y/1.jpg",), ("/r/x/1.jpg",), ("/z/1.jpg", "1.jpg")]) == [1, 0, None]


def test_distinct_names_find_their_images() -> None:
    dataset = a_set("r/a.jpg", "r/x/a.jpg", "r/x/b.jpg", "q/x/a.jpg", "c.jpg")
    names = distinct_names(dataset)
    assert names == ["r/a.jpg", "r/x/a.jpg", "b.jpg", "q/x/a.jpg", "c.jpg"]
    assert ImageNames(dataset).match([(name,) for name in names]) == [0, 1, 2, 3, 4]
    for row, name in enumerate(names):  # each also on its own
        assert ImageNames(dataset).match([(name,)]) == [row]


# -- numbers -----------------------------------------------------------------------------------

UP_TO_15 = [f"s/{number}.jpg" for number in range(1, 16)]


@pytest.mark.parametrize(
    ("paths", "ids", "rows"),
    [
        (["s/000012.jpg", "s/000500.jpg"], [500, 12], [1, 0]),  # no position reaches so far
        (["s/000012.jpg", "s/000500.jpg"], [500], [1]),
        (["s/01.jpg", "s/02.jpg", "s/03.jpg"], [3, 1], [2, 0]),  # stem and position agree
    ],
)
def test_numbers_that_are_certain(paths: list[str], ids: list[int], rows: list[int]) -> None:
    found = rows_of_ids(ids, a_set(*paths), IdMeaning())
    assert [found[key] for key in ids] == rows


@pytest.mark.parametrize(
    ("paths", "ids", "problem"),
    [
        (UP_TO_15, [2, 15], "2 could be 2.jpg by its name or 10.jpg by its position"),
        (UP_TO_15[::-1], [15, 1], "could be 15.jpg by its name or 1.jpg by its position"),
        (["s/01.jpg", "s/02.jpg", "s/03.jpg"], [1, 2], "1 could be 01.jpg by its name or 02.jpg"),
        (["s/000012.jpg", "s/000500.jpg"], [500, 13], "13 is not the file name of any image"),
        (["s/a.jpg", "s/b.jpg"], [1, 2], "1 is not a name"),
        (["s/1.jpg", "s/01.jpg"], [1], "1 is not a name"),
    ],
)
def test_numbers_that_are_refused(paths: list[str], ids: list[int], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of_ids(ids, a_set(*paths), IdMeaning())
    assert problem in str(caught.value)
    for way_out in ("file_name", "--ids stem", "--ids position", "--ids FILE.json"):
        assert way_out in str(caught.value)


def test_numbers_as_the_user_says() -> None:
    dataset = a_set("s/3.jpg", "s/1.jpg", "s/2.jpg")
    stems, positions = IdMeaning("stem", forced=True), IdMeaning("position", forced=True)
    assert rows_of_ids([1, 2, 3, 4], dataset, stems) == {1: 1, 2: 2, 3: 0, 4: None}
    assert rows_of_ids([0, 1, 3, 4], dataset, positions) == {0: None, 1: 0, 3: 2, 4: None}
    with pytest.raises(DataError, match="--ids stem: the stems of val aren't different numbers"):
        rows_of_ids([1], a_set("s/a.jpg"), stems)


def test_category_numbers() -> None:
    dataset = a_set("s/1.jpg", classes=("cat", "dog"))
    with pytest.raises(DataError, match="1 could be any class; give every entry a category_name"):
        labels_of_ids([1, 2], dataset, IdMeaning())
    assert labels_of_ids([1, 2], dataset, IdMeaning(labels_given=True)) == {1: 1, 2: 2}
    with pytest.raises(DataError, match=r"0 is not a label in 1\.\.2"):
        labels_of_ids([1, 0], dataset, IdMeaning(labels_given=True))
    tables = IdTables({}, {90: "dog", 17: "cat", 3: "bird", 5: ""})
    found = labels_of_ids([90, 17, 3, 4], dataset, IdMeaning(tables=tables))
    assert found == {90: 2, 17: 1, 3: None, 4: None}
    with pytest.raises(DataError, match="5 is of different classes"):
        labels_of_ids([5], dataset, IdMeaning(tables=tables))


# -- annotation files --------------------------------------------------------------------------


def write_annotations(path: Path, images: dict[int, str], categories: dict[int, str]) -> Path:
    """A COCO file with an object of every category in every image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": key, "file_name": name} for key, name in images.items()],
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": BOX}
            for n, (image, category) in enumerate(product(images, categories), start=1)
        ],
    }
    return write(path, content)


def read_set(data: DataConfig) -> Dataset:
    return read_split(data, "test", None, None, workers=1)


def test_ids_of_the_annotations_of_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {40: "q.jpg ", 1: "x/p.jpg", 50: "y/p.jpg"}
    write_annotations(tmp_path / "val.json", names, {90: "dog", 17: " cat ", 18: "cat"})
    monkeypatch.chdir(tmp_path.parent)
    data = DataConfig(format="coco", root=[Path(tmp_path.name)], test=["val"])  # relative
    dataset = read_set(data)
    assert [image.id for image in dataset.images] == ["q", "x__p", "y__p"]
    assert dataset.class_names == ("cat", "dog")
    tables = tables_of_split(data, "test")
    assert tables.image_rows(dataset) == {40: 0, 1: 1, 50: 2}
    images, categories = ids_to_write(tables, dataset)
    assert images == {"q": 40, "x__p": 1, "y__p": 50}
    assert categories == {"cat": 17, "dog": 90}

    path = tmp_path / "results.json"
    found = {"x__p": make_detections([(2, 0.5, (0, 0, 3, 3))])}
    write_coco_results(path, dataset, found, image_ids=images, category_ids=categories)
    (written,) = json.loads(path.read_text())
    assert (written["image_id"], written["category_id"]) == (1, 90)
    assert written["file_name"] == "x/p.jpg"
    del written["file_name"], written["category_name"]
    write(path, [written, {**written, "category_id": 18}])
    read = read_detections(path, dataset, meaning_of(None, data, "test"))
    assert [one.labels.tolist() for one in read.values()] == [[], [2, 1], []]

    cow = replace(dataset, class_names=("cat", "cow"))  # not in the file: a number of its own
    assert ids_to_write(tables, cow) == (images, {"cat": 17, "dog": 90, "cow": 91})


def test_ids_of_several_annotation_files(tmp_path: Path) -> None:
    for folder, images, categories in (
        ("a", {1: "p.jpg", 2: "q.jpg"}, {1: "cat", 2: "dog"}),
        ("b", {2: "p.jpg", 3: "r.jpg"}, {1: "cat", 2: "cow"}),
    ):
        write_annotations(tmp_path / folder / "val.json", images, categories)
    roots = [tmp_path / "a", tmp_path / "b"]
    data = DataConfig(format="coco", root=roots, test=["val"])
    dataset = read_set(data)
    meaning = meaning_of(None, data, "test")
    assert rows_of_ids([1, 3, 7], dataset, meaning) == {1: 0, 3: 3, 7: None}
    with pytest.raises(DataError, match="image_id 2 is an id in several annotation files"):
        rows_of_ids([1, 2], dataset, meaning)
    assert labels_of_ids([1], dataset, meaning) == {1: 1}
    with pytest.raises(DataError, match="category_id 2 is of different classes"):
        labels_of_ids([2], dataset, meaning)
    assert ids_to_write(meaning.tables, dataset) == (None, None)


def test_the_option_ids(tmp_path: Path) -> None:
    data = DataConfig(root=[tmp_path], test=["val"])
    assert meaning_of(None, data, "test") == IdMeaning()
    assert meaning_of("stem", data, "test") == IdMeaning("stem", forced=True)
    with pytest.raises(ConfigError, match=r"--ids stems: expected stem, position or a COCO"):
        meaning_of("stems", data, "test")
    with pytest.raises(DataError, match="no such file"):
        meaning_of(str(tmp_path / "x.json"), data, "test")
    # the numbers are those of a converter of a VOC set; numbers go before names then
    path = write_annotations(tmp_path / "all.json", {7: "1.jpg", 1: "2.jpg"}, {4: "cat"})
    meaning = meaning_of(str(path), data, "test")
    file = write(
        tmp_path / "r.json",
        [
            {"image_id": 7, "category_id": 4, "bbox": BOX, "score": 1, "file_name": "2.jpg"},
            {"image_id": 9, "category_id": 4, "bbox": BOX, "score": 2},
        ],
    )
    found = read_detections(file, a_set("s/1.jpg", "s/2.jpg"), meaning)
    assert [len(one) for one in found.values()] == [1, 0]


# -- results files -----------------------------------------------------------------------------


def test_entries_name_their_image_and_class(tmp_path: Path) -> None:
    dataset = Dataset("val", ("cat", "dog"), (make_image("p", []), make_image("q", [])))
    entries = [
        {"image_id": "p", "category_id": "cat", "bbox": BOX, "score": 1},
        {"image_id": "q.jpg", "class": "dog", "bbox": BOX, "score": 1, "segmentation": []},
        {"file_name": "q.jpg", "category_name": " cat ", "bbox": BOX, "score": 2},
        # the names go before the numbers
        entry(image_id=2, file_name="p.jpg", category_id=2, score=2.5),
    ]
    found = read_detections(write(tmp_path / "r.json", entries), dataset)
    assert found["p"].scores.tolist() == [2.5, 1]
    assert found["p"].labels.tolist() == [1, 1]
    assert found["q"].scores.tolist() == [2, 1]
    assert found["q"].labels.tolist() == [1, 2]


def test_what_is_not_in_the_split_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        *[entry(file_name=f"{number}.jpg") for number in range(1, 7)],
        entry(file_name="1.jpg", category_name="cow"),
        entry(file_name="1.jpg", bbox=[1, 1, 0, 5]),
        entry(file_name="1.jpg", score=float("nan")),
        entry(file_name="1.jpg", bbox=[1, 1, float("inf"), 5]),
    ]
    path = write(tmp_path / "r.json", entries)
    with caplog.at_level(logging.WARNING, logger="sppdet"):
        found = read_detections(path, a_set("s/1.jpg", "s/2.jpg"))
    assert [len(one) for one in found.values()] == [1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: image not in val: '3.jpg', '4.jpg', '5.jpg' and 1 more; 4 of 10 detections left out",
        f"{path}: not a class of val: 'cow'; 1 of 10 detections left out",
        f"{path}: 3 of 10 detections left out: 1 boxes without area, 2 with a number that is not"
        f" finite; the first: {path}, entry 8",
    ]
    with pytest.raises(DataError, match=r"image not in val: .* none of the 10 detections is left"):
        read_detections(path, a_set("s/8.jpg"))
    with pytest.raises(
        DataError,
        match="not a class of val: 'cat', 'cow'; none of the 10 detections is left; the set has 'Cat'",
    ):
        read_detections(path, a_set("s/1.jpg", classes=("Cat",)))
    assert read_detections(write(path, []), a_set("s/8.jpg"))["id0"].boxes.shape == (0, 4)


def test_detections_json(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 1, "file_name": "1.jpg", "path": "x/1.jpg"},
            {"id": 2, "file_name": "10.jpg"},
            {"id": 3, "file_name": "9.jpg"},  # without a detection
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat "}],
        "annotations": [
            {"image_id": 1, "category_id": 2, "bbox": BOX, "score": 1},
            {"image_id": 2, "category_id": 1, "bbox": BOX, "score": 2},
        ],
    }
    path = write(tmp_path / "detections.json", content)
    dataset = a_set("r/x/10.jpg", "r/y/1.jpg", "r/x/1.jpg", classes=("cat", "dog"))
    found = read_detections(path, dataset)
    assert [one.labels.tolist() for one in found.values()] == [[2], [], [1]]
    assert CocoResults.read(path).class_names(IdMeaning()) == ["cat", "dog"]


def test_images_without_a_detection_keep_their_names(tmp_path: Path) -> None:
    names = ["1.jpg", "x/1.jpg", "2.jpg"]  # the split has the second one, not the first
    content = {
        "images": [{"id": key, "file_name": name} for key, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": k, "category_id": 1, "bbox": BOX, "score": 1} for k in (0, 2)],
    }
    path = write(tmp_path / "detections.json", content)
    found = read_detections(path, a_set("r/x/1.jpg", "r/x/2.jpg"))
    assert [len(one) for one in found.values()] == [0, 1]


def test_a_path_is_of_the_folder_that_one_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "path": "x/1.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 1}],
    }
    path = write(tmp_path / "detections.json", content)
    dataset = a_set(f"{tmp_path}/r/x/1.jpg", f"{tmp_path}/q/x/1.jpg")
    with pytest.raises(DataError, match=r"could be r/x/1\.jpg or q/x/1\.jpg"):
        read_detections(path, dataset)
    (tmp_path / "q").mkdir()
    monkeypatch.chdir(tmp_path / "q")
    assert [len(one) for one in read_detections(path, dataset).values()] == [0, 1]


GOOD = {"images": [{"id": 1, "file_name": "p.jpg"}], "categories": [{"id": 1, "name": "cat"}]}
E1 = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (3, "a int, expected a list of detections or a detections.json"),
        ({}, "no list 'images'; expected a list of detections or an object with images"),
        ({**GOOD, "annotations": 1}, "no list 'annotations'"),
        ({**GOOD, "annotations": [{**E1, "image_id": 2}]}, "entry 1: image_id: 2, not an id in im"),
        ({**GOOD, "annotations": [{**E1, "category_id": [2]}]}, "category_id: [2], not an id in c"),
        ({**GOOD, "annotations": [{**E1, "image_id": True}]}, "image_id: True, not an id"),
        ({**GOOD, "annotations": [], "images": [{"id": 1}]}, "entry 1: file_name: missing"),
        ({**GOOD, "annotations": [], "images": [3]}, "images, entry 1: 3, expected an object"),
        (
            {**GOOD, "annotations": [], "categories": [{"id": 1, "name": 3}]},
            "name: 3, expected text",
        ),
        ({**GOOD, "annotations": [], "images": GOOD["images"] * 2}, "entry 2: id 1 is there twice"),
        ([1], "entry 1: 1, expected an object"),
        ([entry()], "image_id: missing, expected it or file_name"),
        ([entry(image_id=None)], "image_id: missing"),
        ([entry(image_id=True)], "image_id True, expected a number"),
        ([entry(image_id=[1])], "image_id [1], expected a number"),
        ([entry(image_id=1.5)], "image_id 1.5, expected a number"),
        ([entry(file_name="a\0b")], "file_name a\0b has a NUL byte"),
        ([entry(file_name="p", category_name="\ud800")], "has a lone surrogate"),
        ([entry(file_name=3)], "file_name: 3, expected text"),
        ([entry(file_name="p", category_name="")], "category_name: '', expected text"),
        ([{"file_name": "p", "bbox": BOX, "score": 1}], "category_id: missing"),
        ([entry(file_name="p", bbox=[0, 0, 1])], "bbox: [0, 0, 1], expected 4 numbers"),
        ([entry(file_name="p", bbox=[0, 0, 1, "1"])], "expected 4 numbers"),
        ([entry(file_name="p", bbox=[0, 0, 1, 10**400])], "expected 4 numbers"),
        ([entry(file_name="p", bbox=None)], "bbox: missing"),
        ([entry(file_name="p", score=None)], "score: missing"),
        ([entry(file_name="p", score="1")], "score: ['1'], expected a number"),
        ([entry(file_name="p"), entry(image_id=2)], "image_id 2 is not a name"),
    ],
)
def test_wrong_results(tmp_path: Path, content: object, problem: str) -> None:
    path = write(tmp_path / "r.json", content)
    with pytest.raises(DataError) as caught:
        read_detections(path, Dataset("val", ("cat",), (make_image("p", []),)))
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[1", "", "[" * 100_000, '{"a":' * 100_000, "[" + "1" * 5000 + "]", "\x00", '"\ud800']
)
def test_results_that_are_not_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DataError) as caught:
        read_detections(path, a_set("s/1.jpg"))
    assert str(caught.value).startswith(f"{path}: not ")
    assert "\n" not in str(caught.value)


def test_default_ids_are_for_other_tools() -> None:
    dataset = a_set("s/1.jpg", "s/2.jpg")
    assert default_image_ids(dataset) == {"id0": 1, "id1": 2}
    assert np.all([name.startswith("id") for name in default_image_ids(dataset)])


# -- numbers and names as other programs write them ----------------------------------------------


def images_of(entries: list[dict[str, Any]], dataset: Dataset, meaning: IdMeaning) -> list[str]:
    """The ids of the images that get a detection."""
    results = CocoResults(Path("r.json"), entries, None, None, "entry ")
    found = results.detections(dataset, meaning)
    return [image.id for image in dataset.images if len(found[image.id])]


def test_digits_as_text_are_the_number() -> None:
    """Text is no way round: what is refused or looked up as a number is so as text, too."""
    with pytest.raises(DataError, match=r"2 could be 2\.jpg by its name or 10\.jpg by its"):
        images_of([entry(image_id="2"), entry(image_id="15")], a_set(*UP_TO_15), IdMeaning())
    by_position = IdMeaning("position", forced=True)
    assert images_of([entry(image_id="1")], a_set(*UP_TO_15[::-1]), by_position) == ["id0"]
    tables = IdTables({2: "1.jpg", 3: "2.jpg", 1: "3.jpg"}, {1: "2", 2: "1"})
    dataset = a_set("1.jpg", "2.jpg", "3.jpg", classes=("1", "2"))
    for key in (3, "3"):
        one = {"image_id": key, "category_id": type(key)(1), "bbox": BOX, "score": 1}
        results = CocoResults(Path("r.json"), [one], None, None, "entry ")
        found = results.detections(dataset, IdMeaning(tables=tables))
        assert [d.labels.tolist() for d in found.values()] == [[], [2], []]
    # such a text can only be a name
    assert images_of([entry(image_id="07")], a_set("s/07.jpg", "s/1.jpg"), IdMeaning()) == ["id0"]


def test_a_files_own_table_of_text_ids_is_looked_up_as_it_is(tmp_path: Path) -> None:
    table = {
        "images": [{"id": "8", "file_name": "a.jpg"}],
        "categories": [{"id": "1", "name": "cat"}],
    }
    found = {"image_id": "8", "category_id": "1", "bbox": BOX, "score": 1}
    path = write(tmp_path / "detections.json", {**table, "annotations": [found]})
    again = CocoResults.read(path).detections(a_set("s/a.jpg"), IdMeaning())
    assert len(again["id0"]) == 1


def test_a_file_name_is_no_id() -> None:
    dataset = a_set("x/1.jpg", "y/1.jpg", "x__1.jpg")
    images = [replace(i, id=k) for i, k in zip(dataset.images, ("x__1.jpg", "b", "c"), strict=True)]
    dataset = replace(dataset, images=tuple(images))
    assert images_of([entry(file_name="x__1.jpg")], dataset, IdMeaning()) == ["c"]
    with pytest.raises(DataError, match=r"'x__1.jpg' could be 1.jpg or x__1.jpg"):
        images_of([entry(image_id="x__1.jpg")], dataset, IdMeaning())


@pytest.mark.parametrize(
    "name", ["a .jpg", "f\u00a0.jpg", "b\u2028c.jpg", "d\x85e.jpg", "g  h.jpg"]
)
def test_comp4_with_any_white_space_in_names(name: str, tmp_path: Path) -> None:
    names = (name, "a.jpg")
    ids = unique_ids(names)
    pairs = zip(ids, names, strict=True)
    images = tuple(replace(make_image(k, []), path=Path(f"s/{n}")) for k, n in pairs)
    dataset = Dataset("val", ("cat",), images)
    found = {
        k: make_detections([(1, 0.5 + row / 4, (1.0, 2.0, 3.0, 4.0))]) for row, k in enumerate(ids)
    }
    write_comp4(tmp_path, dataset, found)
    again = read_detections(tmp_path, dataset)
    assert {k: d.scores.tolist() for k, d in again.items()} == {ids[0]: [0.5], ids[1]: [0.75]}


@pytest.mark.parametrize("text", ["1_0", "\u0661\u0662", "0x10", "", "1,5", "++1", "infinity"])
def test_numbers_are_decimal_digits(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        read_number(text)
    if text:
        (tmp_path / "comp4_det_val_cat.txt").write_text(
            f"id0 0.5 1 1 {text} 10\n", encoding="utf-8"
        )
        with pytest.raises(DataError, match=r"cat\.txt:1: .* is not a number"):
            read_detections(tmp_path, a_set("s/1.jpg"))
    assert stated_size(text, "10") is None


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10.0), (" -1.5e3 ", -1500.0), (".5", 0.5), ("1.", 1.0)]
)
def test_numbers_of_files(text: str, value: float) -> None:
    assert read_number(text) == value


def of_table(file: Path, dataset: Dataset, **image: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 1, **image}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 1}],
    }
    found = CocoResults.read(write(file, content)).detections(dataset, IdMeaning())
    return {key: len(value) for key, value in found.items()}


def test_images_matched_by_the_end_of_their_path_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = a_set(f"{tmp_path}/sub/1.jpg")
    file = tmp_path / "detections.json"
    of_table(file, dataset, path=f"{tmp_path}/sub/1.jpg", file_name="sub/1.jpg")
    of_table(file, dataset, file_name="1.jpg")
    of_table(file, dataset, file_name="sub/1.jpg")
    assert not caplog.text
    assert of_table(file, dataset, path=f"{tmp_path}/1.jpg", file_name="1.jpg") == {"id0": 1}
    assert "1 images of val have other paths than in this file" in caplog.text
    assert f"{tmp_path}/1.jpg for {tmp_path}/sub/1.jpg" in caplog.text
    caplog.clear()
    of_table(file, dataset, file_name="sub/1.png")
    assert "1.png for 1.jpg" in caplog.text
