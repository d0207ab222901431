"""How kernels are compiled: each one once, with all that it calls, and anew when any of their files has changed.

No references are counted (_nrt): whoever calls a kernel holds its arrays. So nothing is allocated in one, and no array
returned; slices cost nothing, and less is compiled, as without the wrappers that Python would call.
"""

import hashlib
from functools import cache
from pathlib import Path

from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from workers import fusion
from workers.numerics import programs

FLOATS, INTEGERS, WIDE_ROWS = types.float64[::1], types.int64[::1], types.float32[:, ::1]
KEYS = types.int32[::1]
INPUT = types.NamedTuple(
    (
        types.uint8[::1], INTEGERS, INTEGERS, INTEGERS, INTEGERS, types.int64, types.int64, types.boolean,
        types.boolean, types.int64, types.boolean, types.uint64[::1], types.int64[:, ::1], types.float64[:, ::1],
        FLOATS, FLOATS, INTEGERS, types.int64[:, ::1], types.int64,
    ), programs.Input,
)  # fmt: skip
PROGRAM = types.NamedTuple(
    (
        types.boolean, types.int64, FLOATS, types.boolean, FLOATS, types.float64, FLOATS, types.float64,
        types.float32[::1], types.float64[:, ::1], types.int64[:, ::1], types.int64, types.float64,
        types.boolean, types.boolean, types.boolean, types.float64, types.float64, types.float64, types.float64,
        types.float64,
    ), programs.Program,
)  # fmt: skip
WINDOWS = types.NamedTuple((INTEGERS, KEYS, KEYS), programs.Windows)
SCRATCH = types.NamedTuple((types.float32[:, ::1], types.float64[:, ::1], types.float64[:, ::1]), programs.Scratch)
pread = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64))

_OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}


class _Part(JITCodeLibrary):
    """The code of a function that only kernels call: it is linked into theirs, and optimized and translated there.

    numba would do both for each function with all that it calls, once for every level of calls.
    """

    @property
    def codegen(self):
        """What numba tells where a function's environment lies: this one is never run from Python."""
        return self

    def set_env(self, name, environment):
        """Take note of nothing."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _PartCompiler(Compiler):
    def define_pipelines(self):
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


class _Cache(FunctionCache):
    """Keeps what was compiled of a kernel until any file changes that it may be made of."""

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, _stamp())


@cache
def _stamp():
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(programs.__file__), Path(fusion.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()


compiled = njit(no_cpython_wrapper=True, pipeline_class=_PartCompiler, **_OPTIONS)
inlined = njit(inline="always", **_OPTIONS)


def called(*signature):
    """Make a kernel of a function, which Python calls. signature: its result's type, then its arguments'."""

    def compile_kernel(function):
        kernel = njit(**_OPTIONS)(function)
        kernel._cache = _Cache(function)  # as its own enable_caching does
        kernel.compile(signature[0](*signature[1:]))
        kernel.disable_compile()
        return kernel

    return compile_kernel
