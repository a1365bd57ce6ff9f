"""Authenticate requests, limit the size of their bodies, and reject requests from other sites.

With tokens, every request must carry one, and the videos of one token are invisible to the others. A program sends the
token in the Authorization header; a browser may send it in a cookie, with which no page of another site can change
anything. Without tokens the server is for this machine only: requests must name a loopback host, and must not come from
web pages of other sites.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PUBLIC_PATHS = ("/", "/docs", "/openapi.json")  # pages without anybody's data
PUBLIC_FOLDER = "/static-offline-docs/"  # the scripts of these pages
MAX_FORM_BYTES, MAX_JSON_BYTES = 600 * 2**20, 32 * 2**20  # of a body, with uploads and without
MAX_OPEN_REQUESTS = 200  # of one client at a time, those that send or receive slowly among them
MIN_TOKEN_CHARS = 16
COOKIE = "longtake_token"  # with the port after it, since the cookies of a host are those of all its ports
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


def owner_id(token: str) -> str:
    """Return the owner of a token's jobs: a hash from which the token cannot be recovered."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def cookie_name(headers: Headers) -> str:
    """Return the name of the cookie with the token, one for each port of a host."""
    port = headers.get("host", "").rpartition("]")[2].rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isdecimal() else COOKIE


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is the loopback interface, which other machines cannot reach."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, tokens: Sequence[str]) -> None:
    """Raise ValueError where others could reach the server without a token, or could guess a token."""
    for token in tokens:
        if len(token) < MIN_TOKEN_CHARS or not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError(
                f"a token must be at least {MIN_TOKEN_CHARS} ASCII characters without spaces; got {len(token)}; "
                "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    if not tokens and not is_loopback(host):
        raise ValueError(
            f"a server that others can reach must require a token; got --host {host} and no token, "
            "so give --token or LONGTAKE_TOKEN, or use 127.0.0.1"
        )


def error_response(status: int, message: str, code: str | None = None, field: str | None = None) -> JSONResponse:
    """Return an error in the format of the OpenAI API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": field, "code": code}}, status, headers=headers
    )


class AuthMiddleware:
    """ASGI middleware: store the owner in `request.state.owner`, or answer with an error.

    A browser that requests a page without a token is redirected to `login_path`, where there is one.
    """

    def __init__(self, app: ASGIApp, tokens: Sequence[str] = (), login_path: str = ""):
        self.app, self.owners, self.login_path = app, {owner_id(token) for token in tokens}, login_path
        self.open_requests: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        owner, rejection = "", None
        if not self.owners:
            rejection = self.reject_foreign(scope["method"], headers)
        elif (owner := self.authenticated_owner(headers)) is None:
            rejection = self.reject_anonymous(scope, headers)
        elif self.uses_cookie(headers) and scope["method"] not in SAFE_METHODS and is_cross_site(headers):
            message = "a cookie is accepted from pages of this server only; send the token in a header"
            rejection = error_response(403, message, "wrong_origin")
        max_bytes = MAX_FORM_BYTES if headers.get("content-type", "").startswith("multipart/") else MAX_JSON_BYTES
        content_length = headers.get("content-length", "")
        if not rejection and owner is not None and self.open_requests[owner] >= MAX_OPEN_REQUESTS:
            message = f"at most {MAX_OPEN_REQUESTS} requests of yours may be open here; try again later"
            rejection = error_response(429, message, "rate_limit_exceeded")
        if not rejection and content_length.isdecimal() and int(content_length) > max_bytes:
            rejection = error_response(413, too_large_message(max_bytes), "too_large")
        if rejection:
            return await rejection(scope, receive, send)
        state, client = {**scope.get("state", {}), "owner": owner}, owner or ""
        self.open_requests[client] += 1
        try:
            await self.app({**scope, "state": state}, limit_body(receive, max_bytes), send)
        finally:
            self.open_requests[client] -= 1
            if not self.open_requests[client]:
                del self.open_requests[client]

    def authenticated_owner(self, headers: Headers) -> str | None:
        """Return the owner of the token that a request carries, None without a valid token."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if self.uses_cookie(headers):
            scheme, token = "bearer", cookie_parser(headers.get("cookie", "")).get(cookie_name(headers), "")
        owner = owner_id(token.strip())
        return owner if scheme.lower() == "bearer" and owner in self.owners else None

    def uses_cookie(self, headers: Headers) -> bool:
        """Return whether a request carries its token in a cookie, not in a header."""
        return "authorization" not in headers and cookie_name(headers) in cookie_parser(headers.get("cookie", ""))

    def reject_anonymous(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the response to a request without a valid token; None where the page is public."""
        path = scope["path"]
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER):
            return None
        if self.login_path and path == self.login_path:
            if scope["method"] in SAFE_METHODS or not is_cross_site(headers):
                return None
            return error_response(403, "a token is accepted from this server's own page only", "wrong_origin")
        if self.login_path and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(self.login_path, 303)
        rule = "a request must carry its token, as in Authorization: Bearer TOKEN"
        return error_response(401, f"{rule}; got no valid one; ask whoever runs this server", "invalid_api_key")

    def reject_foreign(self, method: str, headers: Headers) -> JSONResponse | None:
        """Return the response to a request for another host name or from another site; None for a local one.

        A link on another site's page, a GET without an Origin, may lead here.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_loopback(host_name(host)):
            message = "a server without tokens must be called as localhost; got another name"
            return error_response(403, message, "wrong_host")
        if is_cross_site(headers) and (origin is not None or method not in SAFE_METHODS):
            message = "a server without tokens accepts no requests from other sites' pages; use a token"
            return error_response(403, message, "wrong_origin")
        return None


def is_cross_site(headers: Headers) -> bool:
    """Return whether a page of another site sent a request, by headers that browsers set and pages cannot change."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        return origin.partition("://")[2] != headers.get("host", "")
    return site not in (None, "none", "same-origin")


def host_name(header: str) -> str:
    """Return the host in a Host header, without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def limit_body(receive: Receive, max_bytes: int) -> Receive:
    """Wrap `receive`: it raises HTTPException once the body exceeds `max_bytes`, whatever Content-Length says."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise HTTPException(413, too_large_message(max_bytes))
        return message

    return receive_limited


def too_large_message(max_bytes: int) -> str:
    return f"a request must have at most {max_bytes:,} bytes; this one has more; send less"
