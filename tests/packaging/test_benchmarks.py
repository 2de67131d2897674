"""The table of ratios, as `make bench` makes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("udp_fast._native", reason="the native module is what is timed")


@pytest.mark.slow
def test_a_case_is_timed_in_processes_and_written(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    options = ["--only", "pgd_step_multi", "--seconds", "0"]
    command = [sys.executable, "-m", "benchmarks", *options, "--write", str(page)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every bar is met" in done.stdout
    (cells,) = re.findall(r"^\| pgd_step_multi \|.*\|$", page.read_text(encoding="utf-8"), re.M)
    assert re.search(
        r"\| \d+\.\d+ \| a loop of pgd_step \d+\.\d+×<br>eager \d+\.\d+× \| \d+% \|", cells
    )
