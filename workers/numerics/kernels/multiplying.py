"""Inner products, summed halving by halving as precision.inner_products does, and rows made of their shares."""

from numba import types

from workers.numerics.kernels.bits import f32, f64, fma, i64
from workers.numerics.kernels.blocks import JUDGES, load_vector
from workers.numerics.kernels.compiling import FLOATS, INPUT, WIDE_ROWS, called, compiled
from workers.numerics.kernels.reading import cut_part, load, read_part
from workers.numerics.programs import NOT_CLEAN, PRODUCT_BLOCK


@compiled
def _multiply_halves(one, other, half, tree):
    far, other_far = one[half:], other[half:]
    n_far = len(far)
    for j in range(n_far):
        tree[j] = fma(f64(far[j]), f64(other_far[j]), f64(one[j]) * f64(other[j]))
    for j in range(n_far, min(half, len(one))):
        tree[j] = f64(one[j]) * f64(other[j])


@compiled
def _multiply_quarters(one, other, tree):
    """Do two halvings at a time: half as much goes through memory."""
    n = len(one) // 4
    one_0, one_1, one_2, one_3 = one[:n], one[n : 2 * n], one[2 * n : 3 * n], one[3 * n :]
    other_0, other_1, other_2, other_3 = other[:n], other[n : 2 * n], other[2 * n : 3 * n], other[3 * n :]
    for j in range(n):
        low = fma(f64(one_2[j]), f64(other_2[j]), f64(one_0[j]) * f64(other_0[j]))
        tree[j] = low + fma(f64(one_3[j]), f64(other_3[j]), f64(one_1[j]) * f64(other_1[j]))
    return n


@compiled
def _multiply_sixths(one, other, tree):
    """Do three halvings at a time, of three times a power of two, as widths often are."""
    n = len(one) // 6
    one_0, one_1, one_2, one_3, one_4, one_5 = (
        one[:n], one[n : 2 * n], one[2 * n : 3 * n], one[3 * n : 4 * n], one[4 * n : 5 * n], one[5 * n :],
    )  # fmt: skip
    other_0, other_1, other_2, other_3, other_4, other_5 = (
        other[:n], other[n : 2 * n], other[2 * n : 3 * n], other[3 * n : 4 * n], other[4 * n : 5 * n], other[5 * n :],
    )  # fmt: skip
    for j in range(n):
        low = fma(f64(one_4[j]), f64(other_4[j]), f64(one_0[j]) * f64(other_0[j])) + f64(one_2[j]) * f64(other_2[j])
        high = fma(f64(one_5[j]), f64(other_5[j]), f64(one_1[j]) * f64(other_1[j])) + f64(one_3[j]) * f64(other_3[j])
        tree[j] = low + high
    return n


@compiled
def _add_quarters(tree):
    n = len(tree) // 4
    tree_0, tree_1, tree_2, tree_3 = tree[:n], tree[n : 2 * n], tree[2 * n : 3 * n], tree[3 * n :]
    for j in range(n):
        tree_0[j] = (tree_0[j] + tree_2[j]) + (tree_1[j] + tree_3[j])
    return n


@compiled
def _inner_product(one, other, tree):
    """Sum products, which float64 holds exactly, halving by halving, as precision.inner_products does."""
    m, half = len(one), 1
    while 2 * half < m:
        half = 2 * half
    if 2 * half == m and m >= 4:
        half = _multiply_quarters(one, other, tree)
    elif 3 * half == 2 * m and m >= 6:
        half = _multiply_sixths(one, other, tree)
    else:
        _multiply_halves(one, other, half, tree)
    while half >= 4:
        half = _add_quarters(tree[:half])
    while half > 1:
        half = half // 2
        low, high = tree[:half], tree[half : 2 * half]
        for j in range(half):
            low[j] = low[j] + high[j]
    return tree[0]


@compiled
def _load_vectors(given, begin, base, vectors):
    """Write the task vectors' elements from `begin` on, or the models' where there is no base, to `vectors`, [n, m]."""
    if given.has_base:
        load(given, 0, begin, base)
    for model in range(len(vectors)):
        load_vector(given, model, begin, base, vectors[model])


@compiled
def multiply_pairs(vectors, where, tree, out):
    """Write the inner products of all pairs of n vectors to `out`, [n, n] or larger.

    where: n, which row of `vectors` the first is, how many rows the next lies below; from which column to which.
    """
    n, top, step, begin, behind = where
    for first in range(n):
        one = vectors[top + first * step, begin:behind]
        for second in range(first, n):
            product = _inner_product(one, vectors[top + second * step, begin:behind], tree)
            out[first, second] = product
            out[second, first] = product


@called(types.void, WIDE_ROWS, types.float32[:, :, ::1], types.float64[:, ::1], FLOATS, WIDE_ROWS)
def combine_rows(base, finetuned, shares, total, out):
    """Write each row's shares of the models, [n, rows], and the rest of the base, if it has any rows, added up.

    total: [width], memory.
    """
    n, n_rows, width = finetuned.shape
    for i in range(n_rows):
        total[:] = 0.0
        rest = 1.0
        for model in range(n):
            row, share = finetuned[model, i], shares[model, i]
            rest -= share
            for j in range(width):
                total[j] = total[j] + share * f64(row[j])
        if len(base) > 0:
            for j in range(width):
                total[j] = total[j] + rest * f64(base[i, j])
        for j in range(width):
            out[i, j] = f32(total[j])


@called(types.void, WIDE_ROWS, FLOATS, types.float64[:, :, ::1])
def inner_products(vectors, tree, out):
    """Write the inner products of all pairs of n vectors to `out`, [batch, n, n].

    vectors: [n · batch, m], m > 0, the first of each batch in front; tree: [m], memory.
    """
    batch, n, _ = out.shape
    for index in range(batch):
        multiply_pairs(vectors, (n, index, batch, 0, vectors.shape[1]), tree, out[index])


@called(types.int64, INPUT, WIDE_ROWS, FLOATS, WIDE_ROWS, WIDE_ROWS, types.float64[:, :, ::1])
def multiply_blocks(given, vectors, tree, head, tail, products):
    """Multiply all pairs of task vectors, or of models where there is no base, in blocks of the tensor.

    Written are head and tail, [n, m]: the vectors before the first whole block and behind the last; and products,
    [n_blocks, n, n]. vectors: [n + 1, PRODUCT_BLOCK], tree: [PRODUCT_BLOCK], memory.
    """
    n_models, n_head, n_tail = len(head), head.shape[1], tail.shape[1]
    at, base = given.at_part, vectors[n_models]
    if n_head > 0:
        if not read_part(given, 0, n_head, at, JUDGES):
            return NOT_CLEAN
        _load_vectors(cut_part(given, 0, n_head, at), 0, base[:n_head], head)
    behind = given.n_elements - n_tail
    for begin in range(n_head, given.n_elements, given.part):
        n = min(given.part, given.n_elements - begin)
        if not read_part(given, begin, n, at, JUDGES):
            return NOT_CLEAN
        part = cut_part(given, begin, n, at)
        for first in range(0, n, PRODUCT_BLOCK):
            if begin + first == behind:
                _load_vectors(part, first, base[:n_tail], tail)
            else:
                _load_vectors(part, first, base, vectors[:n_models])
                out = products[(begin + first - n_head) // PRODUCT_BLOCK]
                multiply_pairs(vectors, (n_models, 0, 1, 0, PRODUCT_BLOCK), tree, out)
    return i64(0)
