"""The tables of prompt rounds and of what prompts cost every call. Reads a StudyReport only."""

from __future__ import annotations

from colever.reported import Cell, Estimate, PromptRound, StudyReport
from colever.tracking.report import ARMS, best_cell, effect_text, is_winner, number, share
from colever.tracking.table import TEXT, Row, Table


def prompt_tokens(report: StudyReport) -> Table | None:
    """Mean prompt tokens of a call by predictor and of a whole rollout, on test, by arm; None where none were counted.

    What a longer prompt costs is paid by every later call; the factor is over base.
    """
    cells = {ARMS.get(name, name): cell for name, cell in report.table.items() if cell.prompt_tokens}
    best = best_cell(report)
    if best.prompt_tokens and not any(is_winner(report, cell) for cell in report.table.values()):
        cells["winner"] = best
    if not cells:
        return None
    predictors = dict.fromkeys(name for cell in cells.values() for name in cell.prompt_tokens)
    rows = [Row([name, *(number(cell.prompt_tokens.get(name)) for cell in cells.values())]) for name in predictors]
    foot = [
        Row(["a rollout", *(number(cell.rollout_prompt_tokens or None) for cell in cells.values())]),
        Row(["over base", *(_factor(cell, report.table["base"]) for cell in cells.values())]),
    ]
    return Table("Prompt tokens of a call, and of a rollout, on test", ["predictor", *cells], rows, foot)


def prompt_rounds(report: StudyReport) -> Table:
    """What train promised of each round's child, and what dev gave."""
    rows = []
    for pulled in report.prompt_rounds:
        record, notes = pulled.record, pulled.notes
        drop = "–" if notes.train is None else f"{100 * (notes.train - record.after.score):+.1f}"
        kept = "yes" if record.accepted else "no"
        scores = [share(notes.train), share(record.after.score), drop]
        way = notes.way.rpartition(":")[2] or "–"  # of a user's own, module:name, the name
        cells = [pulled.name, way, *scores, kept, effect_text(pulled.change)]
        rows.append(Row(cells, "" if record.accepted else "faint"))
    columns = ["round", "way", "train", "dev", "drop", "kept", "gain on dev [95 %]"]
    title = "Prompt rounds: the train score that chose the child, and its dev score"
    return Table(title, columns, rows, left=frozenset(TEXT | {"way"}), wrap=frozenset({columns[-1]}))


def headroom(report: StudyReport) -> Table | None:
    """What the headroom tests said, and took; None where no round had one."""
    if not any(pulled.notes.headroom for pulled in report.prompt_rounds):
        return None
    columns = ["round", "verdict", "gain on train [95 %]", "tried", "examples", "rollouts"]
    rows = [Row([pulled.name, *_headroom(pulled)]) for pulled in report.prompt_rounds]
    title = "Headroom: could any prompt be better? Asked before a round's search"
    return Table(title, columns, rows, left=frozenset(TEXT | {"verdict"}), wrap=frozenset({columns[2]}))


def _headroom(pulled: PromptRound) -> list[str]:
    room = pulled.notes.headroom
    if room is None:
        return ["–"] * 5
    gain = effect_text(Estimate(room.gain, room.low, room.high, resolved=not room.low <= 0 <= room.high))
    return [room.verdict, gain, str(room.candidates), str(room.examples), f"{room.rollouts:,}"]


def _factor(cell: Cell, base: Cell) -> str:
    read = base.rollout_prompt_tokens
    return f"× {cell.rollout_prompt_tokens / read:.2f}" if read and cell.rollout_prompt_tokens else "–"
