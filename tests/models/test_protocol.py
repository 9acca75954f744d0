"""Laws of networks of the user's own: what they must do is checked before training, and nothing else is asked."""

import logging

import pytest
import torch
from helpers.tiny import TINY
from torch import Tensor, nn

from sv_sparse.config.overrides import parse_command_line
from sv_sparse.config.schema import load_config
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.io import write_json
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.models.protocol import check_head, check_model
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import SEResNet
from sv_sparse.report import build_results, write_results
from sv_sparse.training.environment import environment
from sv_sparse.training.finalize import evaluate, finalize, fit_backend
from sv_sparse.training.setup import build_setup, check_buildable
from sv_sparse.training.trainer import Trainer

CPU = torch.device("cpu")


class Own(nn.Module):
    """A network with no attribute but what its forward needs."""

    def __init__(self, mel_bins: int, width: int = 8) -> None:
        super().__init__()
        self.layer = nn.Conv1d(mel_bins, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.1)
        self.last = nn.Linear(width, width)

    def forward(self, filterbank: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.layer(filterbank)).relu()).mean(2))


class WithUnknownType(Own):
    """A parameter that no type says anything of."""

    def __init__(self, mel_bins: int) -> None:
        super().__init__(mel_bins)
        self.gain = nn.Parameter(torch.ones(8, 8))

    def forward(self, filterbank: Tensor) -> Tensor:
        return super().forward(filterbank) @ self.gain


class Wrong(Own):
    """Breaks the contract in many ways at once."""

    embedding_dim = 5

    def forward(self, filterbank: Tensor) -> Tensor:
        if not self.training:
            return super().forward(filterbank)[0]
        return super().forward(filterbank).detach()


class OfFixedLength(Own):
    """Its embeddings are as long as the speech."""

    def forward(self, filterbank: Tensor) -> Tensor:
        return self.layer(filterbank).mean(1)


class NotFinite(Own):
    def forward(self, filterbank: Tensor) -> Tensor:
        return super().forward(filterbank) / 0


class WithoutBins(nn.Module):
    """Does not take mel_bins."""


def config_of(tones, *words, network: str):
    overrides = ["model=custom", f"model._target_=test_protocol.{network}", "run_name=test", *tones.settings(), *words]
    tiny = [word for word in TINY if not word.startswith("model.")]
    return load_config(parse_command_line([]).compose([*tiny, *overrides]))


def check(config):
    check_buildable(config, [config.model["_target_"]])


def test_a_network_without_attributes_is_trained_finalized_evaluated_and_reported(tones, tmp_path):
    config = config_of(tones, "trainer.epochs=1", "target_sparsity=0.5", network="Own")
    trusted = [config.model["_target_"]]
    (tmp_path / "checkpoints").mkdir()
    check_buildable(config, trusted)
    setup = build_setup(config, tmp_path, load_corpus(config, tmp_path), trusted)
    trainer = Trainer(setup, 0.0)
    trainer.train()
    metrics = finalize(setup, trainer.last_validation)
    evaluations = evaluate(setup, fit_backend(setup))
    write_json(tmp_path / "environment.json", environment())
    results = build_results(setup, metrics, evaluations, [], trainer.state.elapsed_seconds())
    assert "50.0" in write_results(tmp_path, results)
    trainer.metrics.close()
    assert results["training"]["model"] == "Own"
    assert set(results["layers"]) == {"layer.weight", "last.weight"}


def test_everything_that_is_wrong_is_told_at_once_with_the_requirements():
    with pytest.raises(ValueError, match="cannot be trained") as raised:
        check_model(Wrong(80), CPU)
    message = str(raised.value)
    for problem in (
        r"- backward of [2, 80, 50] in training raises RuntimeError: element 0 of tensors does not require grad",
        "- forward of [2, 80, 50] in evaluation mode returns float32 [8], expected floating point [2, E]",
        "- forward of [2, 80, 73] in evaluation mode returns float32 [8]",
        "- its embedding_dim is 5, its embeddings have 8 numbers",
        "\n6. has parameters that are trained",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            OfFixedLength(80),
            r"the size of its embeddings differs: 50 for \[2, 80, 50\] in training, .*73 for \[2, 80, 73",
        ),
        (NotFinite(80), r"embeddings of \[2, 80, 50\] in training are not finite"),
        (Own(40), r"forward of \[2, 80, 50\] in training raises RuntimeError"),
        (nn.Identity(), "it has no parameter that is trained"),
        (len, "expected a torch.nn.Module, got builtin_function_or_method"),
    ],
)
def test_a_broken_requirement_is_named(network, message):
    with pytest.raises(ValueError, match=message):
        check_model(network, CPU)


def test_a_class_that_takes_no_mel_bins_is_told_the_requirements(tones):
    with pytest.raises(ValueError, match=r"model: TypeError: .*mel_bins.*\nA network that train.py trains\n1. is a"):
        check(config_of(tones, network="WithoutBins"))


@pytest.mark.parametrize(
    "network", [Own(80), ECAPA(channels=16, mfa_channels=24), ResNet34(16), SEResNet((16, 16, 32, 32))]
)
def test_the_check_changes_neither_network_nor_random_numbers(network):
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    check_model(network, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(param.grad is None for param in network.parameters())
    assert not any(module.training for module in network.modules())


def test_parameters_that_no_gradient_reaches_are_named(caplog):
    network = Own(80)
    network.unused = nn.Linear(3, 4)
    assert check_model(network, CPU) == 8
    assert "no gradient reaches 2 parameters of Own: unused.weight, unused.bias" in caplog.text
    caplog.clear()
    network.unused.requires_grad_(False)
    check_model(network, CPU)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_settings_say_which_modules_stay_dense_and_which_may_become_zero(tones, tmp_path):
    with pytest.raises(ValueError, match=r"sparsity.dense=\[\], sparsity.sparse=\[\]: cannot tell .*\n.*gain"):
        check(config_of(tones, network="WithUnknownType"))
    with pytest.raises(ValueError, match=r"sparsity.dense=\['gian'\], .* dense names 'gian'"):
        check(config_of(tones, "sparsity.dense=[gian]", network="WithUnknownType"))
    config = config_of(tones, "sparsity.sparse=[gain]", "sparsity.dense=[last]", network="WithUnknownType")
    setup = build_setup(config, tmp_path, load_corpus(config, tmp_path), [config.model["_target_"]])
    assert set(setup.sparse_params) == {"gain", "layer.weight"}
    regulated = {id(param) for param in setup.controller.params}
    assert regulated == {id(param) for param in setup.sparse_params.values()}


def test_an_error_names_the_line_of_the_network_also_in_a_folder_called_torch(tmp_path):
    path = tmp_path / "torch" / "net.py"
    path.parent.mkdir()
    path.write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def forward(self, x):\n        return x.nothing\n"
    )
    scope: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(ValueError, match=r"torch/net\.py, line 6"):
        check_model(scope["Net"](80, 4), torch.device("cpu"))


class OwnLoss(nn.Module):
    """A loss of the user's own, which returns what it is told to."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, embedding: Tensor, speaker: Tensor):
        return self.output(embedding, torch.zeros(4, 3))


def test_the_losses_of_this_repository_pass_the_check_and_stay_as_they_were():
    head = AAMSoftmax(8, 3)
    weight, state = head.weight.detach().clone(), torch.get_rng_state()
    check_head(head, 8, 3, CPU)
    assert torch.equal(head.weight, weight)
    assert head.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda embedding, scores: embedding.sum(), "returns Tensor, expected a tuple of two tensors, loss and scores"),
        (lambda embedding, scores: (embedding.sum(1), scores), r"its loss is \[.*\], expected a finite number, 0-dim"),
        (lambda embedding, scores: (embedding.sum() / 0, scores), "its loss is (inf|-inf), expected a finite number"),
        (lambda embedding, scores: (embedding.sum(), scores[:, :2]), r"its scores are \[4, 2\], expected .* \[4, 3\]"),
        (lambda embedding, scores: (embedding.detach().sum(), scores), r"raises RuntimeError: .*grad"),
        (lambda embedding, scores: 1 / 0, r"raises ZeroDivisionError: .*test_protocol.py, line \d+\)"),
    ],
)
def test_a_loss_that_cannot_be_trained_with_is_refused(output, message):
    with pytest.raises(ValueError, match=f"head: OwnLoss .*{message}"):
        check_head(OwnLoss(output), 8, 3, CPU)


def test_a_loss_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="head: expected a torch.nn.Module, got function"):
        check_head(lambda embedding, speaker: None, 8, 3, CPU)
