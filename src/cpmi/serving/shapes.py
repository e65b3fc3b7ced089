"""What comes in and what goes out, as JSON. The OpenAPI page is made of these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from pydantic.config import JsonDict

_NOT_BLANK = r"\S"
_STEPWISE: JsonDict = {
    "question": "What is 2 + 3 + 4?",
    "steps": ["2 + 3 = 5.", "5 + 4 = 9. The answer is 9."],
    "id": "sum",
}


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="One line: what, where, what to do.")


class TrajectoryIn(BaseModel):
    """A question and a solution: its `steps`, or the whole `solution` as one text that is split into steps here."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"oneOf": [{"required": ["steps"]}, {"required": ["solution"]}], "examples": [_STEPWISE]},
    )

    question: str = Field(pattern=_NOT_BLANK)
    steps: list[str] = Field(default=[], description="In order. Instead of `solution`.")
    solution: str = Field(default="", description="Instead of `steps`.")
    id: str = Field(default="", description="Comes back with the answer; by default a hash of the trajectory.")

    @model_validator(mode="after")
    def _one_of_both(self) -> TrajectoryIn:
        if ("steps" in self.model_fields_set) == ("solution" in self.model_fields_set):
            raise ValueError("give either 'steps' or 'solution'")
        return self


class ScoreRequest(BaseModel):
    """Trajectories to score. How many, and how long, is limited: see `/v1/model`."""

    model_config = ConfigDict(extra="forbid")

    trajectories: list[TrajectoryIn]


class Result(BaseModel):
    """The rewards of one trajectory, or why there are none."""

    id: str
    source: str = Field(description="What made the rewards, e.g. `prm`.")
    rewards: list[float] = Field(description="One for each step, in order; empty where `error` is set.")
    reward: float | None = Field(description="The rewards as one number, by the server's aggregation.")
    terms: dict[str, list[float]] = Field(description="What the rewards are made of: a PRM's `score` is the logit.")
    steps: list[str] | None = Field(description="Of a `solution`: the steps it was split into.")
    tokens_scored: int
    seconds: float = Field(description="This trajectory's share of the model's time.")
    error: str | None


class ScoreAnswer(BaseModel):
    """Results in the order of the request."""

    model: str
    revision: str | None = Field(description="Which version of the model it is.")
    aggregation: str
    tokens_scored: int
    results: list[Result]


class StreamEnd(BaseModel):
    """The last line of a stream: without it, the answer broke off."""

    done: Literal[True] = True
    model: str
    revision: str | None
    aggregation: str
    tokens_scored: int
    results: int = Field(description="How many lines came before.")


class ModelAnswer(BaseModel):
    """What is served, and how."""

    model: str
    revision: str | None
    source: str
    settings: dict[str, Any] = Field(description="Whatever of the model could change the numbers.")
    aggregation: str
    split: str
    limits: dict[str, int]
    cpmi: str = Field(description="Version of this package.")


class State(BaseModel):
    """How the server is."""

    status: str


# --- trainers -------------------------------------------------------------------------------------------------------


class OpenRLHFRequest(BaseModel):
    """What OpenRLHF posts to `remote_rm_url`. Other fields are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": ["<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n2 + 3 = 5.<|im_end|>"],
                    "prompts": ["<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"],
                    "labels": ["5"],
                }
            ]
        }
    )

    query: list[str] = Field(description="Prompts with their answers, chat template included. May be empty.")
    prompts: list[str] | None = Field(default=None, description="The prompts alone.")
    labels: list[Any] | None = Field(default=None, description="Not looked at.")


class OpenRLHFAnswer(BaseModel):
    """What OpenRLHF reads."""

    rewards: list[float]
    scores: list[float] = Field(description="The same.")
    extra_logs: dict[str, list[float]] = Field(description="`steps`: how many; `failed`: 1 where there is no score.")


class TextsRequest(BaseModel):
    """What verl's reward loop posts for a discriminative reward model. Other fields are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "prm",
                    "input": "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n2 + 3 = 5.<|im_end|>\n",
                    "use_activation": False,
                }
            ]
        }
    )

    input: Annotated[str | list[str], Field(description="Dialogs in their chat template, the answer last.")]
    model: str | None = Field(default=None, description="Not looked at: there is one model.")
    use_activation: StrictBool | None = Field(default=None, description="Not looked at: the rewards are what they are.")


class Usage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class ClassifyItem(BaseModel):
    """The reward of one text, as the one class of a classification."""

    index: int
    label: str | None = None
    probs: list[float]
    num_classes: int = 1


class ClassifyAnswer(BaseModel):
    """As vLLM's `/classify` answers."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassifyItem]
    usage: Usage


class EmbeddingItem(BaseModel):
    """The reward of one text, as an embedding of one number."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float]
    index: int


class EmbeddingsAnswer(BaseModel):
    """As SGLang's `/v1/embeddings` answers of a reward model."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: Usage
