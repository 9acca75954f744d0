"""The package that docs/extending.md shows, written from its blocks: train.py and the commands take each part of it."""

import json
import runpy
import sys

import pytest
import soundfile
import torch
from helpers.pages import blocks, commands, run_block, snippet, snippets, words_of
from helpers.small import assert_exact
from helpers.tiny import RATE, TINY, tone

from sv_sparse.commands.main import main

# The tiny corpus and a tiny run; networks of one's own have no settings of ECAPA-TDNN.
SHORT = [word for word in TINY if not word.startswith("model.")]

LOSS = "mypkg.loss.SubCenter"
CONTROLLER = "mypkg.control.Integral"
TRANSFORM = "mypkg.aug.Telephone"


def command(word: str) -> list[str]:
    """Return the words of the one command of the page that has this word, without the program."""
    (line,) = [line for line in commands("extending") if word in line]
    words = words_of(line)
    return words[2:] if words[0] == "python" else words[1:]


def results(run) -> dict:
    return json.loads((run / "results.json").read_text())


def forget() -> None:
    """Forget the package, as another process would."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files of the page."""
    for code in snippets("extending"):
        first = code.partition("\n")[0]
        if first.startswith("# mypkg/"):
            path = tmp_path / first.removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (text,) = blocks("extending", "yaml")
    (tmp_path / "my_conf" / "model" / "net.yaml").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def test_every_file_of_the_page_is_in_one_package(folder):
    names = {path.name for path in (folder / "mypkg").iterdir()}
    assert names == {"net.py", "control.py", "loss.py", "aug.py", "pooling.py", "corpus.py"}


def test_the_model_is_trained_evaluated_and_exported(train, tones, folder, capsys):
    done = train(*SHORT, *tones.settings(), *command("run_dir=RUN"))
    assert done.status == 0, done.err
    assert results(folder / "RUN")["sparsity"] == pytest.approx(0.9, abs=1e-4)
    main(command("sv-sparse evaluate"))
    assert "trials: EER" in capsys.readouterr().out
    for file in ("net.onnx", "net.safetensors"):
        main(command(file))
        assert (folder / file).stat().st_size > 0


def test_a_file_of_configuration_makes_the_model_a_choice(train, tones, folder):
    words = command("--config-dir")
    done = train(*words, *SHORT, *tones.settings(), "target_sparsity=0.5", "run_dir=run")
    assert done.status == 0, done.err
    assert "channels: 32" in (folder / "run" / "config.yaml").read_text()


def test_controller_and_loss_are_trained_and_resumed_only_if_named(train, tones, folder):
    words = [*command("control.Integral"), *command("loss.SubCenter"), "target_sparsity=0.8", "run_dir=run"]
    done = train(*TINY, *tones.settings(), *words)
    assert done.status == 0, done.err
    assert results(folder / "run")["sparsity"] == pytest.approx(0.8, abs=1e-3)
    state = torch.load(folder / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["controller"]["controller"] == "Integral"
    assert "total" in state["controller"]
    assert list(state["head"]["weight"].shape)[1] == 3
    forget()
    network = torch.load(folder / "run" / "checkpoints" / "model.pt", weights_only=True)["model"]
    epoch = "resume_from=run/checkpoints/epoch_0001.pt"
    unnamed = train(epoch)
    assert unnamed.status != 0
    assert f"its loss is {LOSS}, a class of your own. Code is imported only if you name it" in unnamed.err
    half_named = train(epoch, f"head._target_={LOSS}")
    assert f"its controller is {CONTROLLER}, a class of your own" in half_named.err
    assert "mypkg.control" not in sys.modules
    done = train(epoch, f"head._target_={LOSS}", f"sparsity.controller._target_={CONTROLLER}")
    assert done.status == 0, done.err
    again = torch.load(folder / "run" / "checkpoints" / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(network[name], again[name]) for name in network)
    # Neither is needed where the network is used.
    forget()
    main(["evaluate", "run"])
    assert "mypkg.loss" not in sys.modules


def test_a_loss_with_many_negatives_and_a_margin_that_is_learned(train, tones, folder):
    code = """
import torch


class Nearest(torch.nn.Module):
    def __init__(self, embedding_dim, num_speakers, negatives=3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(num_speakers, embedding_dim))
        self.margin = torch.nn.Parameter(torch.tensor(0.2))
        self.negatives = negatives

    def forward(self, embedding, speaker):
        scores = embedding.float() @ self.weight.T
        nearest = scores.topk(self.negatives, dim=1).values
        own = scores.gather(1, speaker[:, None]) - self.margin
        return torch.nn.functional.softplus(nearest - own).mean(), scores.detach()
"""
    (folder / "mypkg" / "nearest.py").write_text(code)
    done = train(*TINY, *tones.settings(), "head._target_=mypkg.nearest.Nearest", "run_dir=run", "trainer.epochs=1")
    assert done.status == 0, done.err
    assert "margin" not in (folder / "run" / "metrics.jsonl").read_text()


def test_a_run_starts_from_one_with_its_own_controller_and_loss(train, tones, folder):
    words = [*command("control.Integral"), *command("loss.SubCenter"), "target_sparsity=0.8", "run_dir=run"]
    done = train(*TINY, *tones.settings(), *words)
    assert done.status == 0, done.err
    forget()
    again = [*SHORT, "init_from=run", "trainer.max_steps=2"]
    assert f"sparsity.controller._target_={CONTROLLER}" in train(*again, "run_dir=unnamed").err
    assert "mypkg.control" not in sys.modules
    named = [*again, f"sparsity.controller._target_={CONTROLLER}"]
    done = train(*named, "run_dir=with_margin")
    assert done.status == 0, done.err
    assert "the head has 0 of" in done.out
    done = train(*named, f"head._target_={LOSS}", "run_dir=with_own_loss")
    assert done.status == 0, done.err


def test_classes_of_the_environment_are_trusted(train, tones, folder, monkeypatch):
    done = train(*TINY, *tones.settings(), *command("loss.SubCenter"), "run_dir=run", "trainer.max_steps=2")
    assert done.status == 0, done.err
    monkeypatch.setenv("SV_SPARSE_MODEL_CLASS", f"other.Net,{LOSS}")
    assert train("resume_from=run").status == 0


def test_the_controller_works_in_a_loop_of_ones_own(folder, monkeypatch):
    scope = run_block(snippet("extending", "from mypkg.control"), folder, monkeypatch)
    assert_exact(scope["model"])


def test_the_augmentation_is_trained_with_and_resumed_only_if_named(train, tones, folder):
    words = [*command("aug.Telephone"), "augment.spec_augment_prob=0.5", "target_sparsity=0.5", "run_dir=run"]
    done = train(*TINY, *tones.settings(), *words)
    assert done.status == 0, done.err
    network = torch.load(folder / "run" / "checkpoints" / "model.pt", weights_only=True)["model"]
    forget()
    epoch = "resume_from=run/checkpoints/epoch_0001.pt"
    assert f"its transform is {TRANSFORM}, a class of your own. Code is imported only" in train(epoch).err
    assert "mypkg.aug" not in sys.modules
    done = train(epoch, f"augment.transform._target_={TRANSFORM}")
    assert done.status == 0, done.err
    again = torch.load(folder / "run" / "checkpoints" / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(network[name], again[name]) for name in network)
    done = train(*TINY, *tones.settings(), *words[2:], "run_dir=without")
    other = torch.load(folder / "without" / "checkpoints" / "model.pt", weights_only=True)["model"]
    assert not all(torch.equal(network[name], other[name]) for name in network)
    forget()
    main(["evaluate", "run"])
    assert "mypkg.aug" not in sys.modules


def test_the_pooling_layer_is_trained(train, tones, folder):
    words = [*command("pooling.MaxPooled"), "+model.embedding_dim=16", "target_sparsity=0.5", "run_dir=run"]
    done = train(*SHORT, *tones.settings(), *words, "trainer.epochs=1")
    assert done.status == 0, done.err
    assert results(folder / "run")["sparsity"] == pytest.approx(0.5, abs=1e-4)


def test_the_corpus_is_prepared_trained_on_and_evaluated(train, folder, monkeypatch):
    (folder / "PATH").mkdir()
    for number, speaker in enumerate(("a", "b", "c", "d", "t1", "t2", "t3")):
        for session in range(4):
            soundfile.write(folder / "PATH" / f"{speaker}_{session}.wav", tone(number, session, 0.6), RATE)
    module, *arguments = command("-m mypkg.corpus")
    assert module == "mypkg.corpus"
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(module, run_name="__main__")
    done = train(*TINY, *command("data=prepared"), "data.val_fraction=0.5", "target_sparsity=0.5", "run_dir=run")
    assert done.status == 0, done.err
    (evaluation,) = results(folder / "run")["evaluations"].values()
    assert evaluation["trials"] == 66


@pytest.mark.parametrize(
    ("file", "old", "new", "words", "message"),
    [
        ("loss.py", "self.scale * scores", "self.scle * scores", "loss.SubCenter", "mypkg/loss.py, line 19"),
        ("loss.py", ", scores.detach()", "", "loss.SubCenter", "returns Tensor, expected a tuple of two tensors"),
        ("loss.py", ".amax(dim=2)", "", "loss.SubCenter", "head: SubCenter raises"),
        ("loss.py", "scale=32.0,", "scale,", "loss.SubCenter", "missing 1 required positional argument: 'scale'"),
        ("aug.py", "generator=generator, ", "", "aug.Telephone", "draw from the generator alone"),
        ("aug.py", "torch.round(127", "torch.rnd(127", "aug.Telephone", "mypkg/aug.py, line 16"),
        ("aug.py", "return torch.where", "return 1 / torch.where", "aug.Telephone", "numbers that are not finite"),
        (
            "aug.py",
            "coded, waveforms)",
            "coded, waveforms)[:, 1:]",
            "aug.Telephone",
            "expected floating point [8, 5040]",
        ),
        (
            "aug.py",
            "prob=0.5, mu=255.0",
            "mu, prob=0.5",
            "aug.Telephone",
            "missing 1 required positional argument: 'mu'",
        ),
        ("control.py", "self.total.add_", "self.totl.add_", "control.Integral", "mypkg/control.py, line 18"),
        ("control.py", "(LogLambdaController)", "", "control.Integral", "sparsity.controller"),
    ],
)
def test_an_error_in_ones_own_class_names_setting_and_line(file, old, new, words, message, train, tones, folder):
    path = folder / "mypkg" / file
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))
    done = train(*TINY, *tones.settings(), *command(words), "run_dir=run")
    assert done.status != 0
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (folder / "run" / "manifest.parquet").exists()


def test_a_mistyped_setting_is_refused_with_the_near_one(train, folder):
    done = train(f"head._target_={LOSS}", "head._targt_=x")
    assert "unknown setting 'head._targt_'" in done.err
    done = train(f"head._targe_={LOSS}")
    assert "unknown setting 'head._targe_'" in done.err
