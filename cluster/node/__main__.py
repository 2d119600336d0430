"""`python -m cluster.node boot`: make this machine a node of its cluster. Also `status`, `deploy`, `serve-config`."""

import argparse
import functools
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec
import yaml

from cluster.node.aws import aws_client
from cluster.node.boot import Boot, Folders, Machine
from cluster.node.commands import SystemCommands
from cluster.node.config import DEFAULT_PATH, NodeConfig
from cluster.node.dashboard import Dashboard
from cluster.node.errors import BootFailed, NotYet, StopRequested
from cluster.node.imds import InstanceMetadata
from cluster.node.loops import run_head_loops, run_worker_loops
from cluster.node.members import describe, read_members
from cluster.node.patience import Patience
from cluster.node.ray_process import RayChild
from cluster.node.ray_start import gcs_address, token_environment
from cluster.node.serve_api import ServeApi
from cluster.node.serve_config import check_serve_config, fetch_serve_config, for_cluster
from cluster.node.serve_duty import ServeDuty
from core.errors import StartupError
from core.logs import configure_logging

EXIT_FAILED = 2
SKIP_DEVICES = "EAGLERAY_SKIP_DEVICE_CHECKS"
"""Set to 1 where a machine only plays a node: its disks and drivers are left alone."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 2 with a sentence that says what is wrong."""
    options = _parser().parse_args(argv)
    configure_logging(json=True)
    try:
        options.run(options)
    except StartupError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_FAILED
    except (StopRequested, KeyboardInterrupt):
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.node", description="A machine of a cluster.")
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=DEFAULT_PATH, help="what this machine is (%(default)s)")
    boot = commands.add_parser("boot", parents=[shared], help="join the cluster and stay in it until SIGTERM")
    boot.set_defaults(run=_boot)
    status = commands.add_parser("status", parents=[shared], help="list the cluster's nodes")
    status.add_argument("--address", help="HOST:PORT of the GCS; from the config if not given")
    status.add_argument("--json", action="store_true", help="as JSON, with nodes that are dead")
    status.set_defaults(run=_status)
    deploy = commands.add_parser("deploy", parents=[shared], help="on the head: serve what the Serve config says now")
    deploy.set_defaults(run=_deploy)
    serve_config = commands.add_parser("serve-config", parents=[shared], help="print what deploy would have served")
    serve_config.set_defaults(run=_print_serve_config)
    return parser


def _boot(options: argparse.Namespace) -> None:
    config = NodeConfig.load(options.config)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folders = Folders()
    machine = Machine(
        commands=SystemCommands(),
        metadata=InstanceMetadata(),
        aws=aws_client,
        start_ray=functools.partial(RayChild, log_path=folders.ray_log),
        run_loops=run_head_loops if config.is_head else run_worker_loops,
        patience=Patience(stop),
        folders=folders,
        has_devices=os.environ.get(SKIP_DEVICES) != "1",
    )
    Boot(config, machine, stop).run()


def _status(options: argparse.Namespace) -> None:
    _authenticate()
    try:
        members = read_members(options.address or gcs_address(NodeConfig.load(options.config)))
    except NotYet as reason:
        raise BootFailed(str(reason)) from None
    sys.stdout.write(msgspec.json.encode(members).decode() if options.json else describe(members))


def _deploy(options: argparse.Namespace) -> None:
    _authenticate()
    config = NodeConfig.load(options.config)
    api = ServeApi(Dashboard(Folders().token))
    ServeDuty(config, _location(config), api, SystemCommands(), Patience(threading.Event())).deploy()


def _print_serve_config(options: argparse.Namespace) -> None:
    config = NodeConfig.load(options.config)
    text = Patience(threading.Event()).until(lambda: fetch_serve_config(_location(config), config.region), limit_s=30)
    served = for_cluster(text)
    check_serve_config(SystemCommands(), served)
    sys.stdout.write(yaml.safe_dump(served, sort_keys=False))


def _location(config: NodeConfig) -> str:
    if config.serve_config is None:
        raise BootFailed("node.json has no serve_config; only the head has one: run this there")
    return config.serve_config


def _authenticate() -> None:
    """Have Ray in this process use the cluster's token, unless the environment names another."""
    token_path = Folders().token
    if token_path.exists():
        for name, value in token_environment(token_path).items():
            os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
