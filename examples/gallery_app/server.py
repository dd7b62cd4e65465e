"""The web server: Gradio's page, the pictures beside it, and a policy that keeps the browser here."""

import gradio as gr
from fastapi import FastAPI

from . import page, pictures

# Nothing is loaded from elsewhere, whatever a component would like to. Gradio's
# page needs inline scripts and styles, and makes functions of the page's scripts.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class WithHeaders:
    """ASGI middleware that adds `HEADERS` to each answer."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def make(catalog, database, args):
    """The ASGI app of the gallery."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(WithHeaders)
    pictures.add_routes(app, catalog, database)
    gallery = page.Gallery(catalog, database, args.title, args.example, args.connections)
    return gr.mount_gradio_app(
        app, gallery.blocks, path="/", server_name=args.host, footer_links=[], run_history=False,
        max_file_size="32mb", ssr_mode=False, theme=page.theme(), css=page.STYLE,
        enable_monitoring=False, mcp_server=False,
    )  # fmt: skip
