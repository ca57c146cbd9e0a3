"""The real UI in a real browser: four arms opened by the deep link, and a server that leaves nothing behind.

Needs Playwright and a Chromium (its own, or one on the PATH); without them the browser's test skips.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import chromium
from synthetic_study import make_report, make_rollout, make_trials

from colever.split import Split
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.tracking.ui import UiServer, start
from colever.tracking.view import fragment, study_views

if TYPE_CHECKING:
    from mlflow.entities import Run
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
STUDY = "arithmetic-seed-s0"
ARMS = ["prompt → weights #2", "weights → prompt #3", "weights #1", "prompt #0", "base"]  # best first
ROLLOUTS = [make_rollout(f"dev-{i}", total, said) for i, (total, said) in enumerate([(1.0, "11"), (0.5, "twelve")])]
PATIENCE = 120_000  # milliseconds, for a machine that does other work too


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    tracker, trials = MlflowTracker(home), make_trials(home / "weights")
    splits = [Split(name, f"digest-{name}", 96, ("problem", "answer")) for name in ("train", "dev", "test")]
    tracker.study_started(STUDY, "arithmetic", "seed", {"seed": 0, "trials": 4}, "4 trials", splits=splits)
    tracker.base_evaluated(trials[0].rounds[0].before, ROLLOUTS)
    seen: set[str] = set()
    for trial in trials:
        tracker.trial_started(trial.number, trial.schedule, trial.settings)
        for index, record in enumerate(trial.rounds):
            tracker.round_finished(trial.number, index, record, record.key in seen, ROLLOUTS)
            seen.add(record.key)
        tracker.trial_finished(trial)
    pairs = {r.example_id: (r, r) for r in ROLLOUTS}
    tracker.study_finished(replace(make_report(trials), rollouts=pairs))
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[UiServer]:
    with start(home, port=free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as opened:
        page = opened.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE)
        yield page


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def save(page: Page, name: str) -> None:
    """Keep a picture to look at where COLEVER_SCREENSHOTS names a folder."""
    if folder := os.environ.get("COLEVER_SCREENSHOTS"):
        page.wait_for_timeout(4000)
        page.screenshot(path=str(Path(folder) / f"ui-{name}.png"))


def test_deep_link_shows_the_arms_side_by_side(server: UiServer, page: Page) -> None:
    page.goto(server.url)
    page.wait_for_selector("text=1 Where each arm ends")
    page.wait_for_selector("text=test/gold")
    page.wait_for_function("document.querySelectorAll('.main-svg .bartext').length >= 20")
    save(page, "1-first-seen")
    text = page.inner_text("body")
    places = [text.index(arm) for arm in ARMS]
    assert places == sorted(places), "the best arm is listed first, the base last"
    for title in ("2 Gain per lever", "gain/prompt", "gain/weights", "3 By round and by cost", "0.94", "0.62"):
        assert title in text
    assert "does not exist" not in text, "the shared view was found"
    close_assistant(page)
    save(page, "2-arms")


def test_the_table_has_the_columns_that_compare_arms(server: UiServer, page: Page) -> None:
    page.goto("about:blank")
    page.goto(server.url.replace("&compareRunsMode=CHART", ""))
    for column in (
        "dev/gold",
        "test/gold",
        "dev/score",
        "gain/prompt",
        "gain/weights",
        "cost/rollouts",
    ):
        page.wait_for_selector(f"[role=columnheader] >> text={column}")
    page.wait_for_selector("text=0.9375")
    save(page, "3-table")


def test_the_rounds_view_is_listed_and_opens(server: UiServer, page: Page) -> None:
    page.goto("about:blank")
    page.goto(server.url)
    page.get_by_role("button", name="Views").click()
    page.wait_for_selector(f"text={STUDY}: arms")
    page.get_by_text(f"{STUDY}: rounds").click()
    page.wait_for_selector("[role=columnheader] >> text=gain")  # the menu opens a view as a table, a link as charts
    page.wait_for_selector("text=2: prompt → weights")
    save(page, "4-rounds-table")
    rounds = study_views(STUDY, "gold")[1]
    experiment = page.url.split("/experiments/")[1].split("/")[0]
    page.goto("about:blank")
    page.goto(server.url.split("#")[0] + fragment(experiment, rounds))
    page.wait_for_selector("text=1 Gain of each round")
    page.wait_for_selector("text=train/reward")
    save(page, "4-rounds")


def test_the_study_opens_with_its_verdict(server: UiServer, page: Page, home: Path) -> None:
    root, run = server.url.split("#")[0], run_of(home, "tags.kind = 'study'")
    here = f"{root}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    page.goto(here)
    page.wait_for_selector("text=94.3 % gold on test (n = 512) by prompt → weights")
    save(page, "5-study")
    page.goto(f"{here}/artifacts/figures/1-levers.png")
    page.wait_for_selector("text=4-training.png")
    page.wait_for_function("[...document.images].some(i => i.naturalWidth > 1000)")
    save(page, "6-figure")
    page.goto("about:blank")  # a view that is open keeps the artifact that it shows
    page.goto(f"{here}/artifacts/report.html")
    page.wait_for_selector("iframe.mlflow-html-iframe")  # a sandbox of its own, into which Playwright does not see
    save(page, "7-page")


def test_a_rounds_traces_are_in_its_tab_and_open_with_prompt_and_scores(
    server: UiServer, page: Page, home: Path
) -> None:
    root, run = server.url.split("#")[0], run_of(home, "tags.kind = 'round' and tags.trial = '2' and tags.round = '1'")
    page.goto("about:blank")
    page.goto(f"{root}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/traces")
    page.wait_for_selector("text=2 of 2")  # of a round that another trial pulled
    page.get_by_text("3 + 4 * 2").first.wait_for()
    save(page, "8-traces")
    page.get_by_text("3 + 4 * 2").first.click()
    page.wait_for_selector("text=check")
    page.get_by_text("work", exact=True).first.click()
    page.wait_for_selector("text=<|im_start|>user")
    save(page, "9-trace")
    page.goto("about:blank")
    page.goto(f"{root}#/experiments/{run.info.experiment_id}/traces?workflowType=machine_learning&startTimeLabel=ALL")
    page.get_by_text("3 + 4 * 2").first.wait_for()
    save(page, "10-all-traces")


def test_the_winner_is_in_the_registry_with_its_tags(server: UiServer, page: Page, home: Path) -> None:
    root, run = server.url.split("#")[0], run_of(home, "tags.kind = 'study'")
    page.goto("about:blank")
    page.goto(f"{root}#/models/arithmetic/versions/1")
    page.wait_for_selector("text=94.3 % gold on test (n = 512) by prompt → weights")
    for text in ("models:/arithmetic/1", "test_gold", "0.9430", "p,w", STUDY):
        page.get_by_text(text).first.wait_for()
    save(page, "11-version")
    page.goto("about:blank")
    page.goto(f"{root}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    for text in ("arithmetic train (digest-train)", "Registered models"):
        page.get_by_text(text).first.wait_for()


def run_of(home: Path, query: str) -> Run:
    from mlflow import MlflowClient

    from colever.tracking.store import tracking_uri

    client = MlflowClient(tracking_uri(home))
    experiment = client.get_experiment_by_name("arithmetic")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], query)
    return run


def close_assistant(page: Page) -> None:
    """MLflow opens its assistant's pane on the first visit of a browser; its cross is the pane's last button."""
    title = page.get_by_text("MLflow Assistant").first
    if title.is_visible() and (box := title.bounding_box()):
        page.mouse.click(1600 - 27, box["y"] + 8)


SERVE = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
from pathlib import Path
from colever.tracking.ui import serve
serve(Path(sys.argv[1]), port=int(sys.argv[2]), open_browser=False, announce=lambda url: print(url, flush=True))
print("ended")
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_on_a_signal_and_leaves_no_process(home: Path, sign: signal.Signals) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(home), str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/#/experiments/")
    process.send_signal(sign)
    assert process.wait(30) == 0
    assert process.stdout.read() == "ended\n"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.2)
    pytest.fail(f"something still listens on port {port}")
