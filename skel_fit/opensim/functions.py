"""OpenSim's functions of coordinates, read from XML and evaluated: what joints and couplers use."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

#: (n, number of coordinates) -> (n,).
Function = Callable[[NDArray], NDArray]

KINDS = (
    "Constant", "LinearFunction", "PolynomialFunction", "MultivariatePolynomialFunction",
    "SimmSpline", "PiecewiseLinearFunction", "MultiplierFunction",
)  # fmt: skip


def find_function(parent: ElementTree.Element) -> ElementTree.Element | None:
    """The first function among an element's children or, as older files have it, grandchildren."""
    for child in parent:
        if child.tag in KINDS or child.tag.endswith(("Function", "Spline")):
            return child
        if child.tag in ("function", "coupled_coordinates_function") and len(child):
            return child[0]
    return None


def function(element: ElementTree.Element, where: str) -> Function:
    """The function of an XML element.

    Raises:
        ValueError: a kind of function that is not read, or numbers that make none.
    """
    kind = element.tag
    if kind == "Constant":
        value = _numbers(element, "value", where, default=[0.0])[0]
        return lambda q: np.full(len(q), value)
    if kind == "LinearFunction":
        *slopes, offset = _numbers(element, "coefficients", where, default=[1.0, 0.0])
        return lambda q: q[:, : len(slopes)] @ np.array(slopes) + offset
    if kind == "PolynomialFunction":
        coefficients = _numbers(element, "coefficients", where)
        return lambda q: np.polyval(coefficients, q[:, 0])
    if kind == "MultivariatePolynomialFunction":
        return _multivariate(element, where)
    if kind == "SimmSpline":
        return _simm_spline(*_knots(element, where))
    if kind == "PiecewiseLinearFunction":
        return _piecewise_linear(*_knots(element, where))
    if kind == "MultiplierFunction":
        inner = find_function(element)
        if inner is None:
            raise ValueError(f"{where}: MultiplierFunction without a function")
        base, scale = function(inner, where), _numbers(element, "scale", where, default=[1.0])[0]
        return lambda q: scale * base(q)
    raise ValueError(f"{where}: function {kind} is not read; expected one of {', '.join(KINDS)}")


def _numbers(
    element: ElementTree.Element, tag: str, where: str, default: list[float] | None = None
) -> list[float]:
    text = element.findtext(tag)
    if text is None or not text.strip():
        if default is None:
            raise ValueError(f"{where}: {element.tag} without <{tag}>")
        return default
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        raise ValueError(f"{where}: <{tag}> of {element.tag} holds no numbers") from None
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: <{tag}> of {element.tag} holds a number that is not finite")
    return values


def _knots(element: ElementTree.Element, where: str) -> tuple[NDArray, NDArray]:
    x, y = (np.array(_numbers(element, tag, where)) for tag in "xy")
    if len(x) != len(y) or len(x) < 2 or not (np.diff(x) > 0).all():
        raise ValueError(f"{where}: {element.tag} needs x that increase and as many y")
    return x, y


def _multivariate(element: ElementTree.Element, where: str) -> Function:
    dimension = int(_numbers(element, "dimension", where)[0])
    order = int(_numbers(element, "order", where)[0])
    coefficients = _numbers(element, "coefficients", where)
    if not 1 <= dimension <= 3 or not 0 <= order <= 30:
        raise ValueError(f"{where}: polynomial of dimension {dimension}, order {order} is not read")
    powers = _powers(dimension, order)
    if len(powers) != len(coefficients):
        raise ValueError(
            f"{where}: polynomial of dimension {dimension}, order {order} needs {len(powers)} "
            f"coefficients, found {len(coefficients)}"
        )
    exponents = np.array(powers)

    def value(q: NDArray) -> NDArray:
        terms = np.ones((len(q), len(powers)))
        for k in range(dimension):
            ladder = q[:, k : k + 1] ** np.arange(order + 1)
            terms *= ladder[:, exponents[:, k]]
        return terms @ np.array(coefficients)

    return value


def _powers(dimension: int, order: int) -> list[tuple[int, ...]]:
    """Exponents in OpenSim's order: the first one slowest, their sum at most `order`."""
    if dimension == 1:
        return [(i,) for i in range(order + 1)]
    return [(i, *rest) for i in range(order + 1) for rest in _powers(dimension - 1, order - i)]


def _piecewise_linear(x: NDArray, y: NDArray) -> Function:
    slopes = np.diff(y) / np.diff(x)

    def value(q: NDArray) -> NDArray:
        k = np.clip(np.searchsorted(x, q[:, 0], side="right") - 1, 0, len(slopes) - 1)
        return y[k] + slopes[k] * (q[:, 0] - x[k])

    return value


def _simm_spline(x: NDArray, y: NDArray) -> Function:
    """Cubic spline whose end pieces continue the third derivative of the outer four points.

    These are the end conditions of Forsythe, Malcolm and Moler, Computer Methods for Mathematical
    Computations (1977), which SIMM took over; beyond its ends the spline goes on straight.
    """
    n = len(x)
    if n == 2:
        return _piecewise_linear(x, y)
    h = np.diff(x)
    slope = np.diff(y) / h
    # Unknowns: a sixth of the third derivatives' integrals, i.e. half the second derivatives / 3.
    matrix, right = np.zeros((n, n)), np.zeros(n)
    for k in range(1, n - 1):
        matrix[k, k - 1 : k + 2] = h[k - 1], 2 * (h[k - 1] + h[k]), h[k]
        right[k] = slope[k] - slope[k - 1]
    matrix[0, :2] = -h[0], h[0]
    matrix[-1, -2:] = h[-1], -h[-1]
    if n > 3:
        right[0] = _third_difference(x[:4], y[:4]) * h[0] ** 2
        right[-1] = -_third_difference(x[-4:], y[-4:]) * h[-1] ** 2
    sigma = np.linalg.solve(matrix, right)
    b = slope - h * (sigma[1:] + 2 * sigma[:-1])
    end_slope = slope[-1] + h[-1] * (sigma[-2] + 2 * sigma[-1])
    c, d = 3 * sigma[:-1], np.diff(sigma) / h

    def value(q: NDArray) -> NDArray:
        k = np.clip(np.searchsorted(x, q[:, 0], side="right") - 1, 0, n - 2)
        t = q[:, 0] - x[k]
        inside = y[k] + t * (b[k] + t * (c[k] + t * d[k]))
        inside = np.where(q[:, 0] < x[0], y[0] + b[0] * (q[:, 0] - x[0]), inside)
        return np.where(q[:, 0] > x[-1], y[-1] + end_slope * (q[:, 0] - x[-1]), inside)

    return value


def _third_difference(x: NDArray, y: NDArray) -> float:
    """Third divided difference of four points."""
    table = y
    for width in (1, 2, 3):
        table = np.diff(table) / (x[width:] - x[: len(x) - width])
    return float(table[0])
