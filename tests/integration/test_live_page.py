"""Red when the live page breaks in a real browser: scripts fail, numbers stand still, answers do not come."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.gateway.config import GatewayConfig
from tests.support.browser import CHROMIUM, MISSING, browser_page
from tests.support.fake_groups import ScriptedGroup
from tests.support.http_servers import http_gateway
from tests.support.serve_instance import model_args

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]

MODEL = "smollm2-135m"
KEY = "sk-only-for-this-page"
TOKENS_OUT = "document.querySelectorAll('.plot')[2].querySelector('dd').innerText"
STATE = "document.getElementById('connection').dataset.state"


@pytest.fixture(scope="module")
def page():
    with browser_page() as page:
        page.look(1280, 900)
        yield page


@pytest.fixture(scope="module")
def quick(served):
    served.deploy(MODEL, model_args("quickstart.yaml"))
    yield served
    served.delete(MODEL)


@pytest.fixture
def visit(page):
    """Open a page and fail if anything on it failed, or was asked of another server."""
    # What the page before still had to say is not this one's fault.
    page.open("about:blank")
    page.run("1")
    page.errors.clear()
    page.requested.clear()
    visited: list[str] = []

    def open_(url: str) -> None:
        visited.append(url)
        page.open(url + "/")
        page.wait_for("document.readyState === 'complete' && document.querySelectorAll('.plot').length === 4")

    yield open_
    assert page.errors == []
    assert [url for url in page.requested if not url.startswith((*visited, "about:"))] == []


def ask(page, text: str, **settings: object) -> None:
    """Fill in the playground and send."""
    for name, value in {"text": text, **settings}.items():
        page.run(f"document.getElementById('ask').elements.{name}.value = {str(value)!r}")
    page.run("document.getElementById('ask').requestSubmit()")


def text_lengths_until_the_end(page) -> set[int]:
    """Return how long the answer was whenever it was looked at."""
    lengths = {0}
    deadline_s = time.monotonic() + 60
    while not page.run("document.querySelector('.timebar, .said .problem') !== null"):
        assert time.monotonic() < deadline_s, page.text("#talk")
        lengths.add(len(page.text(".said.model .text")))
        time.sleep(0.05)
    return lengths


def test_numbers_move_under_load_and_an_answer_streams_and_says_where_its_time_went(quick, page, visit):
    visit(quick.url)
    page.wait_for("document.querySelector('td.state')?.dataset.state === 'ready'")
    process = page.text("td.ranks")
    assert any(str(pid) in process for pid in quick.processes("ray::RankActor"))

    client, is_seen = quick.client(), threading.Event()

    def work(number: int) -> None:
        while not is_seen.is_set():
            client.completions.create(model=MODEL, prompt=f"Count to {number}:", max_tokens=60)

    with ThreadPoolExecutor(4) as threads:
        load = [threads.submit(work, number) for number in range(4)]
        try:
            page.wait_for(f"!['0', '–'].includes({TOKENS_OUT})", 30)
            page.wait_for("Number(document.querySelector('td.running').innerText) > 0", 30)
            ask(page, "Tell me a long story about a river.", temperature=0, max_tokens=200, seed=1)
            lengths = text_lengths_until_the_end(page)
        finally:
            is_seen.set()
        for each in load:
            each.result(timeout=60)
    assert "river" in page.text(".said.model .text")
    assert len(lengths) > 3, "the text came in pieces"
    assert page.run("document.querySelectorAll('.timebar .piece').length") > 1
    parts = page.text(".parts").split()
    assert {"network", "gateway", "queue", "prefill", "decode"} <= set(parts)
    assert "tokens/s" in page.text(".facts")
    page.wait_for(
        "[0, 1].every((i) => / m?s$/.test(document.querySelectorAll('.plot')[i].querySelector('dd').innerText))"
    )


def test_a_server_that_is_gone_is_said_to_be_and_found_again(page, visit):
    with http_gateway([ScriptedGroup()]) as url:
        visit(url)
        page.wait_for(f"{STATE} === 'live'")
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.call("Network.emulateNetworkConditions", offline=True, **network)
        page.wait_for(f"{STATE} === 'gone'")
        assert "gone" in page.text("#connection")
        page.call("Network.emulateNetworkConditions", offline=False, **network)
        page.wait_for(f"{STATE} === 'live'")
    # That requests failed is what the browser itself has logged.
    page.errors[:] = [error for error in page.errors if "ERR_INTERNET_DISCONNECTED" not in error]


def test_where_keys_are_needed_the_page_asks_for_one_keeps_it_in_the_tab_and_shows_text_as_text(page, visit):
    config = GatewayConfig(api_keys_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))
    trap = "<img src=x onerror=document.title='broken'><b>bold</b>"
    with http_gateway([ScriptedGroup(trap)], config) as url:
        visit(url)
        for typed, problem in (("sk-wrong", "The server does not know this key."), (KEY, "")):
            page.wait_for("document.getElementById('key-dialog').open")
            page.run(f"document.getElementById('key').value = '{typed}'")
            page.run("document.getElementById('key-form').requestSubmit()")
            if problem:
                page.wait_for(f"document.getElementById('key-problem').innerText === '{problem}'")
        page.wait_for(f"{STATE} === 'live'")
        page.wait_for("document.querySelector('td.state')?.dataset.state === 'ready'")
        assert page.run("sessionStorage.getItem('eagleray.key')") == KEY
        assert page.run("localStorage.length") == 0
        assert not [asked for asked in page.requested if KEY in asked]
        ask(page, "Hello", max_tokens=100)
        page.wait_for("document.querySelector('.timebar')")
        assert page.text(".said.model .text") == trap
        assert page.run("document.querySelectorAll('.said.model .text *').length") == 0
        assert page.run("document.title") == "eagleray"
    page.errors[:] = [error for error in page.errors if "401" not in error]


def test_what_several_gateway_copies_kept_is_added_up_and_their_common_load_is_not(page, visit):
    script = """
        import("/live/timeline.js").then(({ Timeline }) => {
          const timeline = new Timeline();
          const answer = (copy, last, first) => ({
            copy, scale: { first_s: 1e-4, per_octave: 12 },
            seconds: Array.from({ length: 20 }, (_, i) => [last - 19 + i, { tiny: [3, 1, 40, 20, 0.5, first, []] }]),
          });
          timeline.add(answer("one", 1000, [120, 2]));
          timeline.add(answer("two", 998, [144, 2]));
          const { newest, running, output, firstToken } = timeline.series("", 5, 2);
          const [copies, seen] = [timeline.numCopies, timeline.seen()];
          return { newest, running, output, firstToken: firstToken[4], copies, seen };
        })
    """
    with http_gateway([ScriptedGroup()]) as url:
        visit(url)
        found = page.run(script)
    assert found["newest"] == 998, "what not every copy has told is not shown yet"
    assert (found["running"], found["output"]) == ([3] * 5, [20] * 5)
    assert found["firstToken"] == pytest.approx([0.1024, 0.4096, 0.4096], rel=0.01)
    assert (found["copies"], found["seen"]) == (2, "one:1000,two:998")
