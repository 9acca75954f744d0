"""Make what the evidence needs beside a corpus: a subset of its training list, and its trials in noise and rooms.

python recipes/evidence/corpus.py subset train_list.txt foreign_list.txt --out subset.txt
python recipes/evidence/corpus.py noisy --root wav --trials veri_test.txt --noise STORE --out noisy
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from sv_sparse.data.audio import read_utterance, single_file
from sv_sparse.data.augment_ops import add_reverb
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.noise import RIR, NoiseStore
from sv_sparse.data.rng import generator
from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.data.trials import read_trials
from sv_sparse.io import atomic_write, write_text

# Kind of noise and signal-to-noise ratio in dB; a room has none.
CONDITIONS: tuple[tuple[str, int | None], ...] = (
    ("noise", 20),
    ("noise", 10),
    ("noise", 5),
    ("noise", 0),
    ("speech", 20),
    ("speech", 10),
    ("room", None),
)


def write_subset(train_list: Path, other_list: Path, out: Path) -> None:
    """Write as many lines of a training list as another list has, speaker by speaker in a random order.

    Args:
        train_list: lines of "speaker path".
        other_list: list whose number of lines is the size of the subset.
        out: the list to write.
    """
    lines = train_list.read_text(encoding="utf-8").splitlines()
    size = len(other_list.read_text(encoding="utf-8").splitlines())
    speakers = sorted({line.split(maxsplit=1)[0] for line in lines})
    order = generator(0, "evidence subset", 0, "").permutation(len(speakers))
    rank = {speakers[index]: position for position, index in enumerate(order)}
    lines.sort(key=lambda line: rank[line.split(maxsplit=1)[0]])
    write_text(out, "".join(f"{line}\n" for line in lines[:size]))


def write_noisy_trials(root: Path, trial_lists: Sequence[Path], noise_dir: Path, out: Path) -> None:
    """Write the recordings of trial lists in each of ``CONDITIONS``, as sv-sparse evaluate reads them.

    Both sides of a trial are in the condition, each with a segment of noise or a room of its own, which depends on the
    name of the utterance and the condition alone. A condition whose lists exist is left as it is.

    Args:
        root: folder that the paths of the lists are relative to.
        trial_lists: trial lists, "label enrollment test" in each line.
        noise_dir: folder made by sv-sparse prepare noise.
        out: gets a folder for each condition, with the recordings in wav/ and the lists beside it.
    """
    store = NoiseStore(noise_dir)
    utterances = sorted({name for path in trial_lists for name in read_trials(path).utterances})
    for kind, snr in CONDITIONS:
        condition = kind if snr is None else f"{kind}_{snr}dB"
        lists = {out / condition / f"{path.stem}_{condition}.txt": path.read_text("utf-8") for path in trial_lists}
        if all(path.is_file() and path.read_text("utf-8") == text for path, text in lists.items()):
            continue
        for name in tqdm(utterances, desc=condition, unit="utterance"):
            clean = read_utterance(single_file(root / name), SAMPLE_RATE)
            path = (out / condition / "wav" / name).with_suffix(".flac")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                soundfile.write(file, add_noise(clean, name, kind, snr, store).numpy(), SAMPLE_RATE, format="FLAC")
        # Written last: a list says that its recordings are complete.
        for path, text in lists.items():
            write_text(path, text)


def add_noise(clean: Tensor, name: str, kind: str, snr: int | None, store: NoiseStore) -> Tensor:
    """Return an utterance in noise or a room, scaled down where it would be louder than a file can be.

    Args:
        clean: waveform [S].
        name: name of the utterance, which seeds the random choice.
        kind: noise, speech or room.
        snr: signal-to-noise ratio in dB; None for a room.
        store: noises and rooms.
    """
    rng = generator(0, f"evidence {kind}", 0, name)
    index, position = int(rng.integers(store.num(RIR if snr is None else kind))), float(rng.random())
    if snr is None:
        noisy = add_reverb(clean[None], torch.tensor(store.rir(index))[None])[0]
    else:
        noise = torch.tensor(store.noise(kind, index, position, len(clean)).astype(np.float32))
        noisy = torchaudio.functional.add_noise(clean, noise, torch.tensor(float(snr))) if noise.any() else clean
    return noisy / noisy.abs().max().clamp(min=1.0)


def main() -> None:
    """Read the command line and write the subset or the noisy trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    subset = commands.add_parser("subset", help="as many training utterances as another list has")
    subset.add_argument("train_list", type=Path)
    subset.add_argument("other_list", type=Path)
    noisy = commands.add_parser("noisy", help="trials in noise and rooms")
    noisy.add_argument("--root", type=Path, required=True, help="folder of the recordings")
    noisy.add_argument("--trials", type=Path, nargs="+", required=True, help="trial lists")
    noisy.add_argument("--noise", type=Path, required=True, help="folder made by sv-sparse prepare noise")
    for command in (subset, noisy):
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "subset":
        write_subset(args.train_list, args.other_list, args.out)
    else:
        write_noisy_trials(args.root, args.trials, args.noise, args.out)


if __name__ == "__main__":
    main()
