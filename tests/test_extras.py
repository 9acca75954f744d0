from pathlib import Path

from helpers.tiny import ROOT

from sv_sparse import io as extras


def test_a_checkout_is_installed_from_where_it_is():
    assert extras.install_command("serve") == f'pip install -e "{ROOT}[serve]"'


def test_an_installed_package_names_no_folder_that_it_does_not_have(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "sv_sparse" / "extras.py"))
    command = extras.install_command("serve")
    assert command == 'pip install ".[serve]" in a copy of this project\'s source'
    assert str(tmp_path) not in command


def test_no_message_advises_to_install_from_a_registry():
    advising = [path for path in (ROOT / "sv_sparse").rglob("*.py") if "install 'sv-sparse" in _plain(path)]
    assert advising == []


def _plain(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace('"', "'")
