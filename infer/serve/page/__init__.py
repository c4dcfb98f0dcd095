"""The web app: a page that talks to the server it comes from, and to nobody else."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dsd_jax.page import STYLE

__all__ = ["FOLDER", "is_page", "page_routes"]

FOLDER = Path(__file__).parent
_AT = "/app/"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a path is a file of the page, which holds nothing secret and asks for no key."""
    return path == "/" or path.startswith(_AT)


def page_routes() -> tuple[BaseRoute, ...]:
    """Routes of the page for `create_app`: `/`, and its files below `/app/`."""
    files = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(FOLDER.iterdir())
        if path.suffix in _TYPES
    }
    files["page.css"] = STYLE
    page = files.pop("index.html")
    return (
        Route("/", _answer(page, ".html")),
        *(Route(_AT + name, _answer(text, Path(name).suffix)) for name, text in files.items()),
    )


def _answer(text: str, suffix: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        del request
        return Response(text, headers=_HEADERS, media_type=_TYPES[suffix])

    return answer
