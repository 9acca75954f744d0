"""Optional packages: what to type where they are missing."""

from pathlib import Path


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project, which no registry holds.

    Args:
        extra: its name in pyproject.toml, such as ``serve``.

    >>> install_command("serve").startswith("pip install ")
    True
    """
    source = Path(__file__).parent.parent
    if (source / "pyproject.toml").is_file():  # not in a wheel, which lies among other packages
        return f'pip install -e "{source}[{extra}]"'
    return f'pip install ".[{extra}]" in a copy of this project\'s source'
