"""A model that is not ready answers nothing, and says why."""

from __future__ import annotations

import shutil
from pathlib import Path

from running import CHAT, Running, serve, until

from truthgpt_core.application import Application
from truthgpt_plugin_serve.served_model import load
from truthgpt_plugin_serve.settings import Settings

SETTINGS = Settings(engine="torch", device="cpu")


def test_a_model_without_a_report_is_served_and_says_so(server: Running) -> None:
    """It was not measured, which is not the same as wrong."""
    (model,) = server.get("/v1/models").json()["data"]
    assert model["truthgpt"] == {"engine": "torch", "ready": True, "check": "not measured"}


def test_a_model_that_cannot_be_checked_answers_nothing(tiny: Path, tmp_path: Path) -> None:
    """`/readyz` says why, and the process is alive; `--no-check` leaves it out."""
    directory = tmp_path / "tiny"
    shutil.copytree(tiny, directory)
    (directory / "report.json").write_text("{")
    for check in (True, False):
        settings = Settings(engine="torch", device="cpu", check=check)
        model = load("tiny", str(directory), settings, lambda *_: None, Application())
        with serve({"tiny": model}, settings) as server:
            until(lambda server=server: "is being checked" not in server.get("/readyz").text)
            ready = server.get("/readyz")
            answer = server.post("/v1/chat/completions", CHAT | {"max_tokens": 1})
            assert server.get("/livez").status_code == 200
        if not check:
            assert (ready.text, answer.status_code) == ("ok", 200)
            continue
        assert ready.status_code == answer.status_code == 503
        assert "tiny: it cannot be checked" in ready.text
        assert "report.json" in ready.text
        assert answer.json()["error"]["code"] == "unavailable"
