"""What is trained to answer each question: cells, each one run of train.py with settings of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Of its folder.
        settings: For train.py; ``{lambda}`` and ``{folder}`` stand for what the cell ``after`` ended with.
        seed: Of the run.
        after: The cell that has to be finished first; nothing for most.
    """

    name: str
    settings: tuple[str, ...]
    seed: int = 0
    after: str = ""

    @property
    def group(self) -> str:
        """Its name without the seed."""
        return self.name.rpartition("_s")[0]


@dataclass(frozen=True)
class Scale:
    """How much is trained.

    Attributes:
        epochs: Of the runs whose error rates are compared.
        short: Epochs of runs that ask where lambda and the sparsity go, and of fine-tuning.
        batch: Crops of a step.
        seeds: Of the cells that a claim stands on; the others have the first.
        targets: Sparsities.
        claims: Those of them that a claim stands on.
        few: Those of them for the ways that are only looked at.
        lambdas: Starts of lambda, and fixed lambdas.
        controlled: Networks that are asked whether they reach their target: model, optimizers, targets, epochs.
        channels: Shares of channels that are cut out.
        narrow: Dense networks of fewer channels beside those.
        rates: Learning rates beside the default, by way, with the setting that they are given to.
    """

    epochs: int
    short: int
    batch: int
    seeds: tuple[int, ...]
    targets: tuple[str, ...]
    claims: tuple[str, ...]
    few: tuple[str, ...]
    lambdas: tuple[str, ...]
    controlled: tuple[tuple[str, tuple[str, ...], tuple[str, ...], int], ...]
    channels: tuple[str, ...]
    narrow: tuple[int, ...]
    rates: Mapping[str, tuple[str, tuple[str, ...]]]


FULL = Scale(
    epochs=10,
    short=5,
    batch=64,
    seeds=(0, 1, 2),
    targets=("0.75", "0.9", "0.95", "0.99"),
    claims=("0.9", "0.95", "0.99"),
    few=("0.9", "0.99"),
    lambdas=("1e-4", "1e-3", "1e-2", "1e-1", "1e0", "1e1", "1e2"),
    controlled=(
        ("ecapa_512", ("adabreg", "linbreg"), ("0.75", "0.9", "0.95", "0.99"), 4),
        ("ecapa", ("adabreg",), ("0.9", "0.99"), 2),
        ("resnet34", ("adabreg",), ("0.9", "0.99"), 2),
    ),
    channels=("0.5", "0.75"),
    narrow=(128, 64),
    rates={
        "dense": ("dense", ("0.001", "0.01")),
        "magnitude": ("dense", ("0.001", "0.01")),
        "feedback": ("sparse", ("0.005", "0.02")),
        "linbreg": ("sparse", ("3.0", "30.0")),
        "proxsgd": ("sparse", ("0.01", "0.03", "1.0", "10.0")),
        "sgd": ("dense", ("0.03", "0.1", "0.3", "1.0")),
    },
)
QUICK = Scale(
    epochs=4,
    short=2,
    batch=32,
    seeds=(0,),
    targets=("0.9", "0.99"),
    claims=("0.9",),
    few=("0.9",),
    lambdas=("1e-4", "1e-1", "1e2"),
    controlled=(("ecapa_256", ("adabreg", "linbreg"), ("0.9", "0.99"), 2),),
    channels=("0.5",),
    narrow=(64,),
    rates={"feedback": ("sparse", ("0.005", "0.02"))},
)

MODEL = "ecapa_256"


def train(
    name: str, scale: Scale, *settings: str, model: str = MODEL, epochs: int = 0, seed: int = 0, after: str = ""
) -> Cell:
    """A cell of this scale."""
    usual = (f"model={model}", f"trainer.epochs={epochs or scale.epochs}", f"trainer.batch_size={scale.batch}")
    return Cell(f"{name}_s{seed}", (*usual, *settings, f"seed={seed}"), seed, after)


CLAIMED = {
    "feedback": ("sparsity=feedback",),
    "magnitude": ("sparsity=magnitude",),
    "layerwise": ("sparsity=magnitude", "sparsity.controller.layerwise=true"),
}


def quality(scale: Scale) -> Iterator[Cell]:
    """Error rates of every way to a sparsity, and of the dense network."""
    for seed in scale.seeds:
        yield train("dense", scale, "sparsity=dense", seed=seed)
    for way, settings in CLAIMED.items():
        for target in scale.targets:
            for seed in scale.seeds if target in scale.claims else scale.seeds[:1]:
                yield train(f"{way}_{target}", scale, *settings, f"target_sparsity={target}", seed=seed)
    for target in scale.few:
        sparsity = f"target_sparsity={target}"
        yield train(f"quantile_{target}", scale, "sparsity=quantile", sparsity)
        yield train(f"linbreg_{target}", scale, "optim=linbreg", sparsity)
        yield train(f"proxsgd_{target}", scale, "optim=proxsgd", sparsity)
        told = ("sparsity=fixed", "optim.lambda_={lambda}", sparsity)
        for seed in scale.seeds if target == scale.few[0] else scale.seeds[:1]:
            yield train(f"oracle_{target}", scale, *told, seed=seed, after=f"feedback_{target}_s{seed}")


def _beside(scale: Scale, groups: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """Cells of ``quality`` that another question compares its own with."""
    yield from (cell for cell in quality(scale) if cell.group in groups and cell.seed in seeds)


def insensitivity(scale: Scale) -> Iterator[Cell]:
    """Starts of lambda, as they are asked for, over six orders of magnitude, and lambdas fixed there."""
    for value in scale.lambdas:
        for way, kind in (("start", "feedback"), ("fixed", "fixed")):
            settings = (f"sparsity={kind}", f"optim.lambda_={value}", "target_sparsity=0.9")
            yield train(f"{way}_{value}", scale, *settings, epochs=scale.short)


def control(scale: Scale) -> Iterator[Cell]:
    """Targets and what was reached, by both optimizers, with one default setting."""
    for model, optims, targets, epochs in scale.controlled:
        for optim in optims:
            for target in targets:
                settings = (f"optim={optim}", f"target_sparsity={target}", "trainer.log_every=1")
                yield train(f"control_{model}_{optim}_{target}", scale, *settings, model=model, epochs=epochs)


def foreign(scale: Scale) -> Iterator[Cell]:
    """Trained on other sources than the trials are of, and on as many utterances of all sources."""
    yield from _beside(scale, ["dense", *(f"feedback_{target}" for target in scale.few)], scale.seeds[:1])
    for kind in ("foreign", "subset"):
        listed = f"data.train_list={{{kind}}}"
        yield train(f"{kind}_dense", scale, "sparsity=dense", listed)
        for target in scale.few:
            yield train(f"{kind}_feedback_{target}", scale, f"target_sparsity={target}", listed)


def structure(scale: Scale) -> Iterator[Cell]:
    """Whole channels, and dense networks that are narrow from the start."""
    yield from _beside(scale, ["dense", *(f"feedback_{target}" for target in scale.targets)], scale.seeds)
    for share in scale.channels:
        yield train(f"channels_{share}", scale, "sparsity=channels", f"target_sparsity={share}")
    for width in scale.narrow:
        widths = {"channels": width, "mfa_channels": 3 * width, "se_channels": width // 2}
        widths["attention_channels"] = width // 2
        settings = [f"model.{name}={value}" for name, value in widths.items()]
        yield train(f"narrow_{width}", scale, "sparsity=dense", *settings)


def finetuning(scale: Scale) -> Iterator[Cell]:
    """From a dense network that is trained already to the target."""
    ways = ("feedback", "magnitude")
    yield from _beside(scale, ["dense", *(f"{way}_{target}" for way in ways for target in scale.few)], scale.seeds[:1])
    for target in scale.few:
        for way in ways:
            settings = (f"sparsity={way}", f"target_sparsity={target}", "init_from={folder}")
            yield train(f"finetuned_{way}_{target}", scale, *settings, epochs=scale.short, after="dense_s0")


SEARCHED = {
    "dense": ("sparsity=dense",),
    "sgd": ("sparsity=dense", "optim=sgd"),
    "magnitude": ("sparsity=magnitude", "target_sparsity=0.9"),
    "feedback": ("target_sparsity=0.9",),
    "linbreg": ("optim=linbreg", "target_sparsity=0.9"),
    "proxsgd": ("optim=proxsgd", "target_sparsity=0.9"),
}


def search(scale: Scale) -> Iterator[Cell]:
    """Learning rates on either side of the defaults."""
    for way, (rate, values) in scale.rates.items():
        yield from _beside(scale, [way if way == "dense" else f"{way}_0.9"], scale.seeds[:1])
        for value in values:
            yield train(f"search_{way}_{value}", scale, *SEARCHED[way], f"optim.lr.{rate}={value}")


QUESTIONS: dict[str, Callable[[Scale], Iterator[Cell]]] = {
    "quality": quality,
    "structure": structure,
    "foreign": foreign,
    "finetuning": finetuning,
    "control": control,
    "insensitivity": insensitivity,
    "search": search,
}


def plan(questions: Sequence[str], scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    """Every cell of some questions and what they come after, each once, those with the first seed first."""
    everything = {cell.name: cell for question in QUESTIONS.values() for cell in question(scale)}
    chosen = [cell for question in questions for cell in QUESTIONS[question](scale) if cell.seed in seeds]
    before = [everything[cell.after] for cell in chosen if cell.after]
    return sorted(dict.fromkeys([*before, *chosen]), key=lambda cell: cell.seed)
