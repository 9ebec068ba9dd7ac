"""Valid inputs of every kind to change, and the verdict on what a command makes of them."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors.torch import load_file, save_file

from cabs_search.cli.main import main
from cabs_search.record.folder import StudyFolder, write_spec
from cabs_search.record.progress_file import Share, Status, note_status
from cabs_search.record.versions_file import record_versions
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.support.bench import Bench

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ADAPTER_CONFIG, ADAPTER_MODEL = "adapter_config.json", "adapter_model.safetensors"
RECORD = "outcomes/outcomes.sqlite"
STATUS = Status(
    name="pico",
    state="finished",
    phase="search",
    candidates=3,
    spent=(Share("candidate", 3, 10), Share("second", 1.5, 60)),
    best=0.5,
    items=72,
    items_per_second=10.0,
    seconds_left=None,
    noted=1e9,
)


class Verdict(NamedTuple):
    """What a command did."""

    status: int
    lines: list[str]
    """Its errors on stderr."""
    wrong: str
    """What must not be: empty if all is well."""


class House:
    """Folders with valid inputs, of which a test changes a copy."""

    def __init__(self, root: Path, pico: Path) -> None:
        """Make a spec, a model in shards, an adapter and a study's folder in ``root``."""
        self.root, self.pico = root, pico
        self.valid, self.work, self.out = root / "valid", root / "work", root / "out"
        self.here = root / "here"
        self.here.mkdir(parents=True)
        self.valid.mkdir()
        self.values = pico_values(pico)
        self._make_shards(self.valid / "shards")
        self._make_adapter(self.valid / "adapter")
        shutil.copytree(pico / "mood", self.valid / "model")
        shutil.copytree(pico / "base", self.valid / "base")
        self._make_study(self.valid / "study")

    def _make_shards(self, folder: Path) -> None:
        shutil.copytree(self.pico / "mood", folder)
        tensors = load_file(folder / MODEL)
        (folder / MODEL).unlink()
        names, places = sorted(tensors), {}
        for i, part in enumerate((names[:9], names[9:])):
            save_file({n: tensors[n] for n in part}, folder / f"part{i}.safetensors")
            places |= dict.fromkeys(part, f"part{i}.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index))

    def _make_adapter(self, folder: Path) -> None:
        import torch

        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"key": 2}}
        settings |= {"alpha_pattern": {"key": 3}, "use_rslora": False, "modules_to_save": None}
        settings |= {"target_modules": ["query", "key"], "base_model_name_or_path": "base"}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))
        tensors = {}
        for part in ("query", "key"):
            name = f"base_model.model.encoder.layer.0.attention.self.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.full((2, 16), 0.1)
            tensors[f"{name}.lora_B.weight"] = torch.full((16, 2), 0.1)
        save_file(tensors, folder / ADAPTER_MODEL)

    def _make_study(self, folder: Path) -> None:
        folder.mkdir()
        values = pico_values(self.pico, trials=4, confirm=1)
        spec = parse(values)
        bench = Bench(spec, folder, load_study_items(spec))
        bench.run()
        write_spec(spec, folder)
        record_versions(folder)
        note_status(StudyFolder(folder).progress, STATUS)
        recipe = next(iter(bench.outcomes.scored("search").values())).recipe
        (folder / "recipe.json").write_text(json.dumps(recipe.as_dict()))

    def fresh(self, what: str) -> Path:
        """Return a new copy of a valid folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
        return Path(shutil.copytree(self.valid / what, self.work / what))

    def spec(self, text: str | bytes | dict[str, Any]) -> Path:
        """Write a spec's file."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        path = self.work / "s.yaml"
        text = yaml.safe_dump(text, sort_keys=False) if isinstance(text, dict) else text
        path.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
        return path

    def plan(self, path: Path) -> Verdict:
        return self.call("plan", path, named=(path.name,))

    def merge(self, expert: Path, *more: object, base: Path | None = None) -> Verdict:
        """Merge an expert, called mood, into the base."""
        given = ["--base", base or self.pico / "base", "--expert", f"mood={expert}"]
        method = () if "--recipe" in more else ("--method", "task-arithmetic")
        named = ("experts.mood", str(expert))
        return self.call("merge", *given, *method, *more, "--to", self.out, named=named)

    def report(self, folder: Path) -> Verdict:
        return self.call("report", folder, named=(str(folder),))

    def export(self, folder: Path) -> Verdict:
        named = (str(folder), "--trial", "base", "experts.")
        return self.call("export", folder, "--to", self.out, named=named)

    def sample(self, folder: Path) -> Verdict:
        return self.call("sample", folder, named=(str(folder),))

    def vectors(self, path: Path) -> Verdict:
        return self.call("vectors", path, named=(path.name, "base", "experts.", "space."))

    def convert(self, text: bytes, form: str) -> Verdict:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        path = self.work / "recipe.yaml"
        path.write_bytes(text)
        return self.call("convert", path, "--to", form, "--lossy", named=(path.name,))

    def status(self, folder: Path) -> Verdict:
        return self.call("status", folder, named=(str(folder),))

    def call(self, *arguments: object, named: tuple[str, ...]) -> Verdict:
        """Run a command and judge it: status 0, or 2 and one line that names a file or field."""
        shutil.rmtree(self.out, ignore_errors=True)
        before = self._files()
        out, err = io.StringIO(), io.StringIO()
        try:
            with chdir(self.here), redirect_stdout(out), redirect_stderr(err):
                status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        text = err.getvalue()
        lines = [line for line in text.splitlines() if line.startswith("cabs-search")]
        is_one = len(lines) == 1 and any(name in lines[0] for name in named)
        wrong = ""
        if status not in (0, 2):
            wrong = f"status {status}"
        elif "Traceback" in text or (status == 2 and not is_one):
            wrong = f"not one line that names {' or '.join(named)}"
        elif any(not character.isprintable() for line in lines for character in line):
            wrong = "a line for the terminal, not for people"
        elif extra := self._files() - before:
            wrong = f"files elsewhere: {sorted(extra)[:3]}"
        return Verdict(status, lines or text.splitlines()[-3:], wrong)

    def _files(self) -> set[str]:
        """List files beside the folders that a command may write to."""
        inside = (str(self.out), str(self.work / "study"), str(self.root / "cache"))
        found = set()
        for folder, _, names in os.walk(self.root):
            if not folder.startswith(inside):
                found |= {f"{folder}/{name}" for name in names}
        return found
