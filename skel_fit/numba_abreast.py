"""ABREAST rows' float64 as one number of compiled code (numba): what is written for one row works
on that many at once.

Arrays of such numbers are arrays of float64 with the rows last, seen by `abreast`. They are added,
subtracted, multiplied and divided as other numbers, and those mix in. There is no branch on
them: `if_less` chooses, row by row, so that no row's result depends on another's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.typeconv import Conversion
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_cast,
    models,
    overload,
    register_model,
)
from numba.np.arrayobj import populate_array

ABREAST = 8
"""Rows of a number: two vector registers of AVX2, one of AVX-512."""
_CODE = ir.VectorType(ir.DoubleType(), ABREAST)
_FUSED = ("contract",)
"""A product and a sum may become one instruction."""


class _Abreast(types.Type):
    def __init__(self) -> None:
        super().__init__(f"{ABREAST} float64 abreast")

    def can_convert_from(self, typing: Any, other: Any) -> Any:
        return Conversion.safe if isinstance(other, types.Float) else None


@register_model(_Abreast)
class _AbreastModel(models.PrimitiveModel):
    """In memory a packed struct of one vector: arrays are aligned for float64 only."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _CODE)

    def get_data_type(self) -> Any:
        return ir.LiteralStructType([_CODE], packed=True)

    def as_data(self, builder: Any, value: Any) -> Any:
        return builder.insert_value(ir.Constant(self.get_data_type(), ir.Undefined), value, 0)

    def from_data(self, builder: Any, value: Any) -> Any:
        return builder.extract_value(value, 0)

    def load_from_data_pointer(self, builder: Any, pointer: Any, align: Any = None) -> Any:
        return builder.load(builder.bitcast(pointer, _CODE.as_pointer()), align=8)


_ROWS = _Abreast()


@intrinsic
def abreast(typing, array):
    """A contiguous float64 array (..., ABREAST) as an array (...) of numbers of all rows."""
    kind = types.Array(_ROWS, array.ndim - 1, "C")

    def code(context, builder, signature, arguments):
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        seen = context.make_array(signature.return_type)(context, builder)
        populate_array(
            seen,
            data=builder.bitcast(source.data, seen.data.type),
            shape=cgutils.unpack_tuple(builder, source.shape)[:-1],
            strides=cgutils.unpack_tuple(builder, source.strides)[:-1],
            itemsize=context.get_constant(types.intp, 8 * ABREAST),
            meminfo=source.meminfo,
        )
        return impl_ret_borrowed(context, builder, signature.return_type, seen._getvalue())

    return kind(array), code


@lower_cast(types.Float, _ROWS)
def _spread(context, builder, kind, to, number):
    """The same number for all rows."""
    number = context.cast(builder, number, kind, types.float64)
    nothing, index = ir.Constant(_CODE, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(nothing, number, ir.Constant(index, 0))
    zeros = ir.Constant(ir.VectorType(index, ABREAST), [0] * ABREAST)
    return builder.shuffle_vector(first, nothing, zeros)


def _operator(symbol: Callable[..., Any], name: str) -> None:
    class _Typed(ConcreteTemplate):
        cases = [signature(_ROWS, _ROWS, _ROWS)]  # noqa: RUF012 (numba's own form)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, name)(*arguments, flags=_FUSED)

    infer_global(symbol)(_Typed)
    lower_builtin(symbol, _ROWS, _ROWS)(code)


for _symbols, _name in (
    ((operator.add, operator.iadd), "fadd"),
    ((operator.sub, operator.isub), "fsub"),
    ((operator.mul, operator.imul), "fmul"),
    ((operator.truediv, operator.itruediv), "fdiv"),
):
    for _symbol in _symbols:
        _operator(_symbol, _name)


@infer_global(operator.neg)
class _Negative(ConcreteTemplate):
    cases = [signature(_ROWS, _ROWS)]  # noqa: RUF012 (numba's own form)


@lower_builtin(operator.neg, _ROWS)
def _negative(context, builder, signature, arguments):
    return builder.fsub(ir.Constant(_CODE, [-0.0] * ABREAST), arguments[0])


def _choice(relation: str) -> Callable[..., Any]:
    def typed(typing: Any, a: Any, b: Any, there: Any, elsewhere: Any) -> Any:
        kind = _ROWS if _ROWS in (a, b, there, elsewhere) else types.float64

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, b, there, elsewhere = arguments
            return builder.select(builder.fcmp_ordered(relation, a, b), there, elsewhere)

        return kind(kind, kind, kind, kind), code

    return typed


@intrinsic
def if_less(typing, a, b, there, elsewhere):
    """`there` where a < b, else `elsewhere`, row by row."""
    return _choice("<")(typing, a, b, there, elsewhere)


@intrinsic
def if_at_most(typing, a, b, there, elsewhere):
    """`there` where a <= b, else `elsewhere`, row by row."""
    return _choice("<=")(typing, a, b, there, elsewhere)


@intrinsic
def any_row(typing, a):
    """Whether it is above 0 in any row."""

    def code(context, builder, signature, arguments):
        above = builder.fcmp_ordered(">", arguments[0], ir.Constant(_CODE, [0.0] * ABREAST))
        bits = builder.bitcast(above, ir.IntType(ABREAST))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(ABREAST), 0))

    return types.boolean(a), code


@intrinsic
def _rounded(typing, a):
    def code(context, builder, signature, arguments):
        kind = ir.FunctionType(_CODE, [_CODE])
        name = f"llvm.rint.v{ABREAST}f64"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return a(a), code


@njit(inline="always")
def magnitude(a):
    """|a|."""
    return if_less(a, 0.0, -a, a)


# halves of pi in three parts, the first two of 33 bits: whole multiples of them are exact
_HALF, _HALF_2, _HALF_3 = (
    1.57079632673412561417e00,
    6.07710050630396597660e-11,
    2.02226624879595063154e-21,
)
# minimax polynomials on [-pi/4, pi/4] (fdlibm, Sun Microsystems)
_SINE = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
_COSINE = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip


@njit(inline="always")
def _sine_cosine(a):
    turns = _rounded(a * (2.0 / math.pi))
    x = ((a - turns * _HALF) - turns * _HALF_2) - turns * _HALF_3
    z = x * x
    s, c = _SINE, _COSINE
    sine = s[0] + z * (s[1] + z * (s[2] + z * (s[3] + z * (s[4] + z * s[5]))))
    sine = x + x * z * sine
    cosine = c[0] + z * (c[1] + z * (c[2] + z * (c[3] + z * (c[4] + z * c[5]))))
    cosine = 1.0 - 0.5 * z + z * z * cosine
    odd = magnitude(turns - 2.0 * _rounded(0.5 * turns))
    # quarter turns: 0 (s, c), 1 (c, -s), 2 (-s, -c), 3 (-c, s)
    quarter = turns - 4.0 * _rounded(0.25 * turns)  # -2 to 2
    first, second = if_less(odd, 0.5, sine, cosine), if_less(odd, 0.5, cosine, sine)
    sign = if_less(magnitude(quarter - 0.5), 1.0, 1.0, -1.0)  # 0 and 1
    other = if_less(magnitude(quarter + 0.5), 1.0, 1.0, -1.0)  # 0 and -1
    return sign * first, other * second


def sine_cosine(a: Any) -> tuple[Any, Any]:
    """Sine and cosine; of rows abreast to some 1e-16, up to angles of thousands of turns."""
    return np.sin(a), np.cos(a)


@overload(
    sine_cosine
)  # numba drops stores into views of `abreast` where it puts an overload in line
def _overloaded(a):
    if isinstance(a, _Abreast):
        return lambda a: _sine_cosine(a)
    return lambda a: (math.sin(a), math.cos(a))
