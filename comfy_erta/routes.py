"""Routes of ComfyUI's server by which the browser reads and writes the store.

There is one store for everybody who uses a server. ComfyUI's own routes for files lead to each user's folder where
there are several users, and no node reads those.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..erta.profile import ProfileError
from ..erta.profile_file import MAX_BYTES, from_bytes, to_bytes
from .machines import running_server
from .store import NameTaken, NotStored, Store, StoreError, default_store

_PROFILE = "/ertacache/profiles/{name}"

# (store, name, query, what was sent) -> what is sent back
Work = Callable[[Store, str, Mapping[str, str], bytes], bytes | None]


def register() -> None:
    """Add the routes to the running server, once; ComfyUI's nodes also run without a server.

    GET gives a profile's file. POST keeps one, over another only with ?overwrite=true. POST .../move?to= renames,
    DELETE removes. Refused with 404 where there is none, 409 where there is one already, 400 for all else; the answer
    is the message.
    """
    routes = getattr(running_server(), "routes", None)
    if routes is None or any(getattr(route, "path", "") == _PROFILE for route in routes):
        return
    rows: list[tuple[str, str, Work]] = [
        ("GET", _PROFILE, lambda store, name, query, sent: to_bytes(store.load(name))),
        ("POST", _PROFILE, _keep),
        ("POST", f"{_PROFILE}/move", lambda store, name, query, sent: store.rename(name, query.get("to", ""))),
        ("DELETE", _PROFILE, lambda store, name, query, sent: store.delete(name)),
    ]
    for method, path, work in rows:
        routes.route(method, path)(partial(_answer, sys.modules["server"].web.Response, work))


def _keep(store: Store, name: str, query: Mapping[str, str], sent: bytes) -> None:
    store.save(name, from_bytes(sent), replace=query.get("overwrite") == "true")


async def _answer(response: Any, work: Work, request: Any) -> Any:
    """Files are read and written in a thread: the server goes on meanwhile."""
    try:
        sent = await _body(request)
        found = await asyncio.to_thread(work, default_store(), request.match_info["name"], request.query, sent)
    except (StoreError, ProfileError) as error:
        kinds = {NotStored: 404, NameTaken: 409}
        return response(status=kinds.get(type(error), 400), text=str(error))
    return response(body=found)


async def _body(request: Any) -> bytes:
    """What was sent; of more than a profile has, no more than it takes to refuse it."""
    sent = bytearray()
    async for part in request.content.iter_chunked(2**16):
        sent += part
        if len(sent) > MAX_BYTES:
            break
    return bytes(sent)
