"""A served bundle: requests per second and latency, what it does with too many, and whether reload loses any.

    python benchmarks/serve.py [--clients 1,16,64] [--repeats 3] [--bundle DIR]

``colever serve`` runs in a process of its own on a bundle of the task ``arithmetic`` (its own prompts, the seed model;
or ``--bundle``); clients are threads here, each with one connection, and each asks one test problem after another. The
peer, in the same run and turn by turn, calls ``colever.load(DIR)`` in as many threads here: the same program and engine
without HTTP. Then so many clients at once on a server that takes 8, and clients that go on asking while the folder is
replaced and read again. The last line is JSON: throughput and latency (p50, p95, seconds) of the best repeat, served
over direct as the median of the repeats.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy.utils.exceptions import AdapterParseError

import colever
from colever.ship.layout import Manifest, ModelReference, TaskReference, WeightsReference
from colever.ship.written import write_manifest, write_program, written
from colever.types import PredictorPrompt

REQUESTS = {1: 24, 16: 128, 64: 256}  # of each repeat, by clients
RELOADS, ASKING = 6, 16
ANSWERED = (200, 422)  # 422: the model's answer could not be parsed

Row = dict[str, Any]
Ask = Callable[[Row], int]


@dataclass(frozen=True)
class Timed:
    """One stretch: requests per second, and the seconds that each took."""

    rate: float
    seconds: Sequence[float]

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def main() -> None:
    options = arguments()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        folder = options.bundle or write_bundle(Path(place) / "bundle", "Solve the problem.")
        program = colever.load(folder)
        rows = [dict(row.inputs()) for _, row in program.task.examples("test")]
        result: dict[str, Any] = {"task": program.task.name, "clients": {}}
        with served(folder) as port:
            for clients in options.clients:
                result["clients"][str(clients)] = compared(program, port, rows, clients, options.repeats)
        with served(folder, "--concurrent", "4", "--queue", "4") as port:
            result["overload"] = overloaded(port, rows, max(options.clients))
        if options.bundle is None:
            with served(folder) as port:
                result["reload"] = reloaded(port, rows, folder)
    print(json.dumps(result))


def compared(program: Any, port: int, rows: Sequence[Row], clients: int, repeats: int) -> dict[str, float]:
    """Served and direct by turns; prints a line."""

    def direct(row: Row) -> int:
        try:
            program.answer(row)
        except AdapterParseError:
            return 422
        return 200

    count = REQUESTS.get(clients, 4 * clients)
    asked = [rows[i % len(rows)] for i in range(count)]
    timed(direct, asked[:clients], clients)  # warm
    timed(over_http(port), asked[:clients], clients)
    pairs = [(timed(over_http(port), asked, clients), timed(direct, asked, clients)) for _ in range(repeats)]
    ratios = sorted(a.rate / b.rate for a, b in pairs)
    mine, peer = (max(side, key=lambda t: t.rate) for side in zip(*pairs, strict=True))
    print(
        f"{clients:3} clients: served {mine.rate:6.1f}/s p50 {mine.quantile(0.5):.3f} s p95 {mine.quantile(0.95):.3f} s"
        f" · direct {peer.rate:6.1f}/s p50 {peer.quantile(0.5):.3f} s p95 {peer.quantile(0.95):.3f} s"
        f" · ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )
    return {
        "per_second": round(mine.rate, 2), "p50": round(mine.quantile(0.5), 4), "p95": round(mine.quantile(0.95), 4),
        "direct_per_second": round(peer.rate, 2), "direct_p50": round(peer.quantile(0.5), 4),
        "direct_p95": round(peer.quantile(0.95), 4), "served_over_direct": round(statistics.median(ratios), 3),
    }  # fmt: skip


def overloaded(port: int, rows: Sequence[Row], clients: int) -> dict[str, Any]:
    """So many at once where 4 are answered and 4 wait: every one is answered or told when to come again."""
    seen: Counter[str] = Counter()
    together = threading.Barrier(clients)

    def one(row: Row) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.connect()
        together.wait()
        status, headers = post(connection, "/predict", row)
        told = status == 429 and headers.get("Retry-After", "").isdecimal()
        seen["answered" if status in ANSWERED else "told to come again" if told else f"status {status}"] += 1

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(one, [rows[i % len(rows)] for i in range(clients)]))
    print(f"{clients} at once on a server that takes 8: {dict(seen)}", flush=True)
    return dict(seen)


def reloaded(port: int, rows: Sequence[Row], folder: Path) -> dict[str, int]:
    """Clients that go on asking while the folder is replaced and read again: none may be lost."""
    seen: Counter[int] = Counter()
    ended = threading.Event()

    def asking(place: int) -> None:
        ask, at = over_http(port), place
        while not ended.is_set():
            seen[ask(rows[at % len(rows)])] += 1
            at += ASKING

    with ThreadPoolExecutor(ASKING) as threads:
        done = [threads.submit(asking, place) for place in range(ASKING)]
        for number in range(RELOADS):
            fresh = write_bundle(folder.with_name(f"next{number}"), f"Solve the problem. {'Now. ' * (number % 2)}")
            folder.rename(folder.with_name(f"gone{number}"))
            fresh.rename(folder)
            status, _ = post(http.client.HTTPConnection("127.0.0.1", port, timeout=120), "/reload", {})
            assert status == 200, status
        ended.set()
        for thread in done:
            thread.result()
    lost = sum(count for status, count in seen.items() if status not in ANSWERED)
    print(f"{RELOADS} reloads under {ASKING} clients: {sum(seen.values())} requests, {lost} lost", flush=True)
    return {"reloads": RELOADS, "requests": sum(seen.values()), "lost": lost}


# --- asking ------------------------------------------------------------------------------------------


def timed(ask: Ask, rows: Sequence[Row], clients: int) -> Timed:
    """All rows, by so many threads that each ask one after the other. Every one must be answered."""

    def one(row: Row) -> float:
        started = time.perf_counter()
        status = ask(row)
        assert status in ANSWERED, status
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        seconds = list(threads.map(one, rows))
    return Timed(len(rows) / (time.perf_counter() - started), seconds)


def over_http(port: int) -> Ask:
    """A connection for each thread."""
    own = threading.local()

    def ask(row: Row) -> int:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        return post(own.connection, "/predict", row)[0]

    return ask


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, http.client.HTTPMessage]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers


# --- server and bundle -------------------------------------------------------------------------------


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[int]:
    """``colever serve`` in its own process; its port, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = "import sys; sys.argv[0] = 'colever'; from colever.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", str(folder), "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "COLEVER_TOKEN": ""})
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/health")
                assert connection.getresponse().status == 200
                break
            except OSError:
                time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def write_bundle(folder: Path, instruction: str) -> Path:
    """The task's program with that instruction for its first predictor, on the seed model as it is."""
    task = colever.load_task("arithmetic")
    base = task.base_candidate()
    first = next(iter(base.prompts))
    prompts = {**base.prompts, first: PredictorPrompt(instruction)}
    candidate = colever.Candidate(prompts)
    with written(folder) as temporary:
        write_program(candidate, temporary)
        inputs = list(task.examples("train")[0][1].inputs().keys())
        manifest = Manifest(
            format="colever-bundle/1", study="benchmark", which="base", candidate=candidate.digest,
            task=TaskReference(name="arithmetic", inputs=inputs), model=ModelReference(name="seed"),
            weights=WeightsReference(), files={},
        )  # fmt: skip
        write_manifest(temporary, manifest)
    return folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bundle", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
