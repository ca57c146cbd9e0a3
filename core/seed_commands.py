"""``colever seed``: building the seed model, and what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from colever import console
from colever.errors import UsageError
from colever.studies import interruptible

seed_app = typer.Typer(
    no_args_is_help=True,
    help="The seed model: a small real checkpoint that needs no download.",
    epilog="Example: colever seed info",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]


@seed_app.command("build", epilog="Example: colever seed build --out my-seed --steps 2000")
def seed_build(
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: the installed package's own.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Train anew where a finished model is.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps.")] = None,
    seed: SeedOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train the seed model from scratch; the same command continues after an interrupt."""
    with interruptible("the same command continues"):
        from colever.engines.lm import seed_path
        from colever.engines.seed.build import Recipe, build

        recipe = Recipe() if seed is None else Recipe(seed=seed)
        recipe = recipe if steps is None else recipe.scaled(steps)
        folder = out or seed_path()
        with console.progress() as drawn:
            card = build(
                folder, recipe, device=device, replace_finished=replace,
                on_step=lambda n, total, loss, rate: drawn.update(n, total, f"loss {loss:.3f}, {rate:,.0f} tokens/s"),
            )  # fmt: skip
    if as_json:
        console.show_json({"path": str(folder), **card})
        return
    console.say(f"seed model in {folder}: {card['parameters']:,} parameters, loss {card['loss']}, {card['seconds']} s")


@seed_app.command("info", epilog="Example: colever seed info --json")
def seed_info(as_json: JsonOption = False) -> None:
    """Say where the seed model lies and how it was made."""
    from colever.engines.lm import seed_path
    from colever.types import read_json

    path = seed_path()
    if not (path / "config.json").is_file():
        raise UsageError(f"the seed model is not there ({path}); build it with: colever seed build")
    card = path / "card.json"
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    info = {"path": str(path), "bytes": size, **(read_json(card) if card.is_file() else {})}
    if as_json:
        console.show_json(info)
        return
    for key, value in info.items():
        console.show(f"{key:12} {console.pairs(value) if isinstance(value, dict) else value}")
