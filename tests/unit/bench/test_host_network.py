import pytest

from benchmarks.faults.namespaces import CannotMakeHosts, HostNetwork


class Machine:
    """Remembers what it was told to run; refuses commands that contain `refuses`."""

    def __init__(self, refuses: str | None = None) -> None:
        self.ran: list[str] = []
        self._refuses = refuses

    def run(self, command) -> str:
        line = " ".join(command)
        self.ran.append(line)
        if self._refuses is not None and self._refuses in line:
            raise CannotMakeHosts(line)
        return ""


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
    monkeypatch.setattr("benchmarks.faults.namespaces.why_no_hosts", lambda: None)


def test_every_namespace_and_link_that_is_made_is_deleted_again():
    machine = Machine()
    with HostNetwork(3, machine.run, tag=7):
        made = set(machine.ran)
    for host in range(3):
        assert f"ip netns add er7h{host}" in made
        assert f"ip netns del er7h{host}" in machine.ran
        assert f"ip link del er7v{host}" in machine.ran
    assert "ip link del er7b" in machine.ran


def test_a_network_that_cannot_be_made_leaves_nothing_behind():
    machine = Machine(refuses="netns add er7h1")
    with pytest.raises(CannotMakeHosts), HostNetwork(2, machine.run, tag=7):
        pass
    assert "ip netns del er7h0" in machine.ran and "ip link del er7b" in machine.ran


def test_addresses_of_a_network_are_its_own_and_in_one_subnet():
    one, other = HostNetwork(3, Machine().run, tag=1), HostNetwork(3, Machine().run, tag=2)
    addresses = [network.address(host) for network in (one, other) for host in range(3)]
    addresses += [one.own_address, other.own_address]
    assert len(set(addresses)) == 8
    assert one.address(0) == "198.18.0.17" and one.own_address == "198.18.0.20", "17 to 30 are one /28"


def test_names_of_links_are_short_enough_for_the_kernel():
    machine = Machine()
    network = HostNetwork(14, machine.run, tag=4_194_304)
    network.cut(13)
    assert len(machine.ran[0].split()[3]) <= 15


def test_a_killed_host_is_silent_before_it_dies():
    machine = Machine()
    HostNetwork(2, machine.run, tag=7).kill_host(1)
    assert machine.ran == ["ip link set er7v1 down", "ip netns pids er7h1"]


def test_a_command_on_a_host_keeps_its_arguments_apart():
    command = HostNetwork(1, Machine().run, tag=7).command(0, ["python", "-c", "print('a b')"])
    assert command[:4] == ["ip", "netns", "exec", "er7h0"]
    assert command[-3:] == ["python", "-c", "print('a b')"]
