"""State dicts as toolkits save them: their wrappers, and their difference to what a network expects."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Keys under which training loops save a network beside an optimizer and counters.
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# Names in an error.
_MAX_LISTED = 5


def unwrapped(state: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a state dict as it is, and without each wrapper and prefix that could be around it, outermost first.

    A wrapper is a key such as ``state_dict`` with the tensors inside. A prefix is a module's name with which all names
    begin, such as ``module`` of DistributedDataParallel.

    Args:
        state: what a file holds.

    Yields:
        The tensors by name, and in words what was taken off them: an empty text at first.

    >>> inner = {"module.linear.weight": Tensor(2, 3), "module.norm.weight": Tensor(2)}
    >>> for tensors, words in unwrapped({"model": inner, "epoch": 3}):
    ...     print(list(tensors), words)
    ['module.linear.weight', 'module.norm.weight'] model
    ['linear.weight', 'norm.weight'] model, module.
    """
    tensors = dict(state)
    removed = []
    # Tensors beside a wrapper are counters or losses.
    while (wrapper := next((key for key in WRAPPERS if isinstance(tensors.get(key), Mapping)), None)) is not None:
        tensors = dict(tensors[wrapper])
        removed.append(wrapper)
    # Files may have numbers for names.
    tensors = {str(name): value for name, value in tensors.items()}
    yield tensors, ", ".join(removed)
    prefixes = {name.partition(".")[0] for name in tensors}
    while len(prefixes) == 1 and all("." in name for name in tensors):
        (prefix,) = prefixes
        tensors = {name.removeprefix(f"{prefix}."): value for name, value in tensors.items()}
        removed.append(f"{prefix}.")
        yield tensors, ", ".join(removed)
        prefixes = {name.partition(".")[0] for name in tensors}


@dataclass(frozen=True)
class Difference:
    """Difference between the names and shapes of a state dict and those that a network expects."""

    # Expected names that it does not have.
    missing: list[str] = field(default_factory=list)
    # Its names that are not expected.
    left_over: list[str] = field(default_factory=list)
    # Names with the shape that came and the expected one, in words.
    shapes: list[str] = field(default_factory=list)
    # Fraction of all names that are on both sides.
    overlap: float = 0.0

    def __str__(self) -> str:
        """Return the difference in words; an empty text where there is none."""
        parts = []
        for words, names in (("missing", self.missing), ("left over", self.left_over), ("wrong shape", self.shapes)):
            if names:
                parts.append(f"{words} {list_names(names)}")
        return "; ".join(parts)


def compare_names(expected: Iterable[str], got: Iterable[str]) -> Difference:
    """Compare names.

    >>> print(compare_names(["a.weight", "a.bias"], ["a.weight", "b.weight"]))
    missing a.bias; left over b.weight
    """
    expected_names = set(expected)
    got_names = set(got)
    common = expected_names & got_names
    return Difference(
        sorted(expected_names - got_names),
        sorted(got_names - expected_names),
        overlap=len(common) / max(1, len(expected_names | got_names)),
    )


def compare_tensors(expected: Mapping[str, Tensor], got: Mapping[str, Any]) -> Difference:
    """Compare names and shapes of tensors; what is no tensor has the shape of its type's name."""
    by_name = compare_names(expected, got)
    shapes = []
    for name in sorted(expected.keys() & got.keys()):
        shape = list(got[name].shape) if isinstance(got[name], Tensor) else type(got[name]).__name__
        if shape != list(expected[name].shape):
            shapes.append(f"{name} (expected {list(expected[name].shape)}, got {shape})")
    return Difference(by_name.missing, by_name.left_over, shapes, by_name.overlap)


def list_names(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are.

    >>> list_names(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    all_names = [str(name) for name in names]
    if not all_names:
        return "nothing"
    listed = ", ".join(all_names[:_MAX_LISTED])
    num_more = len(all_names) - _MAX_LISTED
    return f"{listed} and {num_more} more" if num_more > 0 else listed
