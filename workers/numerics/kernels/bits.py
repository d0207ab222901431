"""Numbers as kernels see them: types, bits, and steps of which the rounding is known."""

import numpy as np
from llvmlite.ir import Constant, DoubleType, FloatType, IntType, VectorType
from numba import types
from numba.core.cgutils import create_struct_proxy
from numba.extending import intrinsic

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
MAGNITUDE = u32(0x7FFF_FFFF)
SIGN = u32(0x8000_0000)
INFINITY = u32(0x7F80_0000)
ONE = u32(0x3F80_0000)
GROUP = 64  # numbers that are compared together: as many as a word has bits
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


@intrinsic
def compare(_typing, numbers, _begin, _low, _high):
    """Compare the GROUP int32 numbers from an index on with two others, one bit each, the first one's the lowest.

    Return where low <= number <= high, and where number > high.
    """

    def generate(context, builder, signature, arguments):
        array, begin, low, high = arguments
        data = create_struct_proxy(signature.args[0])(context, builder, value=array).data
        group, word = VectorType(IntType(32), GROUP), IntType(GROUP)
        some = builder.load(builder.bitcast(builder.gep(data, [begin]), group.as_pointer()), align=4)
        is_over = builder.icmp_signed(">", some, _repeat(builder, high, group))
        is_under = builder.icmp_signed("<", some, _repeat(builder, low, group))
        over, under = builder.bitcast(is_over, word), builder.bitcast(is_under, word)
        within = builder.not_(builder.or_(over, under))
        return context.make_tuple(builder, signature.return_type, (within, over))

    arguments = (numbers, types.int64, types.int32, types.int32)
    return types.UniTuple(types.uint64, 2)(*arguments), generate


def _repeat(builder, number, group):
    first = builder.insert_element(Constant(group, None), number, IntType(32)(0))
    return builder.shuffle_vector(first, first, Constant(VectorType(IntType(32), GROUP), None))


@intrinsic
def count_ones(_typing, _word):
    """Return how many bits of a word are set."""

    def generate(_context, builder, _signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def first_one(_typing, _word):
    """Return the index of the lowest bit that is set; of 0, which has none, the word's width."""

    def generate(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], IntType(1)(0))

    return types.uint64(types.uint64), generate
