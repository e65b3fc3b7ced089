"""The endpoints."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from cpmi import __version__
from cpmi.errors import InputError
from cpmi.records import StepRewards, Trajectory, json_problem
from cpmi.serving import shapes
from cpmi.serving.batching import StoppingError
from cpmi.serving.gate import GONE
from cpmi.serving.service import Service

_NDJSON = "application/x-ndjson"

_Responses = dict[int | str, dict[str, Any]]


def _problems(*statuses: int) -> _Responses:
    about = {
        401: "No key, or a wrong one.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        422: "The request is wrong.",
        503: "Too many trajectories are waiting (see Retry-After), or the server is stopping.",
    }
    return {status: {"model": shapes.Problem, "description": about[status]} for status in statuses}


class _Route(APIRoute):
    """Says what is wrong with a body that is no JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return json.loads(body.decode())
        except UnicodeDecodeError as error:
            raise HTTPException(422, f"the body is not UTF-8 (byte {error.start + 1})") from error
        except (ValueError, RecursionError) as error:
            place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            raise HTTPException(422, f"the body is not JSON: {json_problem(error)}{place}") from error


def open_routes(service: Service) -> APIRouter:
    """Those that need no key."""
    router = APIRouter(tags=["state"])

    @router.get("/health", responses=_problems(503))
    async def health() -> shapes.State:
        """Whether the process works; if not, start it anew."""
        if not service.is_alive:
            raise HTTPException(503, "the queue has stopped; start the server anew")
        return shapes.State(status="ok")

    @router.get("/ready", responses=_problems(503))
    async def ready() -> shapes.State:
        """Whether it takes requests; it does not while it stops."""
        if service.batcher.stopping or not service.is_alive:
            raise StoppingError
        return shapes.State(status="ready")

    return router


def routes(service: Service) -> APIRouter:
    settings = service.settings
    locked = () if settings.keys is None else (401,)
    router = APIRouter(route_class=_Route)
    scoring = _problems(*locked, 408, 413, 422, 503)

    @router.get("/metrics", responses=_problems(*locked) | {200: {"content": {"text/plain": {}}}}, tags=["state"])
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/model", responses=_problems(*locked), tags=["state"])
    async def model() -> shapes.ModelAnswer:
        """What is served, and how much a request may ask for."""
        limits = settings.limits
        return shapes.ModelAnswer(
            model=service.model,
            revision=service.revision,
            source=service.source,
            settings=service.described,
            aggregation=settings.aggregation,
            split=settings.split,
            limits={name: getattr(limits, name) for name in ("body_bytes", "trajectories", "steps", "characters")},
            cpmi=__version__,
        )

    @router.post("/v1/score", response_model=shapes.ScoreAnswer, responses=scoring, tags=["score"])
    async def score(asked: shapes.ScoreRequest, request: Request) -> Any:
        """Step rewards of trajectories, in the order of the request; one that cannot be scored has an `error`."""
        trajectories = service.trajectories(asked.trajectories)
        answers = await service.answers(trajectories, request)
        if answers is None:
            return Response(status_code=GONE)
        split = _split(asked.trajectories, trajectories)
        return shapes.ScoreAnswer(
            model=service.model,
            revision=service.revision,
            aggregation=settings.aggregation,
            tokens_scored=sum(answer.cost.tokens_scored for answer in answers),
            results=[service.result(answer, steps) for answer, steps in zip(answers, split, strict=True)],
        )

    lines = {"content": {_NDJSON: {}}, "description": "A line for each trajectory, as in /v1/score, and an end."}

    @router.post("/v1/score/stream", response_class=StreamingResponse, responses=scoring | {200: lines}, tags=["score"])
    async def stream(asked: shapes.ScoreRequest) -> StreamingResponse:
        """The same as lines of JSON, each as soon as it is there, in the order of the request.

        The last line has `done`: without it, the answer broke off.
        """
        trajectories = service.trajectories(asked.trajectories)
        job = service.batcher.submit(trajectories)
        return StreamingResponse(service.stream(job, _split(asked.trajectories, trajectories)), media_type=_NDJSON)

    _trainer_routes(router, service, scoring)
    return router


def _trainer_routes(router: APIRouter, service: Service, scoring: _Responses) -> None:
    """The endpoints that trainers call."""

    @router.post("/get_reward", response_model=shapes.OpenRLHFAnswer, responses=scoring, tags=["trainers"])
    async def get_reward(asked: shapes.OpenRLHFRequest, request: Request) -> Any:
        """One number for each text, as OpenRLHF asks for it (`--remote_rm_url http://host:port/get_reward`)."""
        prompts: Sequence[str | None] = [None] * len(asked.query) if asked.prompts is None else asked.prompts
        if len(prompts) != len(asked.query):
            raise InputError(f"prompts: {len(prompts)} for {len(asked.query)} texts in 'query'")
        trajectories = service.texts("query", asked.query, prompts)
        answers = await service.answers(trajectories, request)
        if answers is None:
            return Response(status_code=GONE)
        rewards = service.numbers("query", answers)
        logs = {
            "steps": [float(len(trajectory.steps)) for trajectory in trajectories],
            "failed": [float(answer.error is not None) for answer in answers],
        }
        return shapes.OpenRLHFAnswer(rewards=rewards, scores=rewards, extra_logs=logs)

    async def texts(asked: shapes.TextsRequest, request: Request) -> tuple[list[float], shapes.Usage] | None:
        inputs = [asked.input] if isinstance(asked.input, str) else asked.input
        answers = await service.answers(service.texts("input", inputs, [None] * len(inputs)), request)
        return None if answers is None else (service.numbers("input", answers), _usage(answers))

    @router.post("/classify", response_model=shapes.ClassifyAnswer, responses=scoring, tags=["trainers"])
    async def classify(asked: shapes.TextsRequest, request: Request) -> Any:
        """One number for each text, as vLLM answers verl's reward loop."""
        if (found := await texts(asked, request)) is None:
            return Response(status_code=GONE)
        numbers, usage = found
        return shapes.ClassifyAnswer(
            id=f"classify-{secrets.token_hex(8)}",
            created=int(time.time()),
            model=service.model,
            data=[shapes.ClassifyItem(index=index, probs=[number]) for index, number in enumerate(numbers)],
            usage=usage,
        )

    @router.post("/v1/embeddings", response_model=shapes.EmbeddingsAnswer, responses=scoring, tags=["trainers"])
    async def embeddings(asked: shapes.TextsRequest, request: Request) -> Any:
        """One number for each text, as SGLang answers verl's reward loop."""
        if (found := await texts(asked, request)) is None:
            return Response(status_code=GONE)
        numbers, usage = found
        items = [shapes.EmbeddingItem(index=index, embedding=[number]) for index, number in enumerate(numbers)]
        return shapes.EmbeddingsAnswer(data=items, model=service.model, usage=usage)


def _usage(answers: Sequence[StepRewards]) -> shapes.Usage:
    tokens = sum(answer.cost.tokens_scored for answer in answers)
    return shapes.Usage(prompt_tokens=tokens, total_tokens=tokens)


def _split(rows: Sequence[shapes.TrajectoryIn], trajectories: Sequence[Trajectory]) -> list[Sequence[str] | None]:
    """The steps that we made of solutions: a client does not know them."""
    return [
        trajectory.steps if "solution" in row.model_fields_set else None
        for row, trajectory in zip(rows, trajectories, strict=True)
    ]
