"""The progress bar, and the note that goes with it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from cabs_search.cluster.progress import Progress
from cabs_search.record.progress_file import Share, read_status


def last_shown(err: str) -> str:
    return re.split(r"[\r\n]+", err.strip())[-1]


def test_bar_and_note_follow_the_stages(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    of_day = [5000.0]  # set back by an hour at every look
    monkeypatch.setattr("cabs_search.cluster.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: of_day.append(of_day[-1] - 3600) or of_day[-1])
    study: Any = SimpleNamespace(
        spec=SimpleNamespace(name="toy"),
        shares=[Share("candidate", 1, 10), Share("item", 30, 100)],
        stage_share=None,
        phase="search",
        scored_items=30,
        done=1,
        best=None,
        is_finished=False,
        failure=None,
    )
    note = tmp_path / "progress.json"
    progress = Progress(study, note)
    now[0], study.shares = 110.0, [Share("candidate", 2, 10), Share("item", 50, 100)]
    progress.refresh()
    assert read_status(tmp_path).seconds_left == pytest.approx(10 * 50 / 20)

    now[0], study.shares = 120.0, [Share("candidate", 7, 10), Share("item", 50, 100)]
    progress.refresh()  # another limit is the nearest: nothing is known of its rate
    assert read_status(tmp_path).seconds_left is None
    now[0], study.shares = 124.0, [Share("candidate", 9, 10), Share("item", 50, 100)]
    progress.refresh()
    assert read_status(tmp_path).seconds_left == pytest.approx(4 * 1 / 2)

    study.shares = [Share("candidate", 10, 10), Share("item", 50, 100)]
    study.phase, study.stage_share = "confirm", Share("item", 100, 400)
    progress.refresh()
    now[0], study.stage_share = 129.0, Share("item", 200, 300)  # a row ended early
    with progress:
        pass
    err = capsys.readouterr().err
    assert last_shown(err.split("\n")[0]).startswith("search: 100%"), "left on its line"
    shown = last_shown(err)
    assert shown.startswith("confirm:  67%")
    assert "200/300" in shown
    status = read_status(tmp_path)
    assert status.seconds_left == pytest.approx(5 * 100 / 100)
    assert (status.state, status.phase) == ("stopped", "confirm")
