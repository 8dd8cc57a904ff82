"""Vectors of LANES numbers, rows side by side, as values of compiled code (numba).

numba's own loops over lanes keep what they add up in memory and are turned into vector code only
where the compiler can prove that no two arrays overlap. A vector here is one value: it stays in
registers. They are LLVM's: a machine with narrower registers takes several for one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
"""Numbers of a vector: of float32, a vector register or two."""
_ROWS = 6
"""Rows of sums at once in `add_product`: 12 of the 16 registers of AVX2."""
_FUSED = ("contract",)
"""A product and a sum may become one instruction."""


class _Vector(types.Type):
    def __init__(self, number: Any) -> None:
        self.number = number
        super().__init__(f"lanes of {number}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        number = ir.DoubleType() if kind.number == types.float64 else ir.FloatType()
        super().__init__(manager, kind, ir.VectorType(number, LANES))


VECTORS = {number: _Vector(number) for number in (types.float32, types.float64)}


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    vector = context.get_data_type(VECTORS[kind.dtype])
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


def _alignment(kind: Any) -> int:
    return 8 if kind.dtype == types.float64 else 4


@intrinsic
def load(typing, array, at):
    """LANES numbers from the flat index `at` on of a contiguous array."""

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        return builder.load(_place(context, builder, kind, *arguments), align=_alignment(kind))

    return VECTORS[array.dtype](array, types.intp), code


@intrinsic
def store(typing, array, at, vector):
    """Puts a vector where `load` finds it."""

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        place = _place(context, builder, kind, *arguments[:2])
        builder.store(arguments[2], place, align=_alignment(kind))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


def _spread(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    index = ir.IntType(32)
    first = builder.insert_element(nothing, number, ir.Constant(index, 0))
    zeros = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
    return builder.shuffle_vector(first, nothing, zeros)


@intrinsic
def spread(typing, number):
    """A vector of one number."""

    def code(context, builder, signature, arguments):
        return _spread(builder, arguments[0])

    return VECTORS[number](number), code


@intrinsic
def spread_from(typing, array, at):
    """A vector of the number at the flat index `at` (not from the end) of an array."""

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, arguments[0]).data
        return _spread(
            builder, builder.load(builder.gep(data, [arguments[1]]), align=_alignment(kind))
        )

    return VECTORS[array.dtype](array, types.intp), code


@intrinsic
def multiply_add(typing, a, b, c):
    """a b + c, lane by lane."""

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        bits = 64 if signature.return_type.number == types.float64 else 32
        name = f"llvm.fmuladd.v{LANES}f{bits}"
        kind = ir.FunctionType(vector, [vector] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return a(a, a, a), code


@intrinsic
def square_root(typing, a):
    """Lane by lane."""

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        bits = 64 if signature.return_type.number == types.float64 else 32
        name = f"llvm.sqrt.v{LANES}f{bits}"
        kind = ir.FunctionType(vector, [vector])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return a(a), code


@intrinsic
def larger(typing, a, b):
    """The larger of two numbers, lane by lane."""

    def code(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return a(a, a), code


def _operator(symbol: Callable[[Any, Any], Any], name: str) -> None:
    """Lets two vectors be added, subtracted or multiplied with `symbol`."""

    class _Typed(ConcreteTemplate):
        cases = [signature(v, v, v) for v in VECTORS.values()]  # noqa: RUF012 (numba's own form)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, name)(*arguments, flags=_FUSED)

    infer_global(symbol)(_Typed)
    for vector in VECTORS.values():
        lower_builtin(symbol, vector, vector)(code)


for _symbol, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _operator(_symbol, _name)


@njit(inline="always")
def _add_term(left, at, column, total):
    return multiply_add(spread_from(left, at), column, total)


@njit(inline="always")
def add_product(left, a, i, j, rows, count, right, b, out, o):
    """out[o + LANES r + lane] += sum_k left[a + i r + j k] right[b + LANES k + lane], for r < rows,
    k < count, lane < LANES, where `left` is flat and the others are contiguous. The order of a sum
    does not depend on the number of rows."""
    whole = rows - rows % _ROWS
    for r in range(0, whole, _ROWS):
        row, to = a + i * r, o + LANES * r
        s0, s1, s2 = load(out, to), load(out, to + LANES), load(out, to + 2 * LANES)
        s3, s4 = load(out, to + 3 * LANES), load(out, to + 4 * LANES)
        s5 = load(out, to + 5 * LANES)
        for k in range(count):
            column, at = load(right, b + LANES * k), row + j * k
            s0 = _add_term(left, at, column, s0)
            s1 = _add_term(left, at + i, column, s1)
            s2 = _add_term(left, at + 2 * i, column, s2)
            s3 = _add_term(left, at + 3 * i, column, s3)
            s4 = _add_term(left, at + 4 * i, column, s4)
            s5 = _add_term(left, at + 5 * i, column, s5)
        store(out, to, s0)
        store(out, to + LANES, s1)
        store(out, to + 2 * LANES, s2)
        store(out, to + 3 * LANES, s3)
        store(out, to + 4 * LANES, s4)
        store(out, to + 5 * LANES, s5)
    for r in range(whole, rows):
        total = load(out, o + LANES * r)
        for k in range(count):
            total = _add_term(left, a + i * r + j * k, load(right, b + LANES * k), total)
        store(out, o + LANES * r, total)
