"""What one update holds of parameters, gradients and optimizer state: of the whole model, and of this process's share.

torchrun --standalone --nproc_per_node 2 shares.py CHECKPOINT
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.optimizers.processes import Team
from colever.optimizers.sharding import local, shared_out
from colever.optimizers.trainable import trainable
from colever.types import Weights


def held(model: Any) -> int:
    """Bytes behind one update of ``model`` on any tokens."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(8)[None]).logits.float().log_softmax(-1).square().sum().backward()
    optimizer.step()
    states = [x for state in optimizer.state.values() for x in state.values() if x.dim()]
    tensors = [*model.parameters(), *(p.grad for p in trained), *states]
    storages = [local(x.detach()).untyped_storage() for x in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())  # gradients of a block lie in one


def main() -> None:
    engine = open_engine(sys.argv[1])
    team = Team.joined("cpu")
    for peft in ("none", "lora"):
        with trainable(engine, Weights(), WeightSettings(peft=peft), 0) as model:
            whole = held(model)
            model.zero_grad()
            with shared_out(model, "fsdp") as shards:
                assert shards is not None
                left = sum(p.untyped_storage().nbytes() for p in model.parameters())
                found = {"peft": peft, "whole": whole, "share": held(shards.twin), "left": left}
        lines = team.gather(json.dumps(found))
        if team.main:
            print("\n".join(lines), flush=True)
        engine.load(Weights())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
