import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MISSING_LIBRARY = "raise OSError('libc10_cuda.so: cannot open shared object file')"
FAKE_PACKAGE = "from . import _extension\nimport torchaudio.helper\nAVAILABLE = _extension._IS_TORCHAUDIO_EXT_AVAILABLE"


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees only the given folders, the repository and the installation."""
    prologue = f"import sys; sys.path[:0] = {[str(folder) for folder in (*path, REPOSITORY)]}\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", prologue + code], capture_output=True, text=True, check=False
    )


def fake_torchaudio(folder: Path, extension: str, helper: str = "") -> Path:
    """A package named torchaudio that is laid out as the real one and whose extension is the given code."""
    (folder / "torchaudio" / "_extension").mkdir(parents=True)
    (folder / "torchaudio" / "__init__.py").write_text(FAKE_PACKAGE)
    (folder / "torchaudio" / "helper.py").write_text(helper)
    (folder / "torchaudio" / "_extension" / "__init__.py").write_text(
        "from . import utils\n_IS_TORCHAUDIO_EXT_AVAILABLE = utils.load()"
    )
    (folder / "torchaudio" / "_extension" / "utils.py").write_text(f"def load():\n    {extension}")
    return folder


def test_where_the_plain_import_works_nothing_stands_in(tmp_path: Path) -> None:
    fake_torchaudio(tmp_path, "return True")
    result = python(
        "from sv_sparse.data.torchaudio_guard import torchaudio\n"
        "assert torchaudio.AVAILABLE is True\n"
        "assert sys.modules['torchaudio._extension'].__file__.endswith('__init__.py')\n"
        "assert 'torchaudio._extension.utils' in sys.modules",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "problem",
    [MISSING_LIBRARY, "raise RuntimeError('PyTorch and TorchAudio were compiled with different CUDA versions')"],
)
def test_where_the_extension_cannot_be_loaded_a_stand_in_says_that_there_is_none(tmp_path: Path, problem: str) -> None:
    fake_torchaudio(tmp_path, problem)
    result = python(
        "from sv_sparse.data.torchaudio_guard import torchaudio\n"
        "assert torchaudio.AVAILABLE is False\n"
        "extension = sys.modules['torchaudio._extension']\n"
        "assert extension._IS_ALIGN_AVAILABLE is False\n"
        "assert extension._check_cuda_version() is None\n"
        "assert extension.fail_if_no_align(len) is len\n"
        "assert 'torchaudio._extension.utils' not in sys.modules, 'left over from the first try'\n"
        "import torchaudio as again\n"
        "assert again is torchaudio",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_a_failure_outside_the_extension_is_not_hidden(tmp_path: Path) -> None:
    fake_torchaudio(tmp_path, "return True", helper="raise OSError('disk on fire')")
    result = python("import sv_sparse.data.torchaudio_guard", tmp_path)
    assert result.returncode != 0
    assert "disk on fire" in result.stderr.splitlines()[-1]


def test_without_torchaudio_the_error_is_the_plain_one() -> None:
    result = python(
        "import importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torchaudio':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import sv_sparse.data.torchaudio_guard"
    )
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'torchaudio'"


def test_the_installed_torchaudio_transforms_and_resamples_and_speechbrain_imports() -> None:
    result = python(
        "import torch\n"
        "from sv_sparse.data.torchaudio_guard import torchaudio\n"
        "waveform = torch.randn(2, 1800)\n"
        "assert torchaudio.transforms.MelSpectrogram(16000, n_mels=40)(waveform).shape == (2, 40, 10)\n"
        "assert torchaudio.transforms.Resample(9, 10)(waveform).shape == (2, 2000)\n"
        "assert torchaudio.compliance.kaldi.fbank(waveform[:1]).shape == (9, 23)\n"
        "import speechbrain.lobes.models.ECAPA_TDNN"
    )
    assert result.returncode == 0, result.stderr


def test_the_stand_in_is_there_exactly_if_the_plain_import_fails() -> None:
    plain = python("import torchaudio")
    guarded = python(
        "import sv_sparse.data.torchaudio_guard\n"
        "sys.exit(3 if not hasattr(sys.modules['torchaudio._extension'], '__file__') else 0)"
    )
    assert guarded.returncode == (0 if plain.returncode == 0 else 3), plain.stderr + guarded.stderr
