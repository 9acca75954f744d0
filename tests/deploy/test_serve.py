"""Laws of the local server: it answers with the verifier's own numbers, and nothing sent to it does harm."""

import contextlib
import copy
import json
import os
import random
import re
import socket
import sys
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from serving import CALIBRATION, CARD, LIMITS, ask, audio, serving, tiny_verifier, verify

from sv_sparse.deploy.serve import Limits
from sv_sparse.report.style import ROLES


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
    assert found.said == {
        "score": own.score,
        "llr": own.llr,
        "probability": own.probability,
        "prior": own.prior,
        "decisions": found.said["decisions"],
    }


def test_each_share_of_false_alarms_has_its_threshold_and_decision(port):
    pairs = [verify(port, audio(first), audio(0, session=1)).said for first in range(4)]
    for said in pairs:
        thresholds = {each["false_alarms"]: each["threshold"] for each in said["decisions"]}
        assert thresholds == CALIBRATION.thresholds
        assert all(each["accepted"] == (said["llr"] >= each["threshold"]) for each in said["decisions"])
    assert {tuple(each["accepted"] for each in said["decisions"]) for said in pairs} == {
        (False, False),
        (False, True),
        (True, True),
    }


def test_the_model_is_described_with_its_limits(port):
    said = ask(port, "GET", "/model").said
    assert said["card"] == CARD
    assert said["false_alarms"] == [0.01, 0.05]
    assert said["max_seconds"] == LIMITS.seconds
    assert said["max_bytes"] == 200_000


def test_without_calibration_there_is_a_score_and_no_decision(verifier):
    plain = copy.copy(verifier)
    plain.backend = replace(verifier.backend, calibration=None)
    with serving(plain) as port:
        assert ask(port, "GET", "/model").said["false_alarms"] == []
        said = verify(port, audio(0), audio(1)).said
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
    assert len(long) < LIMITS.bytes
    for recordings, index in (((long, audio(1)), 1), ((audio(1), long), 2)):
        found = verify(port, *recordings)
        assert (found.status, found.said["recording"]) == (413, index)
        assert "2 s" in found.said["error"]


@pytest.mark.parametrize(
    "bad", [b"x", b"RIFF" * 50, os.urandom(999), audio(0)[:44], audio(0)[:30], b"fLaC" + bytes(99)]
)
def test_what_is_no_recording_is_refused_with_which_it_is(port, bad):
    for recordings, index in (((bad, audio(1)), 1), ((audio(1), bad), 2)):
        found = verify(port, *recordings)
        assert (found.status, found.said["recording"]) == (400, index)
        assert len(found.said["error"]) > 20
        assert "Traceback" not in found.said["error"]
        assert "object at" not in found.said["error"]


def test_too_short_and_empty_recordings_are_refused_with_which_it_is(port):
    for bad in (b"", audio(0, 0.01)):
        for recordings, index in (((bad, audio(1)), 1), ((audio(1), bad), 2)):
            found = verify(port, *recordings)
            assert (found.status, found.said["recording"]) == (400, index)


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
        assert "error" in found.said or np.isfinite(found.said["score"])
    assert seen <= {200, 400, 413}
    assert verify(port, good, good).said["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_pages_of_other_sites_may_not_ask(port, origin):
    found = verify(port, audio(0), audio(0), Origin=origin.format(port=port))
    assert found.status == 403
    assert "score" not in found.said


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
        assert (found.status, found.said["recording"]) == (404, None)


@pytest.mark.parametrize("length", ["", "-1", "1e3", "٣", "0x10", "9" * 40, "12, 13"])
def test_a_length_that_is_no_number_is_refused(port, length):
    found = ask(port, "POST", "/verify", audio(0), First_Length=length.encode().decode("latin-1"))
    assert found.status == 400
    assert "First-Length" in found.said["error"]


def test_other_methods_are_refused_in_json(port):
    for method, path in (("GET", "/verify"), ("PUT", "/"), ("DELETE", "/model")):
        found = ask(port, method, path)
        assert found.status == 405
        assert found.said["error"]


def test_more_at_once_than_allowed_are_refused_and_the_place_is_free_again(verifier):
    with serving(verifier, replace(LIMITS, at_once=1)) as port:
        with closing(head(port, "First-Length: 5", "Content-Length: 10")):
            found = wait_for(lambda: verify(port, audio(0), audio(0)), 503)
            assert "again" in found.said["error"]
        wait_for(lambda: verify(port, audio(0), audio(0)), 200)


def wait_for(request, status):
    """The first answer with a status; the server needs a moment to see that a connection is there, or gone."""
    for _ in range(600):
        found = request()
        if found.status == status:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_who_sends_nothing_does_not_keep_a_place(verifier):
    with serving(verifier, replace(LIMITS, patience=0.2)) as port:
        status, said = answered(head(port, "First-Length: 5", "Content-Length: 10"))
    assert status == 408
    assert "0.2 seconds" in said["error"]


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


def test_the_page_has_the_colours_of_the_reports(port):
    style = ask(port, "GET", "/style.css").body.decode()
    found = re.findall(r"--(\w+): (#\w{6});", style)
    assert len(found) == 14
    assert {(name, colour) for name, colour in found} <= {(name, each) for name, both in ROLES.items() for each in both}


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


@pytest.mark.parametrize("limits", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (float("nan"), 1, 1), (float("inf"), 1, 1)])
def test_limits_that_allow_nothing_are_refused(limits):
    with pytest.raises(ValueError, match="must be a number above 0"):
        Limits(*limits)
