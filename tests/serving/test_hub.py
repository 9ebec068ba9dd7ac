"""Uploads of exports, to a stand-in for the hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from cabs_search.cli.main import main
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.serving import hub
from cabs_search.workflows import export as exporting

Calls = list[tuple[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """What export and hub are asked for, in order."""
    made: Calls = []

    class Api:
        def __init__(self, token: str) -> None:
            made.append(("token", token))

        def create_repo(self, repo_id: str, **settings: Any) -> str:
            made.append(("create", (repo_id, settings)))
            if "taken" in repo_id:
                raise OSError("403 Forbidden\nrequest id")
            return f"https://hub/{repo_id}"

        def repo_info(self, repo_id: str) -> Any:
            return SimpleNamespace(private="public" not in repo_id)

        def upload_folder(
            self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **_: Any
        ) -> None:
            assert ignore_patterns == ["recipe.yaml"], "it names folders of this machine"
            made.append(("upload", (repo_id, folder_path)))

    def export_trial(_: Path, trial: str, to: Path, **__: Any) -> tuple[Recipe, Path]:
        made.append(("export", trial))
        if trial != "best":
            raise ValueError("--trial: no such candidate")
        to.mkdir()
        (to / "recipe.yaml").write_text(f"base: {to}\n")
        (to / "other.yaml").write_text("base: owner/base\n")
        return make_recipe(make_method("task-arithmetic", ("a",)), {"a": 1.0}), to

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(exporting, "export_trial", export_trial)
    for name in hub.TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    return made


def run(tmp_path: Path, *options: str) -> int:
    return main(["export", str(tmp_path), "--to", str(tmp_path / "out"), *options])


@pytest.mark.parametrize("public", [False, True])
def test_an_export_is_uploaded_when_it_is_written(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str], public: bool
) -> None:
    assert run(tmp_path, "--push", "me/merged", *(["--public"] if public else [])) == 0
    settings = {"private": not public, "exist_ok": True}
    assert calls == [
        ("token", "secret"),
        ("export", "best"),
        ("create", ("me/merged", settings)),
        ("upload", ("me/merged", tmp_path / "out")),
    ]
    assert "uploaded to https://hub/me/merged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "merged"], "--push: OWNER/NAME is needed, but got merged"),
        (["--push", "me/mer ged"], "--push me/mer ged: Repo id must use alphanumeric"),
        (["--push", "me/a/b"], "--push me/a/b: Repo id must be in the form"),
        (["--public"], "--public: it says how to --push"),
    ],
)
def test_a_bad_id_is_one_line_before_anything_is_written(
    calls: Calls,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert run(tmp_path, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not calls


def test_a_token_comes_from_the_environment_alone(
    calls: Calls,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run(tmp_path, "--push", "me/merged") == 2
    assert "HF_TOKEN must hold a token" in capsys.readouterr().err
    assert not calls


def test_nothing_is_uploaded_of_an_export_that_failed(calls: Calls, tmp_path: Path) -> None:
    assert run(tmp_path, "--push", "me/merged", "--trial", "7") == 2
    assert calls == [("token", "secret"), ("export", "7")]


def test_a_public_repository_is_no_place_for_what_is_private(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--push", "me/public") == 1
    assert "the repository is public; say --public" in capsys.readouterr().err
    assert [name for name, _ in calls] == ["token", "export", "create"]


def test_what_the_hub_refuses_is_one_line(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--push", "me/taken") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--push me/taken: the hub did not take {tmp_path}/out: 403 Forbidden" in line
    assert "request" not in line
    assert [name for name, _ in calls] == ["token", "export", "create"]
