"""Memory that runs out for real (a limit on the address space) in a pass of an update and while sampling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import dspy
from test_pull_failures import Counted
from test_weight_lever import improve, make_task, settings
from colever.engines.generation import TokenRequest
from colever.engines.lm import open_engine
from colever.errors import ColeverError
from colever.types import Weights

FREE = resource.RLIM_INFINITY
def limit(more):
    if more != FREE:
        more += 1024 * int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmSize")))
    resource.setrlimit(resource.RLIMIT_AS, (more, FREE))

def task(check):
    made = make_task(check)
    for place, example in enumerate(made.train):  # passes of more than a thousand tokens
        example["word"] = str(place) * 1500
    return made

def failure(work):
    try:
        work()
    except ColeverError as error:
        limit(FREE)
        return type(error).__name__, str(error)

engine, where, how = open_engine({model!r}), Path(sys.argv[1]), settings(save_every=1)
whole = improve(engine, where / "whole", how, task(Counted()))
engine.load(Weights())
tight = Counted(at=2 * 8 + 8, then=lambda: limit(4 << 20))  # the last rollout of update 2
failed = failure(lambda: improve(engine, where / "cut", how, task(tight)))
version, sound = engine.version, Counted()
again = improve(engine, where / "cut", how, task(sound))
limit(1 << 20)
sampling = failure(lambda: engine.generate([TokenRequest(tuple(range(n, n + 1500)), 32, seed=n) for n in range(16)]))
print(json.dumps({{
    "failed": failed, "version": version, "calls": sound.calls, "sampling": sampling,
    "digests": [p.candidate.weights.digest for p in (whole, again)],
}}))
"""


@pytest.mark.slow
def test_memory_that_runs_out_is_named_and_the_same_call_goes_on(tiny_checkpoint, tmp_path):
    script = CHILD.format(tests=str(Path(__file__).parents[1]), model=str(tiny_checkpoint))
    # Every tensor of some size comes from the system anew, so that a limit on the address space meets it.
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | small,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    kind, said = found["failed"]
    assert kind == "LeverError"
    assert said.startswith("update 2: out of memory (")
    assert "Try a smaller weights.batch_tokens (now 1024)" in said
    assert found["version"] == "base"  # the parent came back
    assert found["calls"] == 2 * 8  # updates 2 and 3: it went on from the checkpoint
    assert found["digests"][0] == found["digests"][1]
    kind, said = found["sampling"]
    assert kind == "InfrastructureError"
    assert "Try a smaller engine.max_batch_tokens (now 32768)" in said
