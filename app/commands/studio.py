"""`longtake studio`: the server of `longtake serve` with a web page, on the same durable queue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.serve import add_server

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.server.service import Service

FRONTEND = Path(__file__).parents[1] / "studio" / "frontend"  # scripts, styles and images of the page
ABOUT = """Serve a web page to generate clips, watch their previews, compare them and make them again, on a queue that
survives a restart of the page and the server. Without tokens it serves this machine alone; with tokens each token has
its own gallery, and a browser asks for the token once."""


def add_studio(commands) -> None:
    """Add the command that serves the studio."""
    add_server(commands, "studio", "serve a web page to generate, watch and compare clips", ABOUT, studio, "/studio/")


def studio(service: Service, tokens: Sequence[str] = (), device: str = "cpu") -> FastAPI:
    """Return the ASGI app of a studio: the video API, the routes of the page, and the page."""
    from app.server.api import create_app
    from app.studio.login import SIGN_IN

    return create_app(service, tokens, partial(_add_studio, service=service, tokens=tokens, device=device), SIGN_IN)


def _add_studio(app: FastAPI, service: Service, tokens: Sequence[str], device: str) -> None:
    from fastapi.responses import FileResponse, RedirectResponse

    from app.home import make_private_folder
    from app.queue.previews import PREVIEWS
    from app.studio.forecast import Forecast
    from app.studio.gallery import Gallery
    from app.studio.login import add_sign_in
    from app.studio.options import studio_options
    from app.studio.routes import studio_routes
    from app.studio.views import StudioViews

    make_private_folder(service.queue.folder / PREVIEWS)
    views = StudioViews(service, Gallery(service), Forecast(service.queue, device))

    @app.get("/", include_in_schema=False)
    def redirect_to_studio():
        return RedirectResponse("/studio/")

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon():
        return FileResponse(FRONTEND / "mark.svg", media_type="image/svg+xml")

    add_sign_in(app, tokens)
    app.include_router(studio_routes(views, single_user=not tokens))
    add_page(app, studio_options(service, single_user=not tokens))


def add_page(app: FastAPI, options: dict[str, Any]) -> None:
    """Mount the page and its static files; of gradio's routes only those that the page needs."""
    import gradio as gr
    from starlette.routing import Mount

    from app.studio.assets import ALLOWED_FOLDERS, ALLOWED_ROUTES, STUDIO_PATH, FrontendFiles, GradioPageMiddleware
    from app.studio.page import page_settings, studio_page

    app.mount(f"{STUDIO_PATH}/frontend", FrontendFiles(directory=FRONTEND))
    gr.mount_gradio_app(
        app,
        studio_page(options),
        STUDIO_PATH,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        **page_settings(),
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount), "gradio mounts the page last"
    mounted.app = GradioPageMiddleware(mounted.app, STUDIO_PATH, ALLOWED_ROUTES, ALLOWED_FOLDERS)
