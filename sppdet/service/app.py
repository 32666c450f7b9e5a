"""The routes of the service."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from sppdet.errors import one_line
from sppdet.runs.log import LOGGER
from sppdet.service.answers import Answer, Answerer, Wanted
from sppdet.service.gate import Counts, Gate
from sppdet.service.limits import Held, Limits, Refused
from sppdet.service.page import POLICY, page
from sppdet.service.uploads import FIELD, Gone, Upload
from sppdet.service.work import Workers
from sppdet.version import __version__

_FORM_SCHEMA = {
    "type": "object",
    "properties": {FIELD: {"type": "string", "format": "binary"}},
    "required": [FIELD],
}
_BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": _FORM_SCHEMA},
    },
}


class Service:
    """A detector behind HTTP; `app` is the ASGI application."""

    def __init__(
        self,
        name: str,
        answerer: Answerer,
        *,
        origins: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> None:
        """Make the application of a model.

        Args:
            name: what the page calls the model.
            origins: of other sites whose pages may use the service, such as https://example.org.
            hosts: names that the service may be called by, besides those of this machine.
        """
        self.workers = Workers(answerer.limits)
        self._name = name
        self._answerer = answerer
        self._held = Held(answerer.limits.held_bytes)
        self._counts = Counts()
        self._page = page(name, answerer)
        names = {host.lower() for host in hosts}
        self.app = Gate(self._routes(origins), self._counts, names, origins)

    @property
    def limits(self) -> Limits:
        """The limits of the service."""
        return self._answerer.limits

    def _routes(self, origins: Sequence[str]) -> ASGIApp:
        # the pages of documentation that FastAPI offers load their scripts from other sites
        app = FastAPI(title="sppdet", version=__version__, docs_url=None, redoc_url=None)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(Gone, _gone)
        app.add_exception_handler(Exception, _failed)
        app.add_exception_handler(HTTPException, _no_route)
        app.add_exception_handler(RequestValidationError, _wrong_query)
        reading = ["GET", "HEAD"]
        app.add_api_route("/", self.index, methods=reading, include_in_schema=False)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["HEAD"], include_in_schema=False)
        app.add_api_route("/model", self.model, methods=["GET"])
        app.add_api_route(
            "/detect",
            self.detect,
            methods=["POST"],
            responses={200: {"model": Answer, "content": {"image/jpeg": {}}}},
            openapi_extra={"requestBody": _BODY},
        )
        if origins:
            return CORSMiddleware(
                app,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Content-Type"],
            )
        return app

    async def index(self) -> HTMLResponse:
        """Return a page to drop an image on."""
        return HTMLResponse(
            self._page, headers={"Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'"}
        )

    async def health(self) -> dict[str, Any]:
        """Say that the service is ready, and what it has done."""
        counts = asdict(self._counts)
        return {
            "ready": True,
            "model": self._answerer.detector.made_by,
            "classes": len(self._answerer.detector.class_names),
            "version": __version__,
            "uptime": round(time.monotonic() - counts.pop("started"), 1),
            "requests": counts,
            "running": self.workers.running,
            "waiting": self.workers.waiting,
        }

    async def model(self) -> dict[str, Any]:
        """Describe the model: classes, settings, origin and licence of the weights, limits."""
        detector = self._answerer.detector
        return {
            "model": detector.made_by,
            "name": self._name,
            "classes": list(detector.class_names),
            "settings": detector.signature,
            "weights": detector.maps.origin,
            "threshold": self._answerer.usual.text,
            "probabilities": detector.calibration is not None,
            "limits": asdict(self.limits),
            "version": __version__,
        }

    async def detect(self, request: Request, wanted: Annotated[Wanted, Query()]) -> Response:
        """Detect in an image: the body itself, or the field `file` of a form."""
        async with Upload(request, self.limits, self._held) as data:
            job = self._answerer.job(data, wanted)
            try:
                answer = await self.workers.run(job, _until_gone(request))
            except (Refused, Gone):
                raise
            except Exception as error:  # the client gets no more than this
                LOGGER.error("detect: %s: %s", type(error).__name__, one_line(str(error)))
                raise Refused(500, "the detection failed; the service's log says why") from None
        if isinstance(answer, bytes):
            return Response(answer, media_type="image/jpeg")
        return JSONResponse(answer)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": one_line(line)}, status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error.status, str(error), error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx's number in logs


async def _failed(_: Request, __: Exception) -> Response:
    return _error(500, "the service failed; its log says why")  # uvicorn logs the error


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, line, error.headers)


async def _wrong_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "extra_forbidden":
        known = ", ".join(Wanted.model_fields)
        return _error(422, f"query, {name}: unknown; expected some of {known}")
    return _error(422, f"query, {name}: {first['msg']}")
