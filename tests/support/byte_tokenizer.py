"""A tokenizer of the 256 bytes and a few specials: every text and every broken character can be made by hand."""

import codecs
from collections.abc import Iterable, Mapping, Sequence

from core.errors import InvalidRequest

BOS, EOS, START, END = 256, 257, 258, 259
_SPECIALS = {BOS: "<bos>", EOS: "<eos>", START: "<start>", END: "<end>"}


class ByteDecoder:
    def __init__(self, skip_special_tokens: bool) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._skip_special_tokens = skip_special_tokens

    def step(self, token_id: int) -> str:
        if token_id < 256:
            return self._utf8.decode(bytes([token_id]))
        return self.flush() + ("" if self._skip_special_tokens else _SPECIALS[token_id])

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class ByteTokenizer:
    """Fits where an engine.tokenizer.Tokenizer does."""

    vocab_size = 260
    eos_token_ids = (EOS,)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_plain(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.encode(text, add_special_tokens)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        decoder = self.decoder((), skip_special_tokens)
        return "".join(map(decoder.step, token_ids)) + decoder.flush()

    def decoder(self, prompt_ids: Sequence[int], skip_special_tokens: bool = True) -> ByteDecoder:
        return ByteDecoder(skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else _SPECIALS[token_id].encode()

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Return `<start>role:content<end>` for each message, then `<start>`."""
        if messages[-1]["role"] == "assistant":
            raise InvalidRequest("the template wants the user to speak last", param="messages")
        turns = [[START, *self.encode(f"{turn['role']}:{turn['content']}"), END] for turn in messages]
        return [*(token for turn in turns for token in turn), START]
