"""The gate of a server: who may come in, for whom, and with how much.

Where tokens are asked for, whoever has one comes in, and what is made for one token no other sees. A program brings it
in a header; a browser in a cookie, with which no page of another site can change anything. Without tokens a server is
for this machine alone: it is called by a name of this machine, by its programs and not by pages of the web.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/docs", "/openapi.json")  # pages that tell nothing of anybody
OPEN_FOLDER = "/static-offline-docs/"  # where their scripts lie
FORM_BYTES, JSON_BYTES = 600 * 2**20, 32 * 2**20  # the most that a body may have, with uploads and without
LEAST_LETTERS = 16  # of a token
COOKIE = "longtake_token"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # which change nothing


def owner_of(token: str) -> str:
    """Return the name under which jobs of a token are kept, from which nobody can tell the token."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def is_loopback(host: str) -> bool:
    """Say whether an interface or a host is this machine's own, which nobody else can reach."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, tokens: Sequence[str]) -> None:
    """Raise ValueError where others could reach the server without a token, or guess one."""
    for token in tokens:
        if len(token) < LEAST_LETTERS or not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError(
                f"a token must be at least {LEAST_LETTERS} plain letters; got {len(token)}; "
                "one is made by: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    if not tokens and not is_loopback(host):
        raise ValueError(
            f"a server that others can reach must ask for a token; got --host {host} and none, "
            "so give --token or LONGTAKE_TOKEN, or stay with 127.0.0.1"
        )


def answer(status: int, sentence: str, code: str | None = None, field: str | None = None) -> JSONResponse:
    """Answer with an error in the shape that clients know."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(
        {"error": {"message": sentence, "type": kind, "param": field, "code": code}}, status, headers=headers
    )


class Gate:
    """Let a request in, its owner noted in the request's state, or answer it with one sentence. A browser that asks for
    a page without a token is shown where to `sign_in`, if that is anywhere.
    """

    def __init__(self, app: ASGIApp, tokens: Sequence[str] = (), sign_in: str = ""):
        self.app, self.owners, self.sign_in = app, {owner_of(token) for token in tokens}, sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        owner, refused = "", None
        if not self.owners:
            refused = self.stranger(headers)
        elif (owner := self.known(headers)) is None:
            refused = self.unknown(scope, headers)
        elif self.by_cookie(headers) and scope["method"] not in SAFE_METHODS and is_foreign(headers):
            refused = answer(403, "a cookie is taken from pages of this server only; bring a token", "wrong_origin")
        most = FORM_BYTES if headers.get("content-type", "").startswith("multipart/") else JSON_BYTES
        if not refused and headers.get("content-length", "").isdecimal() and int(headers["content-length"]) > most:
            refused = answer(413, too_large(most), "too_large")
        if refused:
            return await refused(scope, receive, send)
        await self.app(scope | {"state": {**scope.get("state", {}), "owner": owner}}, counted(receive, most), send)

    def known(self, headers: Headers) -> str | None:
        """Return the owner whose token a request brings, if any."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if self.by_cookie(headers):
            scheme, token = "bearer", cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        owner = owner_of(token.strip())
        return owner if scheme.lower() == "bearer" and owner in self.owners else None

    def by_cookie(self, headers: Headers) -> bool:
        """Say whether it is a cookie, and no header, that a request would come in with."""
        return "authorization" not in headers and COOKIE in headers.get("cookie", "")

    def unknown(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer for whoever brings no token; None where all may go."""
        path = scope["path"]
        if path in OPEN or path.startswith(OPEN_FOLDER):
            return None
        if self.sign_in and path == self.sign_in:
            foreign = scope["method"] not in SAFE_METHODS and is_foreign(headers)
            return (
                answer(403, "a token is taken from the page of this server only", "wrong_origin") if foreign else None
            )
        if self.sign_in and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(self.sign_in, 303)
        rule = "a request must bring its token, as in Authorization: Bearer TOKEN"
        return answer(401, f"{rule}; got none that is known; ask whoever runs this server", "invalid_api_key")

    def stranger(self, headers: Headers) -> JSONResponse | None:
        """Return the answer for a page of the web that calls this machine by another name, or from another site."""
        here, origin = headers.get("host", ""), headers.get("origin")
        if not is_loopback(host_in(here)):
            return answer(403, "a server without tokens must be called as localhost; got another name", "wrong_host")
        if origin is not None and is_foreign(headers):
            return answer(403, "a server without tokens serves no pages of other sites; use a token", "wrong_origin")
        return None


def is_foreign(headers: Headers) -> bool:
    """Say whether it is a page of another site that sends a request, by what browsers tell and pages cannot change."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        return origin.partition("://")[2] != headers.get("host", "")
    return site not in (None, "none", "same-origin")


def host_in(header: str) -> str:
    """Return the host in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def counted(receive: Receive, most: int) -> Receive:
    """Receive a body of at most so many bytes, whatever its header says; a larger one raises HTTPException."""
    taken = 0

    async def receive_some() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise HTTPException(413, too_large(most))
        return message

    return receive_some


def too_large(most: int) -> str:
    return f"a request must have at most {most:,} bytes; this one has more; send less"
