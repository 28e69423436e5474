"""
The code file of a saved model: its modules joined into one, which needs nothing but installed libraries.

transformers runs a repository's code from the file that `auto_map` names. One file is one request, one text to read
before it is trusted, and one class of each name. Where that file runs it is its own source: transformers copies it
when the model is saved again.
"""

import ast
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from transformers import PreTrainedConfig

from .._auto import AUTO_CLASSES
from .._version import __version__
from .weight_files import CODE_MARK


PACKAGE = Path(__file__).parents[1]


class CodeError(Exception):
    """Modules that cannot be joined."""


def write_code(folder: str | os.PathLike, config: PreTrainedConfig) -> dict[str, str]:
    """
    Writes the code of a configuration and of its models into a folder.

    Args:
        folder: an existing one.
        config: of a class of this package, or of a class derived from one.

    Returns:
        `auto_map` for `config.json`; empty, and nothing is written, for classes of remote code and of transformers.
    """
    families = list(dict.fromkeys(_families(config)))
    if not families:
        return {}
    model_type, *inner = families
    name = f"modeling_{model_type}"
    Path(folder, f"{name}.py").write_text(joined(model_type, tuple(inner)), encoding="utf-8")
    return {auto: f"{name}.{class_name}" for auto, class_name in AUTO_CLASSES[model_type].items()}


def _families(config: PreTrainedConfig) -> Iterator[str]:
    """Model types of this package in a configuration: its own, then those of the configurations inside."""
    package = __name__.partition(".")[0]
    # a user's class derived from one of ours counts; those of remote code are not in this package, nor are their bases
    for base in type(config).__mro__:
        if base.__module__.partition(".")[0] == package and AUTO_CLASSES.get(config.model_type):
            yield config.model_type
            break
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _families(value)


@cache
def joined(model_type: str, inner: tuple[str, ...] = ()) -> str:
    """
    The text of the file `modeling_<model_type>.py`.

    Args:
        model_type: of the model.
        inner: of models inside, which are built by their types: the file registers them with the Auto classes.

    Raises:
        CodeError: if the modules cannot be joined.
    """
    entries = [_modeling_module(kind) for kind in (model_type, *inner)]
    text = join_modules(PACKAGE, entries, [_registration(kind) for kind in inner])
    return (
        f"{CODE_MARK}{__version__} from its modules; do not edit. This is what trust_remote_code=True runs where\n"
        f"# fusible is not installed. The modules come with pip install fusible, which is then used in its place.\n\n"
        f"{text}"
    )


def _modeling_module(model_type: str) -> str:
    (file,) = PACKAGE.rglob(f"modeling_{model_type}.py")
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def _registration(model_type: str) -> str:
    """Code that makes the Auto classes know a model type, as the package does where it is installed."""
    classes = dict(AUTO_CLASSES[model_type])
    config = classes.pop("AutoConfig")
    lines = [f'AutoConfig.register("{model_type}", {config})']
    lines += [f"{auto}.register({config}, {name})" for auto, name in classes.items()]
    imports = ", ".join(["CONFIG_MAPPING", "AutoConfig", *classes])
    body = "".join(f"\n    {line}" for line in lines)
    # classes that are known already stay: those of the installed package, or of code that ran before
    return f'from transformers import {imports}\n\n\nif "{model_type}" not in CONFIG_MAPPING:{body}\n'


@dataclass
class _Part:
    """A module without its imports, docstring and `__all__`."""

    origin: str
    doc: str = ""
    text: str = ""
    imports: dict[str, str] = field(default_factory=dict)  # bound name -> statement
    names: dict[str, str] = field(default_factory=dict)  # name defined at the top level -> statement


def join_modules(package: Path, entries: list[str], endings: Sequence[str] = ()) -> str:
    """
    The text of one module that defines what modules of a package, and all that they import of it, define.

    Args:
        package: its folder.
        entries: names of the modules, relative to the package.
        endings: more code, which is put at the end.

    Raises:
        CodeError: if modules import each other in a circle, if two define the same name or mean different things by
            one, or if one imports in a way that one file cannot have: the package by its own name, a whole module of
            it, in a function, under another name, or for type checkers only.
    """
    parts = [
        _parse(package.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"), module, package)
        for module in _in_order(package, entries)
    ]
    parts += [_parse(text, "registration", package) for text in endings]
    imports: dict[str, str] = {}
    owners: dict[str, tuple[str, str]] = {}  # name -> module, statement
    for part in parts:
        for name, statement in part.imports.items():
            if imports.setdefault(name, statement) != statement:
                raise CodeError(f"{part.origin}: {statement!r}, but another module has {imports[name]!r}.")
        for name, statement in part.names.items():
            owner, other = owners.setdefault(name, (part.origin, statement))
            if owner != part.origin and other != statement:  # a logger may be there twice
                raise CodeError(f"{owner} and {part.origin} both define {name}.")
    for name in owners.keys() & imports.keys():
        raise CodeError(f"{owners[name][0]} defines {name}, which another module imports: {imports[name]!r}.")
    sections = ["\n".join(_grouped(set(imports.values())))]
    for part in parts:
        # only the first string of a file is its docstring, so those of the modules become comments
        comment = "".join(f"#{' ' * bool(line)}{line}\n" for line in part.doc.splitlines())
        sections.append(f"# {'-' * 20} {package.name}/{part.origin}\n{comment}\n\n{part.text}")
    return "\n\n\n".join(sections) + "\n"


def _grouped(statements: Iterable[str]) -> list[str]:
    """Import statements, with one line or block per module."""
    plain = sorted(statement for statement in statements if statement.startswith("import "))
    names: dict[str, list[str]] = {}
    for statement in sorted(set(statements).difference(plain)):
        _, module, _, name = statement.split(" ", 3)
        names.setdefault(module, []).append(name)
    lines = [f"from {module} import {', '.join(found)}" for module, found in names.items()]
    # chr(10), as expressions in f-strings may have no backslash before Python 3.12
    blocks = [f"from {module} import (\n    {f',{chr(10)}    '.join(found)},\n)" for module, found in names.items()]
    return plain + [line if len(line) < 120 else block for line, block in zip(lines, blocks, strict=True)]


def _in_order(package: Path, entries: list[str]) -> list[str]:
    """The modules and all that they import, each after what it imports."""
    ordered: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            raise CodeError(f"{' -> '.join([*path, module])} is a circle.")
        if module in ordered:
            return
        tree = ast.parse(package.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level:
                visit(_target(module, node), (*path, module))
        ordered.append(module)

    for entry in entries:
        visit(entry, ())
    return ordered


def _target(module: str, node: ast.ImportFrom) -> str:
    if node.module is None:
        raise CodeError(f"{module}:{node.lineno} imports a whole module of the package; import names from it.")
    return ".".join([*module.split(".")[: -node.level], node.module])


def _parse(text: str, module: str, package: Path) -> _Part:
    tree, lines = ast.parse(text), text.splitlines()
    part = _Part(origin=f"{module.replace('.', '/')}.py", doc=ast.get_docstring(tree) or "")
    dropped = [tree.body[0]] if part.doc else []
    # imports in a `try` stay in the text: they are of libraries that may be missing
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            dropped.append(node)
            _read_import(node, part, package)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            dropped.append(node)
        else:
            part.names.update(dict.fromkeys(_defined(node), ast.unparse(node)))
    for inner in ast.walk(tree):
        if isinstance(inner, ast.ImportFrom) and inner.level and inner not in tree.body:
            raise CodeError(f"{part.origin}:{inner.lineno}: a relative import that is not at the top level.")
    for node in dropped:
        # lines are emptied, not removed, as the numbers of the other nodes count them; unparsing would lose comments
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    part.text = "\n".join(lines).strip("\n")
    return part


def _read_import(node: ast.Import | ast.ImportFrom, part: _Part, package: Path) -> None:
    place = f"{part.origin}:{node.lineno}"
    if isinstance(node, ast.ImportFrom) and node.level:
        if any(alias.asname for alias in node.names):
            raise CodeError(f"{place}: names of the package keep their names in one file; import without 'as'.")
        return
    for alias in node.names:
        source = alias.name if isinstance(node, ast.Import) else str(node.module)
        if source.partition(".")[0] in (package.name, "__future__"):
            raise CodeError(f"{place}: {source} cannot be imported in one file.")
        renamed = alias.name + (f" as {alias.asname}" if alias.asname else "")
        if isinstance(node, ast.ImportFrom):
            part.imports[alias.asname or alias.name] = f"from {node.module} import {renamed}"
        else:  # "import a.b" binds a, as "import a.c" does
            part.imports[alias.asname or alias.name] = f"import {renamed}"


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    names = (name for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
    return [name.id for name in names] if isinstance(node, ast.Assign | ast.AnnAssign) else []


__all__ = ["CodeError", "join_modules", "joined", "write_code"]
