"""The models a gateway can turn text into tokens for, and back.

A model's tokenizer is loaded, in a thread, when the first group of the model announces itself. Until then its
requests are refused with NotReady.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from core.errors import ContextTooLong, EaglerayError, ModelNotFound, NotReady
from deployments.groups.directory import GroupDirectory, ServedModel
from deployments.groups.sleeping import SleepConfig, SleepingModels, StartApplication, cannot_start
from engine.text import DecoderFactory

logger = logging.getLogger(__name__)

T = TypeVar("T")

_INLINE_CHARACTERS = 2000
"""Texts up to this are tokenised on the event loop: about a millisecond, less than the way to a thread and back."""
_MAX_CHARACTERS_PER_TOKEN = 64
"""No real text averages more; what would be longer than the context by this measure is refused unread."""
_RELOAD_AFTER_S = 10.0

_Version = tuple[str, str | None]
"""Source and revision: a model's next version may have another tokenizer under the same name."""


class ModelTokenizer(DecoderFactory, Protocol):
    """The parts of `engine.tokenizer.Tokenizer` that a gateway uses."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the text's tokens; control tokens that it spells are among them."""
        ...

    def encode_plain(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the text's tokens; what it spells stays text."""
        ...

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the tokens' text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token stands for, perhaps part of a character."""
        ...

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Return the chat as the model expects it, up to where the answer starts. Raises RequestError."""
        ...


LoadTokenizer = Callable[[str, str | None], ModelTokenizer]
"""Loads from (source, revision); blocks. Raises EaglerayError."""


class GatewayModel(NamedTuple):
    """A model that can be asked."""

    name: str
    max_model_len: int
    created: int
    """Unix time at which this gateway first knew of it."""
    tokenizer: ModelTokenizer
    threads: ThreadPoolExecutor

    async def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Return the tokens of a prompt. Raises ContextTooLong for texts too long to look at.

        `add_special_tokens`: begin as the tokenizer begins texts. `parse_special`: control tokens may be spelled.
        """
        encode = self.tokenizer.encode if parse_special else self.tokenizer.encode_plain
        return await self._off_loop(len(text), lambda: encode(text, add_special_tokens))

    async def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a chat. Raises ContextTooLong, or what the template refuses with."""
        num_characters = sum(len(message["content"]) for message in messages)
        return await self._off_loop(num_characters, lambda: self.tokenizer.chat(messages))

    async def _off_loop(self, num_characters: int, tokenise: Callable[[], T]) -> T:
        most = self.max_model_len * _MAX_CHARACTERS_PER_TOKEN
        if num_characters > most:
            raise ContextTooLong(
                f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt has "
                f"{num_characters} characters, which cannot fit. Please reduce the length of the prompt."
            )
        if num_characters <= _INLINE_CHARACTERS:
            return tokenise()
        return await asyncio.get_running_loop().run_in_executor(self.threads, tokenise)


class ModelCatalog:
    """Tokenizers by model name. Lives on one event loop."""

    def __init__(
        self,
        directory: GroupDirectory,
        load: LoadTokenizer,
        expected: Sequence[str],
        num_threads: int,
        sleep: SleepConfig | None = None,
        start: StartApplication = cannot_start,
    ) -> None:
        """`expected`: names that are not ready rather than not found before a group of theirs appears.

        `start` is what wakes the models that `sleep` names.
        """
        self._directory = directory
        self._load = load
        self._expected = frozenset(expected)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        self._tokenizers: dict[_Version, ModelTokenizer] = {}
        self._created: dict[str, int] = {}
        self._loading: dict[_Version, asyncio.Task[None]] = {}
        self._failures: dict[str, tuple[float, EaglerayError]] = {}
        self._sleeping = SleepingModels(sleep or SleepConfig(), self._is_awake, start)
        directory.subscribe_openings(self._sleeping.note_change)

    def refresh(self) -> None:
        """Start loading the tokenizer of every model announced since; call on the loop after each announcement."""
        for model in self._directory.models():
            self._created.setdefault(model.name, int(time.time()))
            version = _version(model)
            if version not in self._tokenizers and version not in self._loading and self._may_load(model.name):
                self._loading[version] = asyncio.create_task(self._load_tokenizer(model))

    async def wake(self, name: str) -> None:
        """Return when a model that may sleep can be asked, at once for others. Raises NotReady."""
        await self._sleeping.wake(name)

    def get(self, name: str) -> GatewayModel:
        """Return the model. Raises ModelNotFound, or NotReady while its tokenizer is missing."""
        served = next((model for model in self._directory.models() if model.name == name), None)
        if served is None:
            self._refuse_unknown(name)
            raise NotReady(f"model '{name}' is starting; try again", retry_after_s=2, param="model")
        tokenizer = self._tokenizers.get(_version(served))
        if tokenizer is None:
            raise NotReady(f"the tokenizer of model '{name}' is not loaded yet; try again", retry_after_s=2)
        return self._model(served, tokenizer)

    def list(self) -> list[GatewayModel]:
        """Return every model that `get` would return, by name."""
        return [
            self._model(model, self._tokenizers[_version(model)])
            for model in self._directory.models()
            if _version(model) in self._tokenizers
        ]

    def failure(self, name: str) -> EaglerayError | None:
        """Return why the tokenizer of a model could not be loaded, if so."""
        failure = self._failures.get(name)
        return failure[1] if failure else None

    async def close(self) -> None:
        """Stop loading, and waiting for models to start."""
        await self._sleeping.close()
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _is_awake(self, name: str) -> bool:
        return bool(self._directory.open_groups(name)) and any(model.name == name for model in self.list())

    def _refuse_unknown(self, name: str) -> None:
        if name not in self._expected and not self._directory.statuses(name):
            raise unknown_model(name)

    def _model(self, served: ServedModel, tokenizer: ModelTokenizer) -> GatewayModel:
        return GatewayModel(served.name, served.max_model_len, self._created[served.name], tokenizer, self._threads)

    def _may_load(self, name: str) -> bool:
        failure = self._failures.get(name)
        return failure is None or time.monotonic() - failure[0] > _RELOAD_AFTER_S

    async def _load_tokenizer(self, model: ServedModel) -> None:
        loop = asyncio.get_running_loop()
        started_s = time.monotonic()
        try:
            tokenizer = await loop.run_in_executor(self._threads, self._load, model.source, model.revision)
        except EaglerayError as error:
            self._failures[model.name] = (time.monotonic(), error)
            logger.error("tokenizer not loaded", extra={"model": model.name, "error": error.message})
        else:
            self._tokenizers[_version(model)] = tokenizer
            self._failures.pop(model.name, None)
            seconds = round(time.monotonic() - started_s, 2)
            logger.info("tokenizer loaded", extra={"model": model.name, "seconds": seconds})
        finally:
            del self._loading[_version(model)]
            self._sleeping.note_change()


def unknown_model(name: str) -> ModelNotFound:
    """Return the refusal of a name nobody serves; also of one that does not exist for this caller."""
    return ModelNotFound(f"The model '{name[:64]}' does not exist; see /v1/models", param="model")


def _version(model: ServedModel) -> _Version:
    return model.source, model.revision
