"""A second task for the hand-written engine, as a file: what a study on another task looks at elsewhere."""

from __future__ import annotations

from dataclasses import replace

from toy import toy_task

task = replace(toy_task(), name="other", gold=None)
