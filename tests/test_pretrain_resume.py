"""A classifier's training that is killed: it ends with the same bytes as one left in peace."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from runs import Forks, contents, log_of, pretrain_quietly
from sppdet.runs.artifacts import read_tensors, write_tensors

KILLS = (
    ("state/pretrain.safetensors", 1, "after"),  # after the first of two batches
    ("state/pretrain.safetensors", 3, "before"),  # in epoch 2, while it writes
    ("model/net.safetensors", 1, "after"),  # at the end of epoch 2, before its state
    ("model/last.safetensors", 1, "before"),  # when all is done but this
)
# without a validation set every epoch writes its net
PLAIN = ("train.epochs=2", "data.train_per_class=7", "data.val=null")


@pytest.mark.skipif(sys.platform != "linux", reason="needs forks as Linux has them")
def test_killed_again_and_again(classifier_settings: Path, tmp_path: Path) -> None:
    pretrain_quietly(classifier_settings, tmp_path / "peace", *PLAIN)
    whole = contents(tmp_path / "peace" / "model")
    run = tmp_path / "run"
    arguments = ["--threads", "1", "pretrain", str(classifier_settings), "--run", str(run)]
    for change in ("checkpoint_minutes=0", *PLAIN):
        arguments += ["--set", change]
    arguments += ["--device", "cpu"]
    with Forks(tmp_path / "forks") as forks:
        for kill in KILLS:
            status, out, err = forks.run(arguments, kill)
            assert status == -signal.SIGKILL, (kill, out, err)
            assert (run / ".lock").exists() and not (run / "model" / "last.safetensors").exists()
    assert list(run.glob("model/.tmp-*"))  # the last one was killed while it wrote
    said = pretrain_quietly(classifier_settings, run, *PLAIN)
    assert contents(run / "model") == whole
    assert not contents(run / "state") and not (run / ".lock").exists()
    assert "epoch 2," not in said and "kept epoch" in said
    texts = [str(record.get("text", "")) for record in log_of(run)]
    on = [text for text in texts if text.startswith("going on in epoch")]
    assert on == [  # the last kill came after the last epoch
        "going on in epoch 1 of 2, batch 1",
        "going on in epoch 2 of 2, batch 0",
        "going on in epoch 2 of 2, batch 2",
    ]


@pytest.mark.parametrize("content", ["other settings", "damaged"])
def test_a_state_that_is_not_its_own(
    content: str, classifier_settings: Path, tmp_path: Path
) -> None:
    pretrain_quietly(classifier_settings, tmp_path / "peace", *PLAIN)
    state = tmp_path / "run" / "state" / "pretrain.safetensors"
    last = tmp_path / "peace" / "model" / "last.safetensors"
    if content == "damaged":
        state.parent.mkdir(parents=True)
        state.write_bytes(last.read_bytes()[:-9])
    else:
        write_tensors(state, read_tensors(last)[0], made_by="other", about={"epoch": 1})
    said = pretrain_quietly(classifier_settings, tmp_path / "run", *PLAIN)
    assert "going on" not in said
    assert contents(tmp_path / "run" / "model") == contents(tmp_path / "peace" / "model")
