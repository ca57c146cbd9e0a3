"""A pull killed with SIGKILL, inside an update or inside a checkpoint, ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_weight_lever import improve, settings
from colever.engines.lm import open_engine

class Say:
    def update(self, done, total, text):
        print(done, flush=True)

import test_weight_lever
test_weight_lever.NullProgress = Say
from test_predictor_adapters import pair_task

from test_folding import lengthened

task = pair_task() if {adapters!r} == "per_predictor" else test_weight_lever.make_task()
how = settings(updates=6, peft={peft!r}, adapters={adapters!r}, save_every=1, fold={fold!r})
pull = improve(open_engine({model!r}), Path(sys.argv[1]), how, task, parent=lengthened(task) if {fold!r} else None)
values = {{name: curve for name, curve in pull.metrics.items() if not name.startswith("seconds")}}
print(json.dumps([pull.candidate.weights.digest, values, dict(pull.notes)]), flush=True)
"""


def start(script: str, workdir: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, str(workdir)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peft", "adapters", "fold"),
    [
        ("none", "shared", False), ("lora", "shared", False), ("dora", "shared", False),
        ("lora", "per_predictor", False), ("none", "shared", True),
    ],
)  # fmt: skip
def test_killed_pull_ends_as_the_whole_one(tiny_checkpoint, tmp_path, peft, adapters, fold):
    tests = str(Path(__file__).parents[1])
    script = CHILD.format(tests=tests, model=str(tiny_checkpoint), peft=peft, adapters=adapters, fold=fold)
    whole = start(script, tmp_path / "whole").communicate()[0].splitlines()[-1]
    for after, delay in ((1, 0.0), (2, 0.05), (1, 0.15)):  # updates seen, then seconds
        process = start(script, tmp_path / "cut")
        for _ in range(after):
            process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resumed = start(script, tmp_path / "cut").communicate()[0].splitlines()
    assert json.loads(resumed[-1]) == json.loads(whole)
    assert int(resumed[0]) > 1  # it did go on from a checkpoint
