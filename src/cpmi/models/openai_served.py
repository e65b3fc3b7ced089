"""Which model of a server is meant, and whether there is a server at all."""

from __future__ import annotations

from cpmi.errors import InputError, unknown_name
from cpmi.models.openai_client import Failure, Server
from cpmi.models.openai_replies import BadReply, Served, read_models

_SHOWN = 10  # models


def find_model(server: Server) -> Served:
    """The model that the server's address names, or the only one that it has.

    Raises:
        InputError: no server there, a key that it refuses, an unknown model, or several and none named.
    """
    answer = server.models()
    if isinstance(answer, Failure):
        raise InputError(_why_not(server, answer))
    try:
        models = {model.name: model for model in read_models(answer)}
    except BadReply as error:
        raise InputError(f"openai:{server.address.url}: /models: {error}; is this an OpenAI-compatible API?") from None
    name = server.address.model or (next(iter(models)) if len(models) == 1 else "")
    if not name:
        listed = ", ".join([*list(models)[:_SHOWN], *(["..."] if len(models) > _SHOWN else [])])
        raise InputError(f"openai:{server.address.url}: add #MODEL, one of the server's: {listed or 'it has none'}")
    if name not in models:
        raise unknown_name(f"model of the server at {server.address.url}", name, list(models)[:_SHOWN])
    return models[name]


def _why_not(server: Server, failure: Failure) -> str:
    url, variable = server.address.url, server.options.api_key_env
    if failure.status in (401, 403):
        refused = f"refuses the API key in the environment variable {variable}"
        problem = refused if server.key else f"wants an API key in the environment variable {variable}"
        return f"openai:{url}: the server {problem} ({failure.line})"
    hint = "; the URL of vLLM's and of most servers ends in /v1" if failure.status == 404 else ""
    return f"openai:{url}: /models: {failure.line}{hint}"
