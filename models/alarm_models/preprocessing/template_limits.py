"""Bounds the memory of untrusted Jinja templates.

Jinja's sandbox protects Python's internals, but not memory: `"a" * 10**10` is one call in C, which
no time limit interrupts. Here every operation that can make a large value is checked before it
runs, and all values of a rendering together are bounded:

- a text, or a list with its contents: `_MIN_CHARS` characters, plus `_TIMES` the size of the input
- everything that a rendering makes: `_TOTAL` times as much; each node of a loop's body counts too
- integers: `_MAX_BITS` bits

Within these limits, templates are rendered as by the environment that was passed in.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import reduce, wraps
from itertools import islice
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes, pass_context, pass_eval_context
from jinja2.filters import make_attrgetter
from jinja2.runtime import markup_join, str_join
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

__all__ = [
    "MAX_TEMPLATE_CHARS",
    "TemplateLimitError",
    "bounded_environment",
    "compile_bounded",
    "render_bounded",
]

#: Maximum length of a template. Published ones have up to some 30,000 characters.
MAX_TEMPLATE_CHARS = 64 << 10

_MIN_CHARS = 1 << 20
_TIMES = 4
_TOTAL = 16
_MAX_BITS = 1 << 16

#: Number of characters that a list item, an input value and an executed node count as.
_PER_ITEM = 4
_PER_GIVEN = 128
_PER_NODE = 8

#: Maximum text length for filters that lay out or search a text in more than linear time.
_MAX_LAYOUT = 10_000

#: Maximum length of a text to strip, or to search for from the end, in a text of any length; and
#: the maximum product of both lengths if it is longer.
_SHORT_SEARCH = 64
_MAX_SEARCH = 64 << 20

_MAX_DATE_FORMAT = 1000
_MAX_ROUND = 1000

_TEXT = {str}

#: Types whose text contains the text of their items.
_CONTAINERS: tuple[type[Any], ...] = (
    list,
    tuple,
    dict,
    set,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_DIGITS = re.compile(r"\d+")

#: Names of our filters, which a template cannot write.
_CHARGE = "alarm: charge"
_ADD = "alarm: add"
_CONCAT = "alarm: concat"
_WEIGH = "alarm: weigh"
_COPY = "alarm: copy"
_MADE = "alarm: made"


class TemplateLimitError(TemplateError):
    """A template, or a value that it makes, is larger than allowed."""


class _Budget:
    """The number of characters that one rendering may still make."""

    __slots__ = ("_given", "left", "limit")

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        # The input is measured only if the limits without it do not suffice.
        self._given = given
        self.limit = _MIN_CHARS
        self.left = _TOTAL * self.limit

    def spend(self, amount: int) -> None:
        """Count what has been made."""
        self.left -= amount
        if self.left < 0:
            self._extend()
            if self.left < 0:
                raise TemplateLimitError(
                    "it makes or repeats too much text for the size of its input"
                )

    def require(self, size: int) -> None:
        """Refuse to make a value with too many characters."""
        if size > self.limit:
            self._extend()
            if size > self.limit:
                raise TemplateLimitError(
                    f"one operation would make more than {self.limit} characters, the limit for "
                    "the size of its input"
                )

    def _extend(self) -> None:
        if self._given is not None:
            more = _TIMES * _size_of_json(self._given)
            self._given = None
            self.limit += more
            self.left += _TOTAL * more


class _Local(threading.local):
    budget = _Budget()


_local = _Local()


def bounded_environment(base: Environment, strftime_now: Callable[[str], str]) -> Environment:
    """Return a bounded copy of a sandboxed environment, with a given date and nothing random."""
    environment: Any = base.overlay()
    own: dict[str, Any] = dict(base.globals)
    environment.filters = _bounded_filters(base.filters)
    environment.globals = {
        **own,
        "strftime_now": _bounded_date(strftime_now),
        "lipsum": _refuse_random,
        "dict": _Dict(own["dict"]),
        "namespace": _namespace(own["namespace"]),
    }
    operators = {"*": _multiply, "**": _power, "%": _modulo}
    environment.binop_table = {**environment.binop_table, **operators}
    environment.intercepted_binops = environment.intercepted_binops.union(operators)
    environment.call = _bounded_call(environment.call)
    environment.wrap_str_format = _bounded_format(environment)
    environment.concat = _concat
    return environment  # type: ignore[no-any-return]


def compile_bounded(environment: Environment, text: str) -> Template:
    """Compile a template for a bounded environment.

    Raises `TemplateLimitError` if the text is too long, and whatever parsers raise.
    """
    if len(text) > MAX_TEMPLATE_CHARS:
        raise TemplateLimitError(
            f"it has {len(text)} characters; the limit is {MAX_TEMPLATE_CHARS}"
        )
    parsed = _Bounds(environment).visit(environment.parse(text))
    _local.budget = _Budget()  # for the constants
    try:
        return environment.from_string(parsed)
    finally:
        del _local.budget


def render_bounded(template: Template, variables: Mapping[str, Any]) -> str:
    """Render a template of a bounded environment.

    Raises `TemplateLimitError` for a value, or a text, that is too large.
    """
    budget = _local.budget = _Budget(variables)
    parts = []
    size = 0
    try:
        for part in template.generate(variables):
            size += len(part)
            if size > budget.limit:
                budget.require(size)
            parts.append(part)
    finally:
        del _local.budget  # it refers to the variables
    return "".join(parts)


def _size_of_json(value: Any) -> int:
    total = 0
    stack = [value]
    while stack:
        one = stack.pop()
        total += _PER_GIVEN
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, Mapping):
            stack.extend(one.values())
        elif isinstance(one, list | tuple):
            stack.extend(one)
    return total


# Sizes


def _weight(value: Any) -> int:
    """Return the approximate length of a value as text; raise once it is over the limit."""
    if isinstance(value, str):
        return len(value)
    budget = _local.budget
    total = number = 0
    stack = [value]
    while stack:
        one = stack.pop()
        number += 1
        total += _PER_ITEM
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, int):
            total += one.bit_length() >> 2
        elif isinstance(one, float):
            total += 16
        elif isinstance(one, _CONTAINERS):
            budget.require(total + _PER_ITEM * (len(one) + len(stack)))
            stack.extend(one)
            if isinstance(one, dict):
                stack.extend(one.values())
        if total > budget.limit:
            budget.require(total)
    budget.spend(number)
    return total


def _made(value: Any) -> Any:
    """Count a value that has been made; raise if it is too large."""
    budget = _local.budget
    if isinstance(value, str):
        budget.require(len(value))
        budget.spend(len(value))
    elif isinstance(value, list | tuple | dict):
        budget.require(_weight(value))
        budget.spend(_PER_NODE * len(value))
    elif isinstance(value, int):
        _require_bits(value.bit_length())
    return value


def _weighed(value: Any) -> Any:
    """Check a list, tuple or dict that a template has written."""
    _local.budget.require(_weight(value))
    return value


def _items(value: Any) -> Any:
    """Return an iterable as something with a length, which is within the limit."""
    budget = _local.budget
    if not isinstance(value, str | list | tuple | dict):
        value = list(islice(value, budget.limit // _PER_ITEM + 1))
    budget.require(_PER_ITEM * len(value))
    return value


def _require_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise TemplateLimitError(f"an integer would have more than {_MAX_BITS} bits")


# Operators


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        budget = _local.budget
        size = len(left) + len(right)
        budget.require(size)
        budget.spend(size)
        return left + right
    if isinstance(left, list | tuple):
        _local.budget.require(_weight(left) + _weight(right))
    return _made(left + right)


def _added(values: tuple[Any, ...]) -> Any:
    """Compute `a + b + ...`."""
    if set(map(type, values)) == _TEXT:
        budget = _local.budget
        size = sum(map(len, values))
        if size > budget.limit:
            budget.require(size)
        budget.spend(size)
        return "".join(values)
    return reduce(_add, values)


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | list | tuple):
            _local.budget.require(times * _weight(value))
    return _made(left * right)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        _require_bits(base.bit_length() * exponent)
    return base**exponent


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _require_percent(left, right)
        return _made(left % right)
    return left % right


def _require_percent(text: str, values: Any) -> None:
    """Bound the result of `%`: the text, each inserted value, and all widths."""
    # A mapping's value may be inserted many times.
    times = max(1, text.count("%")) if isinstance(values, Mapping) else 1
    size = len(text) + times * _weight(values) + sum(map(_width, _DIGITS.findall(text)))
    if "*" in text:
        given = values if isinstance(values, tuple) else (values,)
        size += sum(abs(one) for one in given if isinstance(one, int))
    _local.budget.require(size)


def _width(digits: str) -> int:
    """Return a width or precision; a number of many digits is too large in any case."""
    return int(digits[-18:]) if not digits[:-18].strip("0") else 10**18


@pass_eval_context
def _concatenated(eval_ctx: nodes.EvalContext, values: tuple[Any, ...]) -> str:
    """Compute `a ~ b ~ ...`."""
    budget = _local.budget
    size = sum(map(_weight, values))
    budget.require(size)
    budget.spend(size)
    return markup_join(values) if eval_ctx.autoescape else str_join(values)


def _concat(parts: Iterable[str]) -> str:
    """Join the output of a macro or a block."""
    written = parts if isinstance(parts, list) else list(parts)
    budget = _local.budget
    size = sum(map(len, written))
    budget.require(size)
    budget.spend(size)
    return "".join(written)


@pass_context
def _charge(_context: Any, amount: int) -> str:
    """Count the nodes of a body that is run."""
    _local.budget.spend(amount)
    return ""


# Methods


def _justify(_text: str, width: Any, *fill: Any) -> tuple[Any, ...]:
    if isinstance(width, int):
        _local.budget.require(width)
    return (width, *fill)


def _expandtabs(text: str, tabsize: Any = 8) -> tuple[Any, ...]:
    if isinstance(tabsize, int):
        _local.budget.require(len(text) + text.count("\t") * tabsize)
    return (tabsize,)


def _replace(text: str, old: Any, new: Any, count: Any = -1) -> tuple[Any, ...]:
    if isinstance(old, str) and isinstance(new, str) and isinstance(count, int):
        times = text.count(old) if count < 0 else min(count, text.count(old))
        _local.budget.require(len(text) + times * max(0, len(new) - len(old)))
    return old, new, count


def _join(text: str, values: Any) -> tuple[Any, ...]:
    values = _items(values)
    _local.budget.require(_weight(values) + len(text) * len(values))
    return (values,)


def _split(_text: str, sep: Any = None, maxsplit: Any = -1) -> tuple[Any, ...]:
    most = _local.budget.limit // _PER_ITEM + 1
    if isinstance(maxsplit, int):
        maxsplit = most if maxsplit < 0 else min(maxsplit, most)
    return sep, maxsplit


def _rsplit(text: str, sep: Any = None, maxsplit: Any = -1) -> tuple[Any, ...]:
    _search(text, sep)
    return _split(text, sep, maxsplit)


def _splitlines(text: str, keepends: Any = False) -> tuple[Any, ...]:
    _local.budget.require(_PER_ITEM * _num_lines(text))
    return (keepends,)


def _search(text: str, part: Any = None, *more: Any) -> tuple[Any, ...]:
    """Bound methods that take time proportional to the product of both lengths."""
    if isinstance(part, str) and len(part) > _SHORT_SEARCH and len(part) * len(text) > _MAX_SEARCH:
        raise TemplateLimitError("it searches a long text from the end for another long text")
    return (part, *more)


def _num_lines(text: str) -> int:
    return 1 + sum(map(text.count, _LINE_ENDS))


#: The methods of texts that templates may call, with their bounds, and those of other values.
_TEXT_METHODS: dict[str, Callable[..., tuple[Any, ...]] | None] = {
    **dict.fromkeys(
        ["capitalize", "casefold", "count", "endswith", "find", "index", "isalnum",
         "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower",
         "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower",
         "partition", "removeprefix", "removesuffix", "startswith", "swapcase", "title",
         "upper"]
    ),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _justify),
    **dict.fromkeys(("lstrip", "rstrip", "strip", "rfind", "rindex", "rpartition"), _search),
    "expandtabs": _expandtabs,
    "join": _join,
    "replace": _replace,
    "rsplit": _rsplit,
    "split": _split,
    "splitlines": _splitlines,
}  # fmt: skip
_OTHER_METHODS = {
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index"}),
    bool: frozenset(),
    int: frozenset({"bit_length", "bit_count", "is_integer"}),
    float: frozenset({"is_integer"}),
}  # fmt: skip


def _bounded_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the environment's `call` with bounds on methods of texts and other values."""

    def bounded(context: Any, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        kind = type(target)
        if kind is not BuiltinMethodType and kind is not MethodType:
            return call(context, target, *args, **kwargs)
        owner = target.__self__
        if kind is MethodType and not isinstance(owner, str | type):
            return call(context, target, *args, **kwargs)  # such as loop.cycle
        # Compiled templates pass these for functions that ask for the context.
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        return _call_method(owner, target, args, kwargs)

    return bounded


def _call_method(owner: Any, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name = method.__name__
    if isinstance(owner, str) and name in _TEXT_METHODS:
        prepare = _TEXT_METHODS[name]
        return _made(
            method(*args, **kwargs) if prepare is None else method(*prepare(owner, *args, **kwargs))
        )
    if name in _OTHER_METHODS.get(type(owner), ()):
        made = method(*args, **kwargs)
        return _made(made) if name == "copy" else made
    kind = owner if isinstance(owner, type) else type(owner)
    raise TemplateError(f"chat templates cannot call {name}() of {kind.__name__}")


class _BoundedFormatter(SandboxedFormatter):
    """Bounds widths, precisions and the text of `str.format`."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Format one value within the limit."""
        size = _weight(value) + sum(map(_width, _DIGITS.findall(format_spec)))
        _local.budget.require(size)
        return _made(super().format_field(value, format_spec))


class _BoundedEscapeFormatter(_BoundedFormatter, SandboxedEscapeFormatter):
    """As above, for `Markup`."""


def _bounded_format(environment: Environment) -> Callable[[Any], Callable[..., str] | None]:
    """Return the environment's `wrap_str_format`, which replaces a text's `format`."""

    def wrap(value: Any) -> Callable[..., str] | None:
        if type(value) is not BuiltinMethodType and type(value) is not MethodType:
            return None
        text, name = value.__self__, value.__name__
        if name not in ("format", "format_map") or not isinstance(text, str):
            return None
        formatter = (
            _BoundedEscapeFormatter(environment, escape=text.escape)
            if isinstance(text, Markup)
            else _BoundedFormatter(environment)
        )

        @wraps(value)
        def formatted(*args: Any, **kwargs: Any) -> str:
            if name == "format_map":
                (kwargs,), args = args, ()
            return type(text)(_made(formatter.vformat(text, args, kwargs)))

        return formatted

    return wrap


# Filters


def _check_center(value: Any, width: Any = 80) -> None:
    _justify(value, width)


def _check_indent(value: Any, width: Any = 4, *_more: Any, **_options: Any) -> None:
    each = len(width) if isinstance(width, str) else width
    if isinstance(value, str) and isinstance(each, int):
        _local.budget.require(len(value) + each * (1 + _num_lines(value)))


def _check_replace(value: Any, old: Any, new: Any, count: Any = None) -> None:
    _replace(str(value), str(old), str(new), -1 if count is None else count)


def _check_format(value: Any, *args: Any, **kwargs: Any) -> None:
    _require_percent(str(value), kwargs or args)


def _check_batch(value: Any, linecount: Any, fill_with: Any = None) -> None:
    _items_of_text(value)
    if isinstance(linecount, int):
        _local.budget.require(linecount * (_PER_ITEM + _weight(fill_with)))


def _check_slice(_value: Any, slices: Any, *_more: Any, **_options: Any) -> None:
    if isinstance(slices, int):
        _local.budget.require(slices * _PER_ITEM)


def _check_trim(value: Any, chars: Any = None) -> None:
    _search(str(value), chars)


def _check_round(_value: Any, precision: Any = 0, *_more: Any, **_options: Any) -> None:
    if isinstance(precision, int) and abs(precision) > _MAX_ROUND:
        raise TemplateLimitError(f"it rounds to more than {_MAX_ROUND} places")


def _check_tojson(
    value: Any, *_more: Any, indent: Any = None, separators: Any = None, **_options: Any
) -> None:
    if indent is None and len(_more) > 1:
        indent = _more[1]
    if separators is None and len(_more) > 2:
        separators = _more[2]
    if indent is None and separators is None:
        return
    each = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    number, depth = _shape(value)
    size = _weight(value) + number * (depth * max(0, each) + _weight(separators or ""))
    _local.budget.require(size)


def _shape(value: Any) -> tuple[int, int]:
    """Return the number of values nested in a value, and the depth."""
    number = deepest = 0
    stack = [(value, 1)]
    while stack:
        one, depth = stack.pop()
        number += 1
        deepest = max(deepest, depth)
        if isinstance(one, list | tuple | dict):
            _local.budget.require(_PER_ITEM * (number + len(stack) + len(one)))
            values = one.values() if isinstance(one, dict) else one
            stack.extend((each, depth + 1) for each in values)
    return number, deepest


def _check_layout(*args: Any, **kwargs: Any) -> None:
    if _weight(args) + _weight(kwargs) > _MAX_LAYOUT:
        raise TemplateLimitError(f"a layout filter gets more than {_MAX_LAYOUT} characters")


def _items_of_text(value: Any, *_more: Any, **_options: Any) -> None:
    if hasattr(value, "__len__"):
        _items(value)


def _no_check(*_args: Any, **_kwargs: Any) -> None:
    pass


_CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(
        ("filesizeformat", "pprint", "striptags", "title", "urlencode", "urlize", "wordcount",
         "wordwrap", "xmlattr"),
        _check_layout,
    ),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _items_of_text),
    "batch": _check_batch,
    "center": _check_center,
    "format": _check_format,
    "indent": _check_indent,
    "replace": _check_replace,
    "round": _check_round,
    "slice": _check_slice,
    "tojson": _check_tojson,
    "trim": _check_trim,
}  # fmt: skip

#: Filters that return their input or a part of it, or make one item at a time.
_FREE_FILTERS = frozenset(
    {"attr", "count", "d", "default", "first", "float", "items", "last", "length"}
)

#: Filters that read all items before they return.
_COLLECTING = frozenset(
    {"dictsort", "groupby", "list", "max", "min", "reverse", "slice", "sort", "unique"}
)


def _bounded_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return bounded filters, and ours for the nodes that are inserted."""
    return {
        **{
            name: function
            if name in _FREE_FILTERS
            else _bounded_filter(name, function, _CHECKS.get(name, _no_check))
            for name, function in filters.items()
        },
        "join": _join_filter(filters["join"]),
        "sum": _sum_filter,
        "random": _refuse_random,
        _ADD: _added,
        _CHARGE: _charge,
        _CONCAT: _concatenated,
        _COPY: _copied,
        _MADE: _made,
        _WEIGH: _weighed,
    }


def _bounded_filter(
    name: str, function: Callable[..., Any], check: Callable[..., None]
) -> Callable[..., Any]:
    # A filter that takes the context, or the like, gets it before the value.
    first = int(hasattr(function, "jinja_pass_arg"))
    is_collecting = name in _COLLECTING

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if is_collecting and not isinstance(args[first], Mapping):
            args = (*args[:first], _items(args[first]), *args[first + 1 :])
        check(*args[first:], **kwargs)
        return _made(function(*args, **kwargs))

    return bounded


def _join_filter(join: Callable[..., Any]) -> Callable[..., Any]:
    @pass_eval_context
    def bounded(eval_ctx: nodes.EvalContext, value: Any, d: Any = "", attribute: Any = None) -> Any:
        if attribute is not None:
            value = map(make_attrgetter(eval_ctx.environment, attribute), value)
        values = _items(value)
        _local.budget.require(_weight(list(values)) + len(values) * len(str(d)))
        return _made(join(eval_ctx, values, d))

    return bounded


@pass_eval_context
def _sum_filter(
    eval_ctx: nodes.EvalContext, iterable: Any, attribute: Any = None, start: Any = 0
) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings [use ''.join(seq) instead]")
    if attribute is not None:
        iterable = map(make_attrgetter(eval_ctx.environment, attribute), iterable)
    total = start
    for one in iterable:
        total = _add(total, one)
    return total


def _copied(value: Any) -> Any:
    """Count the arguments that `*values` and `**values` pass."""
    value = _items(value)
    _local.budget.spend(_PER_NODE * len(value))
    return value


# Globals


def _refuse_random(*_args: Any, **_kwargs: Any) -> str:
    raise TemplateError("it renders random text, so scores would not be reproducible")


def _bounded_date(strftime_now: Callable[[str], str]) -> Callable[[str], str]:
    def bounded(form: str) -> str:
        if len(form) > _MAX_DATE_FORMAT:
            raise TemplateLimitError(
                f"a date format has {len(form)} characters; the limit is {_MAX_DATE_FORMAT}"
            )
        return strftime_now(form)

    return bounded


class _Dict:
    """The global `dict`, which can be interrupted and is bounded."""

    def __init__(self, make: Callable[..., dict[Any, Any]]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dict of a mapping or of pairs, and of keywords."""
        given = [_own_dict(one) for one in args]
        return _made(self._make(*given, **kwargs))  # type: ignore[no-any-return]

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Make a dict with the same value for each key."""
        return _made({key: value for key in keys})  # type: ignore[no-any-return]  # noqa: C420


def _own_dict(value: Any) -> dict[Any, Any]:
    pairs = value.items() if isinstance(value, Mapping) else _items(value)
    # Not in C, where many keys with the same hash could not be interrupted.
    return {key: one for key, one in pairs}  # noqa: C416


def _namespace(base: type[Any]) -> type[Any]:
    """Return the global `namespace`, whose text does not contain its values."""
    return type(base.__name__, (base,), {"__repr__": lambda _self: "<Namespace>"})


# Templates


class _Bounds(NodeTransformer):
    """Inserts checks into a parsed template for operations that bypass its environment."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Check what `*values` and `**values` pass, also to filters and tests."""
        super().generic_visit(node, *args, **kwargs)
        for name in ("dyn_args", "dyn_kwargs"):
            value = getattr(node, name, None)
            if value is not None:
                setattr(node, name, self._filter(value, _COPY))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Join texts within the limit."""
        self.generic_visit(node)
        return self._filter(nodes.Tuple(node.nodes, "load", lineno=node.lineno), _CONCAT)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        """Add texts or lists within the limit, a chain of them at once."""
        values: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            values.append(self.visit(left.right))
            left = left.left
        values.append(self.visit(left))
        return self._filter(nodes.Tuple(values[::-1], "load", lineno=node.lineno), _ADD)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """Check what a list refers to."""
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Check what a tuple refers to."""
        return self._literal(node, node.items if node.ctx == "load" else [])

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """Check what a dict refers to."""
        return self._literal(node, [part for pair in node.items for part in (pair.key, pair.value)])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Count what a slice copies."""
        is_slice = isinstance(node.arg, nodes.Slice)
        self.generic_visit(node)
        return self._filter(node, _MADE) if is_slice else node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count each round of a loop."""
        return self._body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Count each call."""
        return self._body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        """Count each call of its body."""
        return self._body(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        """Count each rendering."""
        return self._body(node)

    def _literal(self, node: nodes.Expr, parts: list[nodes.Expr]) -> nodes.Node:
        is_constant = all(isinstance(part, nodes.Const) for part in parts)
        self.generic_visit(node)
        return node if is_constant else self._filter(node, _WEIGH)

    def _body(self, node: Any) -> nodes.Node:
        number = sum(1 for one in node.body for _ in one.find_all(nodes.Node)) + 1
        self.generic_visit(node)
        amount = nodes.Const(_PER_NODE * number, lineno=node.lineno)
        charge = nodes.ExprStmt(self._filter(amount, _CHARGE), lineno=node.lineno)
        node.body.insert(0, charge.set_environment(self._environment))
        return node  # type: ignore[no-any-return]

    def _filter(self, node: nodes.Expr, name: str) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self._environment)
        return made
