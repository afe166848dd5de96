"""What requests may have: the fields that are supported, and no others."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

MOST_TOP_LOGPROBS = 20
MOST_TOOLS = 128

_Item = TypeVar("_Item")

# A client may make a million mistakes, and telling each takes time from the streams of others.
Items = Annotated[list[_Item], Field(fail_fast=True)]

Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Text = Annotated[str, Field(strict=True)]
Stop = Text | Annotated[Items[Text], Field(max_length=16)]


class Fields(BaseModel):
    """Fields of a request: one that is not known is an error, unless it is null."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Leave out what is null: in the protocol, that is the same as not given."""
        if isinstance(given, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            found = {name: value for name, value in given.items() if value is not None}
            unknown = next((name for name in found if name not in known), None)
            return {name: found[name] for name in found if name in known or name == unknown}
        return given


class StreamOptions(Fields):
    """What a stream has beside text."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = Field(
        default=False, description="With include_usage: each event has the usage so far, as vLLM's."
    )

    @property
    def in_each_event(self) -> bool:
        """Whether each event of a stream has the usage so far."""
        return self.include_usage and self.continuous_usage_stats


class Sampling(Fields):
    """How tokens are chosen; the names are OpenAI's, and vLLM's for what it has beyond them."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    top_k: Annotated[int, Field(ge=-1, strict=True)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3, strict=True)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: Annotated[int, Field(ge=0, strict=True)] | None = None
    n: Annotated[int, Field(ge=1, le=128, strict=True)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stop: Stop | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: Text | None = Field(default=None, description="Written into the log.")


class TextPart(Fields):
    """A part of a message: texts alone are supported."""

    type: Literal["text"]
    text: Text


class FunctionCall(Fields):
    """What a model called."""

    name: Text
    arguments: Text


class ToolCall(Fields):
    """A call in a message of the assistant."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


Content = Text | Items[TextPart]


class SystemMessage(Fields):
    """What the model is to be."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Fields):
    """What the user says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Fields):
    """What the model said."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Items[ToolCall] | None = None


class ToolMessage(Fields):
    """What a call gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Fields):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", strict=True)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = Field(
        default=None, description="Arguments always follow the schema, whatever this says."
    )


class Tool(Fields):
    """Something that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """The name of a function."""

    name: Text


class NamedTool(Fields):
    """The function that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class NamedSchema(Fields):
    """A JSON schema with a name."""

    name: Text
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    strict: StrictBool | None = None


class PlainText(Fields):
    """An answer in whatever form."""

    type: Literal["text"]


class AnyJson(Fields):
    """An answer in JSON."""

    type: Literal["json_object"]


class JsonSchema(Fields):
    """An answer in JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | AnyJson | JsonSchema, Field(discriminator="type")]


class ChatRequest(Sampling):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[Items[Message], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS, strict=True)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[Items[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool = True


Tokens = Annotated[Items[StrictInt], Field(min_length=1)]


class CompletionRequest(Sampling):
    """A request to `/v1/completions`."""

    prompt: (
        Text
        | Tokens
        | Annotated[Items[StrictStr], Field(min_length=1, max_length=1024)]
        | Annotated[Items[Tokens], Field(min_length=1, max_length=1024)]
    )
    max_tokens: Annotated[int, Field(ge=0, strict=True)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS, strict=True)] | None = None
    echo: StrictBool = False


class InputText(Fields):
    """A part of a message to `/v1/responses`."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Annotated[Items[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[Items[Any], Field(max_length=0)] | None = None


class InputMessage(Fields):
    """A message to `/v1/responses`."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Items[InputText]
    id: Text | None = None
    status: Text | None = None


class TextSchema(Fields):
    """A form of the answer of `/v1/responses`."""

    type: Literal["json_schema"]
    name: Text
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class TextOptions(Fields):
    """The form of the answer of `/v1/responses`."""

    format: Annotated[PlainText | AnyJson | TextSchema, Field(discriminator="type")] | None = None


class ResponsesRequest(Fields):
    """A request to `/v1/responses`, for text. Nothing is stored."""

    model: Text
    input: Text | Annotated[Items[InputMessage], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    text: TextOptions | None = None
    stream: StrictBool = False
    store: Literal[False] | None = None
    user: Text | None = None
