"""The report as one HTML page: every number is the report's, nothing is loaded, nothing from data is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_study import around, make_flips, make_report, no_gold_report, unfinished_report

from colever.errors import StoreError
from colever.reported import Flips, PromptRound, StudyReport
from colever.shown import write_page
from colever.tracking.page import IDS_SHOWN, to_html
from colever.tracking.report import footnotes, verdict
from colever.tracking.tables import criteria, tables
from colever.types import PredictorPrompt

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&\"{{ 7 * 7 }}</style></svg>"
VOID = {"meta", "input", "br"}
REPORTS = {"finished": make_report, "unfinished": unfinished_report, "no gold": no_gold_report}


class Page(HTMLParser):
    """What a browser would see: text by element, the elements with their attributes, and whether they nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        data = data.replace("\u00a0", " ")
        if "style" not in self._open:
            self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_the_page_has_the_verdict_every_row_and_every_footnote_of_the_terminal(make) -> None:
    report = make()
    page = Page(to_html(report))
    assert verdict(report) in page.text
    for line in footnotes(report):
        assert line in page.text
    for table in tables(report).values():
        assert table.title in page.text
        for row in [*table.rows, *table.foot]:
            assert list(row.cells) in page.rows, table.title


def test_the_parts_come_in_the_order_of_the_question() -> None:
    text = Page(to_html(make_report())).text
    parts = [
        "arithmetic: 62.1 % → 94.3 % gold", "Arms on test", "From base to both levers", "The four arms",
        "Score against cost",
        "Which criteria moved", "What each level cost", "The winner's prompts", "The winner's path", "Every trial",
        "Watched split: longer chains", "Examples that flipped", "conditional on this one training run",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_figures_say_their_numbers() -> None:
    report = make_report()
    page = Page(to_html(report))
    labels = [svg["aria-label"] for svg in page.of("svg")]
    assert len(labels) == 7
    assert labels[0] == (
        "gold on test: base 62.1 %; prompt lever +10.3 [8.1, 12.6]; weight lever +21.9 [19.2, 24.5]; "
        "interaction +2.7 [-1.2, 6.6] unresolved; both levers 94.3 %"
    )
    assert "both levers 94.3 % [92.2, 96.4]" in labels[1]
    assert [label.split(" against ")[1].split(":")[0] for label in labels[2:6]] == [
        "rollouts",
        "computed TFLOPs",
        "minutes",
        "million tokens",
    ]
    table = criteria(report)
    assert table is not None
    for row in table.rows:
        assert f"{row.cells[0]}: base {row.cells[1]}, prompt only {row.cells[2]}" in labels[6]


@pytest.mark.parametrize(
    ("base", "prompt", "weights", "both"),
    [(0.9, 0.1, 0.1, 0.9), (0.5, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0), (1.0, 0.3, 0.9, 0.2)],
)
def test_no_figure_leaves_its_frame(base: float, prompt: float, weights: float, both: float) -> None:
    report = make_report()
    values = {"base": base, "prompt": prompt, "weights": weights, "both": both}
    table = {name: replace(report.table[name], gold=around(v), by_criterion={"c": v}) for name, v in values.items()}
    effects = {
        "prompt": around((prompt - base + both - weights) / 2),
        "weights": around((weights - base + both - prompt) / 2),
        "interaction": around(both - prompt - weights + base),
    }
    arms = [replace(arm, curve=[(cost, both) for cost, _ in arm.curve]) for arm in report.arms]
    for elements in figures(to_html(replace(report, table=table, effects=effects, arms=arms))):
        _, _, width, height = map(float, elements[0][1]["viewbox"].split())
        for tag, attributes in elements[1:]:
            for name, limit in {"x": width, "x1": width, "x2": width, "cx": width, "y": height, "y1": height,
                                "y2": height, "cy": height}.items():  # fmt: skip
                assert -8 <= float(attributes.get(name, 0)) <= limit + 8, (tag, attributes)


def figures(html: str) -> list[list[tuple[str, dict[str, str]]]]:
    """The elements of each SVG, itself first."""
    found: list[list[tuple[str, dict[str, str]]]] = []
    for tag, attributes in Page(html).elements:
        if tag == "svg":
            found.append([])
        if found and tag in ("svg", "rect", "line", "circle", "text"):
            found[-1].append((tag, attributes))
    return found


def test_nothing_is_loaded_from_anywhere() -> None:
    for make in REPORTS.values():
        html = to_html(make())
        page = Page(html)
        assert not re.search(r"https?:|//[a-z]|url\(|@import", html)
        assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
        assert not any(name in ("src", "href", "style") for _, attributes in page.elements for name in attributes)
        assert "default-src 'none'" in next(m["content"] for m in page.of("meta") if "http-equiv" in m)
        assert len(html.encode()) < 200_000


def hostile(report: StudyReport) -> StudyReport:
    """Every text that comes from a task, a model or a file."""
    last = report.path[-1]
    kept = replace(last.child, prompts={HOSTILE: PredictorPrompt(HOSTILE, ({HOSTILE: HOSTILE},))})
    before = replace(last.before, completion_tokens={HOSTILE: 1.0})
    path = (replace(report.path[0], before=before), replace(last, child=kept))
    table = {name: replace(cell, by_criterion={HOSTILE: 0.5}) for name, cell in report.table.items()}
    pulled = replace(report.path[0], child=kept, notes={"way": HOSTILE, "chosen": HOSTILE})
    return replace(
        report, prompt_rounds=[PromptRound(HOSTILE, pulled, None)],
        task=HOSTILE, model=HOSTILE, study=HOSTILE, path=path, table=table, watched={HOSTILE: report.table},
        notes=[HOSTILE], flips=Flips(2, (HOSTILE,), (), 1.0, {HOSTILE: {HOSTILE: HOSTILE}}),
    )  # fmt: skip


def test_what_comes_from_data_is_text_never_markup() -> None:
    shown = replace(make_flips(), fields={"test-7": {"problem": "1"}})
    tame, wild = (Page(to_html(r)) for r in (replace(make_report(), flips=shown), hostile(make_report())))
    assert {tag for tag, _ in wild.elements} <= {tag for tag, _ in tame.elements}
    assert not any(name.startswith("on") for _, attributes in wild.elements for name in attributes)
    assert wild.text.count(HOSTILE) >= 12
    assert any(HOSTILE in svg["aria-label"] for svg in wild.of("svg"))


def test_an_unfinished_study_says_so_on_top_and_shows_dev_only() -> None:
    report = unfinished_report()
    page = Page(to_html(report))
    assert page.text.index("This study is not finished") < page.text.index(verdict(report))
    for absent in ("Arms on test", "The four arms", "Which criteria moved", "Examples that flipped", "Shapley"):
        assert absent not in page.text
    assert len(page.of("svg")) == 4, "the curves alone"


def test_without_all_arms_no_share_is_drawn_and_the_page_says_why() -> None:
    page = Page(to_html(no_gold_report()))
    assert "Shares need all four arms" in page.text
    assert "not pulled" in page.text
    assert "Gold" not in page.text


def test_a_study_without_a_trial_has_a_page() -> None:
    report = replace(unfinished_report(), arms=[], path=(), winner="", thresholds=[])
    assert "no trial of study arithmetic-1 has ended yet" in Page(to_html(report)).text


def test_flips_are_counted_listed_and_shown_where_they_are_at_hand() -> None:
    report = make_report()
    text = " ".join(Page(to_html(report)).text.split())
    assert "Of 512 test examples, 167 went from wrong to right and 2 from right to wrong" in text
    assert "two-sided: p < 0.001" in text
    assert "3 + 4 * 2" not in text
    flips = make_flips()
    shown = replace(flips, fields={flips.gained[0]: {"problem": "3 + 4 * 2", "answer": 11}})
    text = " ".join(Page(to_html(replace(report, flips=shown))).text.split())
    assert "problem3 + 4 * 2answer11" in text
    many = Flips(9000, tuple(f"id{i}" for i in range(IDS_SHOWN + 7)), (), 0.04)
    text = " ".join(Page(to_html(replace(report, flips=many))).text.split())
    assert f"id{IDS_SHOWN - 1} and 7 more" in text
    assert f"id{IDS_SHOWN}" not in text
    assert "p = 0.040" in text


def test_what_changed_in_the_prompts_is_there_folded() -> None:
    page = Page(to_html(make_report()))
    text = " ".join(page.text.split())
    assert (
        "What changed from base to the winner --- work (base) +++ work (winner) @@ -1 +1,6 @@ -Solve the problem. "
        "+Work from left to right (work)."
    ) in text
    for title in ("0.1: prompt lever, way fewshot: 4 demos, labelled; dev score 64.8 % → 76.2 %, kept", "3.2: prompt"):
        assert title in text
    assert not [attributes for attributes in page.of("details") if "open" in attributes][:-2], "but for ids of flips"
    kinds = {attributes.get("class") for attributes in page.of("span")}
    assert {"head", "place", "add", "cut"} <= kinds


def test_a_very_long_search_has_a_page_of_bounded_size() -> None:
    report = make_report()
    first = report.prompt_rounds[0]
    demos = tuple({"q": f"question {i}", "a": "x" * 200} for i in range(400))
    child = replace(first.record.child, prompts={"work": PredictorPrompt("Go.", demos, 4)})
    rounds = [replace(first, name=f"{i}.1", record=replace(first.record, child=child)) for i in range(200)]
    html = to_html(replace(report, prompt_rounds=rounds))
    text = Page(html).text
    assert len(re.findall(r"… and 1,[0-9]{3} lines more: colever show prints them", text)) == 30
    assert "And 170 more rounds." in text
    assert len(html.encode()) < 400_000


def test_nearest_demos_are_told() -> None:
    report = make_report()
    last = report.path[-1]
    child = replace(last.child, prompts={"work": PredictorPrompt("Go.", ({"q": "1", "a": "2"},) * 3, 2)})
    text = " ".join(Page(to_html(replace(report, path=(*report.path[:-1], replace(last, child=child))))).text.split())
    assert "Demos of work (3, nearest 2)" in text
    assert "Each call shows the 2 of them whose inputs are most like its own." in text


def test_it_can_be_read_aloud() -> None:
    page = Page(to_html(make_report()))
    assert all(head.get("scope") in ("col", "row") for head in page.of("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert named <= set(ids)
    assert {label["for"] for label in page.of("label")} <= set(ids)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "report.html"
    odd = replace(make_report(), notes=["half a pair: \ud800"])
    write_page(odd, file)
    assert "half a pair: ?" in file.read_text(encoding="utf-8")
    write_page(make_report(), file)
    assert file.read_text(encoding="utf-8") == to_html(make_report())
    with pytest.raises(StoreError, match=r"report\.html/page\.html"):
        write_page(make_report(), file / "page.html")
    with pytest.raises(StoreError, match="folder"):
        write_page(make_report(), file.parent)
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
