"""The notebook of the docs: it is what its script writes, and runs."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


def made() -> Any:
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notebook()


def stored() -> Any:
    return nbformat.read(DOCS / "notebook.ipynb", as_version=4)


def test_it_is_what_the_script_writes_without_outputs() -> None:
    assert stored() == made()
    assert not any(cell.get("outputs") for cell in stored().cells)
    nbformat.validate(stored())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Outputs of every cell by its id, run as a user would: one process, an empty folder."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(DOCS.parent), prepend=os.pathsep)
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        book = stored()
        NotebookClient(book, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    assert (folder / "runs" / "toys" / "report.html").is_file()
    return {cell["source"]: cell["outputs"] for cell in book.cells if cell["cell_type"] == "code"}


def output(outputs: dict[str, list[Any]], source: str, kind: str) -> str:
    """The output of a kind ("stdout" or a MIME type) of the one cell with `source` in it."""
    (cell,) = [found for text, found in outputs.items() if source in text]
    if kind == "stdout":
        return "".join(one["text"] for one in cell if one.get("name") == "stdout")
    return next(str(one["data"][kind]) for one in cell if kind in one.get("data", {}))


def test_nothing_is_said_on_stderr(outputs: dict[str, list[Any]]) -> None:
    said = [one for cell in outputs.values() for one in cell if one.get("name") == "stderr"]
    assert said == []


def test_the_training_is_told_and_scored(outputs: dict[str, list[Any]]) -> None:
    said = output(outputs, "sppdet.train(", "stdout")
    assert [line.split()[0] for line in said.splitlines()][-1] == "evaluate"
    trained = output(outputs, "sppdet.train(", "text/plain")
    assert trained.startswith("<Trained: runs/toys, mAP")
    assert float(trained.rstrip(">").split()[-1]) > 0.7


def test_detections_are_shown(outputs: dict[str, list[Any]]) -> None:
    page = output(outputs, "found = detector(new)", "text/html")
    assert "<table>" in page
    data = base64.b64decode(page.split("base64,")[1].split('"')[0])
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.size == (320, 240)
    painted = output(outputs, "found = detector(new)", "stdout").splitlines()[-1]
    named = output(outputs, "for one in sure", "stdout").splitlines()
    assert sorted(line.split()[0] for line in named) == ast.literal_eval(painted)
    drawn = base64.b64decode(output(outputs, ".plot()", "image/png"))
    with Image.open(io.BytesIO(drawn)) as plotted:
        assert plotted.size == (320, 240) and len(np.unique(np.asarray(plotted))) > 50
    assert "<th>probability</th>" in output(outputs, "to_pandas()", "text/html")
    assert "'bbox'" in output(outputs, "to_coco", "text/plain")
