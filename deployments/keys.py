"""`python -m deployments.keys new --name NAME`: a fresh API key, shown once, and the lines that let it in."""

import argparse
import secrets
import sys

from pydantic import ValidationError

from deployments.http.api_keys import ApiKey, digest_of

EXIT_PROBLEMS = 2
_PREFIX = "sk-eagleray-"
_KEY_BYTES = 32


def main(argv: list[str]) -> int:
    """Write a key and its configuration to stdout; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployments.keys", description="Make API keys for a gateway.")
    commands = parser.add_subparsers(required=True)
    new = commands.add_parser("new", help="make a key, show it once, and show how to configure its hash")
    new.add_argument("--name", required=True, help="what logs and metrics call the key")
    new.add_argument("--tenant", help="whose cached prefixes it shares; its own name by default")
    options = parser.parse_args(argv)
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    try:
        entry = ApiKey(name=options.name, sha256=digest_of(key).hex(), tenant=options.tenant)
    except ValidationError:
        sys.stderr.write("names are 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first\n")
        return EXIT_PROBLEMS
    sys.stdout.write(describe(key, entry))
    return 0


def describe(key: str, entry: ApiKey) -> str:
    """Return what to give to the caller, and what to write into the configuration."""
    tenant = f"    tenant: {entry.tenant}\n" if entry.tenant else ""
    return (
        "The key, for its owner. It is not stored and will not be shown again:\n\n"
        f"  {key}\n\n"
        "For the gateway's `args`, or the file that its `api_keys_file` names:\n\n"
        f"api_keys:\n  - name: {entry.name}\n    sha256: {entry.sha256}\n{tenant}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
