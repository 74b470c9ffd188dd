"""What tests of the network lab share: where they can run, and what this machine has of namespaces."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from harness.timing.lab import why_not

needs_lab = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def namespaces(prefix: str = "") -> set[str]:
    """Those that `ip` lists, with this prefix."""
    listed = output("ip", "netns", "list").splitlines()
    return {line.split()[0] for line in listed if line.startswith(prefix)}


def limits(namespace: str) -> dict[str, int]:
    """The rate of each interface in a namespace that `tc` limits, in bits a second."""
    found: list[dict[str, Any]] = json.loads(output("tc", "-n", namespace, "-j", "qdisc", "show"))
    return {each["dev"]: 8 * each["options"]["rate"] for each in found if each["kind"] == "tbf"}


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
