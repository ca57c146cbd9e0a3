"""A bundle over HTTP: what it answers and refuses, what it does when there is too much, and reload without a loss."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import uvicorn
from shipped import CANDIDATE, write_bundle

import colever
from colever.errors import InfrastructureError, StoreError, UsageError
from colever.ship.chat import content_of, inputs_of
from colever.ship.gate import Busy, Gate
from colever.ship.program import Answered
from colever.ship.running import Running
from colever.ship.server import Limits, Server, is_local, serve
from colever.types import PredictorPrompt

TOKEN = "a-token-of-some-length"
SHORT = replace(CANDIDATE, prompts={**CANDIDATE.prompts, "solve": PredictorPrompt("Answer at once.")})


@contextmanager
def listening(server: Server, hosts: list[str] | None = None) -> Iterator[str]:
    """A real server in a thread; its address."""
    config = uvicorn.Config(server.app(hosts), port=0, log_level="error", access_log=False)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not running.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(60)


class Slow:
    """A program that answers when it is told to."""

    inputs = ("problem",)

    def __init__(self) -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(study="slow", candidate="c"))
        self.go, self.inside, self.entered = threading.Event(), threading.Semaphore(0), 0

    def answer(self, inputs: dict[str, Any]) -> Answered:
        self.entered += 1
        self.inside.release()
        assert self.go.wait(60)
        if inputs["problem"] == "broken":
            raise InfrastructureError("the machine is broken")
        if inputs["problem"] == "bug":
            raise ZeroDivisionError("a secret")
        return Answered({"answer": inputs["problem"]}, 1, 2)


class Around:
    """What a server runs, around a program by hand."""

    name, folder, broken, reloads = "slow", Path("."), "", 0

    def __init__(self, program: Any) -> None:
        self.program, self.next = program, program

    def read(self) -> Any:
        if self.next is None:
            raise StoreError("no bundle")
        return self.next

    def put(self, program: Any) -> None:
        self.program = program

    def say(self, text: str) -> None:
        raise AssertionError(text)


def ask(url: str, problem: str = "1 + 1", **headers: str) -> requests.Response:
    return requests.post(f"{url}/predict", json={"problem": problem}, headers=headers, timeout=100)


def until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with listening(Server(Running(folder), Limits(body=4096), answer="answer")) as address:
        yield address


def test_it_answers_as_the_program_does_many_at_once(url: str, folder: Path) -> None:
    program = colever.load(folder)
    rows = [dict(row.inputs()) for _, row in program.task.examples("dev")[:24]]
    with ThreadPoolExecutor(24) as threads:
        got = list(threads.map(lambda row: ask(url, **row), rows))
        expected = list(threads.map(lambda row: outcome(program, row), rows))
    assert [r.json().get("outputs") for r in got] == expected
    assert {r.status_code for r in got} <= {200, 422}
    first = next(r.json() for r in got if r.status_code == 200)
    assert first["usage"]["prompt_tokens"] > first["usage"]["completion_tokens"] > 0


def outcome(program: Any, row: dict[str, Any]) -> Any:
    try:
        return dict(program.answer(row).outputs)
    except Exception:  # noqa: BLE001 - an answer that could not be parsed
        return None


def test_openais_client_reads_it(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    (model,) = client.models.list().data
    messages = [{"role": "system", "content": "no"}, {"role": "user", "content": "3 + 4 * 2"}]
    said = client.chat.completions.create(model=model.id, messages=messages, temperature=0.3)
    expected = ask(url, "3 + 4 * 2").json()["outputs"]["answer"]
    assert said.choices[0].message.content == str(expected)
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    parts = client.chat.completions.create(model=model.id, messages=messages, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == str(expected)


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ({"json": {"question": "1"}}, 400, "accepted: an object with problem"),
        ({"json": {"problem": "1", "more": 1}}, 400, "accepted: an object with problem"),
        ({"json": [1]}, 400, "accepted: an object with problem"),
        ({"data": b"{", "headers": {"content-type": "application/json"}}, 400, "is not JSON"),
        ({"data": b"[" * 4000, "headers": {"content-type": "application/json"}}, 400, "nested more than"),
        ({"json": {"problem": "1" * 5000}}, 413, "at most 4,096 bytes"),
        ({"data": iter([b'{"problem": "', b"1" * 5000]), "headers": {"content-type": "application/json"}}, 413, "at"),
        ({"data": '{"problem": "1"}'}, 415, "application/json"),
    ],
)
def test_what_is_no_request_is_refused(url: str, how: dict[str, Any], status: int, said: str) -> None:
    answer = requests.post(f"{url}/predict", timeout=60, **how)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_token_is_asked_for_and_only_health_is_open(capfd: pytest.CaptureFixture[str]) -> None:
    program = Slow()
    program.go.set()
    with listening(Server(Around(program), Limits(), TOKEN)) as url:  # type: ignore[arg-type]
        for path in ("/predict", "/v1/chat/completions", "/reload"):
            assert requests.post(url + path, json={"problem": "1"}, timeout=60).status_code == 401
        for given in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \xe9"):
            assert ask(url, Authorization=given.encode("latin-1")).status_code == 401  # type: ignore[arg-type]
        assert requests.get(f"{url}/v1/models", timeout=60).status_code == 401
        assert requests.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
        assert ask(url, "my secret", Authorization=f"Bearer {TOKEN}").json()["outputs"] == {"answer": "my secret"}
        full = requests.get(f"{url}/health", headers={"Authorization": f"bearer {TOKEN}"}, timeout=60).json()
        assert (full["study"], full["running"], full["waiting"]) == ("slow", 0, 0)
        assert ask(url, "bug", Authorization=f"Bearer {TOKEN}").json()["error"]["message"].endswith("ZeroDivisionError")
        assert ask(url, "broken", Authorization=f"Bearer {TOKEN}").status_code == 503
    said = "".join(capfd.readouterr())
    assert "secret" not in said
    assert TOKEN not in said


def test_too_many_are_told_when_to_come_again_and_the_others_are_answered() -> None:
    program = Slow()
    with listening(Server(Around(program), Limits(concurrent=2, queue=3))) as url:  # type: ignore[arg-type]
        with ThreadPoolExecutor(5) as threads:
            asked = [threads.submit(ask, url, str(n)) for n in range(5)]
            until(lambda: requests.get(f"{url}/health", timeout=60).json().get("waiting") == 3)
            refused = ask(url, "one more")
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            program.go.set()
            assert [a.result().json()["outputs"]["answer"] for a in asked] == list("01234")
        assert program.entered == 5
        assert ask(url, "later").status_code == 200


def test_a_request_out_of_time_keeps_its_place_until_it_is_done() -> None:
    program = Slow()
    with listening(Server(Around(program), Limits(concurrent=1, queue=1, seconds=0.3))) as url:  # type: ignore[arg-type]
        assert ask(url).status_code == 504
        assert requests.get(f"{url}/health", timeout=60).json()["running"] == 1
        assert ask(url).status_code == 504, "it waited"
        program.go.set()
        until(lambda: requests.get(f"{url}/health", timeout=60).json()["running"] == 0)
        assert ask(url).status_code == 200


def test_reload_waits_for_those_inside_and_keeps_those_that_come() -> None:
    old, new = Slow(), Slow()
    new.go.set()
    new.answer = lambda inputs: Answered({"answer": "new"}, 1, 1)  # type: ignore[method-assign]
    around = Around(old)
    with listening(Server(around, Limits())) as url, ThreadPoolExecutor(8) as threads:  # type: ignore[arg-type]
        inside = [threads.submit(ask, url, "old") for _ in range(2)]
        assert all(old.inside.acquire(timeout=60) for _ in inside)
        around.next = new
        reload = threads.submit(requests.post, f"{url}/reload", timeout=100)
        came: list[Any] = []

        def one_waits() -> bool:  # those that came before the reload are inside the old one
            came.append(threads.submit(ask, url, "old")) if len(came) < 4 else None
            return requests.get(f"{url}/health", timeout=60).json()["waiting"] > 0

        until(one_waits)
        old.go.set()
        assert reload.result().status_code == 200
        assert [a.result().json()["outputs"]["answer"] for a in inside] == ["old", "old"]
        assert {a.result().status_code for a in came} == {200}
        assert came[-1].result().json()["outputs"]["answer"] == "new"
        around.next = None
        refused = requests.post(f"{url}/reload", timeout=60)
        assert (refused.status_code, ask(url).json()["outputs"]["answer"]) == (409, "new")


def test_the_folder_is_read_again_while_requests_come(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    running = Running(folder)
    before = outcome(running.program, {"problem": "3 + 4 * 2"})
    with listening(Server(running, Limits())) as url, ThreadPoolExecutor(4) as threads:
        ended = threading.Event()

        def loop() -> list[requests.Response]:
            made = [ask(url, "3 + 4 * 2")]
            while not ended.is_set():
                made.append(ask(url, "3 + 4 * 2"))
            return made

        asking = [threads.submit(loop) for _ in range(3)]
        for _ in range(3):
            for candidate in (SHORT, CANDIDATE):
                write_bundle(tmp_path / "next", candidate=candidate)
                folder.rename(tmp_path / "gone")
                (tmp_path / "next").rename(folder)
                assert requests.post(f"{url}/reload", timeout=100).json()["candidate"] == candidate.digest
                for file in (tmp_path / "gone").iterdir():
                    file.unlink()
                (tmp_path / "gone").rmdir()
        (folder / "program.json").write_text("{}")
        assert requests.post(f"{url}/reload", timeout=60).status_code == 409
        ended.set()
        answers = [a for thread in asking for a in thread.result()]
        after = ask(url, "3 + 4 * 2").json().get("outputs")
    assert {a.status_code for a in answers} <= {200, 422}
    assert (running.reloads, after) == (6, before)


def test_weights_that_do_not_fit_are_refused_and_the_ones_before_stay(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from colever.ship.layout import WeightsReference
    from colever.ship.weights import digest_at
    from colever.types import Weights

    running = Running(write_bundle(tmp_path / "bundle"))
    before = outcome(running.program, {"problem": "3 + 4 * 2"})
    (tmp_path / "bundle" / "weights").mkdir()
    save_file({"a": torch.zeros(2)}, str(tmp_path / "bundle" / "weights" / "model.safetensors"))
    digest = digest_at(tmp_path / "bundle" / "weights", "full")
    candidate = replace(CANDIDATE, weights=Weights("full", "weights", digest))
    reference = WeightsReference(kind="full", path="weights", digest=digest)
    write_bundle(tmp_path / "bundle", candidate=candidate, weights=reference)
    with pytest.raises(StoreError, match="does not fit the model"):
        running.put(running.read())
    assert (running.broken, running.reloads) == ("", 0)
    assert outcome(running.program, {"problem": "3 + 4 * 2"}) == before


def test_the_gate_lets_a_place_go_on_where_its_waiter_has_gone() -> None:
    async def scene() -> None:
        gate = Gate(Limits(concurrent=1, queue=2))
        since = await gate.enter()
        first, second = asyncio.ensure_future(gate.enter()), asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await gate.enter()
        first.cancel()
        await asyncio.sleep(0)
        assert gate.waiting == 1
        gate.leave(since)
        second.cancel()  # in the moment in which it is let in
        await asyncio.gather(first, second, return_exceptions=True)
        assert (gate.running, gate.waiting) == (0, 0)
        async with gate.emptied():
            waits = asyncio.ensure_future(gate.enter())
            await asyncio.sleep(0)
            assert gate.waiting == 1
        gate.leave(await waits)
        assert gate.running == 0

    asyncio.run(scene())


def test_where_others_can_reach_it_a_token_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLEVER_TOKEN", raising=False)
    assert all(map(is_local, ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]")))
    for host in ("0.0.0.0", "10.0.0.1", "::", "a.b", ""):
        with pytest.raises(UsageError, match="set a token"):
            serve(tmp_path, host=host)
    for token in ("short", "with a line\nin it, which is long", "é" * 20):
        with pytest.raises(UsageError, match="16 or more printable"):
            serve(tmp_path, host="127.0.0.1", token=token)


def test_another_name_for_this_machine_is_refused() -> None:
    with listening(Server(Around(Slow()), Limits()), ["127.0.0.1"]) as url:  # type: ignore[arg-type]
        assert requests.get(f"{url}/health", timeout=60).status_code == 200
        assert requests.get(f"{url}/health", headers={"Host": "evil.example"}, timeout=60).status_code == 400


def test_chat_feeds_one_input_or_json_of_several() -> None:
    def user(content: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "old"}, {"role": "user", "content": content}]}

    assert inputs_of(user("hi"), ["question"]) == {"question": "hi"}
    assert inputs_of(user([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]), ["q"]) == {"q": "hi"}
    assert inputs_of(user('{"a": 1, "b": [2]}'), ["a", "b"]) == {"a": 1, "b": [2]}
    for body in ({}, {"messages": "hi"}, {"messages": []}, {"messages": [1]}, user(1), user([{"type": "image_url"}]),
                 {**user("hi"), "n": 2}, []):  # fmt: skip
        with pytest.raises(UsageError):
            inputs_of(body, ["question"])
    for text in ("hi", '{"a": 1}', '{"a": 1, "b": 2, "c": 3}'):
        with pytest.raises(UsageError):
            inputs_of(user(text), ["a", "b"])
    assert content_of({"answer": 3}) == "3"
    assert json.loads(content_of({"a": "x", "b": 2})) == {"a": "x", "b": 2}
    assert content_of({"a": "x", "b": 2}, "a") == "x"


def test_the_command_serves_until_it_is_ended_and_a_hang_up_reads_the_folder_again(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "colever"), "serve", str(folder), "--port", str(port)]
    environment = {**os.environ, "COLEVER_TOKEN": TOKEN}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    bearer, url = {"Authorization": f"Bearer {TOKEN}"}, f"http://127.0.0.1:{port}"

    def health() -> dict[str, Any]:
        try:
            return requests.get(f"{url}/health", headers=bearer, timeout=60).json()
        except requests.ConnectionError:
            assert process.poll() is None
            return {}

    try:
        deadline = time.monotonic() + 120
        while health().get("status") != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert ask(url).status_code == 401
        assert ask(url, **bearer).status_code in (200, 422)
        write_bundle(folder, candidate=SHORT)
        process.send_signal(signal.SIGHUP)
        until(lambda: health()["reloads"] == 1)
        assert health()["candidate"] == SHORT.digest
        (folder / "manifest.json").unlink()
        process.send_signal(signal.SIGHUP)
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "reads it again" in said
    assert TOKEN not in said
