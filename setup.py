"""Builds udp_fast._native, the CPU kernels, and where nvcc is found udp_fast._native_cuda: C++17 and
pybind11, no torch.

UDP_NO_NATIVE=1 leaves both out; every op then runs on the reference backend. UDP_NO_CUDA=1 leaves
out the second (csrc/cuda/build.py says when it is built). All else is in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
MSVC = sys.platform == "win32"
# On macOS ARCHFLAGS may ask for another processor than this one, or for two at once.
X86 = platform.machine().lower() in ("x86_64", "amd64") and "arm64" not in os.environ.get(
    "ARCHFLAGS", ""
)

COMMON = (
    ["/std:c++17", "/O2", "/fp:precise", "/EHsc"]
    if MSVC
    # No contraction: an fma is where the source says so, and every instruction set gives equal bits.
    else ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
)
if not MSVC:
    # gcc would look for memory to free from 128 MiB on, for a twentieth of its time; it needs no more
    # than 400 anyway. (Clang warns of flags that are not its own, unless told not to.)
    COMMON += [
        *("--param", "ggc-min-heapsize=1000000"),
        *("-Wno-unused-command-line-argument", "-Wno-ignored-optimization-argument"),
    ]
# gcc's -O2 unrolls no loop that gets longer by it, as those over four pixels do.
AVX2 = ["/arch:AVX2"] if MSVC else ["-fpeel-loops", "-mavx2", "-mfma", "-mf16c"]
AVX512 = (
    ["/arch:AVX512"]
    if MSVC
    # g++ 12 warns about its own header's deliberately undefined registers.
    else [
        *AVX2,
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
    ]
)

# What is rarely run or runs briefly is not worth the longest compilation. On x86-64 only processors
# from before 2013 take the baseline; the bindings only pass arguments on.
# (psabi: how older compilers passed such vectors does not matter within one file.)
BASELINE = [] if MSVC else [*(["-O1", "-ftree-vectorize"] if X86 else ["-O3"]), "-Wno-psabi"]
BINDINGS = [] if MSVC else ["-Os"]

#: The longest to compile comes first. Only the AVX files may use more than the processor every build
#: runs on.
FLAGS = {
    "csrc/cpu/kernels_avx512.cpp": AVX512,
    "csrc/cpu/kernels_avx2.cpp": AVX2,
    "csrc/bindings.cpp": BINDINGS,
    "csrc/cpu/kernels_baseline.cpp": BASELINE,
}
SOURCES = [*(f for f in FLAGS if X86 or "avx" not in f), "csrc/unity.cpp"]

#: What a build is made from: unity.cpp includes .cpp files as others do headers.
FILES = ["setup.py", "udp_fast/__init__.py"]
FILES += [str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*") if p.suffix != ".pyc"]


def load_cuda_build() -> Any:
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "csrc/cuda/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda_build = load_cuda_build()


class BuildNative(build_ext):
    """Compiles in parallel, each file with its own flags or, if it ends in .cu, with nvcc."""

    def build_extension(self, ext: Extension) -> None:
        compiler = self.compiler
        compile_all = compiler.compile

        def compile_one(source: str, options: dict[str, Any]) -> list[str]:
            if source.endswith(".cu"):
                return [self.compile_cuda(source)]
            flags = [*(options.pop("extra_postargs") or ()), *FLAGS.get(source, ())]
            return compile_all([source], extra_postargs=flags, **options)

        def compile_parallel(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_one(source, dict(options)), sources)
                return [name for names in objects for name in names]

        compiler.compile = compile_parallel
        try:
            super().build_extension(ext)
        except Exception as error:
            if ext.optional:  # setuptools prints this as a warning, and goes on
                raise CompileError(without_cuda(error)) from error
            if ext.name == "udp_fast._native_cuda":
                raise SystemExit(f"udp_fast: the CUDA kernels did not build: {error}") from error
            raise SystemExit(
                f"udp_fast: the native kernels did not build: {error}\n"
                "A C++17 compiler is needed (Debian/Ubuntu: apt install g++; macOS: xcode-select"
                " --install;\nWindows: the Visual Studio build tools). Or set UDP_NO_NATIVE=1 to"
                " install without them:\neverything then works on the slower reference backend."
            ) from error
        finally:
            compiler.compile = compile_all

    def compile_cuda(self, source: str) -> str:
        output = Path(self.build_temp, source).with_suffix(".o")
        output.parent.mkdir(parents=True, exist_ok=True)
        command = cuda_build.command(source, str(output))
        self.announce(" ".join(command), level=2)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stderr)  # at once: others compile at the same time
        if done.returncode != 0:
            raise CompileError(f"{command[0]} failed on {source}:\n{done.stderr}")
        return str(output)


def version() -> str:
    found = re.search(r'__version__ = "(.*)"', (ROOT / "udp_fast/__init__.py").read_text())
    assert found is not None
    return found[1]


def cuda() -> Extension:
    import pybind11

    code, ptx = cuda_build.architectures()
    names = ", ".join([*(f"sm_{a}" for a in code), *(f"PTX {a}" for a in ptx)])
    return Extension(
        "udp_fast._native_cuda",
        [*cuda_build.SOURCES, "csrc/bindings_cuda.cpp"],
        include_dirs=[pybind11.get_include(), str(cuda_build.toolkit() / "include")],
        define_macros=[
            ("UDP_VERSION", f'"{version()}"'),
            ("UDP_CUDA_VERSION", f'"{cuda_build.version()}"'),
            ("UDP_CUDA_ARCHITECTURES", f'"{names}"'),
        ],
        library_dirs=[str(cuda_build.library_folder())],
        libraries=["cudart_static", "rt", "dl", "pthread"],
        extra_compile_args=COMMON,
        depends=FILES,
        language="c++",
        optional=not cuda_build.demanded(),
    )


def without_cuda(reason: object) -> str:
    return (
        f"udp_fast is built WITHOUT its CUDA kernels: {reason}\n"
        "FORCE_CUDA=1 makes this an error, UDP_NO_CUDA=1 does not try."
    )


def cuda_if_possible() -> list[Extension]:
    try:
        return [cuda()] if cuda_build.wanted() else []
    except cuda_build.Unavailable as error:
        if cuda_build.demanded():
            raise SystemExit(f"udp_fast: {error}") from error
        sys.stderr.write(f"warning: {without_cuda(error)}\n")
        return []


def native() -> list[Extension]:
    import pybind11

    return [
        Extension(
            "udp_fast._native",
            SOURCES,
            include_dirs=[pybind11.get_include()],
            define_macros=[
                ("UDP_VERSION", f'"{version()}"'),
                *([("UDP_X86", "1")] if X86 else []),
            ],
            extra_compile_args=COMMON,
            extra_link_args=[] if MSVC else ["-pthread"],
            depends=FILES,
            language="c++",
        ),
        *cuda_if_possible(),
    ]


no_native = os.environ.get("UDP_NO_NATIVE", "")
if no_native not in ("", "0", "1"):
    raise SystemExit(f"UDP_NO_NATIVE: got {no_native!r}, expected 0 or 1")
setup(ext_modules=[] if no_native == "1" else native(), cmdclass={"build_ext": BuildNative})
