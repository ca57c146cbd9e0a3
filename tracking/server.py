"""An MLflow server that several machines share: whether it answers, how long it is waited for, what was made twice.

MLflow's own client repeats a request that got no answer. What it repeats may have been done: a run that it created
twice is looked for and its double deleted. Knows requests; knows nothing of studies.
"""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from colever.errors import StoreError
from colever.tracking.view import quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# After 0, 2, 4, … 64, 120 seconds: four minutes in all, unless the user has set these.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "8", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
QUIET = 60.0  # seconds without a repeated request, after which the next one is said again
_log = logging.getLogger(__name__)


class Repeats(logging.Filter):
    """In the place of one line for each repeated request, one for all."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.startswith("Retrying") or "/mlflow" not in text:
            return True
        now, before = time.monotonic(), self._last
        self._last = now
        if not before or now - before > QUIET:
            _log.warning("the MLflow server does not answer: it is waited for up to four minutes")
        return False


repeats = Repeats()


def await_server(uri: str, wait: float) -> None:
    """Until it answers anything. Raises StoreError after ``wait`` seconds."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").addFilter(repeats)  # the same one: it is there once
    deadline = time.monotonic() + wait
    while (reason := _silence(uri)) is not None:
        if time.monotonic() >= deadline:
            raise StoreError(
                f"the MLflow server {uri} does not answer ({reason}). Finished rounds are stored: start it, or name "
                "another with --mlflow, and run the same command again"
            )
        time.sleep(0.5)


def create_once(client: MlflowClient, experiment: str, create: Callable[[], Run], tags: Mapping[str, str]) -> Run:
    """The run that ``create`` makes with these tags: where its request was repeated, the other one is deleted."""
    made = create()
    query = " and ".join(f"tags.`{name}` = {quoted(value)}" for name, value in tags.items() if len(value) < 500)
    twins = [r for r in client.search_runs([experiment], query) if r.info.start_time == made.info.start_time]
    for twin in twins:
        if twin.info.run_id != made.info.run_id:
            client.delete_run(twin.info.run_id)
    return made


def _silence(uri: str) -> str | None:
    """Why it does not answer; None where it does, with whatever status."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=10):
            return None
    except urllib.error.HTTPError:
        return None
    except (urllib.error.URLError, OSError) as error:
        return str(getattr(error, "reason", error))
