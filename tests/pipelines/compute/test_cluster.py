"""The token of a Ray that a command starts for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.compute.cluster import close_token


def test_others_may_not_read_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    folder = tmp_path / ".ray"
    for _ in range(2):
        close_token()
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)  # as Ray makes it
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    close_token()
    assert folder.stat().st_mode & 0o777 == 0o755, "another token is used"
