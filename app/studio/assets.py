"""What browsers may fetch of the page itself, and how it is kept from reaching out and being reached into."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from app.server.mcp import AllowlistMiddleware

DOORS = {(method, path) for method in ("GET", "HEAD") for path in ("/", "/config", "/theme.css", "/favicon.ico")}
NAMED = "/assets/"  # where files are named by their contents
FOLDERS = (NAMED, "/static/")
FOREVER = "public, max-age=31536000, immutable"
# Nothing is fetched from elsewhere and nothing sent there, whatever a script of gradio's would like; the page is in no
# other site's frame. Gradio writes scripts into its page and compiles some.
OWN_ONLY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' "
    "blob:; object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
CLOSED = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
CLOSED |= {"Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": OWN_ONLY}


class Front(AllowlistMiddleware):
    """The screen before gradio's page: what is seen through it says what browsers may do with it."""

    def __init__(self, app, at: str, doors, folders: tuple[str, ...]):
        super().__init__(app, at, doors, folders, pass_query=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
                headers.update(CLOSED)
                if message["status"] == 200 and scope["path"].startswith(f"{self.mount_path}{NAMED}"):
                    headers["Cache-Control"] = FOREVER
            await send(message)

        await super().__call__(scope, receive, send_closed)


class Look(StaticFiles):
    """The files that the page is made of; a browser asks each time whether they are as they were."""

    def file_response(self, *args, **settings) -> Response:
        answer = super().file_response(*args, **settings)
        answer.headers.update({"Cache-Control": "no-cache"} | CLOSED)
        return answer
