"""The door of the studio: a page that takes a token once and keeps it in a cookie that no script can read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from app.server.auth import COOKIE, owner_id

AT = "/studio"
SIGN_IN, SIGN_OUT = f"{AT}/sign-in", f"{AT}/sign-out"
LASTS_SECONDS = 90 * 24 * 3600  # in which a browser that comes again need not be told the token
MOST_LETTERS = 4096  # of a token, in a form
# Whoever comes by a link on another site has left a strict cookie behind; what this page fetches itself brings it.
KNOWN = f'fetch("{AT}/votes").then((found) => found.ok && location.replace("{AT}/"))'
HASH = base64.b64encode(hashlib.sha256(KNOWN.encode()).digest()).decode()
# What is shown is from here, and nothing is sent elsewhere; no other site may frame it.
OWN_ONLY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
CLOSED = {"Content-Security-Policy": OWN_ONLY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
UNSTORED = CLOSED | {"Cache-Control": "no-store"}

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
{told}
<label>Token · 令牌
<input type="password" name="token" autocomplete="current-password" required autofocus maxlength="{most}">
</label>
<button>Sign in · 登录</button>
<p>It is known to whoever runs this server, and is asked for once. 令牌请向服务器的管理者索取，只需输入一次。</p>
</form>
<script>{known}</script>
</body>
</html>
"""
WRONG = "That token is not known here. 此令牌无效。"


def add_door(app: FastAPI, tokens: Sequence[str]) -> None:
    """Add the page where people sign in, and the way out."""
    owners = {owner_id(token) for token in tokens}

    @app.get(SIGN_IN, include_in_schema=False)
    def sign_in():
        return page() if owners else RedirectResponse(f"{AT}/", 303)

    @app.post(SIGN_IN, include_in_schema=False)
    async def signed_in(request: Request):
        async with request.form(max_files=0, max_fields=1) as form:
            token = form.get("token")
        token = token.strip() if isinstance(token, str) else ""
        if owners and (len(token) > MOST_LETTERS or owner_id(token) not in owners):
            return page(WRONG, 401)
        answer = RedirectResponse(f"{AT}/", 303, headers=UNSTORED)
        if owners:
            keep(answer, token, request)
        return answer

    @app.post(SIGN_OUT, include_in_schema=False)
    def signed_out(request: Request):
        answer = RedirectResponse(SIGN_IN, 303, headers=UNSTORED | {"Clear-Site-Data": '"cache"'})
        keep(answer, "", request)
        return answer


def keep(answer: Response, token: str, request: Request) -> None:
    """Have a browser keep a token, or, where it is empty, forget it."""
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    answer.set_cookie(
        COOKIE,
        token,
        max_age=LASTS_SECONDS if token else 0,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def page(told: str = "", status: int = 200) -> HTMLResponse:
    """Return the page where people sign in, with what went wrong, if anything."""
    words = f'<p role="alert">{escape(told)}</p>' if told else ""
    return HTMLResponse(
        PAGE.format(action=SIGN_IN, told=words, most=MOST_LETTERS, known=KNOWN), status, headers=UNSTORED
    )
