"""Text to token ids and back, and chat messages to prompts. No torch and no transformers in this process."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as LibraryTokenizer

from core.errors import CheckpointError, InvalidRequest, UnsupportedModel
from engine.chat_template import ChatTemplate
from engine.plain_text import PlainText
from engine.token_bytes import TokenBytes, TokenDecoder
from engine.tokenizer_files import TokenizerFiles, find_tokenizer_files


class Tokenizer:
    """One model's tokenizer. Every method may be called from several threads."""

    def __init__(self, library: LibraryTokenizer, files: TokenizerFiles) -> None:
        """Wrap a loaded tokenizer; `load` is the usual way. Raises CheckpointError, UnsupportedModel."""
        # tokenizer.json may ask for both; a prompt is never cut or filled silently.
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._table = TokenBytes(library)
        self._templates = {
            name: ChatTemplate(source, files.special_tokens, f"{files.tokenizer_json.parent}: chat template {name!r}")
            for name, source in files.templates.items()
        }
        self._special_tokens = files.special_tokens
        self._configured_eos_ids = files.eos_token_ids
        self._plain = PlainText(library, self._control_ids())

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Return the tokenizer of a model folder or .gguf file; blocks, some seconds when it must be converted first.

        Raises CheckpointError, UnsupportedModel.
        """
        files = find_tokenizer_files(path)
        try:
            library = LibraryTokenizer.from_file(str(files.tokenizer_json))
        except Exception as error:  # noqa: BLE001  the library raises nothing more precise
            raise CheckpointError(f"{files.tokenizer_json}: not a tokenizer ({error}); download it again") from None
        try:
            return cls(library, files)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{files.tokenizer_json}: {error.message}") from None

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included; a model's embedding may have more rows."""
        return self._library.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text, if the model has one."""
        return self._id_of_role("bos_token")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, sorted: the tokenizer's own and those of the model's configuration."""
        own = self._id_of_role("eos_token")
        return tuple(sorted({*self._configured_eos_ids, *(() if own is None else (own,))}))

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return bool(self._templates)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return token ids; special tokens spelled in `text` count as such. Raises InvalidRequest for bad Unicode."""
        try:
            return self._library.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError):
            raise _half_a_pair() from None

    def encode_plain(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return token ids of text that is nothing but text, whatever it spells. Raises InvalidRequest as `encode`."""
        if not self._plain.has_control(text):
            return self.encode(text, add_special_tokens)
        try:
            return self._plain.encode(text, add_special_tokens)
        except (UnicodeEncodeError, TypeError):
            raise _half_a_pair() from None

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of a whole output; the same as stepping a decoder without a prompt."""
        decoder = TokenDecoder(self._table, (), skip_special_tokens)
        return "".join(map(decoder.step, token_ids)) + decoder.flush()

    def decoder(self, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> TokenDecoder:
        """Return a decoder for the tokens that follow `prompt_ids`, of which only the last few are looked at."""
        return TokenDecoder(self._table, prompt_ids, skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the vocabulary's spelling of a token, None if there is no such token."""
        return self._library.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token by the vocabulary's spelling, None if there is no such token."""
        return self._library.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token adds to a text, perhaps a part of a character."""
        return self._table.of(token_id)

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Return the prompt's token ids; a control token that a message, tool or variable spells stays text.

        `variables` reach the template by their names (`enable_thinking`). Raises InvalidRequest if there is no template
        or it rejects the messages.
        """
        mark, turns, functions, settings = self._plain.marked(messages, tools or (), variables or {})
        text = self.render_chat(turns, functions, add_generation_prompt, settings)
        # Templates write the special tokens themselves.
        if mark not in text:
            return self.encode(text, add_special_tokens=False)
        try:
            return self._plain.encode_marked(text, mark)
        except (UnicodeEncodeError, TypeError):
            raise _half_a_pair() from None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt as text. Raises InvalidRequest as `chat` does."""
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions with a prompt", param="messages")
        return template.render(messages, tools, add_generation_prompt, variables)

    def _control_ids(self) -> set[int]:
        """Return every token that is no text: special ones, ones with a role, ones that end a text."""
        special = {id_ for id_, token in self._library.get_added_tokens_decoder().items() if token.special}
        roles = {self._library.token_to_id(token) for token in self._special_tokens.values()}
        return special | {id_ for id_ in roles if id_ is not None} | set(self.eos_token_ids)

    def _id_of_role(self, role: str) -> int | None:
        token = self._special_tokens.get(role)
        return None if token is None else self._library.token_to_id(token)


def _half_a_pair() -> InvalidRequest:
    return InvalidRequest("the text holds half of a surrogate pair; send valid Unicode")
