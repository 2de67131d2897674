"""The documents against the code: variables, commands, options, links, examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/environment.md",
    "docs/kernel-proof.md",
    "examples/photos/README.md",
)
# Read by our code, owned and documented by others.
FOREIGN_VARIABLES = {"ARCHFLAGS"}


def sources(root: Path) -> Iterator[Path]:
    """Files that may read an environment variable."""
    yield from (root / "setup.py", root / "Makefile")
    for folder in ("udp_fast", "csrc", "benchmarks", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".cpp", ".h", ".hpp", ".cu", ".cuh"}:
                yield path


def variables_read(root: Path) -> set[str]:
    """Names given to environ or getenv, and quoted names with our prefix (they reach a helper)."""
    patterns = (
        r"""environ(?:\.get)?[\[(]\s*["'](\w+)["']""",
        r"""["'](\w+)["'] in os\.environ""",
        r"""getenv\(\s*["'](\w+)["']""",
        r"""["'](UDP_FAST_[A-Z_0-9]+)["']""",
        r"""_flag\(["'](\w+)["']""",
    )
    text = "".join(path.read_text(encoding="utf-8") for path in sources(root))
    return {name for p in patterns for name in re.findall(p, text)} - FOREIGN_VARIABLES


def test_every_environment_variable_is_documented_and_the_reverse(root: Path) -> None:
    page = (root / "docs" / "environment.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z_0-9]+)` \|", page, re.M))
    assert documented == variables_read(root)


def test_make_targets_in_the_documents_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    text = "".join((root / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    named = set(re.findall(r"(?:`| {4})make ([a-z-]+)", text))
    assert {"demo", "test", "bench"} <= named
    assert named - targets == set()


def would_do(root: Path, *arguments: str) -> str:
    """What make would run."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    environment.pop("MFLAGS", None)  # else a VENV given to the make around this test counts
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=root,
        env={**environment, "VENV": "/precious"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@needs_make
def test_make_builds_with_what_pip_builds_with(root: Path) -> None:
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    (tools,) = re.findall(r"--target \S+ (.+)$", would_do(root, "VENV=mine", "mine/.tools"), re.M)
    (required,) = re.findall(r"^requires = \[(.+)\]$", project, re.M)
    assert re.findall(r'"(.+?)"', tools) == re.findall(r'"(.+?)"', required)


@needs_make
def test_make_clean_deletes_no_folder_that_the_shell_names(root: Path) -> None:
    assert "rm -rf .venv " in would_do(root, "clean")
    assert "precious" not in would_do(root, "clean")
    assert "rm -rf mine " in would_do(root, "clean", "VENV=mine")


def test_every_op_can_be_explained_and_is_in_the_readme(root: Path) -> None:
    from udp_fast import ops
    from udp_fast.backends.registry import backend
    from udp_fast.explain import OPS

    defined = backend("reference").ops
    # Not asked for by name: backward passes, and what only they use.
    inner = {name for name in defined if name.endswith(("_backward", "_dx"))} | {"image_scale_"}
    # pgd_step is pgd_step_ on a copy.
    offered = {name for name in ops.__all__ if name in defined or f"{name}_" in defined}
    assert set(OPS) == offered == (set(defined) - inner) | {"pgd_step"}
    page = (root / "README.md").read_text(encoding="utf-8")
    section = page.split("\n## The ops")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\|([^|]*`[^|]*)\|", section, re.M)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert {*OPS, "accumulate_timesteps_"} == named


def test_the_readme_has_the_figures_of_the_performance_page(root: Path) -> None:
    """Of every case with a bar, in order; in bold where it is missed."""
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    measured = []
    for ratios, of_copy, bars in re.findall(
        r"^\|[^|]*\|[^|]*\| 8×3×512×512 \|[^|]*\|([^|]*)\| (\d+)% \| ([^|]+) \|$", page, re.M
    ):
        found = {**dict(re.findall(r"(\w+) ([\d.]+)×", ratios)), "copy": f"{of_copy} %"}
        cells = [
            found[provider] if verdict == "met" else f"**{found[provider]}**"
            for provider, verdict in re.findall(r"(\w+) ≥ [\d.]+: (\w+)", bars)
        ]
        measured.append("; ".join(cells))
    assert len(measured) == 6
    readme = (root / "README.md").read_text(encoding="utf-8")
    table = readme.split("\n## Speed and effect")[1].split("\n## ")[0]
    _header, *rows = re.findall(r"^\|.*\| ([^|]+) \|$", table, re.M)
    assert rows == measured


def test_options_in_the_readme_exist(root: Path) -> None:
    testing = pytest.importorskip("click.testing")
    from udp_fast.cli import cli

    help_text = testing.CliRunner().invoke(cli, ["protect", "--help"]).output
    offered = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_text))
    lines = re.findall(
        r"^ {4}udp-fast protect (.*?)(?:#.*)?$", (root / "README.md").read_text(), re.M
    )
    used = {option for line in lines for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", line)}
    assert {"-o", "--eps"} <= used
    assert used - offered == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name: str, root: Path) -> None:
    page = root / name
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    broken = [
        link
        for link in links
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]
    assert broken == []


def test_the_ops_examples_of_the_readme_run(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    example, networks = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "ops." in block
    )
    small = example.replace("512, 512", "16, 24")
    assert small != example
    scope: dict[str, object] = {}
    exec(compile(small, "README.md", "exec"), scope)
    written, original = scope["protected"], scope["x"]
    assert (written.int() - original.int()).abs().max() <= 8  # type: ignore[attr-defined]
    exec(compile(networks, "README.md", "exec"), scope)
    assert scope["y"].shape == (1, 1024, 320)  # type: ignore[attr-defined]


def test_no_path_of_anybodys_machine_is_left(root: Path) -> None:
    somebodys = re.compile(r"(?<![\w.~])/(?:home|root|work|opt|Users)/\w+")
    pages = [
        *(root / n for n in DOCUMENTS),
        root / "pyproject.toml",
        root / ".ci/run",
        *sources(root),
    ]
    hits = [
        f"{path.relative_to(root)}: {match[0]}"
        for path in (*pages, *sources(root))
        for match in somebodys.finditer(path.read_text(encoding="utf-8"))
    ]
    assert hits == []


def test_the_photographs_are_what_their_readme_says(root: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = root / "examples" / "photos"
    page = (folder / "README.md").read_text(encoding="utf-8")
    photographs = sorted(p for p in folder.iterdir() if p.suffix != ".md")
    assert len(photographs) == 4
    for path in photographs:
        row = next(line for line in page.splitlines() if line.startswith(f"| {path.name} |"))
        with image.open(path) as picture:
            assert min(picture.size) >= 512
            artist = picture.getexif()[0x013B]
            licence = picture.getexif()[0x8298]
        assert artist.replace("'", '"') in row
        assert licence.replace("CC-BY-", "CC BY ").replace("CC0-", "CC0 ") in row
