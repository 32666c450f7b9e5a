"""The image of a request: its body, or a field of it, read within the limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from sppdet.errors import one_line
from sppdet.service.limits import Held, Limits, Refused

FIELD = "file"
_FORM = "multipart/form-data"
_EXPECTED = f"expected image/jpeg, image/png, ... or {_FORM} with a field `{FIELD}`"
_FIELD_BYTES = 2**16  # of form fields, none of which is read


class Gone(Exception):
    """The client has closed its connection."""


class Upload:
    """The body of one request, counted in `held` until the block ends.

    async with Upload(request, limits, held) as data:
    """

    def __init__(self, request: Request, limits: Limits, held: Held) -> None:
        self._request = request
        self._limits = limits
        self._held = held
        self._count = 0

    async def __aenter__(self) -> bytes:
        """Read the bytes of the image.

        Raises:
            Refused: 415 for a wrong type, 413 for too many bytes, 408 for a slow client, 400 for a form
                that is damaged, 422 where there is no image, 503 where other bodies take the room.
            Gone: the client has closed its connection.
        """
        try:
            return await self._read()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Give the counted bytes back."""
        self._held.remove(self._count)
        self._count = 0

    async def _read(self) -> bytes:
        kind = _kind(self._request)
        stated = self._request.headers.get("content-length", "")
        if stated.isascii() and stated.isdigit():
            self._check_size(int(stated[:20]))
        try:
            with anyio.fail_after(self._limits.timeout):
                data = await (self._form_file() if kind == _FORM else self._whole())
        except TimeoutError:
            raise Refused(
                408, f"the body didn't come within {self._limits.timeout:g} s", _CLOSE
            ) from None
        except ClientDisconnect:
            raise Gone from None
        if not data:
            raise Refused(422, "the image has no bytes")
        return data

    async def _whole(self) -> bytes:
        data = bytearray()
        async for chunk in self._chunks():
            data += chunk
        return bytes(data)

    async def _form_file(self) -> bytes:
        parser = MultiPartParser(
            self._request.headers,
            self._chunks(),
            max_files=1,
            max_fields=8,
            max_part_size=_FIELD_BYTES,
        )
        parser.spool_max_size = self._limits.max_bytes + 1  # never to a file of the disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Refused(400, one_line(f"damaged {_FORM}: {error.message}")) from None
        except (KeyError, ValueError):
            raise Refused(400, f"damaged {_FORM}") from None
        try:
            found = form.get(FIELD)
            if not isinstance(found, UploadFile):
                raise Refused(422, f"no field `{FIELD}` with a file in the form")
            return await found.read()
        finally:
            await form.close()

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._request.stream():
            self._check_size(self._count + len(chunk))
            self._held.add(len(chunk))
            self._count += len(chunk)
            yield chunk

    def _check_size(self, count: int) -> None:
        if count > self._limits.max_bytes:
            raise Refused(413, f"the body has more than {self._limits.max_bytes} bytes")


_CLOSE = {"Connection": "close"}


def _kind(request: Request) -> str:
    """Return the type of the body: that of an image, or of a form.

    Raises:
        Refused: 415, it is another.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(415, one_line(f"content encoding {encoding}: expected none"))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in (_FORM, "application/octet-stream"):
        return kind
    raise Refused(415, one_line(f"content type {kind or 'missing'}: {_EXPECTED}"))
