"""Folders that commands write into: files of somebody else stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs import CommandLine, contents
from sppdet.errors import ArtifactError
from sppdet.runs.lock import folder_lock
from sppdet.runs.places import check_run_folder, claim_folder


def test_a_folder_is_claimed_when_it_is_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        for _ in range(2):  # the second time it has files
            claim_folder(tmp_path / name, command="eval")
            (tmp_path / name / "coco_results.json").write_text("1")
        claim_folder(tmp_path / name, command="propose")  # whose files have other names
        (tmp_path / name / ".sppdet-eval").unlink()
        with pytest.raises(
            ArtifactError, match=r"coco_results\.json is there, but `sppdet eval` hasn't"
        ):
            claim_folder(tmp_path / name, command="eval")
    with pytest.raises(ArtifactError, match=r"coco_results\.json: can't be used: Not a directory"):
        claim_folder(tmp_path / "new" / "coco_results.json", command="eval")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"time": 1}', "\0", "[" * 5000])
def test_a_log_that_no_run_has_written(tmp_path: Path, content: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    check_run_folder(tmp_path)
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(ArtifactError, match=r"log.jsonl is there, but no run has written it"):
        check_run_folder(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"time": "2020", "event": "run started"}\n' + content)
    check_run_folder(tmp_path)


def test_commands_leave_the_files_of_others_alone(
    sppdet: CommandLine, settings: Path, classifier_settings: Path, demo_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    (tmp_path / "000001.npz").write_bytes(b"mine")
    (tmp_path / "coco_results.json").write_text("[]")
    before = contents(tmp_path)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "r.json").write_text("[]")
    detections = ("--config", settings, "--detections", tmp_path / "found" / "r.json")
    run = tmp_path / "run"
    for arguments in (
        ("train", settings, "--run", tmp_path),
        ("pretrain", classifier_settings, "--run", tmp_path),
        ("propose", settings, "--run", run, "--out", tmp_path, "--set", f"data.root={demo_root}"),
        ("eval", *detections, "--out", tmp_path),
    ):
        status, _, said = sppdet(*arguments)
        assert status == 1 and said.count("\n") == 1 and str(tmp_path) in said, said
        assert "written" in said and contents(tmp_path) == before


def test_the_detections_are_not_overwritten_by_their_scores(
    sppdet: CommandLine, settings: Path, tmp_path: Path
) -> None:
    found = tmp_path / "coco_results.json"
    claim_folder(tmp_path, command="eval")  # as an earlier call would
    found.write_text("[]")
    for path in (found, tmp_path):
        status, _, said = sppdet(
            "eval", "--config", settings, "--detections", path, "--out", tmp_path
        )
        assert status == 1 and "is the folder of --detections" in said
    assert found.read_text() == "[]"


def test_a_lock_file_of_somebody_else_stays(tmp_path: Path) -> None:
    theirs = tmp_path / ".lock"
    theirs.write_text("theirs")
    for _ in range(2):
        with folder_lock(tmp_path), pytest.raises(ArtifactError, match="another process"):
            folder_lock(tmp_path).__enter__()
        assert theirs.read_text() == "theirs"
    theirs.unlink()
    with folder_lock(tmp_path):
        assert theirs.exists()
    assert not theirs.exists()
