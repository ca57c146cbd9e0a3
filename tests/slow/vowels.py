"""The small task of ``test_weight_lever``, as a file that several processes can load."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import dspy

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_weight_lever import make_task

dev, test = ([dspy.Example(word=f"{split}{i}").with_inputs("word") for i in range(4)] for split in ("d", "t"))
task = replace(make_task(), dev=dev, test=test)
