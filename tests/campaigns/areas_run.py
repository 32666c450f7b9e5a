"""Areas of the other files of a run, which a crash, a disk or a person may have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from campaigns.areas import JSON_TOKENS, Area, all_of, json_bytes, json_documents, placed
from campaigns.mutation import WORDS, mutants
from campaigns.workspace import Workspace
from sppdet.cli.info import describe_run
from sppdet.folders.folder import detect_folder
from sppdet.folders.journal import Journal
from sppdet.io.finding import JOURNAL
from sppdet.io.image_cache import ImageCache
from sppdet.runs.lock import run_lock
from sppdet.runs.log import timed
from sppdet.stages.detector import Detector
from sppdet.stages.report_facts import causes_of, stage_times, warnings_of
from sppdet.stages.report_scores import read_scores


def file_areas(space: Workspace) -> list[Area]:
    run, image = space.run, sorted((space.voc / "fresh").iterdir())[0]
    images = run / "images.json"
    timings, sealed = run / "timings.json", run / "model" / "trained.json"
    (metrics,) = run.glob("eval/**/metrics.json")
    scores = space.classifier / "eval" / "classifier.json"
    results = {
        "test": {},
        "results": [{"views": "full", "top1": 0.5, "top5": 1.0, "images": 4, "seconds": 0.1}],
    }
    scores.parent.mkdir(exist_ok=True)
    scores.write_text(json.dumps(results))

    def look() -> None:
        cache = ImageCache.load(images)
        cache.look(image)
        cache.save(run / "images-again.json")

    def time_a_stage() -> None:
        with timed(run, "svm"):
            pass
        describe_run(run)

    def area(path: Path, check: Callable[[bytes], str | None]) -> Area:
        document = json.loads(path.read_bytes())
        return Area(
            f"run-{path.stem}",
            ".json",
            [path.read_bytes()],
            check,
            json_documents(document),
            JSON_TOKENS,
        )

    causes, log = run / "eval" / "test" / "causes.json", run / "log.jsonl"
    cause = {"count": 1, "share": 1.0, "delta_mAP": None, "by_class": {"disc": 1}}
    case = {"image": "000001", "box": [1, 2, 3, 4], "cause": "not proposed"}
    causes.write_text(
        json.dumps(
            {
                "signature": "s", "objects": 2, "found": 1, "advice": ["a"], "notes": [],
                "summary": {"missed": {"not proposed": cause}, "false": {"duplicate": cause}},
                "missed": [case], "false_detections": [case],
            }
        )
    )  # fmt: skip

    def tell_times() -> None:
        warnings_of(log)
        stage_times(run)

    config = run / "config.yaml"
    return [
        area(images, placed(images, look)),
        area(timings, placed(timings, time_a_stage, name="")),
        area(metrics, placed(metrics, lambda: describe_run(run))),
        Area(
            "report-metrics", ".json", [metrics.read_bytes()],
            placed(metrics, lambda: read_scores(run / "eval" / "test", "voc07")),
            json_documents(json.loads(metrics.read_bytes())), JSON_TOKENS,
        ),
        area(causes, placed(causes, lambda: causes_of(causes, signature="s"), name="")),
        Area(
            "run-log", ".jsonl", [log.read_bytes()], placed(log, tell_times, name=""),
            tokens=[*JSON_TOKENS, b"\n", b'"cpu_seconds": ', b'"idle": true', b"9" * 400],
        ),
        area(scores, placed(scores, lambda: describe_run(space.classifier))),
        area(sealed, placed(sealed, lambda: Detector.load(run), name="run")),
        Area(
            "run-config", ".yaml", [config.read_bytes()],
            placed(config, all_of(lambda: describe_run(run), lambda: Detector.load(run)), name="run"),
            tokens=[
                b"tiny", b"none", b"[1]", b"- 1", b"\x00", b"null", b"alexnet", b"-1", b"pool5",
                b"fc6", b": ",
            ],
        ),
    ]  # fmt: skip


def journal_area(space: Workspace) -> Area:
    """The journal of a folder of results."""
    out = space.root / "fuzz-results"
    detect_folder(
        Detector.load(space.run), [space.voc / "fresh"], out, min_score=-1.5,
        formats=("json", "voc"), workers=1,
    )  # fmt: skip
    path = out / JOURNAL
    lines = path.read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    names = [record["image"] for record in records if "image" in record]

    def use() -> None:
        journal = Journal(out)
        try:
            there = [name for name in names if journal.entry(name) is not None]
            list(journal.results(there))
            journal.compact(there)
        finally:
            journal.close()

    def with_checks(changed: object) -> bytes:
        """Lines whose checksums hold, whatever is in them."""
        found = []
        for record in changed if isinstance(changed, list) else [changed]:
            rest = b'", ' + json_bytes(record)[1:]
            check = hashlib.blake2b(rest, digest_size=8).hexdigest().encode()
            found.append(b'{"check": "' + check + rest)
        return b"\n".join([*found, b""])

    plain = [{key: value for key, value in record.items() if key != "check"} for record in records]
    return Area(
        "journal", ".jsonl", [path.read_bytes(), with_checks(plain)], placed(path, use, name=""),
        mutants([plain], most=2).map(with_checks), JSON_TOKENS,
    )  # fmt: skip


def lock_area(space: Workspace) -> Area:
    lock = space.run / ".lock"

    def hold() -> None:
        with run_lock(space.run):
            pass

    return Area(
        "run-lock", ".lock", [b"1 2", b"99999999 3", b""], placed(lock, hold, name="run"),
        st.tuples(st.sampled_from(WORDS), st.sampled_from(("", " ", " 1", " ?"))).map(
            lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
        ),
        [b"9" * 5000, b"-", b" ", b"\xc2\xb2", b"\x00", b"1"], weight=0.3,
    )  # fmt: skip
