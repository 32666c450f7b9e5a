"""The command that serves a model over HTTP."""

from __future__ import annotations

import importlib.util
import re
from typing import Annotated

import typer

from sppdet.cli.options import MAX_THREADS, DeviceOption, ModelArgument
from sppdet.cli.process import start_libraries, state
from sppdet.cli.thresholds import (
    PrecisionOption,
    ProbabilityOption,
    RecallOption,
    ScoreOption,
    threshold,
)
from sppdet.errors import ConfigError

_MODULES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
_MOST_WORKERS = 4  # by default: each holds an image and its maps


def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    score: ScoreOption = "auto",
    min_probability: ProbabilityOption = None,
    precision: PrecisionOption = None,
    recall: RecallOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_THREADS,
            help="Images at work at a time; default: one per core, 4 at most.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, max=10_000, help="Requests that may wait; more get status 503.")
    ] = 16,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=3600,
            help="Seconds for a request to arrive, for it to wait, and for its detection.",
        ),
    ] = 30.0,
    max_bytes: Annotated[
        str, typer.Option(metavar="BYTES", help="Maximum size of a request, such as 20MB.")
    ] = "20MB",
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Maximum width x height of an image.")
    ] = 50_000_000,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let pages of this site ask, such as https://example.org; *: all.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer under this name, besides localhost; *: any."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Serve a detector over HTTP: POST an image to /detect, or drop it on the page at /."""
    from sppdet.service.limits import Limits, parse_bytes

    missing = [name for name, needed in _MODULES.items() if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(_MODULES[name] for name in missing)
        raise ConfigError(f"serve: needs {names}: pip install 'sppdet[serve]'")
    for origin in allow_origin or ():
        if origin != "*" and re.fullmatch(r"https?://[^/\s]+", origin) is None:
            raise ConfigError(
                f"--allow-origin {origin}: expected scheme and host without a path, such as "
                "https://example.org, or *"
            )
    from sppdet.runs.environment import available_cores

    threads = workers or min(_MOST_WORKERS, available_cores())
    limits = Limits(parse_bytes(max_bytes), max_pixels, timeout, queue, threads)
    wanted = threshold(score, min_probability, precision, recall)
    from sppdet.service.server import bind, serve_until_stopped

    bound = bind(host, port)  # before the model is loaded, which takes longer
    if state.threads is None:  # the images at work share the cores
        state.threads = max(1, available_cores() // threads)
    start_libraries()
    from sppdet.service.answers import Answerer
    from sppdet.service.app import Service
    from sppdet.stages.detector import Detector

    answerer = Answerer.of(Detector.load(model, device=device), limits, wanted)
    name = model.resolve().name
    service = Service(name, answerer, origins=allow_origin or (), hosts=allow_host or ())
    serve_until_stopped(service, bound, name=name)
