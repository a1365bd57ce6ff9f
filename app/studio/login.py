"""The sign-in page of the studio: it takes a token once and stores it in a cookie that scripts cannot read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from app.server.auth import cookie_name, owner_id
from app.studio.assets import STUDIO_PATH

SIGN_IN, SIGN_OUT = f"{STUDIO_PATH}/sign-in", f"{STUDIO_PATH}/sign-out"
COOKIE_SECONDS = 90 * 24 * 3600  # until a browser must send the token again
MAX_TOKEN_CHARS = 4096
# A strict cookie is not sent with a link from another site; it is sent with this fetch, which skips the form then.
REDIRECT_SCRIPT = f'fetch("{STUDIO_PATH}/votes").then((found) => found.ok && location.replace("{STUDIO_PATH}/"))'
SCRIPT_HASH = base64.b64encode(hashlib.sha256(REDIRECT_SCRIPT.encode()).digest()).decode()
# The page loads from and sends to this server alone, and no other site may show it in a frame.
SIGN_IN_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": SIGN_IN_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark light"><title>Longtake: sign in</title>
<style>
:root {{ --ground: #121214; --ink: #ececef; --quiet: #a0a0ab; --well: #1d1d21; --line: #34343a; --accent: #f5a623 }}
@media (prefers-color-scheme: light) {{
  :root {{ --ground: #fafafa; --ink: #18181b; --quiet: #5b5b66; --well: #fff; --line: #d4d4d8; --accent: #b45309 }}
}}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif }}
form {{ width: min(24rem, calc(100vw - 3rem)); display: grid; gap: .75rem }}
h1 {{ font-size: 1.5rem; margin: 0 }} p {{ margin: 0; color: var(--quiet) }} p[role=alert] {{ color: var(--accent) }}
label {{ display: grid; gap: .25rem }}
input, button {{ font: inherit; padding: .6rem .75rem; border-radius: .5rem; border: 1px solid var(--line);
  background: var(--well); color: inherit }}
button {{ background: var(--accent); color: var(--ground); border: 0; font-weight: 600; cursor: pointer }}
:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px }}
</style>
</head>
<body>
<form method="post" action="{action}">
<h1>Longtake</h1>
{alert}
<label>Token · 令牌
<input type="password" name="token" autocomplete="current-password" required autofocus maxlength="{max_chars}">
</label>
<button>Sign in · 登录</button>
<p>Ask whoever runs this server for the token. It is needed only once. 令牌请向服务器的管理者索取，只需输入一次。</p>
</form>
<script>{script}</script>
</body>
</html>
"""
WRONG_TOKEN = "That token is not known here. 此令牌无效。"


def add_sign_in(app: FastAPI, tokens: Sequence[str]) -> None:
    """Add the sign-in page and the route that signs out; without tokens both redirect to the studio."""
    owners = {owner_id(token) for token in tokens}

    @app.get(SIGN_IN, include_in_schema=False)
    def show_sign_in():
        return sign_in_page() if owners else RedirectResponse(f"{STUDIO_PATH}/", 303)

    @app.post(SIGN_IN, include_in_schema=False)
    async def sign_in(request: Request):
        async with request.form(max_files=0, max_fields=1) as form:
            token = form.get("token")
        token = token.strip() if isinstance(token, str) else ""
        if owners and (len(token) > MAX_TOKEN_CHARS or owner_id(token) not in owners):
            return sign_in_page(WRONG_TOKEN, 401)
        response = RedirectResponse(f"{STUDIO_PATH}/", 303, headers=HEADERS)
        if owners:
            set_token_cookie(response, token, request)
        return response

    @app.post(SIGN_OUT, include_in_schema=False)
    def sign_out(request: Request):
        response = RedirectResponse(SIGN_IN, 303, headers=HEADERS | {"Clear-Site-Data": '"cache"'})
        set_token_cookie(response, "", request)
        return response


def set_token_cookie(response: Response, token: str, request: Request) -> None:
    """Set the cookie with the token, or delete it where the token is empty; over HTTPS it is sent over HTTPS alone."""
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    response.set_cookie(
        cookie_name(request.headers),
        token,
        max_age=COOKIE_SECONDS if token else 0,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def sign_in_page(message: str = "", status: int = 200) -> HTMLResponse:
    """Return the sign-in page, with an error message where there is one."""
    alert = f'<p role="alert">{escape(message)}</p>' if message else ""
    html = PAGE.format(action=SIGN_IN, alert=alert, max_chars=MAX_TOKEN_CHARS, script=REDIRECT_SCRIPT)
    return HTMLResponse(html, status, headers=HEADERS)
