"""Conditions such as `val/top1 < baseline - 0.3%`: parsed by a grammar of its own, and evaluated for a run.

Nothing is ever executed.

    condition  = both { "or" both }
    both       = comparison { "and" comparison }
    comparison = sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
    sum        = product { ("+" | "-") product }
    product    = factor { ("*" | "/") factor }                    a "/" within a name belongs to the name
    factor     = NUMBER ["%"] | NAME | "baseline" | "-" factor | "(" sum ")"
"""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import UsageError

Look = Callable[[str], float]
Value = Callable[[Look, Look], float]
Truth = Callable[[Look, Look], bool]

_DEEPEST = 50
"""Brackets and signs within each other; far more than anyone writes, and far fewer than Python's stack holds."""
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?)|(?P<name>[A-Za-z_][\w:]*(?:[/.][A-Za-z_][\w:]*)*)"
    r"|(?P<sign><=|>=|==|!=|[<>()+*/-]))"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ADD: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub}
_MULTIPLY: dict[str, Callable[[float, float], float]] = {"*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True)
class Condition:
    """A parsed condition; `holds(run, baseline)` takes two functions from a figure's name to its value."""

    text: str
    holds: Truth
    names: tuple[str, ...]


def parse(text: str) -> Condition:
    """Read a condition. `baseline` stands for the baseline's value of the first name in the same comparison.

    Raises:
        UsageError: if the text is none, saying where it stops making sense.
    """
    parser = _Parser(text)
    return Condition(text, parser.condition(), tuple(dict.fromkeys(parser.names)))


class _Parser:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, text: str) -> None:
        self.text, self.names = text, list[str]()
        self._tokens, self._at, self._subject, self._depth = _tokens(text), 0, "", 0

    def condition(self) -> Truth:
        left = self._both()
        while self._peek() == "or":
            self._take()
            left = _either(left, self._both())
        if self._peek():
            raise self._wrong("an end, 'and' or 'or'")
        return left

    def _both(self) -> Truth:
        left = self._comparison()
        while self._peek() == "and":
            self._take()
            left = _each(left, self._comparison())
        return left

    def _comparison(self) -> Truth:
        first = len(self.names)
        start = self._at
        self._subject = next((t for t in self._tokens[start:] if _is_metric(t)), "")
        left = self._sum()
        sign = self._take()
        if sign not in _COMPARE:
            self._at -= 1
            raise self._wrong("one of < <= > >= == !=")
        right, compare = self._sum(), _COMPARE[sign]
        if len(self.names) == first:
            raise UsageError(f"--fail-if {self.text!r}: names no metric; write for example 'val/top1 < baseline - 0.3%'")

        def holds(run: Look, base: Look) -> bool:
            a, b = left(run, base), right(run, base)
            if math.isnan(a) or math.isnan(b):  # such as the difference of two targets that were never reached
                raise UsageError(f"--fail-if {self.text!r}: compares what is not a number, which is no pass; look at the runs")
            return compare(a, b)

        return holds

    def _sum(self) -> Value:
        return self._chain(_ADD, lambda: self._chain(_MULTIPLY, self._factor))

    def _chain(self, operators: dict[str, Callable[[float, float], float]], part: Callable[[], Value]) -> Value:
        left = part()
        while self._peek() in operators:
            left = _applied(operators[self._take()], left, part())
        return left

    def _factor(self) -> Value:
        token = self._take()
        if token in ("-", "("):
            return self._inner(token)
        if token[:1].isdigit() or token[:1] == ".":
            number = float(token.rstrip("%")) / (100 if token.endswith("%") else 1)
            return lambda run, base: number
        return self._name(token)

    def _inner(self, token: str) -> Value:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UsageError(f"--fail-if {self.text[:40]!r}...: more than {_DEEPEST} brackets within each other; write fewer")
        inside = self._factor() if token == "-" else self._sum()
        self._depth -= 1
        if token == "-":
            return lambda run, base: -inside(run, base)
        if self._take() != ")":
            self._at -= 1
            raise self._wrong("')'")
        return inside

    def _name(self, token: str) -> Value:
        if token == "baseline" and self._subject:
            subject = self._subject
            return lambda run, base: base(subject)
        if not _is_metric(token):
            self._at -= 1
            raise self._wrong("a number, a metric or 'baseline'")
        self.names.append(token)
        return lambda run, base: run(token)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _wrong(self, expected: str) -> UsageError:
        found = repr(self._peek()) if self._peek() else "the end"
        return UsageError(
            f"--fail-if {self.text!r}: expected {expected}, found {found}; write for example 'val/top1 < baseline - 0.3%'"
        )


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise UsageError(f"--fail-if {text!r}: can't read {text[at:].strip()[:12]!r}; write metrics, numbers and < <= > >=")
        found.append(match[0].strip())
        at = match.end()
    return found


def _is_metric(token: str) -> bool:
    return (token[:1].isalpha() or token[:1] == "_") and token not in ("baseline", "and", "or")


def _each(left: Truth, right: Truth) -> Truth:
    return lambda run, base: left(run, base) and right(run, base)


def _either(left: Truth, right: Truth) -> Truth:
    return lambda run, base: left(run, base) or right(run, base)


def _applied(operate: Callable[[float, float], float], left: Value, right: Value) -> Value:
    return lambda run, base: operate(left(run, base), right(run, base))
