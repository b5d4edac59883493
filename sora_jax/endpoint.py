"""An OpenAI-compatible endpoint (vLLM, Ollama, a cloud): ask it, politely and again, and count what it costs.

    openai:http://localhost:8000/v1#qwen3-vl        the server's URL, and the model's name there

The key is in OPENAI_API_KEY (local servers want none). The client is the `openai` library, an optional extra that is
imported when it is first asked; it repeats what failed on the way (no connection, no answer in time, 408, 409, 429 and
5xx) with growing pauses, or those that the server asks for. What comes back is text from outside: callers check it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sora_jax.errors import InputError


class Silent(Exception):
    """The endpoint did not answer, however often it was asked; the sentence says what it did."""


class Wrong(Exception):
    """The endpoint answered, but not what it was asked for."""


class Refused(InputError):
    """The endpoint will never answer such requests."""


@dataclass
class Endpoint:
    """Where to ask, and how.

    timeout: seconds that an answer may take; retries: how often a failed request is repeated; rate: requests a minute
    at most (0: no limit); price: (dollars a million tokens read, a million written).
    """

    url: str
    model: str
    timeout: float = 120.0
    retries: int = 5
    rate: float = 0.0
    price: tuple[float, float] = (0.0, 0.0)
    tokens: list[int] = field(default_factory=lambda: [0, 0])  # read and written so far

    def __post_init__(self):
        self._lock, self._next, self._made = threading.Lock(), 0.0, None

    @property
    def dollars(self) -> float:
        """What was asked so far costs."""
        return sum(n * dollars / 1e6 for n, dollars in zip(self.tokens, self.price))

    @property
    def _client(self):
        if self._made is None:
            try:
                import openai
            except ImportError:
                raise Refused("asking an endpoint needs the openai library: pip install sora_jax[openai]") from None
            key = os.environ.get("OPENAI_API_KEY") or "none"
            self._made = openai.OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)
        return self._made

    def ask(self, messages: list[dict], seed: int = 0, temperature: float = 0.0, tokens: int = 800) -> str:
        """The answer to a conversation. Safe from several threads.

        Raises Silent when there is none, Wrong when it has no text, and Refused when no request to this endpoint can
        ever be answered: a wrong key, an unknown model or URL, the library missing.
        """
        with self._lock:
            client = self._client
            wait = self._next - time.monotonic()
            self._next = max(self._next, time.monotonic()) + (60.0 / self.rate if self.rate else 0.0)
        if wait > 0:
            time.sleep(wait)
        import openai

        try:
            answer = client.chat.completions.create(
                model=self.model, messages=messages, seed=seed, temperature=temperature, max_tokens=tokens
            )
            text = answer.choices[0].message.content
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise Refused(f"{self.url} refuses model {self.model!r}: {brief(error)}") from None
        except openai.OpenAIError as error:
            raise Silent(brief(error)) from None
        except (ValueError, TypeError, AttributeError, IndexError):  # what calls itself an answer is none
            raise Wrong("the answer has no message in it") from None
        if not isinstance(text, str) or not text.strip():
            raise Wrong("the answer is empty")
        used = getattr(answer, "usage", None)
        with self._lock:
            self.tokens[0] += getattr(used, "prompt_tokens", None) or 0
            self.tokens[1] += getattr(used, "completion_tokens", None) or 0
        return text


def parse(spec: str, **how) -> Endpoint:
    """The Endpoint of "openai:URL#model". Raises InputError for anything else."""
    url, _, model = spec.removeprefix("openai:").partition("#")
    if not spec.startswith("openai:") or not url.startswith(("http://", "https://")) or not model:
        raise InputError(f"{spec} is no endpoint: write openai:URL#model, such as openai:http://localhost:8000/v1#qwen")
    return Endpoint(url, model, **how)


def brief(error: Exception) -> str:
    """One line of an error's text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def picture(frame: UInt8[np.ndarray, "h w 3"], side: int) -> dict:
    """A frame as part of a message: a JPEG, its longer side at most `side` pixels."""
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"},
    }


def json_in(text: str) -> object:
    """The JSON object in an answer, which may have words or a fence around it. Raises Wrong where there is none."""
    start = text.find("{")
    while start >= 0:
        try:
            return json.JSONDecoder().raw_decode(text[start:])[0]
        except ValueError:
            start = text.find("{", start + 1)
    raise Wrong(f"the answer holds no JSON: {brief(Exception(text))[:80]!r}")
