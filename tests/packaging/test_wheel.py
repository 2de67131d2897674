"""What is in the wheel, and what its metadata promises."""

from __future__ import annotations

import email.message
import email.parser
import re
import zipfile
from pathlib import Path

import udp_fast


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(entry).decode())


def test_every_python_source_is_in_the_wheel(wheel: Path, root: Path) -> None:
    """A folder without __init__.py would be left out in silence."""
    sources = {p.relative_to(root).as_posix() for p in (root / "udp_fast").rglob("*.py")}
    assert sources - names(wheel) == set()


def test_the_surrogate_and_the_typing_marker_are_in_the_wheel(wheel: Path, root: Path) -> None:
    folder = root / "udp_fast" / "diffusion" / "surrogate"
    surrogate = {p.relative_to(root).as_posix() for p in folder.iterdir() if p.is_file()}
    assert any(name.endswith(".safetensors") for name in surrogate)
    assert ({*surrogate, "udp_fast/py.typed"}) - names(wheel) == set()


def test_the_weights_stay_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        weights = [i for i in archive.infolist() if i.filename.endswith(".safetensors")]
    assert sum(i.file_size for i in weights) <= 4_000_000


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    strangers = {n for n in names(wheel) if not re.match(r"udp_fast(/|-[\d.]+\.dist-info/)", n)}
    assert strangers == set()


def test_the_pure_wheel_fits_every_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_version_is_the_same_everywhere(wheel: Path, root: Path) -> None:
    assert metadata(wheel)["Version"] == udp_fast.__version__
    assert f"## [{udp_fast.__version__}]" in (root / "CHANGELOG.md").read_text()


def test_the_licence_travels_with_the_wheel(wheel: Path) -> None:
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names(wheel))


def test_the_command_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "udp-fast = udp_fast.cli:main" in archive.read(entry).decode()


def test_the_extras_that_the_documents_name_exist(wheel: Path, root: Path) -> None:
    offered = set(metadata(wheel).get_all("Provides-Extra", []))
    text = "".join((root / n).read_text() for n in ("README.md", "CONTRIBUTING.md", "Makefile"))
    named = set(re.findall(r"[`.]\[([a-z]+)\]", text))
    assert named, "the documents name no extra: has the pattern gone stale?"
    assert named - offered == set()


def test_torch_is_not_needed_to_build(root: Path) -> None:
    requires = re.search(r"^requires = \[(.*?)\]", (root / "pyproject.toml").read_text(), re.M)
    assert requires is not None
    assert "torch" not in requires[1]
    assert not re.search(r"^\s*(import|from) torch", (root / "setup.py").read_text(), re.M)
