"""docs/settings.md says what the config classes say."""

from __future__ import annotations

from pathlib import Path

from colever.config import (
    EngineSettings,
    GuardSettings,
    JudgeSettings,
    PromptSettings,
    ProposerSettings,
    RemoteSettings,
    SweepConfig,
    TrainingSettings,
    WeightSettings,
)
from colever.settings_page import page

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"


def test_the_page_is_what_the_settings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m colever.settings_page docs/settings.md"


def test_every_setting_is_there_with_a_line_about_it() -> None:
    groups = {
        "prompt": PromptSettings, "weights": WeightSettings, "engine": EngineSettings,
        "remote": RemoteSettings, "proposer": ProposerSettings, "guard": GuardSettings,
        "judge": JudgeSettings, "training": TrainingSettings,
    }  # fmt: skip
    names = {f"{group}.{name}": field for group, kind in groups.items() for name, field in kind.model_fields.items()}
    names |= {name: field for name, field in SweepConfig.model_fields.items() if name not in groups}
    for name, field in names.items():
        assert field.description, f"{name}: give it a description"
        assert "\n" not in field.description
        assert f"| `{name}` | " in page()
    assert "| `weights.group_size` | `8` | a whole number ≥ 2 | rollouts of an example" in page()
    assert "| `prompt.threshold` | `0.9` | a number ≥ 0, ≤ 1 | " in page()
    assert "| `weights.peft` | `auto` | `auto`, `none`, `lora`" in page()
    assert "| `task` | is needed | text | " in page()
