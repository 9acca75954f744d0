"""Names and docstrings are in the words of the field, and nothing points to a place that users do not have."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny import ROOT

SOURCES = sorted(
    [ROOT / "train.py", *(path for name in ("sv_sparse", "recipes", "scripts") for path in (ROOT / name).rglob("*.py"))]
)

# Words that say how a value was obtained, or that stand where the field has a word of its own: nonzero, requested,
# expected, audio, evaluate, finalize. Underscores separate words: both "found" and "_found_rows" are refused.
DENIED_WORDS = frozenset(
    re.findall(
        r"\w+",
        "found chosen given made wanted known kept heard judged told asked said one several whole rest alive living "
        "landed land landing hear judge begun began twice gone theirs ours told_apart stated thereby lost held drawn",
    )
)
# Terms of the field in which such a word is right, whole words of an identifier: held-out speakers, one-hot, drop-one.
# asyncio names two callbacks so; a sampler draws.
TERMS = ("held_out", "one_hot", "one_cycle", "one_sided", "num_drawn", "connection_made", "connection_lost")

DENIED_OPENING = re.compile(r"(What|How|Whether|Of|Where|Why|When|Which)\b")

# Home folders, private networks and package indexes of somebody else's machine.
PRIVATE = re.compile(
    r"/(?:home|Users)/[a-z]\w*|https?://(?:10|172|192)\.\d+\.\d+\.\d+|https?://[\w.-]*\.(?:internal|corp|lan)\b"
    r"|--(?:extra-)?index-url[= ]https?://(?!download\.pytorch\.org/)|--trusted-host"
)


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a source defines, with their lines: variables, arguments, attributes, functions and classes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def is_denied(identifier: str) -> bool:
    """Tell whether an identifier is or contains a denied word: snake_case, CamelCase and CONSTANTS alike."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().strip("_")
    for term in TERMS:
        snake = re.sub(rf"(?<![a-z0-9]){term}(?![a-z0-9])", "", snake)
    return snake in DENIED_WORDS or not DENIED_WORDS.isdisjoint(snake.split("_"))


def name_violations(source: str) -> list[str]:
    return [f"{line}: {name}" for line, name in sorted(set(identifiers(ast.parse(source)))) if is_denied(name)]


def docstring_violations(source: str) -> list[str]:
    """Docstrings that begin with a question word, with their lines."""
    violations = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if DENIED_OPENING.match(docstring):
                violations.append(f"{getattr(node, 'lineno', 1)}: {docstring.splitlines()[0]}")
    return violations


def private_places(text: str) -> list[str]:
    return PRIVATE.findall(text)


def violations_of(check, paths: list[Path]) -> list[str]:
    """Violations of a law in some files, each behind its path and a colon."""
    violations = []
    for path in paths:
        violations += [f"{path.relative_to(ROOT)}:{violation}" for violation in check(path.read_text(encoding="utf-8"))]
    return violations


def test_identifiers_are_words_of_the_field():
    violations = violations_of(name_violations, SOURCES)
    assert not violations, "\n".join(violations)


def test_docstrings_begin_with_a_verb_or_a_noun():
    violations = violations_of(docstring_violations, SOURCES)
    assert not violations, "\n".join(violations)


def test_nothing_points_to_a_place_that_users_do_not_have():
    documents = [*ROOT.glob("*.md"), *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.[ms][dh]")]
    settings = [ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "Makefile"]
    violations = violations_of(private_places, [*SOURCES, *documents, *settings])
    assert not violations, "\n".join(violations)


def test_every_dependency_has_its_line_in_the_decisions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", entry)[0] for entries in lists for entry in entries}
    decisions = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    assert len(names) >= 30
    assert not {name for name in names if name not in decisions}


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "for one in rows: pass",
        "a, kept = b",
        "with open(path) as given: pass",
        "def land_all(): pass",
        "def f(wanted, *, x=1): pass",
        "def f(**told): pass",
        "class Judged: pass",
        "class HeardRows: pass",
        "self._asked = 1",
        "_MOST_HEARD = 1",
        "if (said := f()): pass",
        "rows = [x for known in y]",
        "import sv_sparse.io as gone",
        "try: f()\nexcept ValueError as lost: pass",
        "total: int = 0\nheld: int = 1",
        "lambda made: 1",
    ],
)
def test_a_denied_name_is_noticed(source):
    assert len(name_violations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "foundation = island = 1",  # parts of words
        "held_out_speakers = drop_one_hot = 1",  # terms of the field
        "print(found, row.kept)",  # defined elsewhere, and judged there
        "f(known=1)",
    ],
)
def test_other_names_are_allowed(source):
    assert not name_violations(source)


@pytest.mark.parametrize("opening", ["What it is.", "How much.", "Whether so.", "Of a run.", "Where."])
def test_a_docstring_that_begins_with_a_question_is_noticed(opening):
    for source in (f'"""{opening}"""', f'def f():\n    """{opening}"""', f'class A:\n    """{opening}"""'):
        assert len(docstring_violations(source)) == 1


def test_other_docstrings_are_allowed():
    assert not docstring_violations('def f():\n    """Offset of a row."""')
    assert not docstring_violations("def f(): pass")


@pytest.mark.parametrize(
    "text",
    [
        "/home/someone/data",
        "http://10.1.2.3/simple",
        "pip install --index-url https://pypi.example/",
        "https://pypi.corp/",
    ],
)
def test_a_private_place_is_noticed(text):
    assert private_places(f"see {text} there")
    assert not private_places("see http://127.0.0.1:8000, https://example.org/home and ~/data")
