"""The saved views that MLflow's UI opens a study with, and the links that open them.

MLflow's run table shows no metric until one is chosen, and its experiment page opens elsewhere; a view shipped as
an experiment tag mends both. The tag's format is MLflow's own and undocumented (seen in 3.17): a UI that does not
know it shows its default page, so nothing here can fail a study. Knows metric keys; knows no runs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TAG = "mlflow.sharedViewState."
_NAMESPACE = uuid.UUID("6f1c9a52-5d0e-4a0e-9f4b-0c6c6f0c1e7e")


@dataclass(frozen=True)
class View:
    """One saved view: its name in the UI's list, the runs it shows, its columns and its sections of charts."""

    name: str
    search: str
    order_by: str
    ascending: bool
    columns: Sequence[str]
    sections: Sequence[tuple[str, Sequence[dict[str, Any]]]]

    @property
    def identifier(self) -> str:
        return uuid.uuid5(_NAMESPACE, self.name).hex


def study_views(study: str, measure: str) -> list[View]:
    """The views of a study: its arms side by side (first), and its rounds. ``measure`` is gold or score.

    A UI sorts sections by name, so that each begins with its number; gains are in rubric score on dev.
    """
    here = f"tags.`study` = {quoted(study)}"
    other = "score" if measure == "gold" else "format"
    main = f"dev/{measure}"
    # The table sorts them by name, and in a window of 1280 pixels shows six.
    shown = (main, f"test/{measure}", f"dev/{other}", "gain/prompt", "gain/weights", "cost/rollouts")
    arms = View(
        name=f"{study}: arms",
        search=f"{here} and tags.`arm` = 'yes'",
        order_by=f"metrics.`{main}`",
        ascending=False,
        columns=[f"metrics.`{key}`" for key in shown],
        sections=[
            ("1 Where each arm ends", [_bar(main), _bar(f"test/{measure}")]),
            ("2 Gain per lever", [_bar("gain/prompt"), _bar("gain/weights")]),
            ("3 By round and by cost", [_line(main, "step"), _line(main, "cost/rollouts")]),
            ("4 Cost", [_bar("cost/rollouts"), _bar("cost/seconds")]),
            ("5 Settings", [_parallel(["schedule", "lr", "updates", "demos"], [main])]),
        ],
    )
    rounds = View(
        name=f"{study}: rounds",
        search=f"{here} and tags.`kind` = 'round' and tags.`reused` = 'no'",
        order_by="metrics.`gain`",  # by anything but time: sorted by time, the UI shows trials instead
        ascending=False,
        columns=[
            *(f"tags.`{key}`" for key in ("lever", "after", "accepted")),
            *(f"metrics.`{key}`" for key in (main, "gain", "cost/rollouts", "cost/seconds")),
        ],
        sections=[
            ("1 Gain of each round", [_bar("gain"), _bar(main)]),
            ("2 Training", [_line("train/reward", "step"), _line("train/entropy", "step")]),
        ],
    )
    return [arms, rounds]


def tags_of(view: View) -> dict[str, str]:
    """Two experiment tags: the entry in the UI's list of views, and the bare state that a link opens."""
    state = json.dumps(_state(view), separators=(",", ":"))
    listed = {"name": view.name, "createdAt": 0, "state": state}
    return {_TAG + view.identifier + "-view": json.dumps(listed), _TAG + view.identifier: state}


def fragment(experiment_id: str, view: View) -> str:
    """The part of the address after the server's own, such as ``#/experiments/1/runs?…``."""
    return (
        f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&viewStateShareKey={view.identifier}&compareRunsMode=CHART"
    )


def quoted(value: str) -> str:
    """A string for MLflow's search language, which has no escape."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _state(view: View) -> dict[str, Any]:
    sections, charts = [], []
    for name, members in view.sections:
        section = _uuid(view, name)
        sections.append({"uuid": section, "name": name, "display": True, "isReordered": True, "columns": 2})
        for chart in members:
            shared = {"uuid": _uuid(view, name, json.dumps(chart)), "metricSectionId": section}
            charts.append({**chart, **shared, "isGenerated": False, "deleted": False, "runsCountToCompare": 20})
    return {
        "searchFilter": view.search,
        "orderByKey": view.order_by,
        "orderByAsc": view.ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(view.columns),
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "groupBy": None,
    }


def _uuid(view: View, *parts: str) -> str:
    return uuid.uuid5(_NAMESPACE, "/".join((view.name, *parts))).hex


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "dataAccessKey": metric}


def _line(metric: str, x: str) -> dict[str, Any]:
    """A metric by step, or against another metric that was logged at the same steps."""
    axis = {"xAxisKey": "step"} if x == "step" else {"xAxisKey": "metric", "selectedXAxisMetricKey": x}
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "selectedYAxisMetricKey": "metric",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "displayPoints": True,
        **axis,
    }


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    return {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": list(metrics), "showAllRuns": False}
