"""Where what a study shares lies: a database, an MLflow server, a place for objects; or all of it in the home folder.

Each is named by a flag, by an environment variable, or in ``<home>/stores.yaml``, where the first command that names
them saves them. None is part of a study's key. Knows addresses; opens none.

A ``Stores`` never holds a password, so it may be shown, saved and sent: one in an environment variable's URL is moved
to where the clients look for it (PGPASSWORD, MLFLOW_TRACKING_PASSWORD), and a flag or a file may not have one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import yaml

from colever.errors import StoreError, UsageError

FILE = "stores.yaml"
VARIABLES = {"database": "COLEVER_DATABASE", "mlflow": "COLEVER_MLFLOW", "objects": "COLEVER_OBJECTS"}
ACCEPTED = {
    "database": ("postgresql://USER@HOST:5432/NAME", ("postgresql", "postgresql+psycopg", "sqlite")),
    "mlflow": ("http://HOST:5000", ("http", "https")),
    "objects": ("s3://BUCKET/PREFIX, or a folder that all machines see", ("s3", "file", "")),
}
SECRETS = {
    "database": "PGPASSWORD, ~/.pgpass, or the whole URL in COLEVER_DATABASE",
    "mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole URL in COLEVER_MLFLOW",
    "objects": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
}


@dataclass(frozen=True)
class Stores:
    """ "" is the home folder itself: Optuna's trials and MLflow in sqlite, locks as files, rounds below it."""

    database: str = ""  # a SQLAlchemy URL, of Optuna's trials and of the leases
    mlflow: str = ""  # a tracking server's address
    objects: str = ""  # s3://bucket/prefix, or a shared folder: rounds, evaluations and studies


def stores_of(home: Path) -> Stores:
    """Those of the environment, else those saved in ``home``. Raises UsageError for one that is no address."""
    named = {name: os.environ.get(variable, "") for name, variable in VARIABLES.items()}
    return replace(
        saved(home),
        **{name: _checked(name, _moved(name, url), VARIABLES[name]) for name, url in named.items() if url},
    )


def name_stores(
    home: Path, database: str | None = None, mlflow: str | None = None, objects: str | None = None
) -> Stores:
    """Those that a command names, for this process and those it starts; saved in ``home`` where none were.

    Raises UsageError for one that is no address or has a password, StoreError where they cannot be saved.
    """
    flags = {"database": database, "mlflow": mlflow, "objects": objects}
    for name, url in flags.items():
        if url is not None:
            os.environ[VARIABLES[name]] = _without_secret(name, _checked(name, url, f"--{name}"), f"--{name}")
    named, before = stores_of(home), saved(home)
    new = {name: url for name, url in asdict(named).items() if url and not getattr(before, name)}
    if new:
        _save(home, replace(before, **new))
    return named


def saved(home: Path) -> Stores:
    """Those in ``<home>/stores.yaml``. Raises UsageError where that is no such file."""
    file = home / FILE
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (FileNotFoundError, NotADirectoryError):
        return Stores()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    names = [field.name for field in fields(Stores)]
    if not isinstance(found, dict) or not all(k in names and isinstance(v, str) for k, v in found.items()):
        raise UsageError(f"{file}: accepted: {', '.join(names)}, an address each")
    return Stores(
        **{name: _without_secret(name, _checked(name, url, str(file)), str(file)) for name, url in found.items()}
    )


@contextlib.contextmanager
def in_home_alone() -> Iterator[None]:
    """No store is named by the environment while the block runs: what is made in another home is its own."""
    before = {variable: os.environ.pop(variable) for variable in VARIABLES.values() if variable in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _save(home: Path, stores: Stores) -> None:
    file = home / FILE
    temporary = file.with_name(f".{FILE}.{secrets.token_hex(4)}.tmp")
    try:
        home.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({name: url for name, url in asdict(stores).items() if url}, sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"{file} cannot be written: {error.strerror}") from error


def _checked(name: str, url: str, where: str) -> str:
    """As the clients want it. Raises UsageError, which shows no more of the address than its scheme."""
    example, schemes = ACCEPTED[name]
    url = url.strip()
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{where} is no address; accepted: {example}") from error
    if parts.scheme not in schemes or (parts.scheme in ("http", "https", "s3") and not parts.hostname):
        raise UsageError(f"{where}: {parts.scheme or 'an address without a scheme'}: is not one of these: {example}")
    if name == "mlflow" and parts.username and not parts.password:
        raise UsageError(
            f"{where} has a user, or a token, without a password; accepted for a token: MLFLOW_TRACKING_TOKEN"
        )
    if hidden := [key for key, _ in parse_qsl(parts.query) if key.endswith("password") and key != "password"]:
        raise UsageError(
            f"{where} has {hidden[0]} in it, which others could read; accepted: a key without a passphrase"
        )
    if parts.scheme == "postgresql":
        url = url.replace("postgresql:", "postgresql+psycopg:", 1)  # SQLAlchemy would take another driver
    if name == "objects" and not parts.scheme:
        return str(Path(url).resolve())
    return url.rstrip("/") if name != "database" else url


def _moved(name: str, url: str) -> str:
    """A URL of the environment without its password, which now lies where the client looks for it."""
    bare, user, password = _split(url)
    if password and name == "database":
        os.environ["PGPASSWORD"] = password
    elif password and name == "mlflow":
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password
        return bare.replace("//" + urlsplit(bare).netloc, "//" + urlsplit(bare).netloc.rpartition("@")[2], 1)
    return bare


def _without_secret(name: str, url: str, where: str) -> str:
    """Raises UsageError where it has a password."""
    if _split(url)[2]:
        raise UsageError(f"{where} has a password in it, which others could read; accepted for it: {SECRETS[name]}")
    return url


def _split(url: str) -> tuple[str, str, str]:
    """(the URL without its password, user, password); of a password in the query too."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url, "", ""
    query = parse_qsl(parts.query, keep_blank_values=True)
    password = unquote(parts.password or "") or dict(query).get("password", "")
    if not password:
        return url, "", ""
    login, _, host = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    kept = [(key, value) for key, value in query if key != "password"]
    bare = parts._replace(netloc=f"{user}@{host}" if user else host, query=urlencode(kept, safe="/"))
    return urlunsplit(bare), unquote(user), password
