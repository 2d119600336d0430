"""Tokens to text while they arrive: whole characters only, up to the first stop string.

What comes out depends on the tokens alone, never on how they were grouped into pushes. The stop string that is
complete first wins; of several complete at the same character, the one that started first. Text that may still become
a stop string is held back, and let go when it cannot or when the request ends.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class IncrementalDecoder(Protocol):
    """Turns one request's tokens to text, keeping bytes of an unfinished character to itself."""

    def step(self, token_id: int) -> str:
        """Return the text that `token_id` completes, perhaps none."""
        ...

    def flush(self) -> str:
        """Return what is left, unfinished characters as U+FFFD."""
        ...


class DecoderFactory(Protocol):
    """The part of a tokenizer that a text stream needs."""

    def decoder(self, prompt_ids: Sequence[int], skip_special_tokens: bool = True) -> IncrementalDecoder:
        """Return a decoder for the tokens that follow `prompt_ids`."""
        ...


class TextDelta(NamedTuple):
    """What one push made visible."""

    text: str
    is_stopped: bool
    """A stop string was found; later tokens are ignored."""


class TextStream:
    """The visible text of one request. One per choice; used by one task."""

    def __init__(
        self,
        tokenizer: DecoderFactory,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        """`min_tokens`: stop strings are looked for in the text of later tokens only."""
        self._decoder = tokenizer.decoder(prompt_ids, skip_special_tokens)
        self._stop = _StopFilter(stop, include_stop) if stop else None
        self._min_tokens = min_tokens
        self.num_tokens = 0
        """Tokens that count: all pushed, but none after the one that completed a stop string."""
        self.num_characters = 0
        """Characters decoded so far, visible or held back."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stop.matched if self._stop else None

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Take the next tokens; return the text they make visible."""
        if self._stop is None:
            step = self._decoder.step
            text = step(token_ids[0]) if len(token_ids) == 1 else "".join(map(step, token_ids))
            self.num_tokens += len(token_ids)
            self.num_characters += len(text)
            return TextDelta(text, False)
        return self._push_filtered(self._stop, token_ids)

    def finish(self) -> str:
        """Return the text that was held back; call once, when no more tokens come."""
        text = self._decoder.flush()
        self.num_characters += len(text)
        if self._stop is None:
            return text
        return self._stop.feed(text) + self._stop.release()

    def _push_filtered(self, stop: "_StopFilter", token_ids: Sequence[int]) -> TextDelta:
        visible: list[str] = []
        for token_id in token_ids:
            if stop.matched is not None:
                break
            text = self._decoder.step(token_id)
            self.num_tokens += 1
            self.num_characters += len(text)
            visible.append(stop.feed(text) if self.num_tokens > self._min_tokens else text)
        return TextDelta("".join(visible), stop.matched is not None)


class _StopFilter:
    """Passes text through until a stop string is complete."""

    def __init__(self, stop: Sequence[str], include_stop: bool) -> None:
        self._stop = tuple(dict.fromkeys(stop))
        self._first_characters = frozenset(text[0] for text in self._stop)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Return what is now certain to be visible; nothing once a stop string was found."""
        if self.matched is not None or not text:
            return ""
        # Nearly every token: nothing is held, and nothing begins.
        if not self._held and self._first_characters.isdisjoint(text):
            return text
        # `_held` has no complete stop string in it, so any found now ends in `text`.
        self._held += text
        found = self._first_match()
        if found is not None:
            start, self.matched = found
            end = start + len(self.matched) if self._include_stop else start
            visible, self._held = self._held[:end], ""
            return visible
        keep = self._first_possible_start()
        visible, self._held = self._held[:keep], self._held[keep:]
        return visible

    def release(self) -> str:
        """Return what was held back: no more text comes."""
        visible, self._held = self._held, ""
        return visible

    def _first_match(self) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = self._held.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])

    def _first_possible_start(self) -> int:
        """Return where the longest tail that begins a stop string starts; the text's length if there is none."""
        held, first = self._held, len(self._held)
        for stop in self._stop:
            start = held.find(stop[0], max(0, len(held) - len(stop) + 1))
            while 0 <= start < first:
                if stop.startswith(held[start:]):
                    first = start
                    break
                start = held.find(stop[0], start + 1)
        return first
