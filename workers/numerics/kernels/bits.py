"""Numbers as kernels see them: types, bits, and steps of which the rounding is known."""

import numpy as np
from llvmlite.ir import DoubleType, FloatType, IntType
from numba import types
from numba.extending import intrinsic

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
MAGNITUDE = u32(0x7FFF_FFFF)
SIGN = u32(0x8000_0000)
INFINITY = u32(0x7F80_0000)
ONE = u32(0x3F80_0000)
NOTHING = -0.0  # where sums begin: x added to it is x, whatever the sign of a zero


@intrinsic
def fma(_typing, _a, _b, _c):
    """Return a · b + c, rounded once."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


@intrinsic
def to_float(_typing, stored):
    """Return the float32 number that a bfloat16's 16 or a float32's 32 bits are."""

    def generate(_context, builder, _signature, arguments):
        bits = arguments[0]
        if stored == types.uint16:
            bits = builder.shl(builder.zext(bits, IntType(32)), IntType(32)(16))
        return builder.bitcast(bits, FloatType())

    return types.float32(stored), generate


def _same_bits(source, target, of_target):
    @intrinsic
    def cast(_typing, _number):
        def generate(_context, builder, _signature, arguments):
            return builder.bitcast(arguments[0], of_target)

        return target(source), generate

    return cast


as_float = _same_bits(types.uint32, types.float32, FloatType())
as_bits = _same_bits(types.float32, types.uint32, IntType(32))
as_double = _same_bits(types.uint64, types.float64, DoubleType())
as_wide_bits = _same_bits(types.float64, types.uint64, IntType(64))
