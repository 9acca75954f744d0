"""The answers as tables: one function for each question, in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evidence.noisy import CONDITIONS
from evidence.results import Finished, Group, Run
from sv_sparse.report.tables import Table
from sv_sparse.report.words import ABSENT, count, number, percent

WAYS = {
    "dense": "dense, Adam",
    "feedback": "feedback, AdaBreg",
    "linbreg": "feedback, LinBreg",
    "quantile": "quantile, AdaBreg",
    "oracle": "fixed λ, told by feedback, not landed",
    "magnitude": "magnitude pruning",
    "layerwise": "magnitude pruning by layer",
    "proxsgd": "feedback, ProxSGD",
}


def control_table(found: Finished, lists: Sequence[str]) -> Table:
    """Targets, and what was reached before landing."""
    heads = ("network", "optimizer", "target", "before landing", "points off", "steps", "in ±0.5 points from step")
    rows = []
    for group in found.starting("control_"):
        run = group.runs[0]
        model, optim, target = group.name.removeprefix("control_").rsplit("_", 2)
        first, last = run.entered()
        when = ABSENT if first is None else f"{first}, to stay from {ABSENT if last is None else last}"
        before = run.results["sparsity_before_landing"]
        rows.append(
            (
                *(model, optim, percent(float(target)), percent(before, 3), f"{run.gap:+.3f}", str(run.steps), when),
                f"{run.results['lambda']:.3g}",
                *(f"{percent(group.eer(name))} ({percent(group.untrained_eer(name))})" for name in lists),
            )
        )
    return Table("Control", (*heads, "λ at the end", *(f"EER {name} (before training)" for name in lists)), rows)


def insensitivity_table(found: Finished, lists: Sequence[str]) -> Table:
    """What comes of a start of lambda, and of the same lambda fixed."""
    heads = ["λ", "feedback: before landing", "λ at the end", *(f"EER {name}" for name in lists)]
    heads += ["fixed: sparsity", *(f"EER {name}" for name in lists)]
    values = [group.name.rpartition("_")[2] for group in found.starting("start_")]
    rows = []
    for value in values:
        row = [value]
        for name in (f"start_{value}", f"fixed_{value}"):
            group = found.get(name)
            row.append(percent(group.mean("sparsity_before_landing"), 3) if group else ABSENT)
            if name.startswith("start"):
                row.append(number(group.mean("lambda") if group else None, ".3g"))
            row += [percent(group.eer(each)) if group else ABSENT for each in lists]
        rows.append(row)
    return Table("Insensitivity", heads, rows)


def quality_table(found: Finished, lists: Sequence[str]) -> Table:
    """Error rates of every way, and how they differ from the dense network's and from magnitude pruning's."""
    heads = ["way", "target", "before landing", "seeds"]
    for name in lists:
        heads += [
            f"EER {name} [95 %]",
            "of each seed",
            *(f"minus {other}" for other in ("dense", "magnitude", "by layer")),
        ]
    rows = [_untrained(found["dense"], lists)] if "dense" in found else []
    for group in _by_target(found):
        way, _, target = group.name.partition("_")
        before = percent(group.mean("sparsity_before_landing"), 3) if target else ABSENT
        row = [WAYS[way], percent(float(target)) if target else ABSENT, before, str(len(group.runs))]
        for name in lists:
            row += [rate(group, name), ", ".join(f"{100 * eer:.2f}" for eer in group.eers(name))]
            others = ("dense", f"magnitude_{target}", f"layerwise_{target}")
            row += [_difference(group, found.get(other), name) for other in others]
        rows.append(row)
    return Table("Quality", heads, rows)


def _untrained(dense: Group, lists: Sequence[str]) -> list[str]:
    """What a network makes of the lists before it is trained: what is left of it is what was learnt."""
    row = ["dense, before training", ABSENT, ABSENT, str(len(dense.runs))]
    for name in lists:
        each = [dense.of([seed]).untrained_eer(name) for seed in dense.seeds]
        row += [
            percent(dense.untrained_eer(name)),
            ", ".join(percent(eer).removesuffix("%") for eer in each),
            *3 * [ABSENT],
        ]
    return row


def _by_target(found: Finished) -> list[Group]:
    """Dense, then every way by target."""
    own = [group for group in found.values() if group.name.partition("_")[0] in WAYS]
    order = list(WAYS)
    return sorted(own, key=lambda g: (float(g.name.partition("_")[2] or 0), order.index(g.name.partition("_")[0])))


def convergence_table(found: Finished, lists: Sequence[str]) -> Table:
    """EER of held-out training speakers and sparsity after each epoch, means of the seeds that all columns have."""
    groups, seeds = converging(found)
    epochs = [[run.epochs() for run in group.runs] for group in groups]
    shortest = min((len(own) for group in epochs for own in group), default=0)
    rows = []
    for epoch in range(shortest):
        cells = [np.mean([own[epoch][2:] for own in group], axis=0) for group in epochs]
        rows.append([str(epoch + 1), *(f"{percent(eer)} at {percent(sparsity, 1)}" for eer, sparsity in cells)])
    listed = ", ".join(map(str, seeds))
    return Table("Early convergence", (f"epoch (seeds {listed})", *(label(group) for group in groups)), rows)


def converging(found: Finished) -> tuple[list[Group], list[int]]:
    """The groups whose first epochs are compared, of the seeds that all have: other seeds hold out other speakers."""
    groups = [found[name] for name in CONVERGING if name in found]
    seeds = sorted(set.intersection(*({*group.seeds} for group in groups))) if groups else []
    return [group.of(seeds) for group in groups] if seeds else [], seeds


CONVERGING = ("dense", "feedback_0.9", "oracle_0.9", "magnitude_0.9")
NOISY = ("dense", "feedback_0.9", "feedback_0.95", "feedback_0.99", "magnitude_0.9", "magnitude_0.99")


def noise_table(found: Finished, lists: Sequence[str]) -> Table:
    """EER in noise and rooms, of networks that heard none in training, and what that is beside clean speech."""
    groups = [found[name] for name in NOISY if name in found]
    heads = ("list", "condition", *(label(group) for group in groups))
    rows = []
    for name in lists:
        rows.append([name, "clean", *(percent(group.eer(name)) for group in groups)])
        for condition in CONDITIONS:
            noisy = f"{name}_{condition.name}"
            there = [group.judged(noisy) for group in groups]
            cells = [
                f"{group.eer(noisy):.2%} ({group.eer(noisy) / group.eer(name):.2f} times)" if known else ABSENT
                for group, known in zip(groups, there, strict=True)
            ]
            if any(there):
                rows.append([name, condition.name.replace("_", " "), *cells])
    return Table("In noise and rooms", heads, rows)


def foreign_table(found: Finished, lists: Sequence[str]) -> Table:
    """EER of networks that were trained on other sources than the trials are of, beside those that were not."""
    heads = ["way", "target", "utterances: all, as many, other"]
    heads += [
        f"{name}: {what}" for name in lists for what in ("all sources", "as many", "other sources", "minus dense")
    ]
    rows = []
    for group in found.starting("foreign_"):
        name = group.name.removeprefix("foreign_")
        three = [own.of(group.seeds) if own else None for own in (found.get(name), found.get(f"subset_{name}"), group)]
        way, _, target = name.partition("_")
        heard = [count(own.runs[0].results["training"]["utterances"]) if own else ABSENT for own in three]
        row = [WAYS[way], percent(float(target)) if target else ABSENT, ", ".join(heard)]
        for each in lists:
            row += [rate(own, each) if own else ABSENT for own in three]
            row.append(_difference(group, found.get("foreign_dense"), each))
        rows.append(row)
    return Table("Across sources", heads, rows)


def finetuning_table(found: Finished, lists: Sequence[str]) -> Table:
    """From a dense network, beside from scratch, by the seeds that both have."""
    heads = ("way", "target", "seeds", "steps", "before landing", *(f"EER {name} [95 %]" for name in lists))
    rows = []
    targets = {group.name.rpartition("_")[2] for group in found.starting("finetuned_")}
    for name in (f"{way}_{target}" for target in sorted(targets) for way in ("feedback", "magnitude")):
        scratch, tuned = found.get(name), found.get(f"finetuned_{name}")
        if scratch and tuned:
            scratch = scratch.of(tuned.seeds)
        rows += [_tuned(group, found.get("dense"), lists) for group in (scratch, tuned) if group and group.runs]
    return Table("Fine-tuning", heads, rows)


def _tuned(group: Group, dense: Group | None, lists: Sequence[str]) -> list[str]:
    before, way, target = ("", *group.name.rsplit("_", 2))[-3:]
    steps = str(group.runs[0].steps)
    if before and dense:
        steps = f"{dense.runs[0].steps} dense + {steps}"
    words = f"{WAYS[way]}, {'from the dense network' if before else 'from scratch'}"
    sparsity = percent(group.mean("sparsity_before_landing"), 3)
    seeds = ", ".join(map(str, group.seeds))
    return [words, percent(float(target)), seeds, steps, sparsity, *(rate(group, name) for name in lists)]


def structure_table(found: Finished, measured: Mapping[str, Any], lists: Sequence[str]) -> Table:
    """Single weights, whole channels and narrow networks, by what they keep and how long they take."""
    heads = ["network", "seeds", "parameters kept", "file", "torch", "onnxruntime", "sparse engine", "fastest"]
    heads += [f"EER {name} [95 %]" for name in lists]
    rows = []
    for group in found.starting(*STRUCTURES):
        about = measured.get(group.runs[0].folder.name)
        if about is None:
            continue
        times = about["milliseconds"]
        best = min(times, key=times.__getitem__)
        row = [_structure(group), str(len(group.runs)), count(about["kept"]), f"{about['bytes'] / 1e6:.2f} MB"]
        row += [
            *(f"{times[name]:.1f} ms" for name in ("torch", "onnxruntime", "sparse")),
            f"{times[best]:.1f} ms, {best}",
        ]
        rows.append((times[best], [*row, *(rate(group, name) for name in lists)]))
    return Table("Structure", heads, [row for _, row in sorted(rows, key=lambda pair: -pair[0])])


STRUCTURES = ("dense", "feedback_", "channels_", "narrow_")


def _structure(group: Group) -> str:
    way, _, amount = group.name.partition("_")
    words = {"dense": "dense", "feedback": "single weights, {} zero", "channels": "{} of each layer's channels cut out"}
    if way == "narrow":
        return f"dense, {amount} channels from the start"
    return words[way].format(percent(float(amount), 0) if amount else "")


def search_table(found: Finished, lists: Sequence[str]) -> Table:
    """Learning rates beside the default."""
    heads = ("way", "learning rate", "before landing", "validation EER", *(f"EER {name}" for name in lists))
    rows = []
    for way in SEARCHED:
        usual = found.get(way if way == "dense" else f"{way}_0.9")
        own = found.starting(f"search_{way}_")
        for group in sorted([*own, *([usual] if usual else [])], key=_rate_of):
            run = group.runs[0]  # the seed that all of them have
            default = " (default)" if group is usual else ""
            row = [
                WAYS.get(way, "dense, SGD"),
                f"{_rate_of(group):g}{default}",
                percent(run.results["sparsity_before_landing"], 3),
            ]
            rows.append(
                [*row, percent(run.results.get("validation_eer")), *(percent(run.lists[n]["eer"]) for n in lists)]
            )
    return Table("Learning rates", heads, rows)


SEARCHED = ("dense", "sgd", "magnitude", "feedback", "linbreg", "proxsgd")


def _rate_of(group: Group) -> float:
    return float(group.runs[0].results["training"]["lr"])


TABLES: dict[str, Callable[[Finished, Sequence[str]], Table]] = {
    "control": control_table,
    "insensitivity": insensitivity_table,
    "quality": quality_table,
    "convergence": convergence_table,
    "noise": noise_table,
    "foreign": foreign_table,
    "finetuning": finetuning_table,
    "search": search_table,
}


def label(group: Group) -> str:
    """The way and the target of a group, in words."""
    way, _, target = group.name.partition("_")
    return f"{WAYS[way]} {float(target):.0%}" if target else WAYS[way]


def rate(group: Group, name: str) -> str:
    """Mean EER, and where 95 % of draws of other speakers put it."""
    between = group.interval(name)
    words = f"{group.eer(name):.2%}"
    return words if between is None else f"{words} [{100 * between[0]:.2f}, {100 * between[1]:.2f}]"


def _difference(group: Group, other: Group | None, name: str) -> str:
    """In points, with its interval; nothing to itself."""
    found = group.minus(other, name) if other is not None and other.name != group.name else None
    if found is None:
        return ABSENT
    gap, between = found
    words = f"{100 * gap:+.2f}"
    return words if between is None else f"{words} [{100 * between[0]:+.2f}, {100 * between[1]:+.2f}]"


def curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Epoch by epoch, of every run: for programs."""
    return [
        {"run": run.folder.name, "epoch": epoch, "step": step, "validation_eer": eer, "sparsity": sparsity}
        for run in runs
        for epoch, step, eer, sparsity in run.epochs()
    ]
