"""The area of the command line: every command with wrong and with right arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from campaigns.areas import Area, json_bytes
from campaigns.fork import Ended, command, name_of, start
from campaigns.mutation import NUMBERS, WORDS
from campaigns.verdict import problem_with_message
from campaigns.workspace import Snapshot, Workspace

# what follows @ is a path below the workspace
CONFIGS = ("@small.yaml", "@coco.yaml", "@shapes.yaml", "@probe.yaml", "@run/config.yaml")
RUNS = ("@run", "@classifier")
IMAGES = ("@set/fresh", "@set/JPEGImages", "@set", "@odd/a.jpg", "@shapes/val")
ODD = (
    *(
        "@missing",
        "@odd/folder",
        "@odd/folder.jpg",
        "@odd/empty",
        "@odd/empty.jpg",
        "@odd/empty.json",
    ),
    *(
        "@odd/empty.yaml",
        "@odd/empty.mat",
        "@odd/junk",
        "@odd/junk.jpg",
        "@odd/junk.json",
        "@odd/junk.yaml",
    ),
    *("@odd/junk.npz", "@odd/junk.safetensors", "@odd/list.json", "@odd/map.json", "@odd/fifo.jpg"),
    *(
        "@odd/loop",
        "@odd/dangling.jpg",
        "@odd/line\nbreak.jpg",
        "@odd/\x1b[31m.jpg",
        "@odd/\udcff.jpg",
    ),
    *(
        "@odd/=1+1.jpg",
        "@odd",
        "@odd/null.jpg",
        "@odd/zero.jpg",
        "@odd/full.jpg",
        "@set/Annotations",
        "@",
    ),
    *(
        "@" + "a" * 300,
        "@a/" * 200,
        "@odd/a.jpg/b",
        "@new",
        "@new/deep/er",
        "@odd/" + "a" * 240 + ".jpg",
        "",
    ),
)
# no word may lead out of the workspace: commands write
_PLAIN = tuple(
    word
    for word in WORDS
    if "\x00" not in word and "\ud800" not in word and not re.search(r"[/~$]|\.\.", word)
)
_NUMBERS = tuple(str(n) for n in NUMBERS if not isinstance(n, int) or abs(n) < 10**31)
_SPLITS = ("test", "train", "two", "@set/ImageSets/Main/test.txt", *_PLAIN[:20])
_PIECES: dict[str, tuple[str, ...]] = {
    "--run": ("@new", "@run", "@classifier", *ODD),
    "--out": ("@new", "@set", "@set/JPEGImages", "@run", *ODD),
    "--json": ("@new.json", "@odd/a.jpg", "@small.yaml", *ODD),
    "--root": ("@new",),
    "--device": ("cpu", "auto", "cuda", "tpu", "", "CPU", "cuda:0"),
    "--until": ("data", "proposals", "features", "evaluate", "all", ""),
    "--metric": ("voc07", "voc10", "coco", "map", ""),
    "--split": _SPLITS,
    "--config": (*CONFIGS, *ODD),
    "--detections": ("@run/eval/test", "@run/eval/test/coco_results.json", "@set/Annotations", *ODD),
    "--score": ("0", "-1.5", *_NUMBERS, *_PLAIN[:12]),
    "--save": ("images,json,csv,voc,coco", "json", "csv", "voc", "coco,,", " json , csv", *_PLAIN[:14]),
    "--workers": ("1", "2", *_NUMBERS),
    "--views": ("centre", "10", "full", "maps10", "maps96", "maps98", "", "all"),
    "--side": ("36", "1", "33", *_NUMBERS),
    "--crop": ("32", "1", "64", *_NUMBERS),
    "--size": ("32", "1", *_NUMBERS),
    "--top": ("1", "5", *_NUMBERS),
    "--seed": ("-1", "x", "1e3", ""),
    "--set": (
        *("seed=1", "svm.C=0.1", "svm.C=x", "data.test=null", "data.test=two", "head=none"),
        *("finetune=none", "bbox=none", "svm.layer=pool5", "scales=[64]", "scales=[1]", "scales=[]"),
        *("data.root=@set", "data.root=@coco", "data.root=@odd", "data.root=@missing", "data.images=@odd"),
        *("data.classes=[disc]", "data.classes=[unicorn]", "data.on_error=skip", "store=@new"),
        *("proposals.engine=stored", "proposals.path=@odd/junk.npz", "proposals.path=@odd/empty.mat"),
        *("proposals.max_boxes=1", "proposals.image_width=1", "proposals.min_size=100000", "workers=2"),
        *("backbone.weights=@classifier", "backbone.weights=@odd/junk.safetensors", "spp_levels=[1]"),
        *("backbone.name=nonsense", "spp_levels=[50]", "features.max_side=1", "store=@odd/junk"),
        *("detect.min_score=1e30", "detect.nms=0", "detect.max_per_class=1", "eval.metric=coco", "=", "=1"),
        *("data.max_pixels=10", "train.epochs=1", "train.batch_size=1", "augment.crop=1", "a", "a="),
        *("seed: 1", "seed=&a [*a]", "seed=!!int x", "seed=2020-99-99", "seed=" + "9" * 5000),
        *("data.root=~nosuchuser", "data.train=two", "features.store=false", "train.sizes=[1]"),
        *(f"seed={number}" for number in _NUMBERS), *(f"svm.C={number}" for number in _NUMBERS),
        *(f"seed={word}" for word in _PLAIN),
    ),
}  # fmt: skip
# positional arguments and options of each command; several of one kind may be given
_COMMANDS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "train": ((CONFIGS,), ("--run", "--set", "--set", "--device", "--until")),
    "eval": ((RUNS,), ("--split", "--metric", "--config", "--detections", "--out", "--device")),
    "diagnose": ((RUNS,), ("--split", "--score", "--device")),
    "detect": ((RUNS, IMAGES), ("--out", "--score", "--save", "--workers", "--device")),
    "propose": ((CONFIGS,), ("--out", "--run", "--set")),
    "pretrain": ((CONFIGS,), ("--run", "--set", "--set", "--device")),
    "pretrain-eval": ((RUNS,), ("--views", "--views", "--side", "--crop", "--size", "--device")),
    "classify": ((RUNS, IMAGES), ("--views", "--top", "--json", "--device")),
    "probe": ((CONFIGS,), ("--out", "--set", "--device")),
    "info": ((RUNS,), ()),
    "download": ((("voc1999", "", "VOC2007"),), ("--root",)),
    "demo": ((), ("--seed",)),
}
_USUAL = {
    "train": ["--run", "@new"], "detect": ["--out", "@new"], "propose": ["--run", "@new"],
    "pretrain": ["--run", "@new"], "probe": ["--out", "@new"],
    "demo": ["--seed", "-1"],  # a demo takes minutes: it must always be refused here
}  # fmt: skip
_ENVIRONMENT = st.dictionaries(
    st.sampled_from(
        ("WORLD_SIZE", "RANK", "LOCAL_RANK", "COLUMNS", "LANG", "OMP_NUM_THREADS", "TERM")
    ),
    st.sampled_from(("", "0", "1", "-1", "x", "1e3", "99999", "C", "dumb")),
    max_size=2,
)


@st.composite
def _case(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(_COMMANDS)))
    positional, options = _COMMANDS[name]
    words = list(
        draw(
            st.sampled_from(
                ((), (), (), ("--threads", "1"), ("--threads", "0"), ("--debug",), ("--version",))
            )
        )
    )
    words.append(name if draw(st.integers(0, 40)) else draw(st.sampled_from(_PLAIN)))
    for choices in positional:
        odd = draw(st.integers(0, 9)) < 2
        words.append(draw(st.sampled_from(ODD if odd else choices)))
    if name in ("detect", "classify") and draw(st.booleans()):
        words += draw(st.lists(st.sampled_from((*IMAGES, *ODD)), max_size=3))
    words += _USUAL.get(name, [])
    for option in options:
        if draw(st.integers(0, 2)) == 0:
            words += [option, draw(st.sampled_from(_PIECES[option]))]
    if draw(st.integers(0, 15)) == 0:
        words.insert(
            draw(st.integers(0, len(words))),
            draw(st.sampled_from(("--", "-", "-x", "--set", "--help", "--no"))),
        )
    case: dict[str, Any] = {"arguments": words}
    if draw(st.integers(0, 9)) == 0:
        case["environment"] = draw(_ENVIRONMENT)
    if draw(st.integers(0, 14)) == 0:
        case["out"] = draw(st.sampled_from(("full", "null")))
    return case


def command_area(space: Workspace, kept: Snapshot, scratch: Path) -> Area:
    """The command line, each case in a child of its own.

    Args:
        kept: of the whole workspace, with the oddities in it.
        scratch: receives what commands print.

    A case is JSON: `arguments`, in which "@" stands for the workspace, `environment`, and `out`, a
    device for the standard output.
    """

    def check(data: bytes) -> str | None:
        try:
            case = json.loads(data)
            words = [_placed(word, space.root) for word in case["arguments"]]
            environment = {str(k): str(v) for k, v in case.get("environment", {}).items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if not _is_safe(case["arguments"]):
            return None
        out = {"full": Path("/dev/full"), "null": Path("/dev/null")}.get(case.get("out", ""))
        child = start(
            command(words), scratch, memory=2**32, environment=environment, cwd=space.root, out=out
        )
        ended = child.ended(90)
        debugging = "--debug" in words  # which shows tracebacks
        problem = (None if debugging else problem_with_end(ended)) or _problem_with_changes(
            kept, case["arguments"]
        )
        kept.restore()
        return problem

    seeds = [json_bytes({"arguments": [name, *(words[0] for words in given), *_USUAL.get(name, [])]})
             for name, (given, _) in _COMMANDS.items()]  # fmt: skip
    return Area(
        "commands",
        ".json",
        seeds,
        check,
        _case().map(json_bytes),
        weight=8,
        seconds=120,
        memory_mb=1000,
    )


def problem_with_end(ended: Ended) -> str | None:
    """Why a command didn't end as it should: with status 0, or an error of one line; None if it did."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    if "Traceback" in ended.err or "Fatal Python error" in ended.err:
        return f"a traceback: {lines[-1]:.100} [{_place(ended.err)}]"
    if ended.status not in (0, 1, 2):
        return f"{name_of(ended.status)} [{_place(ended.err)}]"
    for line in ended.err.splitlines() if ended.status != 2 else ():
        if found := problem_with_message(line):
            return f"on stderr {found} [{line[:30]}]"
    if ended.status == 1 and (len(lines) != 1 or not lines[0].startswith("error: ")):
        return f"status 1 and {len(lines)} lines on stderr [{'|'.join(lines):.80}]"
    if ended.status == 0 and lines:
        return f"status 0 and on stderr [{lines[0]:.60}]"
    if ended.status == 2 and "Error: " not in ended.err and "Usage: " not in ended.out + ended.err:
        return f"status 2 without a usage error [{'|'.join(lines):.80}]"
    return None


def _problem_with_changes(kept: Snapshot, words: Sequence[str]) -> str | None:
    """Whether a command changed what it may not, or left a temporary file."""
    new, changed = kept.changes()
    own = {word[1:].split("/")[0] for word in words if word.startswith(("@run", "@classifier"))}
    foreign = sorted(path for path in changed if path.split("/")[0] not in own)
    if foreign:
        return f"changed what it didn't write [{foreign[0]:.60}]"
    left = sorted(
        path for path in new if path.endswith(".tmp") or "/.tmp" in path or path.endswith(".lock")
    )
    if left:
        return f"left a temporary file [{left[0]:.60}]"
    return None


def _placed(word: str, root: Path) -> str:
    return word.replace("@", f"{root}/")


def _is_safe(words: Sequence[object]) -> bool:
    """Whether no argument leads out of the workspace, or starts what takes minutes."""
    if not all(isinstance(word, str) for word in words):
        return False
    texts = [str(word) for word in words]
    leads_out = any(
        re.search(r"(^|[^@\w])/|\.\.|~(?!nosuchuser)|\x00|[\ud800-\udbff]", text) for text in texts
    )
    long = "demo" in texts and "-1" not in texts
    fetches = any(text in ("voc2007", "voc2012") or "imagenet" in text for text in texts)
    return not leads_out and not long and not fetches and sum(map(len, texts)) < 7000


def _place(error: str) -> str:
    places = re.findall(r'File ".*/sppdet/(\S+?)", line \d+,? in (\w+)', error)
    first = "most recent call first" in error
    return ":".join(places[0 if first else -1]) if places else "?"
