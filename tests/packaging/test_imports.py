"""What importing brings in, and that imports between the layers run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# Which parts of the package each part may import; engine and cli, at the top, may import all.
MAY_IMPORT = {
    "backends": set[str](),
    "ops": {"backends"},
    "compat": {"backends", "ops"},
    "diffusion": {"ops"},
    "images": {"ops"},
    "methods": {"compat", "diffusion", "ops"},
    "evaluate": {"methods", "diffusion", "images", "ops"},
}
PARTS = {*MAY_IMPORT, "engine", "cli"}


def loaded_by(statement: str) -> set[str]:
    """Top-level packages outside the standard library in a fresh process after ``statement``."""
    code = (
        f"import sys; {statement}\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(tops - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_needs_only_torch_and_numpy() -> None:
    base = loaded_by("import torch, numpy")
    ours = loaded_by("import torch, numpy, udp_fast, udp_fast.ops, udp_fast.info")
    assert ours - base == {"udp_fast"}


def test_a_call_on_the_cpu_and_the_report_import_no_triton() -> None:
    call = "udp_fast.ops.image_scale(torch.ones(1, 4), torch.ones(1)); udp_fast.info.report()"
    loaded = loaded_by(f"import torch, udp_fast.info, udp_fast.ops; {call}")
    assert "udp_fast" in loaded
    assert "triton" not in loaded


def test_the_lazy_attributes_exist() -> None:
    import udp_fast

    for name in udp_fast.__all__:
        assert getattr(udp_fast, name) is not None
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = udp_fast.no_such_thing


def internal_imports(path: Path, root: Path) -> set[str]:
    """Dotted names of the udp_fast modules that a file imports at any depth."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("udp_fast.")}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_run_one_way(part: str, root: Path) -> None:
    wrong = {
        f"{path.relative_to(root)} imports {name}"
        for path in (root / "udp_fast" / part).rglob("*.py")
        for name in internal_imports(path, root)
        if name.split(".")[1] in PARTS - MAY_IMPORT[part] - {part}
    }
    assert wrong == set()
