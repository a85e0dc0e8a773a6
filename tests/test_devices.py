"""The step loop on an accelerator: where its tensors are, what waits for the device, and what travels.

It is one that is made up (`second_device`), in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

WORKER = Path(__file__).with_name("devices_worker.py")
# Decisions in a step, where it is not one.
DECISIONS = {"uncached": 0, "fora": 0, "trajectory": 0, "dmd": 0, "dbprune": 10}


def told() -> dict[str, dict[str, Any]]:
    """What the worker says of each case."""
    made = subprocess.run(
        [sys.executable, str(WORKER)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert made.returncode == 0, made.stderr
    lines = [json.loads(line) for line in made.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends in Python",
)
def test_runs_on_a_second_device_and_over_two() -> None:
    cases = told()
    assert len(cases) == 12
    for name, case in cases.items():
        over_both = name.endswith(", over two devices")
        # Attention is another kernel there.
        assert case["difference"] < 1e-5, name
        assert (case["skipped"] > 0) == (name != "uncached"), name
        for step in case["steps"]:
            # The answer whether all is finite is asked for a step earlier, so it is there.
            step.pop("wait answer", None)
            # Of a model over two devices the entry of a segment follows to where its output is, one a stream.
            assert step.pop("in beside", 0) == (2 if over_both else 0), (name, step)
            assert step.pop("wait relative_l1", 0) <= DECISIONS.get(name, 1), name
            assert step == {}, (name, step)
