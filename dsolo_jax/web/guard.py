"""What stands before the page's server: no request may be huge, no browser may ask elsewhere."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Gradio's own page makes functions of text, and styles in place; all else comes from this server.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

# Of a request that is no upload: a question with all its classes, many times over.
_MOST_JSON = 2_000_000
_FRAME = 100_000  # what an upload has around its file


class Guard:
    """ASGI middleware: refuses bodies above a size (413), and sends a policy with each answer.

    Args:
        upload: bytes that an uploaded file may have.
    """

    def __init__(self, app: App, upload: int) -> None:
        self._app, self._upload = app, upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        most = self._upload + _FRAME if is_upload else _MOST_JSON
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > most:
            await _refuse(send, most)
            return
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            found = await receive()
            seen += len(found.get("body", b""))
            return {"type": "http.disconnect"} if seen > most else found

        async def with_policy(sent: MutableMapping[str, Any]) -> None:
            if sent["type"] == "http.response.start":
                own = {name for name, _ in _HEADERS}
                others = [pair for pair in sent.get("headers", ()) if pair[0].lower() not in own]
                sent = {**sent, "headers": [*others, *_HEADERS]}
            await send(sent)

        await self._app(scope, counted, with_policy)


async def _refuse(send: Send, most: int) -> None:
    text = f"this is too large; at most {most / 1e6:.1f} MB are taken".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
