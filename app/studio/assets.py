"""Serve the page's static files, and set the security headers of all its responses."""

from __future__ import annotations

from collections.abc import Set

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.server.mcp import AllowlistMiddleware

STUDIO_PATH = "/studio"  # where the page is mounted
ALLOWED_ROUTES = {
    (method, path) for method in ("GET", "HEAD") for path in ("/", "/config", "/theme.css", "/favicon.ico")
}
HASHED_FOLDER = "/assets/"  # file names contain a hash of their contents
ALLOWED_FOLDERS = (HASHED_FOLDER, "/static/")
CACHE_FOREVER = "public, max-age=31536000, immutable"
# Scripts of gradio must not load from or send to other hosts, and no other site may show the page in a frame. Gradio
# needs inline scripts and eval.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' "
    "blob:; object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
}


class GradioPageMiddleware(AllowlistMiddleware):
    """Pass only the routes that gradio's page needs, and add the security headers to its responses."""

    def __init__(self, app: ASGIApp, mount_path: str, routes: Set[tuple[str, str]], folders: tuple[str, ...]):
        super().__init__(app, mount_path, routes, folders, pass_query=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
                headers.update(SECURITY_HEADERS)
                if message["status"] == 200 and scope["path"].startswith(f"{self.mount_path}{HASHED_FOLDER}"):
                    headers["Cache-Control"] = CACHE_FOREVER
            await send(message)

        await super().__call__(scope, receive, send_with_headers)


class FrontendFiles(StaticFiles):
    """Serve our scripts and style sheets; browsers revalidate them at each visit."""

    def file_response(self, *args, **settings) -> Response:
        response = super().file_response(*args, **settings)
        response.headers.update({"Cache-Control": "no-cache"} | SECURITY_HEADERS)
        return response
