"""`longtake studio`: the server of `longtake serve` with a web page, on the same durable queue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.serve import add_server

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.server.service import Service

FRONTEND = Path(__file__).parents[1] / "studio" / "frontend"  # scripts, styles and images of the page
ABOUT = """Serve a web page to generate clips, watch their previews, keep, compare and make them again, on a queue that
outlives the page and the server. Without tokens it is for this machine alone; with tokens each has its own gallery, and
a browser asks for one once."""


def add_studio(commands) -> None:
    """Add the command that serves the studio."""
    add_server(commands, "studio", "serve a web page to make, watch, keep and compare clips", ABOUT, studio, "/studio/")


def studio(service: Service, tokens: Sequence[str] = (), device: str = "cpu") -> FastAPI:
    """Return the ASGI app of a studio: the video API, the routes of the page, and the page."""
    from app.server.api import create_app
    from app.studio.login import SIGN_IN

    return create_app(service, tokens, partial(_add_studio, service=service, tokens=tokens, device=device), SIGN_IN)


def _add_studio(app: FastAPI, service: Service, tokens: Sequence[str], device: str) -> None:
    from fastapi.responses import FileResponse, RedirectResponse

    from app.queue.previews import PREVIEWS
    from app.studio.forecast import Forecast
    from app.studio.gallery import Shelf
    from app.studio.login import add_door
    from app.studio.options import offered
    from app.studio.routes import routes
    from app.studio.views import Cards

    (service.queue.folder / PREVIEWS).mkdir(exist_ok=True)
    cards = Cards(service, Shelf(service), Forecast(service.queue, device))

    @app.get("/", include_in_schema=False)
    def page():
        return RedirectResponse("/studio/")

    @app.get("/favicon.ico", include_in_schema=False)
    def mark():
        return FileResponse(FRONTEND / "mark.svg", media_type="image/svg+xml")

    add_door(app, tokens)
    app.include_router(routes(cards, alone=not tokens))
    add_page(app, offered(service, alone=not tokens))


def add_page(app: FastAPI, offer: dict) -> None:
    """Mount the page, and what it is made of; of gradio's routes those alone that show it."""
    import gradio as gr
    from starlette.routing import Mount

    from app.studio.assets import DOORS, FOLDERS, Front, Look
    from app.studio.login import AT
    from app.studio.page import look, page

    app.mount(f"{AT}/look", Look(directory=FRONTEND))
    gr.mount_gradio_app(
        app,
        page(offer),
        AT,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        **look(),
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount), "gradio mounts the page last"
    mounted.app = Front(mounted.app, AT, DOORS, FOLDERS)
