"""A vLLM server's process: started, waited for, started again, ended; the server itself is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from standin_vllm import VERSION, shim

from colever.engines.vllm_server import Serving, StartedServer, server_command, server_environment
from colever.errors import InfrastructureError, UsageError


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def there(process: int) -> bool:
    """Whether the process runs; one that has ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def opened(tmp_path: Path, told: list[str] | None = None, **environment: str) -> StartedServer:
    python = shim(tmp_path, **environment)
    hear = [].append if told is None else told.append
    return StartedServer(Serving(python, log=tmp_path / "study" / "vllm.log", told=hear), "model", "cpu", "float32")


def test_the_command_says_what_is_served_and_the_users_arguments_win() -> None:
    command = server_command("py", "some/model", "cpu", "float32", 8123, 32, ["--max-model-len", "99"])
    assert command[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]
    said = dict(pairwise(command))
    assert (said["--model"], said["--host"], said["--port"]) == ("some/model", "127.0.0.1", "8123")
    assert (said["--dtype"], said["--max-lora-rank"]) == ("float32", "32")
    assert said["--logprobs-mode"] == "processed_logprobs"  # at the sampling temperature
    assert said["--generation-config"] == "vllm"  # no sampling defaults of the checkpoint's
    assert {"--enable-lora", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(command)
    assert command[-2:] == ["--max-model-len", "99"]
    assert "--enforce-eager" not in server_command("py", "some/model", "cuda", "bfloat16", 8123, 32, [])


def test_the_environment_is_ours_less_what_leads_another_python_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    made = server_environment("cpu", "secret")
    assert "PYTHONPATH" not in made
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert (made["VLLM_API_KEY"], made["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]) == ("secret", "1")


def test_it_starts_when_it_is_first_needed_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    told: list[str] = []
    server = opened(tmp_path, told, STANDIN_CHILD=str(tmp_path / "ids"))
    assert server.vllm_version == VERSION
    assert not told
    live = server.ensure()
    assert server.ensure() is live
    assert (live.base, live.context) == ("base", 512)
    assert live.client.address.startswith("http://127.0.0.1:")
    assert told[0].startswith("vLLM: starting a server")
    assert "vLLM: serving after" in told[-1]
    ids = [int(n) for n in (tmp_path / "ids").read_text().split()]
    assert all(map(there, ids))
    server.close()
    assert not any(map(there, ids))
    with pytest.raises(InfrastructureError, match="was closed"):
        server.ensure()


def test_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    server = opened(tmp_path, told, STANDIN_CHILD=str(tmp_path / "ids"))
    first = server.ensure()
    server.lost(first, "a request failed")  # it is well: nothing is started
    assert server.ensure() is first
    served, left = (int(n) for n in (tmp_path / "ids").read_text().split())
    os.kill(served, signal.SIGKILL)
    assert eventually(lambda: not there(left))  # what a dead server leaves behind is ended too
    server.lost(first, "connection refused")
    again = server.ensure()
    assert again.generation != first.generation
    assert any("started again" in line for line in told)
    server.lost(first, "said late, of the one before")
    assert server.ensure() is again
    server.close()


def test_a_larger_rank_starts_one_that_takes_it(tmp_path: Path) -> None:
    server = opened(tmp_path)
    first = server.ensure(rank=16)
    assert server.ensure(rank=8) is first
    assert server.ensure(rank=20) is not first
    server.close()


def test_it_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from itertools import pairwise
from pathlib import Path
from test_vllm_server import opened
opened(Path({str(tmp_path)!r}), STANDIN_CHILD={str(tmp_path / "ids")!r}).ensure()
print("up", flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "up" in done.stdout
    ids = [int(n) for n in (tmp_path / "ids").read_text().split()]
    assert eventually(lambda: not any(map(there, ids)))
    assert not opened(tmp_path).place.folder.exists()


def test_one_that_does_not_come_up_says_why_and_where(tmp_path: Path) -> None:
    server = opened(tmp_path, STANDIN_FAILS="ValueError: no such model as that")
    for _ in range(2):  # it is not tried once more for every request
        with pytest.raises(InfrastructureError, match="ended while it started: ValueError: no such model as that"):
            server.ensure()
    assert "no such model as that" in (tmp_path / "study" / "vllm.log").read_text()
    server.close()
    slow = StartedServer(Serving(shim(tmp_path, STANDIN_FOREVER="1"), start=0.5), "model", "cpu", "float32")
    with pytest.raises(InfrastructureError, match=r"was not ready after .*engine.vllm_start"):
        slow.ensure()
    assert slow.process is None
    slow.close()


def test_a_python_without_vllm_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no vLLM; accepted: engine.vllm_python, or COLEVER_VLLM_PYTHON"):
        opened(tmp_path, STANDIN_VERSION="")
    with pytest.raises(UsageError, match=r"cannot be run .* accepted: engine.vllm_python"):
        StartedServer(Serving(str(tmp_path / "none")), "model", "cpu", "float32")


def both(tmp_path: Path, **environment: str) -> tuple[StartedServer, StartedServer]:
    """What two processes of one study have."""
    ids = {"STANDIN_CHILD": str(tmp_path / "ids")}
    return opened(tmp_path, **ids, **environment), opened(tmp_path, **ids, **environment)


def test_those_of_one_study_share_one_server_which_the_last_of_them_ends(tmp_path: Path) -> None:
    starter, other = both(tmp_path)
    first, second = starter.ensure(), other.ensure()
    assert other.process is None
    assert first.client.address == second.client.address
    assert first.client.headers == second.client.headers
    ids = [int(n) for n in (tmp_path / "ids").read_text().split()]
    starter.close()
    assert all(map(there, ids))
    assert second.client.healthy()
    other.close()
    assert eventually(lambda: not any(map(there, ids)))
    assert not starter.place.folder.exists()


def test_another_study_another_device_or_other_arguments_are_another_server(tmp_path: Path) -> None:
    python, log = shim(tmp_path), tmp_path / "study" / "vllm.log"
    ways = [
        (Serving(python, log=log), "cpu"), (Serving(python, log=tmp_path / "vllm.log"), "cpu"),
        (Serving(python, log=log), "cuda"), (Serving(python, log=log, args=("--seed", "1")), "cpu"),
    ]  # fmt: skip
    places = [StartedServer(serving, "model", device, "float32").place.folder for serving, device in ways]
    assert len(set(places)) == 4
    assert StartedServer(ways[0][0], "model", "cpu", "float32").place.folder == places[0]
    assert not any(place.exists() for place in places)  # nothing is made before it is needed


def test_whichever_notices_first_starts_it_again_for_all(tmp_path: Path) -> None:
    starter, other = both(tmp_path)
    first, second = starter.ensure(), other.ensure()
    served, left = (int(n) for n in (tmp_path / "ids").read_text().split())
    os.kill(served, signal.SIGKILL)
    assert eventually(lambda: not there(left))
    other.lost(second, "connection refused")
    again = other.ensure()
    assert other.process is not None
    assert again.client.address != second.client.address
    starter.lost(first, "connection refused")
    assert starter.ensure().client.address == again.client.address
    assert starter.process is None
    assert starter.ensure() is starter.ensure()
    larger = starter.ensure(rank=100)
    other.lost(again, "connection refused")
    assert other.ensure(rank=8).client.address == larger.client.address
    assert other.ensure(rank=100) is other.ensure()
    other.close()
    starter.close()


def test_one_that_does_not_come_up_is_tried_once_for_all(tmp_path: Path) -> None:
    starter, other = both(tmp_path, STANDIN_FAILS="ValueError: no such model as that")
    for server in (starter, other):
        with pytest.raises(InfrastructureError, match="no such model as that"):
            server.ensure()
    assert (tmp_path / "study" / "vllm.log").read_text().count("no such model as that") == 1
    for server in (starter, other):
        server.close()
    assert not starter.place.folder.exists()


def test_it_outlives_the_process_that_started_it_while_another_uses_it(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_vllm_server import both
both(Path({str(tmp_path)!r}))[0].ensure()
print("up", flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        _, other = both(tmp_path)
        live = other.ensure()
        assert other.process is None
        process.communicate("", timeout=60)
    assert process.returncode == -signal.SIGKILL
    ids = [int(n) for n in (tmp_path / "ids").read_text().split()]
    assert live.client.healthy()
    assert all(map(there, ids))
    other.close()
    assert eventually(lambda: not any(map(there, ids)))


def test_a_command_ends_the_server_that_it_started(
    run: Callable[..., tuple[int, str, str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ids = tmp_path / "ids"
    python = shim(tmp_path, STANDIN_MODEL=str(tiny_checkpoint), STANDIN_CHILD=str(ids))
    vllm = ["--engine", "vllm", "--set", f"engine.vllm_python={python}"]
    status, out, err = run("eval", "arithmetic", "--model", tiny_checkpoint, "--limit", 2, "--json", *vllm)
    assert (status, err.count("vLLM: serving")) == (0, 1), err
    assert json.loads(out)["policy_failures"] == 2  # a random model answered
    assert not any(there(int(n)) for n in ids.read_text().split())


def test_a_rubric_is_tuned_over_a_server_too(run: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = run("rubric", "tune", "arithmetic", "--engine", "vllm", "--set", "engine.vllm_url=here")
    assert status == 2
    assert "engine.vllm_url=here: accepted: an address" in " ".join(err.split())


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    server = opened(tmp_path)
    server.place.folder.mkdir(mode=0o755)
    try:
        with pytest.raises(UsageError, match="accepted: a folder that is yours alone"):
            server.ensure()
    finally:
        server.place.folder.rmdir()
