"""A bound on the disk space of files: never exceeded, by several processes neither."""

from __future__ import annotations

from pathlib import Path

import torch

from sppdet.runs.items import ItemStore
from sppdet.runs.room import Room


def stored(folder: Path, room: Room, settings: str = "s") -> ItemStore:
    return ItemStore(folder, "maps", settings, lambda found: found, room=room)


def tensors(count: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((count,), 7, dtype=torch.uint8)}


def used(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def size_of_one(folder: Path) -> int:
    stored(folder, Room(folder, "maps-*", most=10**6)).write("00", "d", tensors(1000))
    return used(folder)


def test_files_are_written_to_the_byte(tmp_path: Path) -> None:
    one = size_of_one(tmp_path / "probe")
    for spare, expected in ((-1, 2), (0, 3), (one - 1, 3)):
        folder = tmp_path / f"{spare}"
        room = Room(folder, "maps-*", most=3 * one + spare)
        store = stored(folder, room)
        written = [store.write(f"{i:02}", "d", tensors(1000)) for i in range(5)]
        assert written == [i < expected for i in range(5)]
        assert used(folder) == expected * one <= 3 * one + spare
        assert room.is_full
        assert not store.write(
            "9", "d", tensors(1)
        )  # it would fit, but the first refusal is the end
        assert [store.has(f"{i:02}", "d") for i in range(5)] == written


def test_what_is_there_counts_and_other_kinds_dont(tmp_path: Path) -> None:
    one = size_of_one(tmp_path)  # by these settings
    ItemStore(tmp_path, "proposals", "s", lambda found: found).write("p", "d", tensors(5000))
    stored(tmp_path, Room(tmp_path, "maps-*", most=10**6), "t").write("00", "d", tensors(1000))
    room = Room(tmp_path, "maps-*", most=4 * one - 1)
    assert room.used() == 2 * one and not room.is_full
    store = stored(tmp_path, room)
    assert [store.write(f"{i:02}", "d", tensors(1000)) for i in (1, 2)] == [True, False]
    for most, full in ((one, True), (3 * one, True), (3 * one + 1, False)):
        assert Room(tmp_path, "maps-*", most=most).is_full == full
    assert store.has("00", "d") and store.has("01", "d")  # a smaller bound removes nothing


def test_a_damaged_file_gives_its_place_back(tmp_path: Path) -> None:
    one = size_of_one(tmp_path)
    store = stored(tmp_path, Room(tmp_path, "maps-*", most=one))
    path = store.path("00", "d")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert store.get("00", "d", dict) is None
    assert store.write("00", "d", tensors(1000))
    assert store.get("00", "d", dict) is not None and used(tmp_path) == one


def test_processes_share_what_is_left(tmp_path: Path) -> None:
    one = size_of_one(tmp_path)
    most = 8 * one + 5  # 7 files more, 2 for each of 3 processes
    rooms = [Room(tmp_path, "maps-*", most=most, processes=3) for _ in range(3)]
    assert not any(room.is_full for room in rooms)  # all have looked
    count = 0
    for i in range(1, 6):
        for rank, room in enumerate(rooms):
            count += stored(tmp_path, room).write(f"{rank}{i}", "d", tensors(1000))
    assert count == 6 and used(tmp_path) == 7 * one <= most
    late = [Room(tmp_path, "maps-*", most=most, processes=3) for _ in range(3)]
    for rank, room in enumerate(late):  # each looks when the one before has written
        for i in range(5):
            stored(tmp_path, room).write(f"{rank + 3}{i}", "d", tensors(1000))
    assert used(tmp_path) <= most
