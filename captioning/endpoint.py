"""Ask a model behind an OpenAI-compatible endpoint, such as vLLM's, Ollama's or OpenAI's own.

Its answers are JSON of one schema; what does not fit is sent back with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RETURNED = "That does not fit the schema: {reason}. Answer again with the JSON alone."

Kind = TypeVar("Kind", bound=BaseModel)
Wrong = list[tuple[str, str]]  # answers that did not fit, and what was wrong with each


class AnswerError(ConnectionError):
    """A model that gave no answer of use: why."""


class Told(BaseModel):
    """One text: the schema of an answer that has no parts."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    caption: str = Field(min_length=1)


class Chat:
    """A model by its name at an address.

    `url` ends where /chat/completions begins; `seconds` is how long it may be silent. What is slow, busy or down is
    asked `tries` times, ever more slowly, and so is what answers with something else than asked for. Raises ValueError
    for what is no address.
    """

    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = 60.0, tries: int = 3):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"an endpoint must be an address such as http://localhost:8000/v1; got {url!r}")
        try:
            from openai import OpenAI
        except ModuleNotFoundError as error:
            raise ValueError(f"an endpoint needs {error.name}, of the extra data; pip install .[data]") from error
        self.model, self.tries, self.where = model, tries, parts.hostname
        self.client = OpenAI(base_url=url, api_key=key or "none", timeout=seconds, max_retries=tries - 1)

    @property
    def name(self) -> str:
        """Who answers, and where."""
        return f"{self.model} at {self.where}"

    def answer(self, messages: list[Any], kind: type[BaseModel], **settings: Any) -> str:
        """Return what is answered to messages, as it came, JSON of a kind being asked for. Raises AnswerError where
        nothing is.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        schema = {"name": kind.__name__.lower(), "strict": True, "schema": kind.model_json_schema()}
        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=messages,
                response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[arg-type]
                **settings,
            )
        except APITimeoutError:
            raise AnswerError(f"{self.name} gave no answer in {self.client.timeout:g} seconds") from None
        except APIConnectionError as error:
            raise AnswerError(f"{self.name} cannot be reached: {shortened(error.__cause__ or error)}") from error
        except APIStatusError as error:
            raise AnswerError(
                f"{self.name} refused with status {error.status_code}: {shortened(error.message)}"
            ) from error
        except (OpenAIError, ValueError) as error:  # such as a body that is no JSON at all
            raise AnswerError(f"{self.name} cannot be asked: {shortened(error)}") from error
        try:
            return answer.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):  # not the JSON of this API
            return str(answer)[:1000]


def fitting(name: str, answer: Callable[[Wrong], str], kind: type[Kind], tries: int) -> Kind:
    """Have a model answer until it fits a kind; `answer` is told what was answered before, and why that did not fit.

    Raises AnswerError, which names the model, where no answer fits.
    """
    wrong: Wrong = []
    for _ in range(tries):
        text = answer(wrong)
        try:
            return kind.model_validate_json(unfenced(text))
        except ValidationError as error:
            wrong.append((text, reason_of(error)))
    raise AnswerError(f"{name} answered {tries} times with something else than asked for: {wrong[-1][1]}")


def returned(wrong: Wrong) -> list[dict[str, str]]:
    """Return the messages that send back what did not fit."""
    return [
        message
        for text, reason in wrong
        for message in (
            {"role": "assistant", "content": text},
            {"role": "user", "content": RETURNED.format(reason=reason)},
        )
    ]


def unfenced(text: str) -> str:
    """Take JSON out of the fence that many models put around it."""
    text = text.strip()
    if text.startswith("```"):
        text = text.split("\n", 1)[-1].rsplit("```", 1)[0]
    return text


def reason_of(error: ValidationError) -> str:
    """Say in one line what does not fit."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'answer'}: {one['msg']}" for one in error.errors())


def shortened(reason: object, most: int = 300) -> str:
    """Bring what another program says, which may be a whole page, to one line of at most so many characters."""
    line = " ".join(str(reason).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
