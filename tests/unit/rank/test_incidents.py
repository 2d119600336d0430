"""What was known when ranks hung is kept, and not for ever."""

import json

from engine.rank_pools import incidents
from engine.rank_pools.incidents import Incident, IncidentFolder, RankFacts

RANK = RankFacts(rank=1, seat=2, pid=77, silence_s=2.1, is_connected=True, lost="frozen")
INCIDENT = Incident(what="rank 1 is frozen", group="app/../x#1", generation=3, steps_under_way=[9], ranks=[RANK])


def test_an_incident_holds_the_facts_and_every_stack(tmp_path):
    path = IncidentFolder(tmp_path / "deep").write(INCIDENT, {0: "in all_reduce"})
    assert path is not None and path.parent == tmp_path / "deep", "a group's name is no path"
    facts = json.loads((path / "incident.json").read_text())
    assert (facts["generation"], facts["steps_under_way"]) == (3, [9])
    assert facts["ranks"] == [
        {"rank": 1, "seat": 2, "pid": 77, "silence_s": 2.1, "is_connected": True, "lost": "frozen"}
    ]
    assert (path / "rank-0.txt").read_text() == "in all_reduce"
    assert "test_an_incident_holds_the_facts_and_every_stack" in (path / "leader.txt").read_text()


def test_only_the_newest_are_kept_and_none_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(incidents, "MAX_INCIDENTS", 3)
    folder = IncidentFolder(tmp_path)
    written = [folder.write(INCIDENT, {0: "x" * 10**6}) for _ in range(5)]
    assert sorted(tmp_path.iterdir()) == written[2:]
    assert max(file.stat().st_size for file in tmp_path.rglob("*.txt")) <= incidents.MAX_TEXT_BYTES


def test_an_incident_that_cannot_be_kept_causes_no_other(tmp_path):
    (tmp_path / "file").write_text("")
    assert IncidentFolder(tmp_path / "file").write(INCIDENT, {}) is None
