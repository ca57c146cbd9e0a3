"""What an API's answer costs: tokens as it reports them, at given prices or at those of litellm's list.

The list is the copy that comes with DSPy: nothing is fetched. Knows prices; asks no model.
"""

from __future__ import annotations

import logging
import os

from dspy import lm15

from colever.config import RemoteSettings
from colever.engines.remote_model import RemoteModel
from colever.types import Cost

MILLION = 1e6
_LOCAL_LIST = "LITELLM_LOCAL_MODEL_COST_MAP"
logger = logging.getLogger(__name__)


class Price:
    """Of one model's answers. What is not known counts as 0 dollars, and one warning says so."""

    def __init__(self, model: RemoteModel, settings: RemoteSettings) -> None:
        os.environ.setdefault(_LOCAL_LIST, "true")  # read by DSPy and litellm: else they fetch a newer one
        self._model, self._given = model, (settings.input_price, settings.output_price)
        self._warned: set[str] = set()

    def cost(self, request: lm15.Request, response: lm15.Response) -> Cost:
        """Prompt and completion tokens, and dollars."""
        read, wrote = response.usage.input_tokens, response.usage.output_tokens
        if read is None or wrote is None:
            self._warn("usage", f"{self._model} does not say how many tokens it counts: tokens and dollars count as 0")
            return Cost()
        return Cost(prompt_tokens=read, completion_tokens=wrote, dollars=self._dollars(request, response, read, wrote))

    def _dollars(self, request: lm15.Request, response: lm15.Response, read: int, wrote: int) -> float:
        if self._given != (None, None):
            dear_in, dear_out = (price or 0.0 for price in self._given)
            return (read * dear_in + wrote * dear_out) / MILLION
        listed = self._listed(request, response)
        if listed is None:
            self._warn(
                "price",
                f"no price is known for {self._model}: its dollars count as 0, and no cap in dollars is reached; "
                "give them as input_price and output_price (remote.* for the policy, proposer.*, judge.*)",
            )
        return listed or 0.0

    def _listed(self, request: lm15.Request, response: lm15.Response) -> float | None:
        """By litellm's list: what was read from a cache of the provider, and thinking, at their own prices."""
        from dspy.clients.costs import estimate_cost

        if not self._model.provider:
            return None
        name = self._model.name.partition("/")[2]
        return estimate_cost(response, provider=self._model.provider, requested_model=name, request=request)[0]

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", text)
