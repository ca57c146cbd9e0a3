"""Which stores a command works with: flags, the environment, what was saved; and no password anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colever.errors import StoreError, UsageError
from colever.stores import FILE, Stores, in_home_alone, name_stores, stores_of

DATABASE = "postgresql+psycopg://ann@host:5432/colever"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing named from outside; what a test names is gone after it."""
    for name in ("DATABASE", "MLFLOW", "OBJECTS"):
        monkeypatch.setenv(f"COLEVER_{name}", "")
    for name in ("PGPASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")


def forget() -> None:
    """As a later command begins."""
    for name in ("DATABASE", "MLFLOW", "OBJECTS"):
        os.environ[f"COLEVER_{name}"] = ""


def test_all_is_in_the_home_folder_where_nothing_is_named(tmp_path: Path) -> None:
    assert name_stores(tmp_path) == stores_of(tmp_path) == Stores()
    assert not (tmp_path / FILE).exists()


def test_what_is_named_first_is_saved_and_found_later(tmp_path: Path) -> None:
    home = tmp_path / "new"
    name_stores(home, "postgresql://ann@host:5432/colever", "http://host:5000/")
    forget()
    assert stores_of(home) == Stores(DATABASE, "http://host:5000")
    name_stores(home, objects="s3://bucket/prefix/")
    forget()
    assert stores_of(home) == Stores(DATABASE, "http://host:5000", "s3://bucket/prefix")
    assert [p.name for p in home.iterdir()] == [FILE]


def test_flags_win_over_the_environment_and_that_over_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_stores(tmp_path, mlflow="http://saved:5000")
    monkeypatch.setenv("COLEVER_MLFLOW", "http://environment:5000")
    assert stores_of(tmp_path).mlflow == "http://environment:5000"
    assert name_stores(tmp_path, mlflow="http://flag:5000").mlflow == "http://flag:5000"
    forget()
    assert stores_of(tmp_path).mlflow == "http://saved:5000"


@pytest.mark.parametrize(
    "url", ["postgresql://ann:s3cret%40@host:5432/colever", "postgresql://ann@host:5432/colever?password=s3cret%40"]
)
def test_a_password_in_the_environment_goes_where_the_client_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", url)
    monkeypatch.setenv("COLEVER_MLFLOW", "https://bob:hush@host")
    assert name_stores(tmp_path) == Stores(DATABASE, "https://host")
    assert os.environ["PGPASSWORD"] == "s3cret@"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("bob", "hush")
    assert not {"s3cret", "hush"} & set((tmp_path / FILE).read_text().replace(":", " ").replace("@", " ").split())


def test_a_password_is_not_taken_from_a_flag_or_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--database has a password") as raised:
        name_stores(tmp_path, "postgresql://ann:s3cret@host/colever")
    assert "s3cret" not in str(raised.value)
    (tmp_path / FILE).write_text("mlflow: http://ann:s3cret@host\n")
    with pytest.raises(UsageError, match=r"stores\.yaml has a password") as raised:
        stores_of(tmp_path)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("database", "mysql://ann:s3cret@host/colever"),
        ("database", "host"),
        ("mlflow", "sqlite:///mlflow.db"),
        ("mlflow", "http://"),
        ("mlflow", "http://host:port"),
        ("objects", "gs://bucket"),
        ("objects", "s3://"),
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, name: str, url: str) -> None:
    with pytest.raises(UsageError, match=f"--{name}") as raised:
        name_stores(tmp_path, **{name: url})
    assert "s3cret" not in str(raised.value)


def test_a_folder_of_objects_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_stores(tmp_path, objects="shared").objects == str(tmp_path / "shared")


@pytest.mark.parametrize("text", ["- a list", "databse: x", "database: [1]", "a: {"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError, match=r"stores\.yaml"):
        stores_of(tmp_path)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreError, UsageError), match="file"):
        name_stores(tmp_path / "file" / "home", mlflow="http://host:5000")


def test_a_home_of_its_own_has_no_named_stores(tmp_path: Path) -> None:
    name_stores(tmp_path / "one", mlflow="http://host:5000")
    with in_home_alone():
        assert stores_of(tmp_path / "other") == Stores()
    assert stores_of(tmp_path / "other").mlflow == "http://host:5000"


@pytest.mark.parametrize(("named", "said"), [
    ({"database": "postgresql://ann@host/colever?sslpassword=x9x9"}, "--database has sslpassword in it"),
    ({"mlflow": "https://x9x9@host"}, "--mlflow has a user, or a token.*MLFLOW_TRACKING_TOKEN"),
])  # fmt: skip
def test_other_secrets_are_refused_and_not_shown(tmp_path: Path, named: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        name_stores(tmp_path, **named)
    assert "x9x9" not in str(raised.value)
    assert not (tmp_path / FILE).exists()
