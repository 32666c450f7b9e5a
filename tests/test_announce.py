"""The lines that say which stage begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppdet.io.settings import load_config
from sppdet.stages.announce import title
from sppdet.stages.context import STAGES


@pytest.mark.parametrize(
    ("overrides", "until", "shown"),
    [
        ([], "evaluate", "data proposals features finetune svm bbox calibrate evaluate"),
        ([], "svm", "data proposals features finetune svm"),
        (["finetune=none"], "bbox", "data proposals features svm bbox"),
        (["finetune=none", "head=none", "svm.layer=pool5"], "svm", "data proposals features svm"),
        (
            ["bbox=none", "calibrate=none"],
            "evaluate",
            "data proposals features finetune svm evaluate",
        ),
        (["data.test=null"], "evaluate", "data proposals features finetune svm bbox calibrate"),
        (
            ["finetune.sampling=images", "finetune.layers=all"],
            "bbox",
            "data proposals finetune svm bbox",
        ),
        (["classifier=softmax"], "bbox", "data proposals features finetune bbox"),
        (
            ["finetune.sampling=images", "finetune.box_loss=1", "bbox.source=finetune"],
            "evaluate",
            "data proposals features finetune svm calibrate evaluate",
        ),
        (["detect.max_windows=300"], "svm", "data proposals features finetune ranking svm"),
    ],
)
def test_stages_without_work_are_not_counted(
    settings: Path, overrides: list[str], until: str, shown: str
) -> None:
    config = load_config(settings, overrides)
    (last,) = [stage for stage in STAGES if stage == until]
    found = [title(stage, config, until=last) for stage in STAGES]
    said = [text for text in found if text]
    names = shown.split()
    assert [text.partition(": ")[0] for text in said] == [
        f"[{k}/{len(names)}] {name}" for k, name in enumerate(names, start=1)
    ]
    assert all(len(text.partition(": ")[2].split()) > 3 for text in said)
