"""Requests with a deadline: who has missed it, and who waits and can no longer meet it."""

from collections.abc import Iterator

from core.errors import DeadlineExceeded
from engine.live_request import LiveRequest
from engine.waiting_queue import RequestQueue


class Deadlines:
    """Looks at a request at its latest start, and at its deadline if it runs by then; never in between."""

    def __init__(self) -> None:
        self._looks: RequestQueue[float] = RequestQueue()

    def add(self, live: LiveRequest) -> None:
        """Watch a request from its submission on, if it has a deadline."""
        if live.latest_start_s is not None:
            self._looks.push(live.latest_start_s, live)

    def missed(self, now_s: float) -> Iterator[tuple[LiveRequest, DeadlineExceeded]]:
        """Yield every request that is to be ended now, and why; once each."""
        while (look_at_s := self._looks.peek_key()) is not None and look_at_s <= now_s:
            live = self._looks.pop()
            assert live.deadline_at_s is not None, "only requests with a deadline are looked at"
            if live.stay is not None and now_s < live.deadline_at_s:
                self._looks.push(live.deadline_at_s, live)
            else:
                yield live, DeadlineExceeded(_reason(live, now_s < live.deadline_at_s))


def _reason(live: LiveRequest, is_early: bool) -> str:
    deadline = f"the deadline of {live.request.deadline_s:g} s"
    if is_early:
        return f"{deadline} can no longer be met; the request was waiting and nothing was computed"
    state = "waiting" if live.stay is None else "running"
    num_output = live.num_tokens - live.request.num_prompt_tokens
    return f"{deadline} passed while {state}, {num_output} tokens generated"
