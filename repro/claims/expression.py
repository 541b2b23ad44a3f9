"""Arithmetic written in a file, computed without running code: numbers, + − * / // % **, comparisons, few functions."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from repro.errors import DataError

OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
    "tanh": math.tanh,
    "comb": math.comb,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "abs": abs,
    "min": min,
    "max": max,
    "sum": lambda *terms: math.fsum(terms),
}
LARGEST_POWER = 64


def compute(text: str) -> int | float | bool:
    """The value of an expression; raises DataError for anything that is not arithmetic."""
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ArithmeticError, TypeError, ValueError) as e:
        raise DataError(f"expression {text!r}: {e}") from e


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            base, second = _value(left), _value(right)
            if isinstance(op, ast.Pow) and abs(second) > LARGEST_POWER:
                raise ValueError(f"a power of {second} is more than {LARGEST_POWER}")
            return OPERATORS[type(op)](base, second)
        case ast.UnaryOp(op, operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(operand))
        case ast.Compare(left, ops, comparators) if all(type(op) in OPERATORS for op in ops):
            values = [_value(left), *map(_value, comparators)]
            return all(OPERATORS[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case ast.Call(ast.Name(name), arguments, []) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(_value, arguments))
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")
