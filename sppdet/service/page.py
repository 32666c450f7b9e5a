"""The page to drop an image on."""

from __future__ import annotations

from sppdet.pages.render import render, script_digest
from sppdet.service.answers import Answerer
from sppdet.version import __version__

POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data: blob:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{script_digest('serve.js')}'; "
    "base-uri 'none'; form-action 'none'"
)


def page(name: str, answerer: Answerer) -> str:
    """Render the page of a model; it is one file, and only asks the service that it came from."""
    values = {
        "version": __version__,
        "policy": POLICY,
        "name": name,
        "classes": answerer.detector.class_names,
        "measure": answerer.measure,
        "usual": f"{answerer.usual_value:.2f}",
        "threshold": answerer.usual.text,
        "max_bytes": answerer.limits.max_bytes,
    }
    return render("serve.html", values)
