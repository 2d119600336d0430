"""Red when a route opens without a key, when a key can do what it may not, or when a change of the file is missed."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from core.errors import InvalidConfig
from deployments import keys
from deployments.gateway.config import GatewayConfig
from deployments.http.api_keys import ApiKey, digest_of
from deployments.http.auth import OPEN_PATHS
from deployments.http.caller import Caller
from deployments.http.key_ring import KeyRing
from deployments.http.quota import Quota
from deployments.live.assets import load_assets
from tests.support.fake_clock import FakeClock
from tests.support.fake_groups import ScriptedGroup
from tests.support.gateways import AsgiClient, make_gateway, serving

ACME, OTHER = "sk-acme", "sk-other"


def key_of(name: str, secret: str, **fields) -> dict:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **fields}


def config_of(*entries: dict) -> GatewayConfig:
    return GatewayConfig.parse({"api_keys": entries}, "test")


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def ask(client: AsgiClient, secret: str = ACME, path: str = "/v1/completions", **fields):
    return client.post(path, {"model": "tiny", "prompt": "Hi", **fields}, bearer(secret))


def paths_of_all_routes() -> list[str]:
    return [route.path.replace("{name:path}", "tiny") for route in make_gateway([]).asgi_app().routes]


def test_no_spelling_of_any_path_is_open_but_those_of_health_and_of_the_pages_files():
    open_paths = OPEN_PATHS | frozenset(load_assets())
    hosts = ["localhost", "127.0.0.1/livez?", "a/livez#", "[::1]", "livez", "/livez"]
    spellings = {"/", "/docs", "/openapi.json", "/invocations", "/tokenize", "/-/routes", "*", ""}
    for path in paths_of_all_routes():
        spellings |= {path, path + "/", "/" + path, path.upper(), path + "%2e", "/%2e" + path, "/livez/.." + path}
        spellings |= {path + "?x=/livez", path + "\x00", path.replace("/", "//"), "/livez" + path, path + "#/livez"}

    async def main():
        async with serving(ScriptedGroup("x"), config=config_of(key_of("acme", ACME))) as client:
            for path in sorted(spellings - open_paths):
                for method in ("GET", "POST", "OPTIONS", "BREW"):
                    assert (await client.call(method, path)).status == 401, (method, path)
            for host in hosts:
                answer = await client.get("/v1/models", {"host": host})
                assert answer.status in (400, 401), host
            for path in open_paths:
                assert (await client.get(path)).status == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    "value", ["", ACME, "Bearer", "Bearer ", f"Basic {ACME}", f"Bearer {ACME}x", f"Bearer {ACME[:-1]}", "Bearer é"]
)
def test_what_is_not_a_known_bearer_key_is_a_401(value):
    async def main():
        async with serving(ScriptedGroup("x"), config=config_of(key_of("acme", ACME))) as client:
            answer = await client.get("/v1/models", {"authorization": value})
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert ACME not in answer.body.decode()
            in_query = await client.call("GET", "/v1/models", headers={"x-api-key": ACME})
            assert in_query.status == 401

    asyncio.run(main())


def test_every_known_hash_is_compared_whichever_one_matches(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "deployments.http.key_ring.hmac.compare_digest", lambda a, b: bool(compared.append(b)) or bytes(a) == b
    )
    ring = KeyRing([ApiKey(**key_of(f"k{i}", f"sk-{i}")) for i in range(5)], None, FakeClock())

    async def main():
        for secret, name in (("sk-0", "k0"), ("sk-4", "k4"), ("sk-9", None)):
            compared.clear()
            caller = await ring.find(secret)
            assert (caller and caller.name) == name
            assert len(compared) == 5

    asyncio.run(main())


def test_priority_and_tenant_of_the_key_reach_the_engine():
    entries = [
        key_of("one", "sk-1", tenant="acme", priority=-5),
        key_of("two", "sk-2", tenant="acme"),
        key_of("three", "sk-3"),
    ]

    async def main():
        group = ScriptedGroup("x")
        async with serving(group, config=config_of(*entries)) as client:
            await ask(client, "sk-1", priority=2)
            await ask(client, "sk-2")
            await ask(client, "sk-3", cache_salt="mine")
        return group.requests

    one, two, three = asyncio.run(main())
    assert (one.priority, two.priority) == (-3, 0)
    assert one.cache_salt == two.cache_salt == "acme/"
    assert [request.tenant for request in (one, two, three)] == ["acme", "acme", "three"]
    assert three.cache_salt == "three/mine"


@pytest.mark.parametrize("salt", ["acme", "acme/", "/acme/", "../acme", "acme/\x00"])
def test_no_salt_of_a_callers_own_reaches_another_tenants_cache(salt):
    def caller(tenant):
        key = ApiKey(name=tenant, sha256="0" * 64)
        return Caller.of(key, Quota(key, FakeClock()))

    assert caller("eve").cache_salt(salt) not in {caller("acme").cache_salt(None), caller("acme").cache_salt("x")}
    assert caller("eve").cache_salt(salt) != caller("eve").cache_salt(None)


def test_keys_known_only_by_hash_are_tenants_of_their_own():
    async def main():
        group = ScriptedGroup("x")
        hashes = tuple(hashlib.sha256(secret.encode()).hexdigest() for secret in (ACME, OTHER))
        async with serving(group, config=GatewayConfig(api_keys_sha256=hashes)) as client:
            for secret in (ACME, OTHER):
                assert (await ask(client, secret)).status == 200
        assert len({request.cache_salt for request in group.requests}) == 2

    asyncio.run(main())


def test_a_model_that_is_not_for_a_key_does_not_exist_for_it():
    async def main():
        config = config_of(key_of("acme", ACME, models=["other"]), key_of("other", OTHER, models=["tiny"]))
        async with serving(ScriptedGroup("x"), config=config) as client:
            refused = await ask(client)
            absent = await ask(client, OTHER, model="other")
            assert (refused.status, refused.error["code"]) == (404, "model_not_found")
            assert refused.body.replace(b"tiny", b"other") == absent.body
            assert (await client.get("/v1/models/tiny", bearer(ACME))).status == 404
            assert (await client.get("/v1/models", bearer(ACME))).json()["data"] == []
            assert (await ask(client, OTHER)).status == 200

    asyncio.run(main())


def test_a_key_over_its_requests_gets_a_429_that_says_when_to_come_back():
    async def main():
        config = config_of(key_of("acme", ACME, requests_per_minute=2), key_of("other", OTHER))
        async with serving(ScriptedGroup("x"), config=config, clock=FakeClock()) as client:
            assert (await ask(client)).headers["x-ratelimit-remaining-requests"] == "1"
            assert (await ask(client, n=99)).headers["x-ratelimit-remaining-requests"] == "0"
            answer = await ask(client)
            assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "30"
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            other = await ask(client, OTHER)
            assert other.status == 200
            assert not [name for name in other.headers if name.startswith("x-ratelimit")]

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/live/feed"])
def test_looks_count_against_no_limit(path):
    async def main():
        config = config_of(key_of("acme", ACME, requests_per_minute=1))
        async with serving(ScriptedGroup(), config=config) as client:
            for _ in range(3):
                assert (await client.get(path, headers=bearer(ACME))).status != 429
            assert (await ask(client)).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_reserved_with_max_tokens_and_settled_to_what_was_used(stream):
    async def main():
        config = config_of(key_of("acme", ACME, tokens_per_minute=100))
        async with serving(ScriptedGroup("abc"), config=config, clock=FakeClock()) as client:
            answer = await ask(client, max_tokens=60, stream=stream)
            # While it runs: 2 of the prompt and 60.
            assert answer.headers["x-ratelimit-remaining-tokens"] == "38"
            # Used: 2, 3 and the stop token.
            assert (await client.get("/v1/models", bearer(ACME))).headers["x-ratelimit-remaining-tokens"] == "94"
            assert (await ask(client, max_tokens=93)).status == 429
            too_large = await ask(client, max_tokens=99)
            assert (too_large.status, too_large.error["code"]) == (400, "request_too_large")

    asyncio.run(main())


def test_a_refused_request_costs_no_tokens():
    async def main():
        group = ScriptedGroup("abc")
        group.refusal = InvalidConfig("no")
        config = config_of(key_of("acme", ACME, tokens_per_minute=100))
        async with serving(group, config=config, clock=FakeClock()) as client:
            assert (await ask(client, max_tokens=50)).status == 500
            assert (await client.get("/v1/models", bearer(ACME))).headers["x-ratelimit-remaining-tokens"] == "100"

    asyncio.run(main())


def write_keys(path: Path, *secrets: str, **fields) -> None:
    entries = [f"  - {{name: {s}, sha256: {digest_of(s).hex()}, requests_per_minute: 5}}\n" for s in secrets]
    path.write_text("api_keys:\n" + "".join(entries) if entries else "api_keys: []\n")
    # Two writes within a tick of the file system's clock look alike but for their length.
    os.utime(path, ns=(write_keys.ticks, write_keys.ticks))
    write_keys.ticks += 10**9


write_keys.ticks = 10**18


def test_a_changed_key_file_counts_within_a_second_and_without_a_restart(tmp_path):
    path, clock = tmp_path / "keys.yaml", FakeClock()
    write_keys(path, ACME)
    config = GatewayConfig(api_keys_file=path)

    async def main():
        async with serving(ScriptedGroup("x"), config=config, clock=clock) as client:
            assert (await ask(client)).status == 200
            assert (await ask(client, OTHER)).status == 401
            write_keys(path, ACME, OTHER)
            clock.advance(1)
            assert (await ask(client, OTHER)).status == 200
            # What a key has used is not forgotten by reading the file again.
            assert (await ask(client)).headers["x-ratelimit-remaining-requests"] == "3"
            write_keys(path, OTHER)
            clock.advance(1)
            assert (await ask(client)).status == 401
            write_keys(path)
            clock.advance(1)
            assert (await ask(client, OTHER)).status == 401

    asyncio.run(main())


@pytest.mark.parametrize("broken", ["api_keys: [", "api_keys: [{name: x}]", None])
def test_a_broken_key_file_leaves_the_old_keys_and_at_the_start_is_refused(tmp_path, broken):
    path, clock = tmp_path / "keys.yaml", FakeClock()
    write_keys(path, ACME)

    def break_file():
        path.unlink() if broken is None else path.write_text(broken)

    async def main():
        async with serving(ScriptedGroup("x"), config=GatewayConfig(api_keys_file=path), clock=clock) as client:
            break_file()
            clock.advance(1)
            assert (await ask(client)).status == 200
            assert (await ask(client, OTHER)).status == 401

    asyncio.run(main())
    with pytest.raises(InvalidConfig, match=r"keys\.yaml"):
        make_gateway([], GatewayConfig(api_keys_file=path))


def test_a_name_or_a_key_twice_is_refused():
    with pytest.raises(InvalidConfig, match="twice"):
        config_of(key_of("a", "sk-1"), key_of("a", "sk-2"))
    with pytest.raises(InvalidConfig, match="twice"):
        config_of(key_of("a", "sk-1"), key_of("b", "sk-1"))


def test_a_new_key_is_shown_once_with_lines_that_let_it_in(capsys, tmp_path):
    assert keys.main(["new", "--name", "acme-1", "--tenant", "acme"]) == 0
    shown = capsys.readouterr().out
    (secret,) = [word for word in shown.split() if word.startswith("sk-")]
    path = tmp_path / "keys.yaml"
    path.write_text(shown[shown.index("api_keys:") :])
    ring = KeyRing([], path, FakeClock())
    caller = asyncio.run(ring.find(secret))
    assert caller is not None and (caller.name, caller.tenant) == ("acme-1", "acme")
    keys.main(["new", "--name", "acme-1"])
    assert secret not in capsys.readouterr().out
    assert keys.main(["new", "--name", "no spaces"]) == keys.EXIT_PROBLEMS


@pytest.mark.parametrize(
    ("host", "is_served"),
    [
        ("localhost:8000", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("models.example.com", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("a/?x=", False),
        ("", False),
    ],
)
def test_without_keys_only_this_servers_own_names_are_answered(host, is_served):
    async def main():
        config = GatewayConfig(allowed_hosts=("models.example.com",))
        async with serving(ScriptedGroup("x"), config=config) as client:
            answer = await client.get("/v1/models", {"host": host})
            assert answer.status == (200 if is_served else 400)
            assert is_served or answer.error["code"] == "bad_host"

    asyncio.run(main())
