"""A vLLM server that runs already, at an address.

Knows what it must be able to do and how it is waited for; knows no prompts and no weights.
"""

from __future__ import annotations

import threading
import time

from colever.engines.remote_model import ADDRESS_KEY, address_key
from colever.engines.vllm_client import Gone, Refused, VllmClient
from colever.engines.vllm_server import Live, Serving, live_again, live_at
from colever.errors import InfrastructureError, UsageError

BACK = 60.0  # seconds that it has to come back


class GivenServer:
    """Thread-safe. A server that somebody else runs on this machine, at an address; it is never stopped.

    Raises UsageError where it does not answer, or cannot do what is needed of it.
    """

    process = None

    def __init__(self, serving: Serving, patience: float = BACK) -> None:
        self.url, self.serving, self._patience = str(serving.url), serving, patience
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"engine.vllm_url={self.url}: accepted: an address such as http://127.0.0.1:8000")
        self._client = VllmClient(self.url, address_key())
        self._lock, self._generation = threading.Lock(), 1
        try:
            self.vllm_version = self._client.version()
            self._live: Live | None = live_at(self._client, 1)
            self._check_adapters()
        except (Gone, InfrastructureError) as error:
            raise UsageError(f"engine.vllm_url={self.url}: no vLLM server answers there ({error})") from error
        except Refused as error:
            key = f"; set {ADDRESS_KEY}" if error.status in (401, 403) else ""
            raise UsageError(f"engine.vllm_url={self.url}: it refused to say what it serves ({error}){key}") from error

    def _check_adapters(self) -> None:
        """Raises UsageError where none can be loaded into it as it runs."""
        try:
            self._client.post("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        except Refused as error:
            if error.status in (404, 405):
                raise UsageError(
                    f"engine.vllm_url={self.url}: it takes no adapters as it runs; accepted: a server started with "
                    "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                ) from error
            if error.status in (401, 403):
                raise

    def ensure(self, rank: int = 0) -> Live:
        """Raises InfrastructureError where it was lost and does not come back."""
        with self._lock:
            if self._live is None:
                deadline = time.monotonic() + self._patience
                self.serving.told(f"vLLM: waiting for the server at {self.url}")
                while not self._client.healthy():
                    if time.monotonic() > deadline:
                        raise InfrastructureError(
                            f"the vLLM server at {self.url} is gone, and did not come back in {self._patience:.0f} s"
                        )
                    time.sleep(0.5)
                self._live = live_again(self._client, self._generation)
            return self._live

    def lost(self, live: Live, why: str) -> None:
        """What was asked of it failed: it is looked for anew, and what was loaded into it is loaded again."""
        with self._lock:
            if self._live is live:
                self._live = None
                self._generation += 1

    def close(self) -> None:
        """Connections only."""
        self._client.close()
