"""What a Python function is made of, as a value with a canonical form: what of it enters a build id.

The function that runs is its compiled code, not the text that stands in a file now. So its form is made of its code
objects, nested ones among them, and of all that they reach: defaults, attributes, closures, globals, attributes of the
user's modules, classes, decorators. A library counts by its name and version, Python by its own. What is not known is
refused; so is what is known to vary from call to call.
"""

import builtins
import dis
import enum
import importlib
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from cumin.encoding import encode
from cumin.errors import RecipeError

REMEDY = "Declare version= in cumin.udf and change it whenever the code, or what it reads, changes."
# Modules of Python whose functions give the same for the same arguments, but for the names below.
_PURE = frozenset(
    ["abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "codecs", "collections", "colorsys",
     "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools",
     "hashlib", "heapq", "hmac", "html", "io", "ipaddress", "itertools", "json", "keyword", "math", "numbers",
     "operator", "pprint", "quopri", "re", "reprlib", "statistics", "string", "stringprep", "struct", "textwrap",
     "types", "typing", "unicodedata", "urllib", "xml", "zlib"]
)  # fmt: skip
# What varies whoever's it is: the clock, chance, the machine, and the hash of text, which has another seed in each process.
_VARYING = frozenset(
    ["now", "utcnow", "today", "localtime", "gmtime", "perf_counter", "monotonic", "time_ns", "urandom",
     "getrandbits", "randint", "randrange", "random_sample", "default_rng", "RandomState", "shuffle", "uuid1",
     "uuid4", "environ", "getenv", "getpid", "gethostname", "urlopen", "read_text", "read_bytes", "fromtimestamp",
     "timestamp", "astimezone"]
)  # fmt: skip
_VARYING_BUILTINS = frozenset(
    ["open", "input", "eval", "exec", "compile", "__import__", "globals", "locals", "vars", "dir", "id", "hash",
     "breakpoint"]
)  # fmt: skip
_VARYING_MODULES = frozenset({"random", "urllib.request"})
_CLASS_NAMES = frozenset(
    ["__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__dataclass_fields__",
     "__dataclass_params__", "__match_args__", "__slots__", "__firstlineno__", "__static_attributes__",
     "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__annotate__", "__annotate_func__",
     "__annotations_cache__", "__classdictcell__"]
)  # fmt: skip


def code_form(function: Callable[..., Any], where: str) -> list[Any]:
    """The form of a function and of all that it reaches. Raises RecipeError naming what has none."""
    if not isinstance(function, (types.FunctionType, partial)):
        raise RecipeError(f"{where} is a {type(function).__qualname__}, whose code cannot be read. {REMEDY}")
    form: list[Any] = _Walk().value(function, where)
    return [["python", *sys.version_info[:2]], form]


class _Walk:
    """One walk over all that a function reaches. What was met before is named by its place in the walk."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # alive, so that no id is given twice

    def value(self, value: Any, where: str) -> Any:
        """The form of any value."""
        if isinstance(value, enum.Enum):
            return ["enum", self.value(type(value), where), value.name]
        try:
            encode(value)
        except TypeError:
            pass
        else:
            return ["value", type(value).__qualname__, value]
        if id(value) in self._met:
            return ["met", self._met[id(value)]]
        self._met[id(value)] = len(self._met)
        self._kept.append(value)
        return self._thing(value, where)

    def _thing(self, value: Any, where: str) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, partial):
            parts = [value.func, list(value.args), value.keywords]
            return ["partial", *(self.value(each, where) for each in parts)]
        if isinstance(value, types.CodeType):
            return self._code(value, where)
        if isinstance(value, types.ModuleType):
            return _library(value.__name__, where)
        if isinstance(value, re.Pattern):
            return ["pattern", self.value(value.pattern, where), value.flags]
        if isinstance(value, PurePath):
            return ["path", str(value)]
        if isinstance(value, (list, tuple, set, frozenset, Mapping, types.MappingProxyType)):
            return self._collection(value, where)
        if isinstance(value, (complex, range, slice, types.EllipsisType, types.NotImplementedType)):
            return [type(value).__name__, repr(value)]
        if isinstance(value, (types.BuiltinFunctionType, type, types.MethodDescriptorType, types.GenericAlias)):
            return self._named(value, where)
        if isinstance(value, (staticmethod, classmethod)):
            return [type(value).__name__, self.value(value.__func__, where)]
        if isinstance(value, property):
            return ["property", *(self.value(each, where) for each in (value.fget, value.fset, value.fdel))]
        if type(value).__module__ == "numpy" and type(value).__name__ != "ndarray" and hasattr(value, "item"):
            return ["numpy", str(value.dtype), self.value(value.item(), where)]
        raise RecipeError(f"{where} is a {type(value).__qualname__}, which has no canonical form. {REMEDY}")

    def _collection(self, value: Any, where: str) -> list[Any]:
        kind = type(value).__qualname__
        if isinstance(value, (list, tuple)):
            return [kind, [self.value(each, where) for each in value]]
        if isinstance(value, (set, frozenset)):  # in the order of their forms: that of the set differs by process
            return [kind, sorted((_Walk().value(each, where) for each in value), key=encode)]
        # In its own order, which the function may see.
        return [kind, [[self.value(key, where), self.value(each, f"{where}[{key!r}]")] for key, each in value.items()]]

    def _named(self, value: Any, where: str) -> Any:
        """A class or a function of C: a user's class by what is in it, all else by its name and its library's version."""
        module = getattr(value, "__module__", None)
        owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
        if module is None and owner is not None:
            kind = owner if isinstance(owner, (type, types.ModuleType)) else type(owner)
            module = getattr(kind, "__module__", None) or kind.__name__
        name = str(getattr(value, "__qualname__", value))
        if getattr(builtins, name, None) is value:  # `open` says that it is of the module _io
            if name in _VARYING_BUILTINS:
                raise RecipeError(f"{where}: {name}() does not give the same in every run. {REMEDY}")
            return ["builtin", name]
        if module is None:
            raise RecipeError(f"{where}: it is not known where {name!r} comes from. {REMEDY}")
        if isinstance(value, type) and not _is_library(module):
            return self._class(value, where)
        if name.rpartition(".")[2] in _VARYING:
            raise RecipeError(f"{where}: {name}() does not give the same in every run. {REMEDY}")
        return [*_library(module, where), name]

    def _class(self, kind: type, where: str) -> list[Any]:
        bases = [self.value(each, f"{where}, its base {each.__name__}") for each in kind.__bases__ if each is not object]
        slots = (types.MemberDescriptorType, types.GetSetDescriptorType)
        body = [
            [name, self.value(each, f"{where}, its attribute {name!r}")]
            for name, each in sorted(vars(kind).items())
            if name not in _CLASS_NAMES and not isinstance(each, slots)
        ]
        meta = [] if type(kind) in (type, enum.EnumType) else [self.value(type(kind), where)]
        return ["class", kind.__qualname__, bases, meta, list(map(str, getattr(kind, "__slots__", ()))), body]

    def _function(self, function: types.FunctionType, where: str) -> list[Any]:
        if _is_library(function.__module__ or ""):
            return [*_library(function.__module__, where), function.__qualname__]
        cells = [_cell(cell) for cell in function.__closure__ or ()]
        return [
            "function",
            self._code(function.__code__, where),
            [self.value(each, f"{where}, a default") for each in function.__defaults__ or ()],
            [[name, self.value(each, f"{where}, its default {name!r}")]
             for name, each in sorted((function.__kwdefaults__ or {}).items())],
            [[name, self.value(each, f"{where}, its attribute {name!r}")]
             for name, each in sorted(function.__dict__.items())],
            [[name, self.value(each, f"{where}, its variable {name!r}")]
             for name, each in zip(function.__code__.co_freevars, cells, strict=True)],
            self._outside(function, where),
        ]  # fmt: skip

    def _code(self, code: types.CodeType, where: str) -> list[Any]:
        consts = [
            self._code(each, where) if isinstance(each, types.CodeType) else _Walk().value(each, where)
            for each in code.co_consts
        ]
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        names = [list(code.co_names), list(code.co_varnames), list(code.co_freevars), list(code.co_cellvars)]
        return ["code", code.co_name, code.co_code, getattr(code, "co_exceptiontable", b""), counts, names, consts]

    def _outside(self, function: types.FunctionType, where: str) -> list[Any]:
        """Globals and imports of the function's code and of the code in it, each with its value."""
        found: dict[str, Any] = {}
        for code in _codes(function.__code__):
            if varying := sorted(_VARYING & set(code.co_names)):
                raise RecipeError(
                    f"{where} uses {varying[0]!r}, which does not give the same in every run. Hand the value in as an "
                    f"argument. If it does repeat: {REMEDY}"
                )
            for path in _paths(code, where):
                name = ".".join(path)
                found[name] = self._at(path, function, f"{where}, its variable {name!r}")
        return [[name, found[name]] for name in sorted(found)]

    def _at(self, path: tuple[str, ...], function: types.FunctionType, where: str) -> Any:
        first, *rest = path
        if first in function.__globals__:
            value = function.__globals__[first]
        elif hasattr(builtins, first):
            value = getattr(builtins, first)
        else:
            return ["nothing"]
        if isinstance(value, types.ModuleType):
            return self._in_module(value, rest, where)
        return self.value(value, where)

    def _in_module(self, module: types.ModuleType, rest: list[str], where: str) -> Any:
        """What is read of a module. A library's is known by its version; of a user's, each name must be seen."""
        if _is_library(module.__name__):
            inner = [module.__name__, *rest]
            if any(".".join(inner[: n + 1]) in _VARYING_MODULES for n in range(len(inner))) or "random" in rest:
                raise RecipeError(f"{where}: {'.'.join(inner)} does not give the same in every run. {REMEDY}")
            return [*_library(module.__name__, where), *rest]
        if not rest:
            raise RecipeError(
                f"{where} is the module {module.__name__!r} as a whole, so what is read of it is not known. Write "
                f"{module.__name__}.name, or import the names. {REMEDY}"
            )
        value = getattr(module, rest[0], None)
        if isinstance(value, types.ModuleType):
            return self._in_module(value, rest[1:], where)
        return self.value(value, where)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not bound yet: a function that names itself before it is made


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _paths(code: types.CodeType, where: str) -> Iterator[tuple[str, ...]]:
    """The globals that the code reads, each with the attributes that are taken of it at once: ``helpers.text.clean``."""
    steps = [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL")]
    for index, step in enumerate(steps):
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            raise RecipeError(f"{where} changes the global {step.argval!r}, so one call depends on another. {REMEDY}")
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            path = [str(step.argval)]
            for after in steps[index + 1 :]:
                if after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                path.append(str(after.argval))
            yield tuple(path)
        if step.opname == "IMPORT_NAME":
            _check_import(str(step.argval), where)


def _check_import(name: str, where: str) -> None:
    """Refuse an import inside a function, but for modules of Python's that give the same in every run."""
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names or top not in _PURE or name in _VARYING_MODULES:
        raise RecipeError(
            f"{where} imports {name or '.'!r} in its body, where it is not seen what is read of it. Import it at the top of "
            f"the file. {REMEDY}"
        )


@cache
def _is_library(name: str) -> bool:
    """Whether a module is Python's own or an installed one: then its version says what is in it."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return top != "__main__"
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    folders = {str(Path(sysconfig.get_path(each)).resolve()) for each in ("purelib", "platlib")}
    place = Path(file).resolve()
    return any(str(each) in folders or each.name in ("site-packages", "dist-packages") for each in place.parents)


def _library(name: str, where: str) -> list[Any]:
    """A module of Python's or an installed one, by name and version. Raises RecipeError for one that may vary."""
    top = name.partition(".")[0].lstrip("_")
    if name.partition(".")[0] in sys.stdlib_module_names:
        if top not in _PURE and name != builtins.__name__ and top != "pydecimal":
            raise RecipeError(f"{where}: {name!r} may give another value in every run. {REMEDY}")
        return ["python", name]
    if "random" in name.split("."):
        raise RecipeError(f"{where}: {name!r} does not give the same in every run. {REMEDY}")
    top = name.partition(".")[0]
    module = sys.modules.get(top) or importlib.import_module(top)
    version = getattr(module, "__version__", None)
    if not isinstance(version, str):
        owners = metadata.packages_distributions().get(top, [])
        if not owners:
            raise RecipeError(f"{where}: the library {top!r} does not tell its version. {REMEDY}")
        version = ",".join(f"{each} {metadata.version(each)}" for each in sorted(owners))
    return ["library", name, version]
