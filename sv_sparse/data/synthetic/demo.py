"""Demo corpus: synthetic speech in VoxCeleb's layout.

It checks within minutes that the software works from end to end, on a machine without any data. Speakers
differ in a few parameters of eSpeak NG, the text comes from templates, and the channels from a simple model.
Metrics on it say nothing about human speech and compare with no published result.

Files of the corpus::

    wav/id1xxxx/<session>/0000n.flac   16 kHz, mono, 16 bits
    train_list.txt                     `speaker path`, one training utterance a line; path relative to wav/
    veri_test.txt                      `label enrollment test`, one trial a line, VoxCeleb's own format
    speakers.csv                       `speaker,sex`
    corpus.json                        settings and a checksum of each finished utterance
"""

import base64
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.speakers import format_sexes
from sv_sparse.data.synthetic.channel import apply_channel, sample_channel
from sv_sparse.data.synthetic.espeak import SAMPLE_RATE as ESPEAK_SAMPLE_RATE
from sv_sparse.data.synthetic.espeak import draw_voice, espeak_data, sentence, speak
from sv_sparse.io import write_json, write_text

# Raised whenever the sound or the lists of the same settings change.
_VERSION = 1
# id15001; training speakers count from id10001.
_FIRST_TEST_SPEAKER = 5_001
# Utterances between two writes of corpus.json.
_SAVE_INTERVAL = 256
# Each draws from a generator of its own.
_VOICE, _SESSION, _UTTERANCE, _TRIALS = range(4)
# Smallest and largest value of each setting.
_BOUNDS = {
    "train_speakers": (2, _FIRST_TEST_SPEAKER - 1),
    "test_speakers": (4, 4_999),
    "sessions": (2, None),
    "utterances": (1, 99_999),
    "trials": (2, None),
    "seed": (0, None),
    "num_workers": (1, None),
}


@dataclass(frozen=True)
class _Utterance:
    speaker: int
    session: int
    number: int
    # Relative to wav/.
    path: str

    @property
    def speaker_id(self) -> str:
        return self.path.split("/", maxsplit=1)[0]

    @property
    def female(self) -> bool:
        return self.speaker % 2 == 0


def make_demo_corpus(
    root: str | Path,
    *,
    train_speakers: int = 120,
    test_speakers: int = 48,
    sessions: int = 4,
    utterances: int = 3,
    trials: int = 5_000,
    seed: int = 0,
    num_workers: int | None = None,
) -> None:
    """Make the demo corpus, or check and complete the one that is there; intact files are not touched.

    Every utterance is a function of the settings and its own place in the corpus, so the result depends neither
    on the number of workers nor on interruptions.

    Args:
        root: folder of the corpus; made if absent, ``~`` is the home folder.
        train_speakers: speakers in train_list.txt, half of them female; at least 2.
        test_speakers: other speakers, in veri_test.txt, half of them female; at least 4.
        sessions: recording sessions per speaker, each with its own channel; at least 2.
        utterances: utterances per session, about 2.5 to 4.5 seconds each; at least 1.
        trials: trials in veri_test.txt, an even number, half of them targets. The two utterances of a target
            trial come from different sessions, those of a nontarget trial from two speakers of the same sex.
        seed: seed of all random numbers.
        num_workers: processes; None for one per core, at most 4.

    Raises:
        ValueError: a setting is out of range, ``root`` holds something else, or ``espeakng-loader`` is not
            installed.
        OSError: the folder cannot be written.
    """
    if num_workers is None:
        num_workers = min(4, os.cpu_count() or 1)
    settings = {"train_speakers": train_speakers, "test_speakers": test_speakers, "sessions": sessions}
    settings |= {"utterances": utterances, "trials": trials, "seed": seed}
    for name, value in {**settings, "num_workers": num_workers}.items():
        lower, upper = _BOUNDS[name]
        if value < lower or (upper is not None and value > upper):
            limit = "" if upper is None else f" and at most {upper}"
            raise ValueError(f"{name} must be at least {lower}{limit}, got {value}")
    per_speaker = sessions * utterances
    max_targets = test_speakers * per_speaker * (per_speaker - utterances) // 2
    if trials % 2 or trials > 2 * max_targets:
        raise ValueError(
            f"trials must be even and at most {2 * max_targets}, twice the cross-session target trials that "
            f"test_speakers, sessions and utterances allow, got {trials}"
        )
    root = Path(root).expanduser()
    checksums = _read_record(root, settings)
    train = _list_utterances(1, train_speakers, settings)
    test = _list_utterances(_FIRST_TEST_SPEAKER, test_speakers, settings)
    missing = []
    for utterance in train + test:
        path = root / "wav" / utterance.path
        checksum = checksums.get(utterance.path)
        if checksum is None or not path.is_file() or _checksum(path.read_bytes()) != checksum:
            missing.append(utterance)
    if missing:
        _synthesize(root, settings, checksums, missing, num_workers)
    train_lines = [f"{utterance.speaker_id} {utterance.path}\n" for utterance in train]
    sexes = {utterance.speaker_id: "f" if utterance.female else "m" for utterance in train + test}
    _write_if_changed(root / "train_list.txt", "".join(train_lines))
    _write_if_changed(root / "veri_test.txt", "".join(_trial_lines(test, trials, seed)))
    _write_if_changed(root / "speakers.csv", format_sexes(sexes))


def _list_utterances(first_speaker: int, num_speakers: int, settings: dict[str, int]) -> list[_Utterance]:
    utterances = []
    for speaker in range(first_speaker, first_speaker + num_speakers):
        for session in range(settings["sessions"]):
            digest = hashlib.blake2b(f"{settings['seed']}/{speaker}/{session}".encode(), digest_size=8).digest()
            # 11 characters, like VoxCeleb's names of videos.
            video = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            for number in range(1, settings["utterances"] + 1):
                path = f"id1{speaker:04d}/{video}/{number:05d}.flac"
                utterances.append(_Utterance(speaker, session, number, path))
    return utterances


def _trial_lines(test: list[_Utterance], trials: int, seed: int) -> list[str]:
    """Return the lines of veri_test.txt: targets and nontargets in turn, each pair of utterances once."""
    rng = np.random.default_rng((seed, _TRIALS))
    targets = []
    nontargets = []
    for first, second in combinations(test, 2):
        if first.speaker != second.speaker and first.female == second.female:
            nontargets.append((first, second))
        elif first.speaker == second.speaker and first.session != second.session:
            targets.append((first, second))
    target_rows = rng.choice(len(targets), trials // 2, replace=False)
    nontarget_rows = rng.choice(len(nontargets), trials // 2, replace=False)
    lines = []
    for target, nontarget in zip(target_rows, nontarget_rows, strict=True):
        for label, pair in ((1, targets[target]), (0, nontargets[nontarget])):
            enrollment, test_utterance = pair if rng.random() < 0.5 else pair[::-1]
            lines.append(f"{label} {enrollment.path} {test_utterance.path}\n")
    return lines


def _synthesize(
    root: Path, settings: dict[str, int], checksums: dict[str, str], missing: list[_Utterance], num_workers: int
) -> None:
    """Make missing utterances, and write their checksums into corpus.json, also when interrupted."""
    total = len(checksums.keys() | {utterance.path for utterance in missing})
    context = multiprocessing.get_context("spawn")
    with espeak_data() as data, tqdm(total=total, initial=total - len(missing), desc="demo corpus") as progress:
        _write_record(root, settings, checksums)
        make = partial(_make_utterance, root / "wav", data, settings["seed"])
        pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
        try:
            for count, (path, checksum) in enumerate(pool.map(make, missing, chunksize=8), start=1):
                checksums[path] = checksum
                progress.update()
                if count % _SAVE_INTERVAL == 0:
                    _write_record(root, settings, checksums)
        finally:
            pool.shutdown(cancel_futures=True)
            _write_record(root, settings, checksums)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _make_utterance(wav: Path, data: Path, seed: int, utterance: _Utterance) -> tuple[str, str]:
    """Synthesize an utterance in its session's channel and write it; return its path and checksum."""
    speaker, session, number = utterance.speaker, utterance.session, utterance.number
    session_rng = np.random.default_rng((seed, _SESSION, speaker, session))
    rng = np.random.default_rng((seed, _UTTERANCE, speaker, session, number))
    voice = draw_voice(np.random.default_rng((seed, _VOICE, speaker)), female=utterance.female)
    voice = voice.with_session_drift(session_rng)
    channel = sample_channel(session_rng)
    speech = speak(sentence(rng), voice, seed=int(rng.integers(1, 2**31)), data=data)
    waveform = resample_poly(speech / 2**15, SAMPLE_RATE, ESPEAK_SAMPLE_RATE)
    waveform = apply_channel(waveform, channel, rng)
    flac = io.BytesIO()
    soundfile.write(flac, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path = wav / utterance.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced atomically, but not flushed to disk, which 2,000 times would take longer than the synthesis. The
    # checksums show what a power cut takes away.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(flac.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return utterance.path, _checksum(flac.getvalue())


def _checksum(content: bytes) -> str:
    return f"{len(content)} bytes, CRC-32 {zlib.crc32(content):08x}"


def _read_record(root: Path, settings: dict[str, int]) -> dict[str, str]:
    """Return the checksums of the finished utterances under ``root``, unless it holds something else."""
    path = root / "corpus.json"
    if not path.exists():
        for name in ("wav", "train_list.txt", "veri_test.txt"):
            if (root / name).exists():
                raise ValueError(f"{root} holds {name} but no corpus.json: choose another folder")
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    existing = {"version": record["version"], **record["settings"]}
    for name, value in {"version": _VERSION, **settings}.items():
        if existing[name] != value:
            raise ValueError(
                f"the demo corpus in {root} has {name}={existing[name]}, asked for was {name}={value}: "
                "remove the folder or choose another"
            )
    return dict(record["files"])


def _write_record(root: Path, settings: dict[str, int], checksums: dict[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    files = dict(sorted(checksums.items()))
    write_json(root / "corpus.json", {"version": _VERSION, "settings": settings, "count": len(files), "files": files})


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)
