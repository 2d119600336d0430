"""What the doctor says of a running server, from answers that are given."""

from email.utils import formatdate

import msgspec
import pytest

from deployments.doctor.server import answers, health
from deployments.doctor.server.asking import Answer, Server
from deployments.gateway.readiness import GroupReport, ModelReport, RankProgress, ReadinessReport

NOW_S = 1_800_000_000.0


def levels(findings):
    return {(finding.level, finding.check) for finding in findings}


def answer(status=200, body=b'{"status":"alive"}', total_s=0.01, arrivals_s=(0.01,), **headers):
    names = {"date": formatdate(NOW_S, usegmt=True)} | {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, names, body, total_s, arrivals_s)


class TestAlive:
    @pytest.mark.parametrize(
        ("given", "finding"),
        [
            (answer(), ("ok", "server.alive")),
            (answer(404, b"Path '/livez' not found"), ("problem", "server.alive")),
            (answer(200, b"<html>"), ("problem", "server.alive")),
            (answer(301, b"", location="https://other"), ("problem", "server.alive")),
        ],
    )
    def test_only_a_gateway_of_ours_is_alive(self, given, finding):
        assert finding in levels(health.check_alive(given, NOW_S))

    @pytest.mark.parametrize(("now_s", "level"), [(NOW_S + 1, "ok"), (NOW_S + 60, "warning"), (NOW_S - 60, "warning")])
    def test_clocks_that_differ_are_a_warning(self, now_s, level):
        assert (level, "server.clock") in levels(health.check_alive(answer(), now_s))

    def test_a_server_without_date_says_nothing_of_its_clock(self):
        silent = Answer(200, {}, b'{"status":"alive"}', 0.01)
        assert levels(health.check_alive(silent, NOW_S)) == {("ok", "server.alive")}


def group(state="ready", generation=0, error=None, progress=()):
    return GroupReport("g1", "app", state, generation, 2, list(progress), error)


def ready(*models):
    report = ReadinessReport("ready" if all(m.is_ready for m in models) else "not_ready", list(models))
    return answer(200 if report.is_ready else 503, msgspec.json.encode(report))


class TestReady:
    def test_a_ready_model_and_its_group_are_ok(self):
        findings = list(health.check_ready(ready(ModelReport("m", True, None, [group()]))))
        assert levels(findings) == {("ok", "server.ready"), ("ok", "server.groups")}
        assert findings[0].found == "m: 1 of 1 groups ready"

    @pytest.mark.parametrize(
        ("report", "finding"),
        [
            (ModelReport("m", False, "no replica group is ready", [group("starting")]), ("warning", "server.ready")),
            (ModelReport("m", False, "no replica group is ready", [group("failed")]), ("problem", "server.ready")),
            (ModelReport("m", False, "no replica group has announced itself", []), ("problem", "server.ready")),
            (ModelReport("m", True, None, []), ("ok", "server.ready")),
            (ModelReport("m", True, None, [group("failed", error="rank 1 died")]), ("problem", "server.groups")),
            (ModelReport("m", True, None, [group("restarting", 2)]), ("warning", "server.groups")),
            (ModelReport("m", True, None, [group("draining")]), ("note", "server.groups")),
            (ModelReport("m", True, None, [group(generation=3)]), ("note", "server.groups")),
        ],
    )
    def test_states_of_models_and_groups_are_told_by_their_gravity(self, report, finding):
        assert finding in levels(health.check_ready(ready(report)))

    def test_how_far_a_starting_group_is_is_told(self):
        progress = [RankProgress(0, "load", 43, "")]
        model = ModelReport("m", False, "no", [group("starting", progress=progress)])
        assert any("rank 0 load 43 %" in finding.found for finding in health.check_ready(ready(model)))

    def test_a_server_without_models_or_of_another_kind_is_a_problem(self):
        assert levels(health.check_ready(ready())) == {("problem", "server.ready")}
        assert levels(health.check_ready(answer(body=b"OK"))) == {("problem", "server.ready")}


DOOR = health.DoorFacts(is_loopback=False, is_secure=True, has_key=True, without_key=401, with_key=200)


class TestDoor:
    @pytest.mark.parametrize(
        ("facts", "finding"),
        [
            (DOOR, ("ok", "server.key")),
            (DOOR._replace(has_key=False, with_key=401), ("problem", "server.key")),
            (DOOR._replace(with_key=401), ("problem", "server.key")),
            (DOOR._replace(with_key=429), ("warning", "server.key")),
            (DOOR._replace(without_key=500, with_key=500), ("problem", "server.key")),
            (DOOR._replace(without_key=200), ("warning", "server.key")),
            (DOOR._replace(without_key=200, is_loopback=True), ("ok", "server.key")),
            (DOOR._replace(is_secure=False), ("warning", "server.transport")),
        ],
    )
    def test_the_door_is_judged_by_who_gets_in(self, facts, finding):
        assert finding in levels(health.check_door(facts))

    def test_a_key_that_crosses_this_machine_only_needs_no_encryption(self):
        facts = DOOR._replace(is_secure=False, is_loopback=True)
        assert "server.transport" not in {check for _, check in levels(health.check_door(facts))}

    def test_loopback_has_many_names(self):
        assert [health.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "host")] == [
            True,
            True,
            True,
            False,
            False,
        ]


REFUSAL = b'{"error": {"message": "queue is full", "type": "x", "param": null, "code": "queue_full"}}'


class TestAnswers:
    @pytest.mark.parametrize(
        ("given", "level"),
        [
            (answer(total_s=0.2), "ok"),
            (answer(total_s=9.0), "warning"),
            (answer(429, REFUSAL), "warning"),
            (answer(503, REFUSAL), "warning"),
            (answer(500, b"oops"), "problem"),
        ],
    )
    def test_one_token_is_judged_by_status_and_time(self, given, level):
        assert levels(answers.check_completion("m", given)) == {(level, "server.completion")}

    def test_the_servers_own_reason_is_told(self):
        (finding,) = answers.check_completion("m", answer(429, REFUSAL))
        assert "queue is full" in finding.found

    def test_models_are_read_from_the_list_and_from_nothing_else(self):
        assert answers.model_names(answer(body=b'{"object":"list","data":[{"id":"a"},{"id":"b"}]}')) == ["a", "b"]
        assert answers.model_names(answer(401, REFUSAL)) == []


def stream(num_events=20, arrivals_s=(0.1, 0.2, 0.3, 0.4), done=True, status=200, **headers):
    body = b"data: {}\n\n" * (num_events - done) + b"data: [DONE]\n\n" * done
    given = answer(status, body, arrivals_s[-1], arrivals_s, **{"content_type": "text/event-stream", **headers})
    return answers.check_stream("m", answers.stream_facts(given))


class TestStream:
    @pytest.mark.parametrize(
        ("findings", "level"),
        [
            (stream(), "ok"),
            (stream(arrivals_s=(2.0,)), "problem"),
            (stream(arrivals_s=(2.0, 2.01)), "problem"),
            (stream(content_encoding="gzip"), "problem"),
            (stream(done=False), "problem"),
            (stream(content_type="text/html"), "problem"),
            (stream(num_events=3), "note"),
            (stream(arrivals_s=(0.05,)), "note"),
            (stream(status=503), "warning"),
        ],
    )
    def test_a_stream_is_judged_by_how_it_arrives(self, findings, level):
        assert levels(findings) == {(level, "server.stream")}


TIERS = b'# HELP x y\neagleray_op_tier{detail="d",group="g",model="m",op="linear",tier="%s"} 1.0\n'


class TestMetrics:
    @pytest.mark.parametrize(
        ("given", "finding"),
        [
            (answer(body=TIERS % b"cpu"), ("ok", "server.metrics")),
            (answer(body=TIERS % b"torch"), ("warning", "server.kernels")),
            (answer(401, REFUSAL), ("warning", "server.metrics")),
            (answer(403, REFUSAL), ("note", "server.metrics")),
            (answer(200, b"# nothing\n"), ("problem", "server.metrics")),
            (answer(500, b"oops"), ("problem", "server.metrics")),
        ],
    )
    def test_metrics_must_be_there_and_name_fast_tiers(self, given, finding):
        assert finding in levels(answers.check_metrics(given))


def test_an_address_is_taken_as_clients_have_it():
    for url in ("http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"):
        server = Server(url, None, 1)
        assert (server.host, server.is_secure, server.has_key) == ("h", False, False)
