"""Bounds for chat templates, which are programs of strangers: what a template does is counted and measured as it runs.

`bound_templates` lets transformers compile every template of this process into its own sandbox with bounds added. Each
statement, and each character that an operation reads or writes, costs a part of one render's budget. Before an
operation that can make something larger than what it is given (`*`, `replace`, `join`, a format's width), the size of
its result is estimated. What is not known here (a filter, a kind of function or statement) is refused.
"""

import functools
import re
import time
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, NoReturn, cast

from jinja2 import Environment, nodes, pass_context
from jinja2.ext import Extension
from jinja2.runtime import Context, LoopContext, Macro, Undefined, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

MOST_CHARACTERS = 2**17  # of a template; long ones of models have 2**15
MOST_NODES = 2**15  # of its syntax tree
MOST_UNITS = 2**24  # of one value: a character is one unit, an item of a list 16
MOST_WORK = 2**26  # units that one render reads and writes; a part of a statement costs NODE_COST
NODE_COST = 16
ITEM_UNITS = 16
MOST_LEVELS = 64  # of lists in lists
MOST_BITS = 2**12  # of an integer
BIT_UNITS = MOST_UNITS // MOST_BITS
MOST_SECONDS = 2.0  # of one render, on the processor
MOST_ANSWERS = 2**10  # of the sandbox, that are kept
LOOK_AFTER = 2**18  # units between two looks at the clock

STEP, CONCAT, SLICE, PLAIN = "a step", "a concatenation", "a slice", "a plain value"  # no template can spell `|a step`
REFUSED = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.ScopedEvalContextModifier)
COUNTED_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock)
# Filters that do not look into a list; those that make no more text than they are given, but for a few characters;
# those that make a list of such a size; and those that can make more, because text is put in many times, or padded.
SHALLOW = frozenset("attr count d default first items last length safe".split())
TEXT = frozenset("abs capitalize e escape float forceescape int lower round string trim truncate upper".split())
LISTS = frozenset(
    "dictsort groupby list map max min reject rejectattr reverse select selectattr sort title unique urlencode "
    "wordcount".split()
)
GROWING = frozenset("center format indent join replace tojson".split())
PLAIN_TESTS = frozenset(
    "boolean callable defined escaped even false float integer iterable mapping none number odd sequence string true "
    "undefined".split()
)
# Methods that make no more than they are given. Those of data that stand nowhere here count as growing.
LINEAR_METHODS = frozenset(
    "capitalize casefold copy count encode endswith find get index items keys lower lstrip partition removeprefix "
    "removesuffix rfind rindex rpartition rstrip startswith strip swapcase title upper values".split()
)
SPLITS = frozenset({"rsplit", "split", "splitlines"})
FORMATS = frozenset({"format", "format_map"})
GROWN_IN_PYTHON = frozenset({"join", "replace", "ljust", "rjust", "center", "zfill"})  # of Jinja's Markup
TEXTS, CONTAINERS, PLAIN_VALUES = (str, bytes), (list, tuple, dict), (str, int, types.NoneType)
DATA = (str, bytes, int, float, list, tuple, dict, range, KeysView, ValuesView, ItemsView)
GLOBALS = ("range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now")
MOST_DATE_GROWTH = 256  # strftime gives up at so many characters for each of its format


class OutOfBounds(SecurityError):
    """A chat template does more than chat templates need to do."""


@functools.cache
def bound_templates() -> None:
    """From here on, every chat template that transformers renders in this process has bounds."""
    from transformers.utils import chat_template_utils

    settings = chat_template_utils._cached_compile_jinja_template("").environment
    chat_template_utils._cached_compile_jinja_template = BoundedEnvironment(settings).from_string
    chat_template_utils._compile_jinja_template.cache_clear()


class Budget:
    """What one render may still do. All errors are OutOfBounds."""

    def __init__(self) -> None:
        self.units, self.next_look = MOST_WORK, MOST_WORK - LOOK_AFTER
        self.end = time.thread_time() + MOST_SECONDS

    def spend(self, units: int) -> None:
        """Takes units off the budget, and looks at the clock from time to time."""
        self.units -= units
        if self.units < self.next_look:
            self.look()

    def look(self) -> None:
        """OutOfBounds if the budget is spent or the time is over."""
        if self.units < 0:
            raise OutOfBounds("it does not end within the work that a chat template may do")
        if time.thread_time() > self.end:
            raise OutOfBounds(f"it does not end within {MOST_SECONDS:g} s")
        self.next_look = self.units - LOOK_AFTER

    def require(self, units: int) -> None:
        """OutOfBounds if a value would have more units than one may have."""
        if units > MOST_UNITS:
            too_large()

    def measure(self, *values: Any) -> tuple[int, int]:
        """(units of the values, how many times at most an operation can repeat another value by them).

        The second counts characters and items, and adds integers, which can be widths or counts.
        """
        units = factor = 0
        if len(values) == 1 and type(values[0]) is str:  # most are
            units = ITEM_UNITS + len(values[0])
            self.require(units)
            self.spend(units)
            return units, 1 + len(values[0])
        level = list(values)
        for _ in range(MOST_LEVELS):
            units += ITEM_UNITS * len(level)
            factor += len(level)
            inner: list[Any] = []
            for value in level:
                if isinstance(value, TEXTS):
                    units, factor = units + len(value), factor + len(value)
                elif isinstance(value, int):
                    units, factor = units + value.bit_length(), factor + abs(int(value))
                elif isinstance(value, range):
                    units, factor = units + ITEM_UNITS * len(value), factor + len(value)
                else:
                    inner += _items_of(value)
                self.require(units + ITEM_UNITS * len(inner))
            if not inner:
                self.spend(units)
                return units, factor
            level = inner
        raise OutOfBounds(f"it makes lists within lists, more than {MOST_LEVELS} levels")

    def take(self, value: Any) -> Any:
        """The result of an operation, paid for."""
        units = 1
        if type(value) is str or isinstance(value, TEXTS):  # the first is what most values are
            units = len(value)
        elif isinstance(value, int):
            units = value.bit_length()
            self.require(units * BIT_UNITS)
        elif isinstance(value, CONTAINERS):
            units = ITEM_UNITS * len(value)
        if units > MOST_UNITS:
            too_large()
        self.units -= units
        if self.units < self.next_look:
            self.look()
        return value


def too_large() -> NoReturn:
    raise OutOfBounds(f"it makes a value of more than {MOST_UNITS:,} characters")


def _items_of(value: Any) -> list[Any]:
    """What a value holds and would print."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
        return list(value)
    if isinstance(value, Namespace):
        return list(object.__getattribute__(value, "_Namespace__attrs").values())
    return []


class BoundedContext(Context):
    """The variables of one render, and its budget."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budget = Budget()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, whose settings it takes, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    context_class = BoundedContext

    def __init__(self, settings: Environment) -> None:
        super().__init__(
            trim_blocks=settings.trim_blocks,
            lstrip_blocks=settings.lstrip_blocks,
            extensions=[type(extension) for extension in settings.extensions.values()],
            optimized=False,  # constants too are computed within bounds
            finalize=_write,
        )
        self.globals = {name: settings.globals[name] for name in GLOBALS}
        self.filters = {name: _bounded_filter(settings, name) for name in settings.filters}
        self.filters |= {STEP: _take_step, CONCAT: _concatenate, SLICE: _slice, PLAIN: _require_plain}
        self.tests = {name: _bounded_test(settings, name) for name in settings.tests}
        self._is_safe: dict[tuple[type, str], bool] = {}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_CHARACTERS:
            raise OutOfBounds(f"it has {len(source):,} characters, at most {MOST_CHARACTERS:,} are read")
        return super()._parse(source, name, filename)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Python code of a syntax tree, which gets the steps that are counted."""
        if sum(1 for _ in source.find_all(nodes.Node)) > MOST_NODES:
            raise OutOfBounds(f"it has more than {MOST_NODES:,} parts")
        for statement in source.find_all(REFUSED):
            raise OutOfBounds(f"line {statement.lineno} has a statement that no chat template needs")
        _Counted().visit(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """The sandbox's answer, which depends on the object's type alone; it takes longer than all counting here."""
        key = type(obj), attr
        is_safe = self._is_safe.get(key)
        if is_safe is None:
            if len(self._is_safe) >= MOST_ANSWERS:
                self._is_safe.clear()
            is_safe = self._is_safe[key] = super().is_safe_attribute(obj, attr, value)
        return is_safe

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = context.budget  # type: ignore[attr-defined]
        if operator == "+":  # makes no more than both have together
            return budget.take(left + right)
        if operator == "*":
            budget.require(_length(left) * _number(right) + _length(right) * _number(left))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.require(left.bit_length() * abs(right) * BIT_UNITS)
        elif operator == "%" and isinstance(left, str):
            budget.require(_size_of_format(budget, left, right))
        return budget.take(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget, own = __context.budget, __self.globals  # type: ignore[attr-defined]
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, DATA):
            _bound_method(budget, method, owner, (*args, *kwargs.values()))
        elif isinstance(owner, LoopContext | Cycler) or owner is own["dict"] or isinstance(__obj, Joiner):
            budget.measure(*args, *kwargs.values())
        elif any(__obj is function for function in own.values()):
            units, _ = budget.measure(*args, *kwargs.values())
            budget.require(units * (MOST_DATE_GROWTH if __obj is own["strftime_now"] else 1))
        elif not isinstance(__obj, Macro | LoopContext | Undefined) and not isinstance(owner, Extension):
            raise OutOfBounds(f"it calls {type(__obj).__name__}, which no chat template needs")
        return budget.take(super().call(__context, __obj, *args, **kwargs))


def _length(value: Any) -> int:
    """The units of what a sum or a product repeats."""
    if isinstance(value, TEXTS):
        return len(value)
    return ITEM_UNITS * len(value) if isinstance(value, CONTAINERS) else 0


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _bound_method(budget: Budget, method: Any, owner: Any, values: tuple[Any, ...]) -> None:
    """OutOfBounds before a method of text, a number or a list makes too much of these arguments."""
    name = method.__name__
    if type(owner) is str and name in LINEAR_METHODS and all(type(value) is str for value in values):
        budget.spend(sum(map(len, values), len(owner)))
        return
    factor = budget.measure(*values)[1]
    if name in LINEAR_METHODS:
        if not isinstance(owner, dict):  # whose methods look at one item, or at none
            budget.measure(owner)
    elif name in SPLITS:
        separator = values[0] if values and isinstance(values[0], str) else ""
        num_pieces = owner.count(separator) + 1 if separator else len(owner) // 2
        budget.require(len(owner) + ITEM_UNITS * num_pieces)
    elif name in FORMATS:
        budget.require(_size_of_format(budget, owner, *values))
    elif name == "replace" and [type(text) for text in values] == [str, str]:
        budget.require(len(owner) + owner.count(values[0]) * len(values[1]))
    elif isinstance(method, types.BuiltinMethodType) or name in GROWN_IN_PYTHON:
        budget.require((1 + budget.measure(owner)[0]) * (1 + factor))
    else:
        raise OutOfBounds(f"it calls {name!r}, which no chat template needs")


def _size_of_format(budget: Budget, text: str, *values: Any) -> int:
    """How many units at most a format makes of the values: with its widths, those that it takes from them included."""
    units, factor = budget.measure(*values)
    takes_width = "*" in text or re.search(r"\{[^{}]*\{", text) is not None
    widths = sum(int(number[0]) for number in re.finditer(r"\d{1,18}", text))
    return len(text) + widths + (1 + text.count("{") + text.count("%(")) * (units + (factor if takes_width else 0))


def _bounded_filter(settings: Environment, name: str) -> Callable[..., Any]:
    """A filter of Jinja or transformers within the bounds; one that is not known raises."""

    function, is_shallow, is_text = settings.filters[name], name in SHALLOW, name in TEXT
    takes_context = hasattr(function, "jinja_pass_arg")

    @pass_context
    def bounded(context: BoundedContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = context.budget
        if is_text and type(value) is str and not args and not kwargs:
            budget.spend(len(value))
        elif not is_shallow:
            if isinstance(value, Iterator):
                value = [budget.take(item) for item in value]
            budget.require(_size_of_filtered(budget, name, value, (*args, *kwargs.values())))
        if takes_context:
            return budget.take(settings.call_filter(name, value, args, kwargs, context=context))
        return budget.take(function(value, *args, **kwargs))

    return bounded


def _size_of_filtered(budget: Budget, name: str, value: Any, values: tuple[Any, ...]) -> int:
    """How many units at most a filter makes of a value, with the values of its arguments."""
    units, factor = budget.measure(value)[0], budget.measure(*values)[1]
    if name == "format":
        return _size_of_format(budget, str(value), *values)
    if name == "replace" and isinstance(value, str) and [type(text) for text in values] == [str, str]:
        return len(value) + value.count(values[0]) * len(values[1])
    if name in GROWING:
        return units * (1 + factor)
    if name in TEXT or name in LISTS:
        return units * (ITEM_UNITS if name in LISTS and isinstance(value, str) else 1)
    raise OutOfBounds(f"it uses the filter {name!r}, which no chat template needs")


def _bounded_test(settings: Environment, name: str) -> Callable[..., Any]:
    """A test of Jinja; what it compares is measured before."""
    if name in PLAIN_TESTS:
        return cast("Callable[..., Any]", settings.tests[name])

    @pass_context
    def bounded(context: BoundedContext, value: Any, *args: Any) -> Any:
        context.budget.measure(value, *args)
        return settings.call_test(name, value, args, context=context)

    return bounded


@pass_context
def _take_step(context: BoundedContext, cost: int) -> bool:
    context.budget.spend(cost)
    return True


@pass_context
def _concatenate(context: BoundedContext, values: tuple[Any, ...]) -> Any:
    if any(type(value) is not str for value in values):
        context.budget.measure(*values)
    return context.budget.take(str_join(values))


@pass_context
def _slice(context: BoundedContext, value: Any, *borders: Any) -> Any:
    return context.budget.take(value[slice(*borders)])


@pass_context
def _require_plain(context: BoundedContext, value: Any) -> Any:
    """The value, which is compared with another one or becomes a key."""
    if not isinstance(value, PLAIN_VALUES):
        context.budget.measure(value)
    return value


@pass_context
def _write(context: BoundedContext, value: Any) -> Any:
    """The text of a value that a template writes."""
    if type(value) is not str:
        context.budget.measure(value)
        value = str(value)
    return context.budget.take(value)


class _Counted(NodeTransformer):
    """Adds to a syntax tree what counts and measures: a step in each body that can run many times, and some operators.

    The other operators are those that Jinja lets an environment intercept.
    """

    def _count_body(self, node: Any) -> Any:
        cost = max(_cost_of(node.body), NODE_COST)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call(nodes.Const(cost), STEP)).set_lineno(node.lineno))
        return node

    visit_Template = visit_Macro = visit_CallBlock = _count_body

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._count_body(node)
        if node.test is not None:
            step = _call(nodes.Const(max(_cost_of([node.test]), NODE_COST)), STEP)
            node.test = nodes.And(step, node.test).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _call(nodes.Tuple(node.nodes, "load", lineno=node.lineno), CONCAT)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            if not isinstance(node.arg, nodes.Const):
                node.arg = _call(node.arg, PLAIN)
            return node
        borders = [border or nodes.Const(None) for border in (node.arg.start, node.arg.stop, node.arg.step)]
        return _call(node.node, SLICE, *borders)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        if sum(not isinstance(operand, nodes.Const) for operand in operands) > 1:
            node.expr = _call(node.expr, PLAIN)
            for operand in node.ops:
                operand.expr = _call(operand.expr, PLAIN)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call(node.key, PLAIN)
        return node


def _call(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _cost_of(body: list[Any]) -> int:
    """The units that one run of a body costs: its parts and text, without inner bodies, which count for themselves."""
    cost, level = 0, body
    while level:
        cost += sum(NODE_COST + (len(node.data) if isinstance(node, nodes.TemplateData) else 0) for node in level)
        level = [
            child
            for node in level
            for child in node.iter_child_nodes(exclude=("body",) if isinstance(node, COUNTED_BODIES) else None)
        ]
    return cost
