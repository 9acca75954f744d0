"""Laws of the local server: it answers with the verifier's own numbers, and nothing sent to it does harm."""

import contextlib
import copy
import json
import os
import random
import re
import socket
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest
from helpers.serving import CALIBRATION, CARD, LIMITS, ask, audio, serving, tiny_verifier, verify

from sv_sparse.report.figures.style import PALETTE
from sv_sparse.runtime.decision import CONSENT, NOT_DETECTED, SYNTHETIC_WARNING, EmbeddedRecording
from sv_sparse.runtime.server.app import make_app
from sv_sparse.runtime.server.limits import Limits
from sv_sparse.runtime.verifier import Verifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def verifier(folder):
    return tiny_verifier(folder)


@pytest.fixture(scope="module")
def port(verifier):
    with serving(verifier) as port:
        yield port


def head(port: int, *lines: str) -> socket.socket:
    """A connection on which a request's head has been sent, and its body has not."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    text = "\r\n".join(["POST /verify HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines, "", ""])
    connection.sendall(text.encode())
    return connection


def answered(connection: socket.socket) -> tuple[int, dict]:
    """Status and JSON of what comes on a connection until it is closed."""
    with closing(connection):
        found = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, body = found.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)


@pytest.mark.parametrize("other", [0, 3])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_two_recordings_get_the_verifiers_own_numbers(verifier, port, kind, other):
    first, second = audio(0, 1.2, kind=kind), audio(other, session=1)
    own = verifier.verify(first, second)
    found = verify(port, first, second)
    assert found.status == 200
    assert found.content == {
        "score": own.score,
        "llr": own.llr,
        "probability": own.probability,
        "prior": own.prior,
        "calibration": CALIBRATION.description,
        "warning": None,
        "decisions": found.content["decisions"],
    }


def test_each_share_of_target_far_has_its_threshold_and_decision(port):
    pairs = [verify(port, audio(first), audio(0, session=1)).content for first in range(4)]
    for said in pairs:
        thresholds = {each["target_far"]: each["threshold"] for each in said["decisions"]}
        assert thresholds == CALIBRATION.thresholds
        for each in said["decisions"]:
            assert each["accepted"] == (said["llr"] >= each["threshold"])
            assert each["outcome"] == ("accepted" if each["accepted"] else "not accepted")
    assert {tuple(each["accepted"] for each in said["decisions"]) for said in pairs} == {
        (False, False),
        (False, True),
        (True, True),
    }


def test_the_model_is_described_with_its_limits(port):
    said = ask(port, "GET", "/model").content
    assert said["card"] == CARD
    assert said["target_fars"] == [0.01, 0.05]
    assert said["default_target_far"] == 0.01
    assert said["calibration"] == CALIBRATION.description
    assert said["limits_of_use"] == [NOT_DETECTED, CONSENT]
    assert said["max_seconds"] == LIMITS.max_seconds
    assert said["max_bytes"] == 200_000


def test_every_answer_of_a_model_of_synthetic_voices_says_so(verifier):
    synthetic = copy.copy(verifier)
    synthetic.card = CARD | {"synthetic_voices_only": True}
    with serving(synthetic) as port:
        assert verify(port, audio(0), audio(1)).content["warning"] == SYNTHETIC_WARNING
        assert ask(port, "GET", "/model").content["warning"] == SYNTHETIC_WARNING


def test_without_calibration_there_is_a_score_and_no_decision(verifier):
    plain = copy.copy(verifier)
    plain.backend = replace(verifier.backend, calibration=None)
    with serving(plain) as port:
        assert ask(port, "GET", "/model").content["target_fars"] == []
        said = verify(port, audio(0), audio(1)).content
    assert said["llr"] is said["probability"] is None
    assert said["decisions"] == []
    assert -1 <= said["score"] <= 1


def test_recordings_announced_too_large_are_refused_before_they_are_sent(port):
    for first, whole, index in ((300_000, 300_001, 1), (1_000, 10**12, 2), (10**14, 10**15, 1)):
        status, said = answered(head(port, f"First-Length: {first}", f"Content-Length: {whole}"))
        assert (status, said["recording"]) == (413, index)
        assert "at most 0.2 MB" in said["error"]


def test_a_body_without_end_is_cut_off(port):
    sent, piece = 0, b"10000\r\n" + bytes(65536) + b"\r\n"
    connection = head(port, "First-Length: 1000", "Transfer-Encoding: chunked")
    with closing(connection), contextlib.suppress(ConnectionError):
        while sent < 1 << 28:
            connection.sendall(piece)
            sent += len(piece)
    assert sent < 1 << 25  # what the system itself holds between the two
    assert verify(port, audio(0), audio(0)).status == 200


def test_a_recording_too_long_is_refused_with_the_limit_and_which_it_is(port):
    long = audio(0, 2.5, kind="OGG")
    assert len(long) < LIMITS.max_bytes
    for recordings, index in (((long, audio(1)), 1), ((audio(1), long), 2)):
        found = verify(port, *recordings)
        assert (found.status, found.content["recording"]) == (413, index)
        assert "2 s" in found.content["error"]


@pytest.mark.parametrize(
    "bad", [b"x", b"RIFF" * 50, os.urandom(999), audio(0)[:44], audio(0)[:30], b"fLaC" + bytes(99)]
)
def test_what_is_no_recording_is_refused_with_which_it_is(port, bad):
    for recordings, index in (((bad, audio(1)), 1), ((audio(1), bad), 2)):
        found = verify(port, *recordings)
        assert (found.status, found.content["recording"]) == (400, index)
        assert found.content["outcome"] == "refused input"
        assert len(found.content["error"]) > 20
        assert "Traceback" not in found.content["error"]
        assert "object at" not in found.content["error"]


def test_too_short_and_empty_recordings_are_refused_with_which_it_is(port):
    for bad in (b"", audio(0, 0.01)):
        for recordings, index in (((bad, audio(1)), 1), ((audio(1), bad), 2)):
            found = verify(port, *recordings)
            assert (found.status, found.content["recording"]) == (400, index)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_damaged_recordings_never_harm_the_server(port, kind):
    generator = random.Random(kind)
    whole, good = audio(0, 0.4, kind=kind), audio(1, 0.4)
    seen = set()
    for _ in range(50):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 4, 30])):
            place = generator.randrange(min(len(damaged), generator.choice([64, len(damaged)])))
            damaged[place] = generator.randrange(256)
        cut = generator.choice([len(damaged), generator.randrange(len(damaged))])
        found = verify(port, bytes(damaged[:cut]), good)
        seen.add(found.status)
        assert "error" in found.content or np.isfinite(found.content["score"])
    assert seen <= {200, 400, 413}
    assert verify(port, good, good).content["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:{port}",
        "null",
        "",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "https://127.0.0.1",
        "http://localhost:{port}",
        "ftp://127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:99999",
        "http://[",
    ],
)
def test_pages_of_other_sites_may_not_ask(port, origin):
    found = verify(port, audio(0), audio(0), Origin=origin.format(port=port))
    assert found.status == 403
    assert "score" not in found.content


@pytest.mark.parametrize(
    ("allowed", "host", "origin"),
    [
        ("voice.example", "voice.example", "https://voice.example"),  # a proxy that keeps the Host header
        ("voice.example", "Voice.Example:443", "https://voice.example"),
        ("voice.example", "127.0.0.1:8000", "https://voice.example"),  # one that puts its own in
        ("voice.example", "localhost", "http://voice.example"),
        ("voice.example:8443", "voice.example:8443", "https://voice.example:8443"),
        ("voice.example:8443", "voice.example", "https://voice.example:8443"),
        ("voice.example:8443", "127.0.0.1:8000", "https://voice.example:8443"),
    ],
)
def test_behind_a_proxy_that_adds_https_the_page_may_ask(verifier, allowed, host, origin):
    with serving(verifier, allowed_hosts=["other.example", allowed]) as port:
        assert verify(port, audio(0), audio(0), Host=host, Origin=origin).status == 200


@pytest.mark.parametrize(
    ("allowed", "host", "origin"),
    [
        ("voice.example", "voice.example", "https://evil.example"),
        ("voice.example", "127.0.0.1:8000", "https://evil.example"),
        ("voice.example", "127.0.0.1:8000", "https://voice.example:8443"),  # another program on that machine
        ("voice.example", "127.0.0.1:8000", "https://voice.example.evil.example"),
        ("voice.example", "evil.example", "https://voice.example"),
        ("voice.example", "evil.example", "https://evil.example"),  # a name made to lead here
        ("voice.example:8443", "127.0.0.1:8000", "https://voice.example"),
    ],
)
def test_behind_a_proxy_other_names_are_refused_as_ever(verifier, allowed, host, origin):
    with serving(verifier, allowed_hosts=[allowed]) as port:
        assert verify(port, audio(0), audio(0), Host=host, Origin=origin).status == 403


@pytest.mark.parametrize(
    "name", ["", "https://voice.example", "voice.example/page", "voice.example:x", "a@b", "[", ":1"]
)
def test_an_allowed_host_that_is_no_name_is_refused(verifier, name):
    with pytest.raises(ValueError, match=r"expected NAME or NAME:PORT"):
        make_app(verifier, LIMITS, "127.0.0.1", [name])


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "", "@"])
def test_another_name_for_this_computer_is_refused(port, name):
    for method, path in (("GET", "/"), ("GET", "/model"), ("POST", "/verify")):
        assert ask(port, method, path, Host=name).status == 403


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
def test_the_page_itself_may_ask(port, name):
    host = f"{name}:{port}"
    found = verify(port, audio(0), audio(0), Host=host, Origin=f"http://{host}")
    assert found.status == 200


def test_paths_mean_nothing(port, folder):
    (folder / "secret.wav").write_bytes(audio(0))
    path = str(folder / "secret.wav").encode()
    assert verify(port, path, path).status == 400
    for asked in ("/../serve.py", "/%2e%2e/serve.py", "/page/index.html", "//etc/passwd", f"/{path.decode()}", "/docs"):
        found = ask(port, "GET", asked)
        assert (found.status, found.content["recording"]) == (404, None)


@pytest.mark.parametrize("length", ["", "-1", "1e3", "٣", "0x10", "9" * 40, "12, 13"])
def test_a_length_that_is_no_number_is_refused(port, length):
    found = ask(port, "POST", "/verify", audio(0), First_Length=length.encode().decode("latin-1"))
    assert found.status == 400
    assert "First-Length" in found.content["error"]


def test_other_methods_are_refused_in_json(port):
    for method, path in (("GET", "/verify"), ("PUT", "/"), ("DELETE", "/model")):
        found = ask(port, method, path)
        assert found.status == 405
        assert found.content["error"]


class Held:
    """A verifier whose comparisons end only when they are let go."""

    def __init__(self, verifier) -> None:
        self.verifier = copy.copy(verifier)
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.verifier.embed_recording = self._embed_recording

    def _embed_recording(self, side, **more):
        if not isinstance(side, EmbeddedRecording):
            self.begun.release()
            assert self.go.wait(60)
        return Verifier.embed_recording(self.verifier, side, **more)


def ask_aside(request) -> Future:
    """Send a request from another thread."""
    future: Future = Future()
    threading.Thread(target=lambda: future.set_result(request())).start()
    return future


def test_comparisons_wait_for_their_turn(verifier):
    held = Held(verifier)
    with serving(held.verifier, replace(LIMITS, max_concurrent=1)) as port:
        answers = [ask_aside(lambda: verify(port, audio(0), audio(0))) for _ in range(3)]
        assert held.begun.acquire(timeout=60)
        assert not any(answer.done() for answer in answers)
        held.go.set()
        assert [answer.result(60).status for answer in answers] == [200] * 3


def test_who_has_waited_too_long_is_told_when_to_try_again(verifier):
    held = Held(verifier)
    with serving(held.verifier, replace(LIMITS, max_concurrent=1, queue_seconds=0.1)) as port:
        first = ask_aside(lambda: verify(port, audio(0), audio(0)))
        assert held.begun.acquire(timeout=60)
        late = verify(port, audio(0), audio(0))
        assert late.status == 503
        assert late.headers["retry-after"] == "1"
        assert "no place was free in 0.1 seconds. Try again later." in late.content["error"]
        assert "outcome" not in late.content
        held.go.set()
        assert first.result(60).status == 200
        assert verify(port, audio(0), audio(0)).status == 200


def test_who_gives_up_in_the_queue_is_not_computed(verifier):
    held = Held(verifier)
    with serving(held.verifier, replace(LIMITS, max_concurrent=1)) as port:
        first = ask_aside(lambda: verify(port, audio(0), audio(0)))
        assert held.begun.acquire(timeout=60)
        with closing(head(port, f"First-Length: {len(audio(1))}", f"Content-Length: {2 * len(audio(1))}")) as gone:
            gone.sendall(2 * audio(1))
        for _ in range(3):  # by now the server has seen it come and go
            ask(port, "GET", "/model")
        last = ask_aside(lambda: verify(port, audio(2), audio(2)))
        held.go.set()
        assert (first.result(60).status, last.result(60).status) == (200, 200)
    assert [held.begun.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]


def test_who_sends_slowly_takes_no_place_of_those_that_are_computed(verifier):
    with serving(verifier, replace(LIMITS, max_concurrent=1)) as port, contextlib.ExitStack() as slow:
        for _ in range(4):
            slow.enter_context(closing(head(port, "First-Length: 5", "Content-Length: 10")))
        assert verify(port, audio(0), audio(0)).status == 200


def test_a_body_that_does_not_come_is_not_waited_for(verifier):
    with serving(verifier, replace(LIMITS, upload_seconds=0.2, max_uploads=1)) as port:
        status, said = answered(head(port, "First-Length: 5", "Content-Length: 10"))
        assert verify(port, audio(0), audio(0)).status == 200
    assert status == 408
    assert "0.2 seconds" in said["error"]


def ended(connection: socket.socket) -> bytes:
    """What comes on a connection until it is closed; the test fails if it never is."""
    with closing(connection), contextlib.suppress(ConnectionError):
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: ",
        b"GET /style.css HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /style.css HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1",
    ],
    ids=["nothing", "a part of a head", "a request, then nothing", "a part of a body that nobody wants"],
)
def test_a_connection_without_a_request_under_way_is_closed(verifier, sent):
    with serving(verifier, replace(LIMITS, idle_seconds=0.2)) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.sendall(sent)
        found = ended(connection)
    assert found.startswith(b"HTTP/1.1 200 OK" if b"style" in sent else b"")
    assert (b"200 OK" in found) == (b"style" in sent)


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"])
def test_bytes_that_trickle_in_do_not_keep_a_connection_open(verifier, head):
    with serving(verifier, replace(LIMITS, idle_seconds=0.3)) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.sendall(head or b"GET / HTTP/1.1\r\nX-Long: ")
        sent = 0
        with closing(connection), contextlib.suppress(ConnectionError):
            while sent < 6000:
                connection.sendall(b"x")
                sent += 1
                time.sleep(0.01)
    assert sent < 6000


def test_who_does_not_read_the_answers_is_cut_off(verifier):
    request = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(verifier, replace(LIMITS, idle_seconds=0.3)) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", port))
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                connection.sendall(request)


def test_idle_connections_keep_nobody_out(verifier):
    with serving(verifier, replace(LIMITS, max_connections=4, idle_seconds=60)) as port:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(4)]
        assert [verify(port, audio(0), audio(0)).status for _ in range(3)] == [200] * 3
        assert ended(idle[0]) == b""  # the idlest one made room
        for connection in idle[1:]:
            connection.close()


def test_a_request_under_way_is_never_closed_for_another(verifier):
    held = Held(verifier)
    with serving(held.verifier, replace(LIMITS, max_connections=1, idle_seconds=0.1)) as port:
        first = ask_aside(lambda: verify(port, audio(0), audio(0)))
        assert held.begun.acquire(timeout=60)
        assert ended(socket.create_connection(("127.0.0.1", port), timeout=60)) == b""  # idle for longer than it may be
        assert not first.done()
        held.go.set()
        assert first.result(60).status == 200


def test_every_answer_forbids_what_the_page_does_not_need(port):
    for found in (ask(port, "GET", "/"), ask(port, "GET", "/nothing"), verify(port, b"x", b"y")):
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert found.headers["cache-control"] == "no-store"
        assert "server" not in found.headers


def test_the_page_names_nothing_outside_and_has_no_code_in_it(port):
    page = ask(port, "GET", "/").body.decode()
    names = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sorted(names) == ["data:,", "page.js", "style.css"]
    assert not re.search(r"<script[^>]*>[^<]|\son\w+=|style=", page)
    for name in [*names[1:], "recorder.js"]:
        text = ask(port, "GET", f"/{name}")
        assert text.status == 200
        assert "://" not in text.body.decode()


def test_the_page_has_the_colors_of_the_reports(port):
    style = ask(port, "GET", "/style.css").body.decode()
    found = re.findall(r"--(\w+): (#\w{6});", style)
    assert len(found) == 14
    assert {(name, color) for name, color in found} <= {(name, each) for name, both in PALETTE.items() for each in both}


def test_a_comparison_writes_no_file_and_says_nothing(port, capfd):
    opened: list[object] = []
    watching = [True]

    def watch(event: str, arguments: tuple) -> None:
        if watching and event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            opened.append(arguments)

    sys.addaudithook(watch)
    verify(port, audio(0), audio(1))
    verify(port, b"bad", audio(1))
    watching.clear()
    assert opened == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_limits_that_allow_nothing_are_refused(name):
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} must be a number above 0"):
            replace(LIMITS, **{name: value})
