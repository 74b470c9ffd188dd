"""What a method's file says of it; the file is read as text, and nothing of it runs."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MethodFile:
    """What the file of a method says.

    name: in specs. class_name: in scripts. title: what it is called. lead: what it is, in a
    sentence. family: in reports. formula: payload bits of one worker in a step. text: where it is
    from, its update, cost and state, as its docstring has them. path: of the file, in the
    repository. code: what stands in the file under its docstring.
    """

    name: str
    class_name: str
    title: str
    lead: str
    family: str
    formula: str
    text: str
    path: str
    code: str

    @property
    def page(self) -> str:
        """Where its page stands in the site."""
        return f"methods/{self.name}.html"


def read_methods(root: Path) -> list[MethodFile]:
    """Return the methods in the folder `algorithms` of the repository, sorted by name.

    Their files are read as text: nothing of them runs.
    """
    folder = root / "algorithms"
    classes: dict[str, _Class] = {}
    paths = sorted(folder.glob("*.py"))
    paths += sorted(folder.glob("baselines/*.py"))
    for path in paths:
        place = path.relative_to(root).as_posix()
        for read in _classes_in(path, place):
            classes[read.name] = read
    # A class without a name of its own is a base or a helper.
    named = [read for read in classes.values() if "name" in read.constants]
    files = [read.path for read in named]
    methods = []
    for read in named:
        shares_file = files.count(read.path) > 1
        methods.append(_method(read, classes, shares_file))
    return sorted(methods, key=lambda method: method.name)


@dataclass(frozen=True)
class _Class:
    """A class of a file: its bases, the texts that it assigns, its docstring and the file's."""

    name: str
    path: str
    bases: Sequence[str]
    constants: Mapping[str, str]
    text: str
    text_of_file: str
    code: str


def _classes_in(path: Path, place: str) -> list[_Class]:
    """Return the classes of a file, whose path in the repository is `place`."""
    source = path.read_text()
    tree = ast.parse(source)
    # The docstring is the first statement; pages have it apart.
    docstring = tree.body[0]
    lines = source.split("\n")[docstring.end_lineno :]
    code = "\n".join(lines).strip("\n")
    classes = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            read = _Class(
                name=node.name,
                path=place,
                bases=_names(node.bases),
                constants=_constants(node),
                text=ast.get_docstring(node) or "",
                text_of_file=ast.get_docstring(tree) or "",
                code=code,
            )
            classes.append(read)
    return classes


def _method(
    read: _Class, classes: Mapping[str, _Class], shares_file: bool
) -> MethodFile:
    """Return the method that a class is.

    Args:
        read: the class.
        classes: all, for what it has from its bases.
        shares_file: whether another method stands in its file. Then it is called by its class, and
            its own docstring says what it is.
    """
    text = read.text_of_file
    # Where a class of several says what it costs, it says all.
    if "\nCost: " in read.text:
        text = read.text.partition("\nArgs:")[0]
    title = read.name
    lead = text.split("\n")[0]
    if shares_file:
        lead = (read.text or text).split("\n")[0]
    elif ": " in lead:
        title, _, lead = lead.partition(": ")
    return MethodFile(
        name=read.constants["name"],
        class_name=read.name,
        title=title,
        lead=lead[:1].upper() + lead[1:],
        family=_inherited(classes, read.name, "family", "other"),
        formula=_inherited(classes, read.name, "formula", ""),
        text=text,
        path=read.path,
        code=read.code,
    )


def _names(bases: Sequence[ast.expr]) -> list[str]:
    return [parent.id for parent in bases if isinstance(parent, ast.Name)]


def _constants(node: ast.ClassDef) -> dict[str, str]:
    """Return the texts that a class assigns in its body."""
    texts = {}
    for line in node.body:
        match line:
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))
            ):
                texts[name] = text
    return texts


def _inherited(
    classes: Mapping[str, _Class], name: str, fact: str, otherwise: str
) -> str:
    """Return a text that a class assigns, or the first of its bases that has it."""
    if name not in classes:
        return otherwise
    if fact in classes[name].constants:
        return classes[name].constants[fact]
    for parent in classes[name].bases:
        text = _inherited(classes, parent, fact, "")
        if text:
            return text
    return otherwise
