"""What is between a browser and the application: requests that the page does not make are refused."""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# bytes of an uploaded file with what is around it, and of any other request
MOST_BYTES, _MOST_ASKED = 20 * 2**20, 2**16
_JOIN, _FILE = "/gradio_api/queue/join", "/gradio_api/file="
_READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|made/[\w-]+)|/(assets|static|svelte)/.+"
    r"|/gradio_api/(startup-events|heartbeat/\w+|queue/data|upload_progress|file=.+)"
)
_SENT = {"/gradio_api/upload": MOST_BYTES + _MOST_ASKED, _JOIN: _MOST_ASKED, "/gradio_api/cancel": _MOST_ASKED}
# the page comes from here alone, and is shown in no other
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; base-uri 'self'"
_GUARDS = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]


class Gate:
    """Lets through what the page asks for: ASGI, around the whole application.

    Other sites in the same browser, names that were made to lead here, and requests written by hand are refused. One
    that names a file outside of the folder, or an address to fetch, gets no further.

    Args:
        app: what is behind it.
        folder: of the files that were uploaded or made for the page.
        hosts: names and addresses that it answers to; none: to any.
    """

    def __init__(self, app: Any, folder: Path, hosts: Collection[str]) -> None:
        self.app, self.folder, self.hosts = app, folder.resolve(), hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        status, body = self._refused(scope), b""
        if not status and scope["path"] == _JOIN:
            more = True
            while more and (part := await receive())["type"] == "http.request":
                body, more = body + part["body"], part.get("more_body", False)
            try:
                content = json.loads(body)
                status = 0 if all(self._ours(each) for each in _paths(content)) else 403
                # what was looked at, and nothing that could be read otherwise
                body = json.dumps(content).encode()
            except (ValueError, RecursionError):
                status = 400
        if status:
            said = f"faap app answers its own page alone ({status}).\n".encode()
            await send({"type": "http.response.start", "status": status, "headers": _GUARDS})
            await send({"type": "http.response.body", "body": said})
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}] if body else []

        async def given() -> Any:
            return waiting.pop() if waiting else await receive()

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", []), *_GUARDS]}
            await send(message)

        await self.app(scope, given, guarded)

    def _refused(self, scope: Any) -> int:
        """Return with which status a request is refused, by all but its content; 0 if it is not."""
        if scope["type"] != "http":
            return 404
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, path, host = scope["method"], scope["path"], headers.get("host", "")
        origin = headers.get("origin")
        try:
            known = not self.hosts or urlsplit(f"//{host}").hostname in self.hosts
            if not known or (origin is not None and urlsplit(origin).netloc != host):
                return 403
        except ValueError:
            return 400
        if method in ("GET", "HEAD"):
            right = _READ.fullmatch(path) and ".." not in path.split("/")
            return 0 if right and self._ours(path.removeprefix(_FILE) if _FILE in path else self.folder) else 404
        if method != "POST" or path not in _SENT:
            return 404
        length = headers.get("content-length", "") if "transfer-encoding" not in headers else ""
        return 411 if not length.isdecimal() else 413 if int(length) > _SENT[path] else 0

    def _ours(self, path: object) -> bool:
        """Whether a path leads into the folder."""
        try:
            return isinstance(path, str | Path) and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError):  # too long a name, or a NUL in it
            return False


def _paths(content: object) -> Iterable[object]:
    """Return what stands anywhere in a JSON document as a "path"."""
    if isinstance(content, dict):
        yield from (content[key] for key in ("path",) if content.get(key) is not None)
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _paths(each)
