"""A demo corpus, spoken on the spot by a synthesizer and laid out like VoxCeleb.

Made to check that the software works from end to end within minutes, on a machine without any data. The voices
are synthetic: speakers differ in a handful of parameters of eSpeak NG, the text comes from a few templates, the
channels are drawn from a simple model. Figures measured on it say nothing about human speech and compare with
no published result.

eSpeak NG (GPL-3) is an optional extra loaded at run time; the audio it makes is kept in a local cache only.

Files under the corpus folder::

    wav/id1xxxx/<session>/0000n.flac   16 kHz, mono, 16 bits
    train_list.txt                     `speaker path`, one training utterance a line; path relative to wav/
    veri_test.txt                      `label enrolment test`, one trial a line, VoxCeleb's own format
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from sv_sparse.data.speakers import sexes_table
from sv_sparse.data.synthetic.channel import draw_channel, record
from sv_sparse.data.synthetic.espeak import SAMPLE_RATE as ESPEAK_SAMPLE_RATE
from sv_sparse.data.synthetic.espeak import draw_voice, espeak_data, sentence, speak
from sv_sparse.io import write_json, write_text

SAMPLE_RATE = 16_000  # Hz
_VERSION = 1  # of what the settings mean: raise it whenever the sound or the lists change
_FIRST_TEST_SPEAKER = 5_001  # id15001; training speakers count from id10001
_RECORD_EVERY = 256  # utterances between two writes of corpus.json
_VOICE, _SESSION, _UTTERANCE, _TRIALS = range(4)  # streams of random numbers


@dataclass(frozen=True)
class _Utterance:
    speaker: int
    session: int
    number: int
    path: str  # relative to wav/

    @property
    def speaker_id(self) -> str:
        return self.path.split("/", maxsplit=1)[0]

    @property
    def female(self) -> bool:
        return self.speaker % 2 == 0


def make_demo(
    root: str | Path,
    *,
    train_speakers: int = 120,
    test_speakers: int = 48,
    sessions: int = 4,
    utterances: int = 3,
    trials: int = 5_000,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Make the demo corpus under ``root``, or check and complete the one that is there.

    Every utterance is a function of the settings and its own place in the corpus, so the result does not depend
    on ``workers`` nor on interruptions. An utterance counts as finished when corpus.json holds its checksum;
    missing and damaged files are made again, intact ones are not touched.

    Args:
        root: folder of the corpus; made if absent, ``~`` is the home folder.
        train_speakers: speakers in train_list.txt, half of them female.
        test_speakers: speakers in veri_test.txt, half of them female; none of them is a training speaker.
        sessions: recording sessions per speaker, each with its own channel.
        utterances: utterances per session, about 2.5 to 4.5 seconds each.
        trials: trials in veri_test.txt, half of them targets. The two utterances of a target trial come from
            different sessions, those of a nontarget trial from two speakers of the same sex.
        seed: of all random numbers.
        workers: processes; by default one per core, at most 4.

    Raises:
        ValueError: a setting out of range; ``root`` holds something else; ``espeakng-loader`` is not installed.
        OSError: the folder cannot be written.
    """
    settings = {
        "train_speakers": train_speakers,
        "test_speakers": test_speakers,
        "sessions": sessions,
        "utterances": utterances,
        "trials": trials,
        "seed": seed,
    }
    workers = min(4, os.cpu_count() or 1) if workers is None else workers
    _check(settings, workers)
    root = Path(root).expanduser()
    done = _read_record(root, settings)
    train, test = _plan(settings)
    missing = [u for u in train + test if not _intact(root / "wav" / u.path, done.get(u.path))]
    if missing:
        _build(root, settings, done, missing, workers)
    _write_lists(root, train, test, settings)


def _write_lists(root: Path, train: list[_Utterance], test: list[_Utterance], settings: dict[str, int]) -> None:
    sexes = {u.speaker_id: "f" if u.female else "m" for u in train + test}
    _write_if_changed(root / "train_list.txt", "".join(f"{u.speaker_id} {u.path}\n" for u in train))
    _write_if_changed(root / "veri_test.txt", "".join(_trials(test, settings["trials"], settings["seed"])))
    _write_if_changed(root / "speakers.csv", sexes_table(sexes))


def _check(settings: dict[str, int], workers: int) -> None:
    most = {"train_speakers": _FIRST_TEST_SPEAKER - 1, "test_speakers": 4_999, "utterances": 99_999}
    least = {
        "train_speakers": 2,
        "test_speakers": 4,
        "sessions": 2,
        "utterances": 1,
        "trials": 2,
        "seed": 0,
        "workers": 1,
    }
    for name, value in {**settings, "workers": workers}.items():
        if not least[name] <= value <= most.get(name, value):
            limit = f" and at most {most[name]}" if name in most else ""
            raise ValueError(f"{name} must be at least {least[name]}{limit}, got {value}")
    per_speaker = settings["sessions"] * settings["utterances"]
    targets = settings["test_speakers"] * per_speaker * (per_speaker - settings["utterances"]) // 2
    if settings["trials"] % 2 or settings["trials"] > 2 * targets:
        raise ValueError(
            f"trials must be even and at most {2 * targets}, twice the cross-session target trials that "
            f"test_speakers, sessions and utterances allow, got {settings['trials']}"
        )


def _plan(settings: dict[str, int]) -> tuple[list[_Utterance], list[_Utterance]]:
    """Training and test utterances, in the order of their paths' speakers, sessions and numbers."""

    def utterances_of(first: int, speakers: int) -> list[_Utterance]:
        return [
            _Utterance(speaker, session, number, _path(settings["seed"], speaker, session, number))
            for speaker in range(first, first + speakers)
            for session in range(settings["sessions"])
            for number in range(1, settings["utterances"] + 1)
        ]

    train = utterances_of(1, settings["train_speakers"])
    return train, utterances_of(_FIRST_TEST_SPEAKER, settings["test_speakers"])


def _path(seed: int, speaker: int, session: int, number: int) -> str:
    digest = hashlib.blake2b(f"{seed}/{speaker}/{session}".encode(), digest_size=8).digest()
    video = base64.urlsafe_b64encode(digest).decode().rstrip("=")  # 11 characters, like VoxCeleb's
    return f"id1{speaker:04d}/{video}/{number:05d}.flac"


def _trials(test: list[_Utterance], trials: int, seed: int) -> Iterator[str]:
    """Lines of veri_test.txt: target and nontarget trials in turn, no two with the same utterances."""
    rng = np.random.default_rng((seed, _TRIALS))
    pairs = list(combinations(test, 2))
    targets = [(a, b) for a, b in pairs if a.speaker == b.speaker and a.session != b.session]
    nontargets = [(a, b) for a, b in pairs if a.speaker != b.speaker and a.female == b.female]
    for target, nontarget in zip(
        rng.choice(len(targets), trials // 2, replace=False),
        rng.choice(len(nontargets), trials // 2, replace=False),
        strict=True,
    ):
        for label, pair in ((1, targets[target]), (0, nontargets[nontarget])):
            enrolment, test_utterance = pair if rng.random() < 0.5 else pair[::-1]
            yield f"{label} {enrolment.path} {test_utterance.path}\n"


def _build(root: Path, settings: dict[str, int], done: dict[str, str], missing: list[_Utterance], workers: int) -> None:
    """Make the ``missing`` utterances and write their checksums into corpus.json, also when interrupted."""
    total = len(done.keys() | {u.path for u in missing})
    context = multiprocessing.get_context("spawn")
    with espeak_data() as data, tqdm(total=total, initial=total - len(missing), desc="demo corpus") as bar:
        _write_record(root, settings, done)
        make = partial(_make_utterance, root / "wav", data, settings["seed"])
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        try:
            for count, (path, checksum) in enumerate(pool.map(make, missing, chunksize=8), start=1):
                done[path] = checksum
                bar.update()
                if count % _RECORD_EVERY == 0:
                    _write_record(root, settings, done)
        finally:
            pool.shutdown(cancel_futures=True)
            _write_record(root, settings, done)


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
    """Synthesize one utterance in its session's channel and write it; returns its path and checksum."""
    speaker, session, number = utterance.speaker, utterance.session, utterance.number
    session_rng = np.random.default_rng((seed, _SESSION, speaker, session))
    rng = np.random.default_rng((seed, _UTTERANCE, speaker, session, number))
    voice = draw_voice(np.random.default_rng((seed, _VOICE, speaker)), female=utterance.female)
    voice = voice.drifted(session_rng)
    channel = draw_channel(session_rng, SAMPLE_RATE)
    speech = speak(sentence(rng), voice, seed=int(rng.integers(1, 2**31)), data=data)
    speech = resample_poly(speech / 2**15, SAMPLE_RATE, ESPEAK_SAMPLE_RATE)
    recording = record(speech, channel, rng, SAMPLE_RATE)
    flac = io.BytesIO()
    soundfile.write(flac, recording, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path = wav / utterance.path
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, flac.getvalue())
    return utterance.path, _checksum(flac.getvalue())


def _checksum(content: bytes) -> str:
    return f"{len(content)} bytes, CRC-32 {zlib.crc32(content):08x}"


def _intact(path: Path, checksum: str | None) -> bool:
    return checksum is not None and path.is_file() and _checksum(path.read_bytes()) == checksum


def _read_record(root: Path, settings: dict[str, int]) -> dict[str, str]:
    """Checksums of the finished utterances under ``root``; ValueError where they are not of this corpus."""
    path = root / "corpus.json"
    if not path.exists():
        strangers = [name for name in ("wav", "train_list.txt", "veri_test.txt") if (root / name).exists()]
        if strangers:
            raise ValueError(f"{root} holds {strangers[0]} but no corpus.json: choose another folder")
        return {}
    there = json.loads(path.read_text(encoding="utf-8"))
    for name, asked in {"version": _VERSION, **settings}.items():
        found = there["version"] if name == "version" else there["settings"][name]
        if found != asked:
            raise ValueError(
                f"the demo corpus in {root} has {name}={found}, asked for was {name}={asked}: "
                "remove the folder or choose another"
            )
    return dict(there["files"])


def _write_record(root: Path, settings: dict[str, int], done: dict[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    content = {"version": _VERSION, "settings": settings, "count": len(done), "files": dict(sorted(done.items()))}
    write_json(root / "corpus.json", content)


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def _replace(path: Path, content: bytes) -> None:
    """Write all of ``content`` to ``path`` or nothing.

    Nothing is flushed to disk, 2,000 times would take longer than the synthesis: what a power cut takes away,
    the checksums find missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
