"""PromQL as a tree: as much of it as the linter needs, and a plain "not understood" for the rest.

Every node knows where it stands in the text, so that a correction changes nothing beside it.
Hostile text costs time in proportion to its length, and no more depth than DEPTH_MAX.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from alerts.lint_tokens import NotUnderstood, Token, number, seconds, tokens, unquoted

LENGTH_MAX: Final = 20_000
DEPTH_MAX: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """Where in the text: `text[start:end]`, with the parentheses around it."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on a label, as in `{xid!="31"}`."""

    label: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Number(_Placed):
    """A number literal; a duration in a place for numbers is not understood."""

    value: float


@dataclass(frozen=True, slots=True)
class Text(_Placed):
    """A string literal."""

    value: str


@dataclass(frozen=True, slots=True)
class Selector(_Placed):
    """Series by name and labels: an instant vector, or a range vector where range_s is given.

    name is empty where there is none. It stands at `text[name_start:name_end]`, and its labels,
    braces included, up to labels_end.
    """

    name: str
    matchers: tuple[Matcher, ...]
    name_start: int
    name_end: int
    labels_end: int
    range_s: float | None = None
    offset_s: float | None = None


@dataclass(frozen=True, slots=True)
class Subquery(_Placed):
    """An expression evaluated over a range, as in `x[1h:5m]`."""

    of: "Node"
    range_s: float
    offset_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call(_Placed):
    """A function; its name in lower case, known to Prometheus or not."""

    name: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Labels(_Placed):
    """by, without, on or ignoring, with its labels."""

    word: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aggregate(_Placed):
    """sum, max, topk ...; the vector is the last argument."""

    name: str
    arguments: tuple["Node", ...]
    grouping: Labels | None = None


@dataclass(frozen=True, slots=True)
class Binary(_Placed):
    """Two operands; matching holds on or ignoring, is_bool the word bool."""

    operator: str
    left: "Node"
    right: "Node"
    matching: Labels | None = None
    is_bool: bool = False


@dataclass(frozen=True, slots=True)
class Negative(_Placed):
    """Minus an expression; a plus in front leaves no trace."""

    of: "Node"


Node = Number | Text | Selector | Subquery | Call | Aggregate | Binary | Negative

COMPARISONS: Final = frozenset(("==", "!=", ">", "<", ">=", "<="))
_LEVELS: Final = {
    "or": 1, "and": 2, "unless": 2, **dict.fromkeys(COMPARISONS, 3), "+": 4, "-": 4,
    "*": 5, "/": 5, "%": 5, "atan2": 5, "^": 6,
}  # fmt: skip
_AGGREGATES: Final = frozenset(
    ("sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "topk", "bottomk",
     "quantile", "count_values", "limitk", "limit_ratio")
)  # fmt: skip


def parse(text: str) -> Node:
    """The tree of an expression. Raises NotUnderstood."""
    if len(text) > LENGTH_MAX:
        raise NotUnderstood(f"longer than {LENGTH_MAX} characters")
    parser = _Parser(text)
    tree = parser.expression(1)
    parser.expect("end", "")
    stack = [(tree, 0)]
    while stack:  # what walks the tree later may do so by recursion
        node, depth = stack.pop()
        if depth > DEPTH_MAX:
            raise NotUnderstood(f"nested deeper than {DEPTH_MAX}")
        stack += [(child, depth + 1) for child in children(node)]
    return tree


def children(node: Node) -> tuple[Node, ...]:
    """The operands or arguments of a node, left to right."""
    match node:
        case Binary():
            return (node.left, node.right)
        case Call() | Aggregate():
            return node.arguments
        case Subquery() | Negative():
            return (node.of,)
        case _:
            return ()


def walk(tree: Node) -> Iterator[Node]:
    """Every node, a parent before its children, left to right."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        stack += reversed(children(node))


class _Parser:
    """Recursive descent over tokens; the nesting of its calls is bounded."""

    def __init__(self, text: str) -> None:
        self._tokens: Final = tokens(text)
        self._at = 0
        self._depth = 0

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._now
        self._at += 1
        return token

    def _takes(self, sign: str) -> bool:
        if self._now.kind == "sign" and self._now.text == sign:
            self._at += 1
            return True
        return False

    def _word(self, *words: str) -> str:
        """The next word in lower case if it is one of these, taken; else nothing."""
        low = self._now.text.lower()
        if self._now.kind == "word" and low in words:
            self._at += 1
            return low
        return ""

    def expect(self, kind: str, text: str) -> Token:
        """The next token, which must be this. Raises NotUnderstood."""
        token = self._now
        if token.kind != kind or (text and token.text != text):
            seen = repr(token.text) if token.text else "the end"
            wanted = text or {"end": "an operator", "text": "a string"}.get(kind, f"a {kind}")
            raise NotUnderstood(f"{seen} at character {token.start + 1}, where {wanted} belongs")
        return self._next()

    def expression(self, least: int) -> Node:
        """Operands joined by operators that bind at least so tightly."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise NotUnderstood(f"nested deeper than {DEPTH_MAX}")
        left = self._operand()
        while (level := _LEVELS.get(self._now.text.lower(), 0)) >= least:
            operator = self._next().text.lower()
            is_bool = bool(self._word("bool"))
            matching = self._labels(self._word("on", "ignoring"))
            side = self._word("group_left", "group_right")
            if self._now.text == "(":
                self._labels(side)
            right = self.expression(level + (operator != "^"))
            left = Binary(operator, left, right, matching, is_bool, start=left.start, end=right.end)
        self._depth -= 1
        return left

    def _operand(self) -> Node:
        token = self._now
        if self._takes("-"):
            of = self.expression(_LEVELS["^"])
            return Negative(of, start=token.start, end=of.end)
        if self._takes("+"):
            return replace(self.expression(_LEVELS["^"]), start=token.start)
        node: Node
        if self._takes("("):
            inner = self.expression(1)
            node = replace(inner, start=token.start, end=self.expect("sign", ")").end)
        else:
            node = self._atom()
        return self._suffixed(node)

    def _atom(self) -> Node:
        token = self._now
        if token.text == "{":
            return self._selector("", token.start)
        self._next()
        if token.kind == "number":
            return Number(number(token.text), start=token.start, end=token.end)
        if token.kind == "text":
            return Text(unquoted(token.text), start=token.start, end=token.end)
        return self._named(token)

    def _named(self, token: Token) -> Node:
        """What begins with a word: an aggregation, a function, inf or nan, a metric."""
        name = token.text
        if token.kind != "word":
            self._at -= 1
            self.expect("word", "")
        if name.lower() in _AGGREGATES and self._now.text.lower() in ("(", "by", "without"):
            return self._aggregate(token)
        if self._now.text == "(":
            return Call(name.lower(), self._arguments(), start=token.start, end=self._last_end)
        if name.lower() in ("inf", "nan") and self._now.text != "{":
            return Number(float(name), start=token.start, end=token.end)
        return self._selector(name, token.start)

    @property
    def _last_end(self) -> int:
        return self._tokens[self._at - 1].end

    def _aggregate(self, token: Token) -> Node:
        grouping = self._labels(self._word("by", "without"))
        arguments = self._arguments()
        if grouping is None:
            grouping = self._labels(self._word("by", "without"))
        if not arguments:
            raise NotUnderstood(f"{token.text} of nothing at character {token.start + 1}")
        return Aggregate(
            token.text.lower(), arguments, grouping, start=token.start, end=self._last_end
        )

    def _arguments(self) -> tuple[Node, ...]:
        self.expect("sign", "(")
        out: list[Node] = []
        while not self._takes(")"):
            if out:
                self.expect("sign", ",")
            out.append(self.expression(1))
        return tuple(out)

    def _labels(self, word: str) -> Labels | None:
        """The labels in parentheses after a word that was taken; None after none."""
        if not word:
            return None
        start = self._tokens[self._at - 1].start
        self.expect("sign", "(")
        names: list[str] = []
        while not self._takes(")"):
            names.append(self._label())
            if self._now.text != ")":
                self.expect("sign", ",")
        return Labels(word, tuple(names), start=start, end=self._last_end)

    def _label(self) -> str:
        if self._now.kind == "text":
            return unquoted(self._next().text)
        return self.expect("word", "").text

    def _selector(self, name: str, start: int) -> Selector:
        matchers: list[Matcher] = []
        name_end = self._last_end if name else start
        if self._takes("{"):
            while not self._takes("}"):
                quoted = self._now.kind == "text"
                label = self._label()
                if quoted and self._now.text in (",", "}") and not name:
                    name = label
                elif self._now.text in ("=", "!=", "=~", "!~"):
                    operator = self._next().text
                    value = unquoted(self.expect("text", "").text)
                    matchers.append(Matcher(label, operator, value))
                else:
                    self.expect("sign", "=")
                if self._now.text != "}":
                    self.expect("sign", ",")
        named = [m.value for m in matchers if m.label == "__name__" and m.operator == "="]
        end = self._last_end
        return Selector(
            name or "".join(named), tuple(matchers), start, name_end, end, start=start, end=end
        )

    def _suffixed(self, node: Node) -> Node:
        """The node with what may follow it: a range, an offset, a time."""
        while True:
            if self._takes("["):
                node = self._ranged(node)
            elif self._word("offset"):
                sign = -1 if self._takes("-") else 1
                node = _placed(node, self._now, offset_s=sign * self._duration())
                node = replace(node, end=self._last_end)
            elif self._takes("@"):
                if self._word("start", "end"):
                    self.expect("sign", "(")
                    self.expect("sign", ")")
                else:
                    self._takes("-")
                    self.expect("number", "")
                node = replace(_placed(node, self._now), end=self._last_end)
            else:
                return node

    def _ranged(self, node: Node) -> Node:
        range_s = self._duration()
        if self._takes(":"):
            if self._now.text != "]":
                self._duration()
            end = self.expect("sign", "]").end
            return Subquery(node, range_s, start=node.start, end=end)
        end = self.expect("sign", "]").end
        if not isinstance(node, Selector) or node.range_s is not None:
            raise NotUnderstood(f"a range at character {end} that follows no selector")
        return replace(node, range_s=range_s, end=end)

    def _duration(self) -> float:
        if self._now.kind == "number":
            return number(self._next().text)
        return seconds(self.expect("duration", "").text) or 0.0


def _placed(node: Node, at: Token, offset_s: float | None = None) -> Selector | Subquery:
    if not isinstance(node, Selector | Subquery):
        raise NotUnderstood(f"an offset or @ at character {at.start + 1} that follows no selector")
    return replace(node, offset_s=node.offset_s if offset_s is None else offset_s)
