"""The build of the CUDA kernels: what asks for it, for which GPUs, and what comes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.proof.cuda import load_build

ROOT = Path(__file__).parents[2]
VARIABLES = ("UDP_NO_CUDA", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH")
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/*.cu"))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A fresh csrc/cuda/build.py in an environment that asks for nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return load_build()


def test_every_source_is_built(build: ModuleType) -> None:
    assert sorted(build.SOURCES) == SOURCES


def test_no_cuda_wins(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("UDP_NO_CUDA", "1")
    assert not build.wanted()
    assert not build.demanded()


@pytest.mark.parametrize("compiler", [None, Path("bin/nvcc")])
def test_a_compiler_is_reason_enough(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, compiler: Path | None
) -> None:
    monkeypatch.setattr(build, "nvcc", lambda: compiler)
    monkeypatch.setattr(build.sys, "platform", "linux")
    assert build.wanted() == (compiler is not None)
    assert not build.demanded()


@pytest.mark.parametrize("name", ["FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"])
def test_demanded_but_impossible_is_an_error_that_helps(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1" if name == "FORCE_CUDA" else "9.0")
    monkeypatch.setattr(build, "nvcc", lambda: None)
    assert build.demanded()
    with pytest.raises(build.Unavailable, match="CUDA_HOME"):
        build.wanted()


def test_flags_are_zero_or_one(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA: got 'yes', expected 0 or 1"):
        build.wanted()


def test_a_cuda_home_without_nvcc_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.Unavailable, match="no bin/nvcc"):
        build.nvcc()


def test_nvcc_is_found_in_a_package(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvidia/cu13/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    if not Path("/usr/local/cuda/bin/nvcc").is_file():
        assert build.nvcc() == nvcc
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parents[1]))
    build.nvcc.cache_clear()
    assert build.nvcc() == nvcc


@pytest.mark.parametrize(
    ("asked", "code", "ptx"),
    [
        ("8.0", ("80",), ()),
        ("8.0;8.6 9.0+PTX", ("80", "86", "90"), ("90",)),
        ("9.0a, 10.0+PTX", ("90a", "100"), ("100",)),
    ],
)
def test_architectures_are_named_as_for_torch(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    code: tuple[str, ...],
    ptx: tuple[str, ...],
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert build.architectures() == (code, ptx)


@pytest.mark.parametrize("asked", ["7.5", "Ampere", "8"])
def test_other_architectures_are_errors(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST: got"):
        build.architectures()


def test_a_target_of_its_own_gets_a_pass_of_its_own(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(build, "version", lambda: "13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6;9.0+PTX;9.0a")
    targets = [a for a in build.command("a.cu", "a.o") if a.startswith("-gencode")]
    assert targets == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_86,code=sm_90",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]


# --- setup.py ------------------------------------------------------------------------------------

#: Runs setup.py with the CUDA extension alone.
SETUP = """
import runpy, setuptools
def setup(*, ext_modules, **options):
    only = [e for e in ext_modules if e.name == "udp_fast._native_cuda"]
    setup_all(ext_modules=only, **options)
setup_all, setuptools.setup = setuptools.setup, setup
runpy.run_path("setup.py", run_name="__main__")
"""


def build_extension(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pybind11")
    environment = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "UDP_NO_NATIVE")}
    arguments = ["build_ext", f"--build-lib={folder / 'lib'}", f"--build-temp={folder / 'temp'}"]
    return subprocess.run(
        [sys.executable, "-c", SETUP, *arguments],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


#: Answers what is asked before a compilation, and then lacks a header.
NVCC_WITHOUT_HEADERS = """#!/bin/sh
case "$*" in
*--version*) echo "release 13.0" ;;
*--list-gpu-arch*) echo compute_80 ;;
*--dryrun*) echo '#$ TOP={toolkit}' >&2 ;;
*) echo "fatal error: cuda_runtime.h: No such file or directory" >&2; exit 1 ;;
esac
"""


@pytest.fixture(params=["headers", "libraries"])
def incomplete(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A CUDA toolkit with an nvcc, but without the headers or even the libraries."""
    if sys.platform != "linux":
        pytest.skip("the CUDA kernels are built on Linux only")
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    nvcc = toolkit / "bin/nvcc"
    nvcc.write_text(NVCC_WITHOUT_HEADERS.format(toolkit=toolkit))
    nvcc.chmod(0o755)
    if request.param == "headers":
        (toolkit / "lib64").mkdir()
        (toolkit / "lib64/libcudart_static.a").touch()
    return toolkit


def test_a_build_that_nobody_asked_for_may_fail(incomplete: Path, tmp_path: Path) -> None:
    done = build_extension(tmp_path, CUDA_HOME=str(incomplete))
    assert done.returncode == 0, done.stderr
    assert "WITHOUT its CUDA kernels" in done.stdout + done.stderr
    assert re.search(r"cuda_runtime\.h|libcudart_static", done.stdout + done.stderr)
    assert not list(tmp_path.rglob("*.so"))


def test_a_build_that_was_demanded_may_not(incomplete: Path, tmp_path: Path) -> None:
    done = build_extension(tmp_path, CUDA_HOME=str(incomplete), FORCE_CUDA="1")
    assert done.returncode != 0
    assert re.search(r"udp_fast: [^\n]*(did not build|libcudart_static)", done.stderr)


# --- the extension -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """The extension for all default architectures."""

    file: Path
    report: str  # of nvcc and ptxas


#: An nvcc that compiles nothing twice: what the proof has examined is what is linked here. A call that
#: differs in a single option is one that nobody made before.
NVCC_THAT_REMEMBERS = """#!{python}
import os, shutil, sys
sys.path.insert(0, {root!r})
arguments = [{nvcc!r}, *sys.argv[1:]]
if "-c" not in arguments:
    os.execv(arguments[0], arguments)
from benchmarks.proof.cuda import compiled
*command, flag, output = arguments
assert flag == "-o", arguments
made = compiled(command)
shutil.copy(made.object, output)
sys.stderr.write(made.report)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    nvcc = load_build().nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit, or nvidia-cuda-nvcc from PyPI")
    folder = tmp_path_factory.mktemp("cuda")
    script = folder / "toolkit/bin/nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(
        NVCC_THAT_REMEMBERS.format(python=sys.executable, root=str(ROOT), nvcc=str(nvcc))
    )
    script.chmod(0o755)
    done = build_extension(folder, FORCE_CUDA="1", CUDA_HOME=str(folder / "toolkit"))
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("lib/**/*.so")
    return Built(file, done.stderr)


@pytest.mark.slow
def test_the_extension_is_small(built: Built) -> None:
    """And so it is soon built: compilers take their time by what they write."""
    assert built.file.stat().st_size < 10e6


@pytest.mark.slow
def test_kernels_compile_without_warnings_or_spills(build: ModuleType, built: Built) -> None:
    report = built.report
    assert "warning" not in report, re.findall(r".*warning.*", report)
    kernels = [report.count(f"for 'sm_{a}'") for a in build.ARCHITECTURES]
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", report)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    assert min(kernels) == max(kernels) > 0
    assert len(registers) == len(frames) == sum(kernels)
    assert set(frames) == {("0", "0", "0")}
    names = re.findall(r"Compiling entry function '(\S+)' for", report)
    assert len(names) == len(registers)
    streaming = [n for name, n in zip(names, registers, strict=True) if "attention" not in name]
    assert max(streaming) <= 128  # four blocks of 128 threads on a multiprocessor
    assert len(streaming) < len(registers)  # tensor-core kernels take what a thread can have


LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("udp_fast._native_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


def run_python(code: str, file: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOAD + code, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_extension_loads_alone(built: Built) -> None:
    """No CUDA library need be installed, nor a driver, nor torch."""
    libraries = run_python('print(open("/proc/self/maps").read())', built.file)
    assert "_native_cuda" in libraries
    assert not re.search(r"libcudart|libtorch", libraries)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "name"), [(3, "uint8"), (4, "dtype 4"), (-1, "dtype -1")], ids=lambda value: str(value)
)
def test_what_is_no_float_is_an_error_that_names_it(built: Built, code: int, name: str) -> None:
    called = """
for function, addresses in ((module.geglu, (0, 0)), (module.geglu_backward, (0, 0, 0))):
    try:
        function((2, 8), CODE, *addresses, 0)
    except RuntimeError as error:
        print(error)
"""
    forward, backward = run_python(called.replace("CODE", str(code)), built.file).splitlines()
    assert forward.startswith("geglu: CUDA says")
    assert backward.startswith("geglu_backward: CUDA says")
    for line in (forward, backward):
        assert line.endswith(f"for 2 rows of twice 8 {name}")


@pytest.mark.slow
def test_the_extension_is_of_no_use_without_a_gpu_and_says_so(built: Built) -> None:
    code = """
import torch, udp_fast
if torch.cuda.is_available():
    print("there is one")
    raise SystemExit
sys.modules[spec.name] = udp_fast._native_cuda = module
torch.version.cuda = sys.argv[2] if len(sys.argv) > 2 else "13.0"
from udp_fast import info, ops
print([line for line in info.report().splitlines() if line.startswith("  cuda ")])
print(ops.quantize(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.uint8), eps=0.1, kind="delta"))
"""
    out = run_python(code, built.file)
    if "there is one" in out:
        pytest.skip("there is a GPU here")
    assert "no GPU can be used: CUDA says" in out
    assert "sm_80, sm_86, sm_89, sm_90, sm_100, PTX 80" in out


# --- other toolkits ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_sources_build_with_cuda_12(tmp_path: Path) -> None:
    """With the toolkit that is at hand a CUDA 13, UDP_CUDA12_HOME names one of CUDA 12."""
    home = os.environ.get("UDP_CUDA12_HOME", "")
    if not home:
        pytest.skip("UDP_CUDA12_HOME names no toolkit of CUDA 12")
    done = build_extension(tmp_path, CUDA_HOME=home, FORCE_CUDA="1", NVCC_APPEND_FLAGS="-Xptxas=-v")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, re.findall(r".*warning.*", done.stderr)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", done.stderr)
    # The gates are for CUDA 13. The older assembler leaves a few of attention's kernels a value or two
    # short of registers (12.4: 9 of 277 on sm_90, none before, at most 24 bytes).
    assert sum(frame != ("0", "0", "0") for frame in frames) <= len(frames) // 10
    assert max(int(stores) for _, stores, _ in frames) <= 32
    spilling = re.findall(
        r"entry function '(\w+)'[^']*'sm_\w+'[^']*?[1-9]\d* bytes spill", done.stderr
    )
    assert all("attention" in name for name in spilling)
    (file,) = tmp_path.glob("lib/**/*.so")
    version, architectures = run_python(
        "print(module.cuda_version, module.architectures, sep='\\n')", file
    ).splitlines()
    assert version.startswith("12.")
    # Before 12.8 there is no sm_100: the PTX serves it.
    assert architectures.startswith("sm_80, sm_86, sm_89, sm_90")
    assert architectures.endswith("PTX 80")
