"""The OpenAPI description says what the server does: schemathesis tries to prove otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from cpmi.serving import Keys, ServeSettings
from cpmi.serving.app import make_app
from served import Telltale, running

OPEN = ServeSettings(failed_reward=0.0)
LOCKED = ServeSettings(keys=Keys(["k3y"]))

schema = schemathesis.openapi.from_dict(make_app(Telltale(), OPEN).openapi())
locked = schemathesis.openapi.from_dict(make_app(Telltale(), LOCKED).openapi())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(Telltale(), OPEN) as server:
        yield server.url


@pytest.fixture(scope="module")
def locked_address() -> Iterator[str]:
    with running(Telltale(), LOCKED) as server:
        yield server.url


bounded = settings(
    max_examples=15,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def unsaid(case: Case[Any]) -> list[Any]:
    """Of texts that hold a whole dialog a schema cannot say that question and solution must be found in them."""
    return [positive_data_acceptance] if case.path in ("/get_reward", "/classify", "/v1/embeddings") else []


@schema.parametrize()
@bounded
def test_answers_are_as_described(case: Case[Any], address: str) -> None:
    case.call_and_validate(base_url=address, excluded_checks=unsaid(case))


@locked.parametrize()
@bounded
def test_answers_with_a_key_are_as_described(case: Case[Any], locked_address: str) -> None:
    case.call_and_validate(
        base_url=locked_address, headers={"Authorization": "Bearer k3y"}, excluded_checks=unsaid(case)
    )


def test_every_answer_that_is_no_success_is_one_line() -> None:
    described = TestClient(make_app(Telltale(), ServeSettings())).get("/openapi.json").json()
    for methods in described["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    (content,) = answer["content"].values()
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
