"""Which model behind an API is meant, where it is asked, and with which key.

Knows names, addresses and environment variables; asks an address what it serves, and nothing else. A key is read from
the environment when a request is made: no object here holds one, and none is in what is shown or stored.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from colever.config import API
from colever.errors import UsageError

_ADDRESS = re.compile(r"(?:(?P<name>.+)@)?(?P<address>https?://.+)", re.DOTALL)
ADDRESS_KEY = "HOSTED_VLLM_API_KEY"  # litellm's name for the key of a server of one's own
ACCEPTED = "PROVIDER/MODEL such as openai/gpt-5-mini, or NAME@ADDRESS such as mine@http://127.0.0.1:8000/v1"
LOOK = 10.0  # seconds that an address has to say what it serves


@dataclass(frozen=True)
class RemoteModel:
    """``name`` as ``dspy.LM`` has it, or, with an ``address``, as the server there calls it."""

    name: str
    address: str | None = None

    def __str__(self) -> str:
        return f"{self.name} at {self.address}" if self.address else self.name

    @property
    def provider(self) -> str:
        """The part before the slash; an address is no provider whose prices anyone lists."""
        return "" if self.address else self.name.partition("/")[0]

    @property
    def elsewhere(self) -> str | None:
        """Where the environment sends the provider's requests in place of its own address; it may hold a secret."""
        prefix = self.provider.upper()
        return next((os.environ[n] for n in (f"{prefix}_API_BASE", f"{prefix}_BASE_URL") if os.environ.get(n)), None)

    @property
    def lm_name(self) -> str:
        """What ``dspy.LM`` is called with: an address is asked in the dialect that most servers share."""
        return f"hosted_vllm/{self.name}" if self.address else self.name


def remote_model(text: str, flag: str, *, choose: bool = False) -> RemoteModel:
    """What ``text`` names, without ``api:``. Raises UsageError that names the ``flag``.

    An address is asked what it serves, before anything is spent: it must answer, and know the name. Without a name the
    one model that it serves is taken where the caller lets it (``choose``).
    """
    text = text.removeprefix(API).strip()
    found = _ADDRESS.fullmatch(text)
    if found is None:
        provider, slash, name = text.partition("/")
        if not (provider and slash and name) or any(c.isspace() for c in text):
            raise UsageError(f"{flag} {text!r}: accepted: {ACCEPTED}")
        return RemoteModel(text)
    name, address = found["name"], _checked(found["address"].rstrip("/"), flag)
    models = served(address, flag, needed=name is None)
    if name is None:
        if not choose or len(models) != 1:
            said = ", ".join(models) or "nothing"
            raise UsageError(f"{flag} {address}: which model? It serves {said}; accepted: NAME@{address}")
        return RemoteModel(models[0], address)
    if models and name not in models:
        raise UsageError(f"{flag} {text}: {name!r} is not served there; accepted: {', '.join(models)}")
    return RemoteModel(name, address)


def served(address: str, flag: str, *, needed: bool = True) -> list[str]:
    """The models that an address lists. Raises UsageError if it does not answer, or, if ``needed``, has no list."""
    request = urllib.request.Request(f"{address}/models", headers={"Authorization": f"Bearer {address_key()}"})
    try:
        with urllib.request.urlopen(request, timeout=LOOK) as reply:
            return [str(entry["id"]) for entry in json.load(reply)["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UsageError(f"{flag} {address}: refuses the key ({error.code}): set {ADDRESS_KEY}") from error
        reason = f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"{flag} {address}: cannot be reached: {getattr(error, 'reason', None) or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    if needed:
        raise UsageError(f"{flag} {address}: it does not list its models ({reason}); accepted: NAME@{address}")
    return []


def address_key() -> str:
    """For a server of one's own. OpenAI's key is not sent there."""
    return os.environ.get(ADDRESS_KEY) or "none"


def without_keys(text: str) -> str:
    """``text``, in which a server may have repeated what it was sent, with every key of the environment taken out."""
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(("_API_KEY", "_TOKEN", "_SECRET", "_ACCESS_KEY")):
            text = text.replace(value, f"[{name}]")
    return text


def _checked(address: str, flag: str) -> str:
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{flag}: an address may hold no user, password or question, which would be stored with the study; "
            f"accepted: such as http://127.0.0.1:8000/v1, and the key in {ADDRESS_KEY}"
        )
    if not parts.hostname or any(c.isspace() for c in address):
        raise UsageError(f"{flag} {address}: no address; accepted: such as http://127.0.0.1:8000/v1")
    return address
