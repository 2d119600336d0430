"""Red when the feed tells what a key may not know or costs more than it may, or the page loads anything from afar."""

import asyncio
import hashlib
import json
import re

import msgspec
import pytest

from core.errors import ErrorInfo, InvalidRequest, Overloaded, RankDied
from core.progress import Progress
from deployments.gateway.config import GatewayConfig
from deployments.http.api_keys import ApiKey
from deployments.http.errors import RateLimited
from deployments.live.assets import load_assets
from deployments.live.config import LiveConfig
from deployments.live.viewers import FORGOTTEN_AFTER_S, SHORTEST_PAUSE_S, Viewers
from engine.rank_place import RankPlace
from tests.support.fake_clock import FakeClock
from tests.support.fake_groups import ScriptedGroup, status_of_group
from tests.support.gateways import AsgiClient, announce_all, make_gateway, serving

FEED = "/live/feed"
SECRET = "sk-watcher"


async def ask(client: AsgiClient, query: str = "viewer=me", headers: dict[str, str] | None = None):
    """The client of other tests sends no query."""
    inner = client.app

    async def app(scope, receive, send):
        await inner({**scope, "query_string": query.encode()}, receive, send)

    return await AsgiClient(app).get(FEED, headers)


def test_a_page_is_told_who_serves_and_the_seconds_it_has_not_seen():
    async def main():
        group = ScriptedGroup("abc")
        gateway = make_gateway([group])
        await announce_all(gateway, [group])
        client = AsgiClient(gateway.asgi_app())
        await client.complete(stream=True, max_tokens=3)
        assert gateway._live is not None
        gateway._live.tick()
        first = (await ask(client)).json()
        (second,) = first["seconds"]
        again = (await ask(client, f"viewer=other&seen={first['copy']}:{second[0]}")).json()
        stranger = (await ask(client, "viewer=third&seen=anothercopy:99999999999")).json()
        await gateway.close()
        return first, again, stranger

    first, again, stranger = asyncio.run(main())
    (group,) = first["groups"]
    assert (group["group_id"], group["state"], group["is_connected"], group["kv_use"]) == (
        "group-1",
        "ready",
        True,
        0.25,
    )
    assert [model["name"] for model in first["models"]] == ["tiny"]
    counted = first["seconds"][0][1]["tiny"]
    assert sum(counted[5][1::2]) == 1
    assert sum(counted[6][1::2]) == 2
    assert again["seconds"] == []
    assert len(stranger["seconds"]) == 1


def test_ranks_say_where_they_are_and_how_far_they_are_and_errors_why_and_no_secret_is_told():
    async def main():
        gateway = make_gateway([])
        places = [RankPlace(0, "node-a", 41, "cpu"), RankPlace(1, "node-b", 42, "cuda:0")]
        error = ErrorInfo.of(RankDied("rank 1 was killed"))
        ready = msgspec.structs.replace(status_of_group("g1"), world_size=2, places=places)
        loading = status_of_group("g2", state="restarting", progress=[Progress(0, "load", 1, 4)], error=error)
        for status in (ready, loading):
            gateway.announce(status)
        answer = await ask(AsgiClient(gateway.asgi_app()))
        await gateway.close()
        assert "secret" not in answer.body.decode()
        return answer.json()["groups"]

    ready, loading = asyncio.run(main())
    assert [(rank["node"], rank["pid"], rank["device"]) for rank in ready["ranks"]] == [
        ("node-a", 41, "cpu"),
        ("node-b", 42, "cuda:0"),
    ]
    assert ready["is_connected"] is False
    assert (loading["state"], loading["error"]) == ("restarting", "rank 1 was killed")
    assert (loading["ranks"][0]["phase"], loading["ranks"][0]["percent"]) == ("load", 25)


def test_models_that_do_not_exist_for_a_key_are_not_in_its_feed():
    def key(name: str, *models: str) -> ApiKey:
        return ApiKey(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), models=models)

    async def main():
        config = GatewayConfig(models=("tiny",), api_keys=(key("all"), key("other", "other")))
        gateway = make_gateway([ScriptedGroup()], config)
        gateway.announce(ScriptedGroup().status())
        assert gateway._live is not None
        gateway._live.tick()
        client = AsgiClient(gateway.asgi_app())
        answers = [
            (await ask(client, f"viewer={name}", {"authorization": f"Bearer {name}"})).json()
            for name in ("all", "other")
        ]
        await gateway.close()
        return answers

    everything, nothing = asyncio.run(main())
    assert "tiny" in json.dumps(everything)
    assert "tiny" not in json.dumps(nothing)
    assert (nothing["models"], nothing["groups"]) == ([], [])


def test_with_keys_the_page_comes_without_one_and_its_data_does_not():
    config = GatewayConfig(api_keys_sha256=(hashlib.sha256(SECRET.encode()).hexdigest(),))

    async def main():
        async with serving(ScriptedGroup(), config=config) as client:
            for path in load_assets():
                assert (await client.get(path)).status == 200, path
            refused = await ask(client)
            in_url = await ask(client, f"viewer=me&key={SECRET}&authorization=Bearer+{SECRET}")
            let_in = await ask(client, headers={"authorization": f"Bearer {SECRET}"})
        assert (refused.status, in_url.status, let_in.status) == (401, 401, 200)
        assert let_in.headers["cache-control"] == "no-store"

    asyncio.run(main())


def test_switched_off_there_is_no_page_no_feed_and_no_history():
    async def main():
        config = GatewayConfig(live=LiveConfig(enabled=False))
        async with serving(ScriptedGroup("x"), config=config) as client:
            statuses = [(await client.get(path)).status for path in ("/", "/live/main.js", FEED)]
            answer = await client.chat()
        assert statuses == [404, 404, 404]
        assert answer.status == 200

    asyncio.run(main())


def test_more_pages_than_allowed_are_refused_until_one_is_gone():
    clock = FakeClock()
    viewers = Viewers(2, clock)
    viewers.admit("a")
    viewers.admit("b")
    with pytest.raises(Overloaded, match="max_viewers"):
        viewers.admit("c")
    clock.advance(FORGOTTEN_AFTER_S / 2)
    viewers.admit("a")
    clock.advance(FORGOTTEN_AFTER_S / 2)
    viewers.admit("c")
    assert len(viewers) == 2


def test_one_page_may_not_ask_without_pause():
    clock = FakeClock()
    viewers = Viewers(2, clock)
    viewers.admit("a")
    with pytest.raises(RateLimited):
        viewers.admit("a")
    clock.advance(SHORTEST_PAUSE_S)
    viewers.admit("a")


@pytest.mark.parametrize("name", ["", "x" * 33, "a b", "é", "<b>"])
def test_what_is_no_name_of_a_page_is_refused(name):
    with pytest.raises(InvalidRequest):
        Viewers(2, FakeClock()).admit(name)


@pytest.mark.parametrize("seen", ["copy", "copy:", "copy:-1", "copy:x", "a:1,,b:2", ",".join(["a:1"] * 65), "a:²"])
def test_what_is_no_list_of_seconds_is_refused_with_a_reason(seen):
    async def main():
        async with serving(ScriptedGroup()) as client:
            answer = await ask(client, f"viewer=me&seen={seen}")
        assert (answer.status, answer.error["param"]) == (400, "seen")

    asyncio.run(main())


def test_every_file_of_the_page_forbids_what_is_not_its_own():
    async def main():
        async with serving() as client:
            for path in load_assets():
                headers = (await client.get(path)).headers
                policy = headers["content-security-policy"]
                assert "unsafe" not in policy
                assert "default-src 'none'" in policy
                assert "script-src 'self';" in policy
                assert "frame-ancestors 'none'" in policy
                assert headers["x-content-type-options"] == "nosniff"
                unchanged = await client.get(path, {"if-none-match": headers["etag"]})
                assert (unchanged.status, unchanged.body) == (304, b"")

    asyncio.run(main())


def test_no_file_of_the_page_names_another_server_or_makes_markup_or_code_of_text():
    for path, asset in load_assets().items():
        text = asset.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), path
        assert "@import" not in text and "url(" not in text, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
        assert not re.search(r"localStorage|document\.cookie", text), path
        if path == "/":
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text)


def test_every_file_that_a_file_of_the_page_names_is_there():
    assets = load_assets()
    page = assets["/"].body.decode()
    named = {f"/{name}" for name in re.findall(r'(?:src|href)="(live/[^"#]+)"', page)}
    for path, asset in assets.items():
        if path.endswith(".js"):
            named |= {f"/live/{name}" for name in re.findall(r'from "\./([^"]+)"', asset.body.decode())}
    assert named <= set(assets)
    assert len(named) > 8
