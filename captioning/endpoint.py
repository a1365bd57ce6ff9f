"""Query a model behind an OpenAI-compatible endpoint, such as vLLM's, Ollama's or OpenAI's own.

Answers are JSON of one schema. An answer that does not fit it is sent back with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RETRY_MESSAGE = "That does not fit the schema: {reason}. Answer again with the JSON alone."

Schema = TypeVar("Schema", bound=BaseModel)
Rejected = list[tuple[str, str]]  # answers that did not fit the schema, each with the reason


class AnswerError(ConnectionError):
    """A model that gave no usable answer."""


class CaptionAnswer(BaseModel):
    """One text: the schema of an answer that has no parts."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    caption: str = Field(min_length=1)


class Chat:
    """A chat model at an address.

    `url` is the base URL, without /chat/completions; `seconds` is the timeout. A request that times out or that a busy
    server rejects is sent up to `tries` times, with growing pauses; so is one whose answer does not fit the schema.
    Raises ValueError if `url` is not an address.
    """

    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = 60.0, tries: int = 3):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"an endpoint must be an address such as http://localhost:8000/v1; got {url!r}")
        try:
            from openai import OpenAI
        except ModuleNotFoundError as error:
            raise ValueError(f"an endpoint needs {error.name}, of the extra data; pip install .[data]") from error
        self.model, self.tries, self.host = model, tries, parts.hostname
        self.client = OpenAI(base_url=url, api_key=key or "none", timeout=seconds, max_retries=tries - 1)

    @property
    def name(self) -> str:
        """The model and its host."""
        return f"{self.model} at {self.host}"

    def answer(self, messages: list[Any], schema: type[BaseModel], **settings: Any) -> str:
        """Send messages and request JSON of a schema; return the raw text. Raises AnswerError if there is none."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        json_schema = {"name": schema.__name__.lower(), "strict": True, "schema": schema.model_json_schema()}
        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=messages,
                response_format={"type": "json_schema", "json_schema": json_schema},  # type: ignore[arg-type]
                **settings,
            )
        except APITimeoutError:
            raise AnswerError(f"{self.name} gave no answer in {self.client.timeout:g} seconds") from None
        except APIConnectionError as error:
            raise AnswerError(f"{self.name} cannot be reached: {one_line(error.__cause__ or error)}") from error
        except APIStatusError as error:
            raise AnswerError(
                f"{self.name} refused with status {error.status_code}: {one_line(error.message)}"
            ) from error
        except (OpenAIError, ValueError) as error:  # such as a body that is not JSON
            raise AnswerError(f"{self.name} cannot be asked: {one_line(error)}") from error
        try:
            return answer.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):  # JSON, but not of this API
            return str(answer)[:1000]


def ask_until_valid(name: str, answer: Callable[[Rejected], str], schema: type[Schema], tries: int) -> Schema:
    """Call `answer` until its text fits a schema; each call receives the rejected answers and their reasons.

    Raises AnswerError with the model's `name` after `tries` answers that do not fit.
    """
    rejected: Rejected = []
    for _ in range(tries):
        text = answer(rejected)
        try:
            return schema.model_validate_json(strip_code_fence(text))
        except ValidationError as error:
            rejected.append((text, validation_reason(error)))
    raise AnswerError(f"{name} answered {tries} times with something else than asked for: {rejected[-1][1]}")


def retry_messages(rejected: Rejected) -> list[dict[str, str]]:
    """Return the chat messages that send rejected answers back with their reasons."""
    return [
        message
        for text, reason in rejected
        for message in (
            {"role": "assistant", "content": text},
            {"role": "user", "content": RETRY_MESSAGE.format(reason=reason)},
        )
    ]


def strip_code_fence(text: str) -> str:
    """Remove the Markdown code fence that many models put around JSON."""
    text = text.strip()
    if text.startswith("```"):
        text = text.split("\n", 1)[-1].rsplit("```", 1)[0]
    return text


def validation_reason(error: ValidationError) -> str:
    """Format a validation error as one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'answer'}: {one['msg']}" for one in error.errors())


def one_line(reason: object, max_characters: int = 300) -> str:
    """Format a message of another program, which may be a whole page, as one line of limited length."""
    line = " ".join(str(reason).split())
    return line if len(line) <= max_characters else f"{line[: max_characters - 3]}..."
