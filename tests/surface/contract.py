"""The contract as data: reads contract.txt (a copy of the spec's api.txt), and compares what it says with what Python finds in our modules.

== module            the module that follows
def f(a, b=1)        a function            class C(Base)   a class
    m(a)                 its method            static m(a)     a method without self
     name = value        its attribute         properties: x   what its instances have
NAME = value         a constant
"""

import ast
import importlib
import inspect
import queue
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTRACT = Path(__file__).with_name("contract.txt")
PACKAGE = "smallpond_mpi"
ABSENT = "absent"


@dataclass
class Callable_:
    """A function or method."""

    name: str
    parameters: str
    is_static: bool = False


@dataclass
class Class:
    """A class with what it defines itself."""

    name: str
    bases: list[str]
    methods: list[Callable_] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    properties: list[str] = field(default_factory=list)


@dataclass
class Module:
    """A module with its public names."""

    name: str
    functions: list[Callable_] = field(default_factory=list)
    classes: list[Class] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Difference:
    """Where we are not what the contract says. `what` is `absent`, or a sentence."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def read(path: Path = CONTRACT) -> list[Module]:
    """The contract.

    Raises:
        ValueError: a line says nothing that is known here.
    """
    modules: list[Module] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("== "):
            modules.append(Module(line[3:].strip()))
        elif line.strip() and modules:
            try:
                read_line(line, modules[-1])
            except (ValueError, SyntaxError, IndexError) as error:
                raise ValueError(f"{path}:{number}: {error}: {line}") from error
    return modules


def read_line(line: str, module: Module) -> None:
    text = line.strip()
    if line.startswith("def "):
        module.functions.append(_callable(text.removeprefix("def ")))
    elif line.startswith("class "):
        head = _parsed_class(text)
        module.classes.append(Class(head.name, [ast.unparse(base) for base in head.bases]))
    elif not line.startswith(" "):
        name, value = text.split(" = ", 1)
        module.constants[name] = value
    elif text.startswith("properties: "):
        module.classes[-1].properties += text.removeprefix("properties: ").split(", ")
    elif text.startswith("static "):
        module.classes[-1].methods.append(_callable(text.removeprefix("static "), is_static=True))
    elif line.startswith("     "):
        name, value = text.split(" = ", 1)
        module.classes[-1].attributes[name] = value
    else:
        module.classes[-1].methods.append(_callable(text))


def _callable(text: str, is_static: bool = False) -> Callable_:
    name, parameters = text.split("(", 1)
    ast.parse(f"def _({parameters}: ...")
    return Callable_(name, parameters.removesuffix(")"), is_static)


def _parsed_class(text: str) -> ast.ClassDef:
    (node,) = ast.parse(f"{text}: ...").body
    assert isinstance(node, ast.ClassDef)
    return node


# comparing


def differences(modules: Sequence[Module]) -> Iterator[Difference]:
    """All that differs, by full name without the package's."""
    for module in modules:
        prefix = module.name.removeprefix(PACKAGE).removeprefix(".")
        try:
            ours = importlib.import_module(module.name)
        except ModuleNotFoundError:
            names = [*module.constants, *(one.name for one in [*module.functions, *module.classes])]
            yield from (Difference(_joined(prefix, name), ABSENT) for name in names)
            continue
        yield from module_differences(module, ours, prefix)


def module_differences(module: Module, ours: Any, prefix: str) -> Iterator[Difference]:
    for name, text in module.constants.items():
        yield from _value_differences(_joined(prefix, name), text, ours, name, vars(ours))
    for function in module.functions:
        yield from _callable_differences(_joined(prefix, function.name), function, ours, vars(ours))
    for described in module.classes:
        yield from _class_differences(_joined(prefix, described.name), described, ours)


def _class_differences(name: str, described: Class, module: Any) -> Iterator[Difference]:
    kind = getattr(module, described.name, None)
    if kind is None:
        yield Difference(name, ABSENT)
        return
    scope = {**vars(module), **{key: getattr(kind, key) for key in dir(kind)}}
    for base in described.bases:
        yield from _base_differences(name, base, kind)
    for attribute, text in described.attributes.items():
        yield from _value_differences(f"{name}.{attribute}", text, kind, attribute, scope)
    for method in described.methods:
        yield from _callable_differences(f"{name}.{method.name}", method, kind, scope)
    known = set(dir(kind)) | set(_instance_attributes(kind))
    for prop in described.properties:
        if prop not in known:
            yield Difference(f"{name}.{prop}", ABSENT)


def _base_differences(name: str, base: str, kind: type) -> Iterator[Difference]:
    if base.startswith("namedtuple("):
        fields = ast.literal_eval(base[len("namedtuple(") : -1])[1]
        if getattr(kind, "_fields", None) != fields:
            yield Difference(name, f"is no namedtuple of {', '.join(fields)}")
        return
    plain = base.split("[")[0].split(".")[-1]
    if plain not in {one.__name__ for one in kind.__mro__}:
        yield Difference(name, f"is no {plain}")


def _callable_differences(name: str, described: Callable_, owner: Any, scope: dict[str, Any]) -> Iterator[Difference]:
    ours = getattr(owner, described.name, None)
    if ours is None:
        yield Difference(name, ABSENT)
        return
    is_static = isinstance(owner, type) and isinstance(
        inspect.getattr_static(owner, described.name), (staticmethod, classmethod)
    )
    if described.is_static and not is_static:
        yield Difference(name, "is not static")
        return
    actual = list(inspect.signature(ours).parameters.values())
    if isinstance(owner, type) and not is_static:
        actual = actual[1:]
    wanted = _parameters(described.parameters, scope)
    yield from _parameter_differences(name, wanted, actual)


def _parameters(text: str, scope: dict[str, Any]) -> list[inspect.Parameter]:
    """The parameters that a line of the contract names, with their defaults' values."""
    (function,) = ast.parse(f"def _({text}): ...").body
    assert isinstance(function, ast.FunctionDef)
    args = function.args
    kinds = inspect.Parameter
    found = []
    firsts: list[ast.expr | None] = [None] * (len(args.args) - len(args.defaults)) + list(args.defaults)
    for arg, default in zip(args.args, firsts, strict=True):
        found.append(kinds(arg.arg, kinds.POSITIONAL_OR_KEYWORD, default=_default(default, scope)))
    if args.vararg:
        found.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=_default(default, scope)))
    if args.kwarg:
        found.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    return found


def _default(node: ast.expr | None, scope: dict[str, Any]) -> Any:
    return inspect.Parameter.empty if node is None else evaluate(ast.unparse(node), scope)


def evaluate(text: str, scope: dict[str, Any]) -> Any:
    """The value of an expression of the contract, with the names of the module or class that it stands in."""
    import smallpond_mpi.common as common

    known = {**vars(typing), "queue": queue, "pstats": importlib.import_module("pstats")}
    return eval(text, {**known, **vars(common), **scope})


def _parameter_differences(
    name: str, wanted: list[inspect.Parameter], actual: list[inspect.Parameter]
) -> Iterator[Difference]:
    """What a caller of the contract's signature would trip over. More parameters that need not be given are none of it."""
    ours = {one.name: one for one in actual}
    takes_any_keyword = any(one.kind is one.VAR_KEYWORD for one in actual)
    takes_any_position = any(one.kind is one.VAR_POSITIONAL for one in actual)
    positions = [one.name for one in actual if one.kind is one.POSITIONAL_OR_KEYWORD]
    for position, one in enumerate(one for one in wanted if one.kind is one.POSITIONAL_OR_KEYWORD):
        if one.name in ours and ours[one.name].kind is not one.KEYWORD_ONLY:
            if positions.index(one.name) != position:
                yield Difference(name, f"parameter {one.name} is not number {position + 1}")
        elif not takes_any_position and (one.name in ours or takes_any_keyword):
            yield Difference(name, f"parameter {one.name} can't be given by position")
    for one in wanted:
        mine = ours.get(one.name)
        if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
            if one.kind not in {each.kind for each in actual}:
                yield Difference(name, f"takes no {one}")
        elif mine is None:
            if not takes_any_keyword:
                yield Difference(name, f"has no parameter {one.name}")
        elif one.default is not one.empty and not _same(one.default, mine.default):
            yield Difference(name, f"{one.name} is {_shown(mine.default)}, not {_shown(one.default)}")
    for one in actual:
        needed = one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        if needed and one.name not in {each.name for each in wanted}:
            yield Difference(name, f"needs {one.name} besides")


def _value_differences(name: str, text: str, owner: Any, attribute: str, scope: dict[str, Any]) -> Iterator[Difference]:
    if not hasattr(owner, attribute):
        yield Difference(name, ABSENT)
        return
    value = getattr(owner, attribute)
    try:
        wanted = evaluate(text, scope)
    except SyntaxError:  # cut off in the contract: only the name can be compared
        return
    if isinstance(owner, type) and issubclass(owner, importlib.import_module("enum").Enum):
        value = value.value
    if not _same(wanted, value):
        yield Difference(name, f"is {_shown(value)}, not {_shown(wanted)}")


def _same(wanted: Any, actual: Any) -> bool:
    if typing.get_origin(wanted) is not None:
        return _generic(wanted) == _generic(actual)
    if inspect.isfunction(wanted) or inspect.isclass(wanted):
        return wanted is actual
    return type(wanted) is type(actual) and bool(wanted == actual)


def _generic(kind: Any) -> tuple[Any, set[str]]:
    """A generic type's origin and its arguments in no order: some of them are lists."""
    return typing.get_origin(kind), set(map(repr, typing.get_args(kind)))


def _shown(value: Any) -> str:
    return "needed" if value is inspect.Parameter.empty else repr(value)


def _instance_attributes(kind: type) -> Iterator[str]:
    """Names that methods of a class, or of those above it, give to `self`; and declared ones."""
    for base in kind.__mro__:
        yield from getattr(base, "__annotations__", {})
        if base is not object and not base.__module__.startswith(("builtins", "typing", "enum", "uuid")):
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            for node in ast.walk(tree):
                is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
                if is_stored and isinstance(node.value, ast.Name) and node.value.id == "self":
                    yield node.attr


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
