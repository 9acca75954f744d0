"""A tiny model behind a real server, and requests to it."""

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from helpers.tiny import RATE, tone

from sv_sparse.export.package import write_package
from sv_sparse.models.features import Filterbank
from sv_sparse.models.registry import build_model
from sv_sparse.runtime.server.app import make_app, make_server
from sv_sparse.runtime.server.limits import Limits
from sv_sparse.runtime.verifier import Verifier
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration

MODEL = {
    "name": "ecapa",
    "channels": 16,
    "mfa_channels": 24,
    "attention_channels": 8,
    "se_channels": 8,
    "res2net_scale": 4,
    "embedding_dim": 16,
}
CALIBRATION = Calibration(
    slope=8.0,
    offset=-2.0,
    qualities={},
    p_target=0.1,
    trials=20_100,
    targets=1_000,
    speakers=40,
    thresholds={0.01: 2.5, 0.05: 1.0},
)
CARD = {"training": "tones", "eer": {"a list": 0.25}}
LIMITS = Limits(max_seconds=2.0, max_megabytes=0.2)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> dict[str, Any]:
        return json.loads(self.body)


def tiny_verifier(folder: Path) -> Verifier:
    """An untrained network, whose scores of noisy tones differ, delivered and read again."""
    torch.manual_seed(0)
    network = build_model(MODEL, 80).eval()
    voices = torch.from_numpy(np.stack([tone(speaker, 0, 1.0) for speaker in range(6)]))
    with torch.no_grad():
        mean = network(Filterbank(RATE, 80)(voices)).mean(dim=0).numpy()
    path = folder / "model.safetensors"
    features = {"sample_rate": RATE, "mel_bins": 80}
    write_package(path, network, MODEL, Backend(mean, calibration=CALIBRATION), CARD, features=features)
    return Verifier.from_pretrained(path, threads=1)


def audio(speaker: int, seconds: float = 1.0, rate: int = RATE, kind: str = "WAV", session: int = 0) -> bytes:
    """A recording as a file's bytes."""
    file = io.BytesIO()
    soundfile.write(file, tone(speaker, session, seconds), rate, format=kind)
    return file.getvalue()


@contextmanager
def serving(verifier: Verifier, limits: Limits = LIMITS, allowed_hosts: Sequence[str] = ()) -> Iterator[int]:
    """Serve on a free port, which is yielded."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(make_app(verifier, limits, allowed_hosts=allowed_hosts), limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """One request on a connection of its own; header names have _ for -."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


def verify(port: int, first: bytes, second: bytes, **headers: str) -> Answer:
    """Two recordings to compare."""
    return ask(port, "POST", "/verify", first + second, First_Length=str(len(first)), **headers)
