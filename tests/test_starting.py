"""What everybody waits for: `import cache_dit`, and the help of every command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cache_dit.cli.app import app

HEAVY = {"diffusers", "matplotlib", "numpy", "optuna", "torch", "transformers", "yaml"}
LIMIT = 0.5
"""Seconds of the processor: those of the clock tell as much of what else the machine does."""

SHOW = f"""
import sys, time
print(time.process_time(), *({HEAVY} & sys.modules.keys()), file=sys.stderr)
"""
HELP = """
import sys
from cache_dit.cli import main
sys.argv[1:] = {}
try:
    main()
except SystemExit:
    pass
"""
COMMANDS = ["", *(command.name or command.callback.__name__ for command in app.registered_commands)]
BENCH = ["bench", *(f"bench {one}" for one in ("run", "flops", "sweep", "compare"))]


def started(code: str) -> tuple[float, set[str]]:
    """Seconds that a new process took, and what it has imported that is slow to import."""
    command = [sys.executable, "-W", "error", "-c", code + SHOW]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seconds, *heavy = result.stderr.split()
    return float(seconds), set(heavy)


def quickest(code: str, rounds: int = 3) -> float:
    """The least of some starts; the first one may have to write compiled files."""
    best = LIMIT
    for _ in range(rounds):
        seconds, heavy = started(code)
        assert heavy == set()
        best = min(best, seconds)
        if best < LIMIT:
            break
    return best


def test_importing_the_package_is_quick() -> None:
    assert quickest("import cache_dit") < LIMIT


@pytest.mark.parametrize("command", [*COMMANDS, *BENCH])
def test_help_is_quick(command: str) -> None:
    assert quickest(HELP.format([*command.split(), "--help"])) < LIMIT


def test_what_is_slow_is_found() -> None:
    assert "torch" in started("import torch")[1]
