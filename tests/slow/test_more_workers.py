"""`colever sweep --workers 2`: both work, Ctrl-C and a kill leave no process behind, and the study goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SMALL = ["weights.updates=40", "prompt.candidates=1", "prompt.screen=8", "prompt.examples=8", "prompt.demos=2"]
COLEVER = [sys.executable, "-c", "from colever.cli import main; main()"]


def sweep(home: Path) -> subprocess.Popen[str]:
    sets = [word for setting in SMALL for word in ("--set", setting)]
    command = [*COLEVER, "sweep", "routing", "--workers", "2", "--trials", "2", "--home", str(home), "--json", *sets]
    interrupts = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **interrupts)


def both_at_work(process: subprocess.Popen[str], home: Path) -> list[psutil.Process]:
    """The command's further processes, once the second worker trains or tries prompts."""
    log = home / "studies" / "routing-seed-s0" / "worker-2.log"
    deadline = time.monotonic() + 300
    while not (log.exists() and "trial " in log.read_text()):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_ends_the_command_ends_its_workers_and_the_same_command_goes_on(tmp_path: Path, how: int) -> None:
    process = sweep(tmp_path)
    further = both_at_work(process, tmp_path)
    assert further
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert "the same command continues" in err
    _, alive = psutil.wait_procs(further, timeout=90)
    assert not alive
    again = sweep(tmp_path)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err[-2000:]
    assert sorted(arm["schedule"] for arm in json.loads(out)["arms"]) == ["p", "w"]
    assert not list((tmp_path / "rounds").glob("*.part"))
