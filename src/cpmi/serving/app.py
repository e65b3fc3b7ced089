"""The application: routes behind the gate, and what goes wrong as one line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBasic, HTTPBearer
from starlette.exceptions import HTTPException

from cpmi import __version__
from cpmi.errors import InputError
from cpmi.serving.batching import QueueFullError, StoppingError
from cpmi.serving.gate import Gate
from cpmi.serving.page import POLICY, page
from cpmi.serving.routes import open_routes, routes
from cpmi.serving.service import Service
from cpmi.serving.settings import ServeSettings

if TYPE_CHECKING:
    from cpmi.protocols import StepRewarder

_ABOUT = (
    "Scores the steps of solutions with a process reward model. Requests that arrive together are scored together; "
    "answers come in the order of the request."
)


def make_app(rewarder: StepRewarder, settings: ServeSettings) -> FastAPI:
    """The application that serves this rewarder; an ASGI server runs it, lifespan included.

    The rewarder is called in one thread, and never twice at a time.
    """
    service = Service(rewarder, settings)
    app = FastAPI(
        title="cpmi serve",
        description=_ABOUT,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.include_router(open_routes(service))
    # The gate checks keys; these only say so in the OpenAPI description.
    schemes = () if settings.keys is None else (HTTPBearer(auto_error=False), HTTPBasic(auto_error=False))
    app.include_router(routes(service), dependencies=[Security(scheme) for scheme in schemes])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": POLICY})

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(InputError, _wrong)
    app.add_exception_handler(QueueFullError, _full)
    app.add_exception_handler(StoppingError, _full)
    paths = frozenset(["/docs", "/openapi.json", *app.openapi()["paths"]])
    app.add_middleware(Gate, settings=settings, metrics=service.metrics, paths=paths)
    return app


def _problem(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": line}, status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for these
    return _problem(422, one_line(error.errors()))


def one_line(errors: Sequence[Any]) -> str:
    """What pydantic found, as one line: the first of it with its place, and how much more there is."""
    place = ""
    for part in errors[0]["loc"][1:]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = errors[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    line = f"{place or 'the body'}: {message}{more}"
    return " ".join(line.encode(errors="replace").decode().split())


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)  # noqa: S101
    return _problem(error.status_code, str(error.detail), dict(error.headers or {}))


async def _wrong(request: Request, error: Exception) -> Response:
    del request
    return _problem(422, str(error))


async def _full(request: Request, error: Exception) -> Response:
    del request
    wait = error.retry_after if isinstance(error, QueueFullError) else 1
    return _problem(503, str(error), {"Retry-After": str(wait)})
