"""Tables: their cells in words, for Markdown and for pages."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sv_sparse.report.results import Results
from sv_sparse.report.words import ABSENT, count, interval, large, number, percent, point_name, share

_OF_LAYERS = (
    *("parameters", "zeros", "channels", "dead_channels", "inputs", "dead_inputs"),
    *("macs", "nonzero_macs", "bytes", "compressed_bytes"),
)
_NUMBER = re.compile(rf"[+-]?\d|{ABSENT}?$")


@dataclass(frozen=True)
class Table:
    """Cells in words.

    Attributes:
        title: what it is about.
        heads: of the columns.
        rows: of cells, as many as there are heads.
        bars: shares, one for each row, that are drawn in the cells of these columns.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Mapping[int, Sequence[float]] = field(default_factory=dict)

    @property
    def numbers(self) -> frozenset[int]:
        """Columns, but for the first, in which every cell is a number or nothing."""
        return frozenset(
            column for column in range(1, len(self.heads)) if all(_NUMBER.match(row[column]) for row in self.rows)
        )

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned for who reads it as it is."""
        heads, *rows = ([_plain(cell) for cell in line] for line in (self.heads, *self.rows))
        widths = [max(3, *(len(line[column]) for line in (heads, *rows))) for column in range(len(heads))]
        rule = ["-" * width for width in widths]
        lines = [heads, rule, *rows]
        return "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        )


def _plain(cell: str) -> str:
    """A cell that cannot break out of its table."""
    return " ".join(cell.replace("|", "\\|").split())


def results_table(results: Results) -> str:
    """One row per trial list, in Markdown, with the minDCF of the first operating point."""
    point = next(iter(results["evaluations"].values()))["dcf"][0]
    heads = ("list", "target", "before landing", "after landing", "kept parameters", "EER")
    kept = f"{count(results['nonzero_parameters'])} ({share(results['nonzero_parameters'], results['parameters'])})"
    sparsity = (percent(results["target_sparsity"]), percent(results["sparsity_tracked"], 3))
    rows = [
        (
            *(name, *sparsity, percent(results["sparsity"], 4), kept, percent(one["eer"])),
            *(number(one["dcf"][0]["min_dcf"]), percent(one.get("untrained_eer")), f"{results['seconds'] / 60:.1f}"),
        )
        for name, one in results["evaluations"].items()
    ]
    table = Table("", (*heads, f"minDCF({point_name(point)})", "EER at start", "minutes"), rows)
    return table.markdown()


def lists_table(evaluations: Mapping[str, Any]) -> Table:
    """Every list with its error rates."""
    points = {point_name(cost): None for one in evaluations.values() for cost in one["dcf"]}
    heads = ["list", "trials", "EER", "95% interval", *(f"minDCF({point})" for point in points)]
    heads += [*(f"actDCF({point})" for point in points), "Cllr", "min Cllr", "EER untrained"]
    rows = []
    for name, one in evaluations.items():
        costs = {point_name(cost): cost for cost in one["dcf"]}
        row = [name, count(one["trials"]), percent(one["eer"]), interval(one["eer_interval"])]
        row += [number(costs.get(point, {}).get(kind)) for kind in ("min_dcf", "act_dcf") for point in points]
        rows.append([*row, number(one["cllr"]), number(one["min_cllr"]), percent(one.get("untrained_eer"))])
    return Table("Error rates", heads, rows)


def errors_table(one: Mapping[str, Any]) -> Table:
    """The error rates of one list, each with its interval and its threshold."""
    rows = [("EER", percent(one["eer"]), interval(one["eer_interval"]), number(one["eer_threshold"], ".4f"))]
    for cost in one["dcf"]:
        point = point_name(cost)
        between, threshold = interval(cost["min_dcf_interval"], ".3f"), number(cost["min_dcf_threshold"], ".4f")
        rows.append((f"minDCF({point})", number(cost["min_dcf"]), between, threshold))
        if cost["act_dcf"] is not None:
            rows.append((f"actDCF({point})", number(cost["act_dcf"]), "", ""))
    if one["cllr"] is not None:
        rows.append(("Cllr", number(one["cllr"]), "", ""))
    rows.append(("min Cllr", number(one["min_cllr"]), "", ""))
    if one.get("untrained_eer") is not None:
        rows.append(("EER of the untrained network", percent(one["untrained_eer"]), "", ""))
    return Table(one["name"], ("rate", "value", "95% interval", "threshold"), rows)


def decisions_table(one: Mapping[str, Any]) -> Table | None:
    """What the thresholds of the calibrated log-likelihood ratio lead to on a list; None without a calibration."""
    rows = [
        (
            percent(found["target_far"]),
            number(found["threshold"], ".2f"),
            percent(found["p_fa"]),
            percent(found["p_miss"]),
        )
        for found in one["thresholds"]
    ]
    heads = ("wanted", "LLR threshold", "false alarms", "misses")
    return Table("Decisions, by thresholds from held-out speakers", heads, rows) if rows else None


def left_out(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The trials of a list that were not scored, as a name and a value; nothing where all were."""
    recordings = one.get("recordings_left_out", 0)
    if not recordings:
        return []
    trials = one["trials_left_out"]
    return [("left out", f"{count(trials)} trials; recordings that cannot be used: {count(recordings)}")]


def conditions(one: Mapping[str, Any], scoring: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the error rates of a list were made of and by, as names and values."""
    targets = one["targets"]
    points = [
        f"p_target {cost['p_target']:g}, c_miss {cost['c_miss']:g}, c_fa {cost['c_fa']:g}" for cost in one["dcf"]
    ]
    return [
        ("trials", f"{count(one['trials'])}: {count(targets)} targets, {count(one['trials'] - targets)} nontargets"),
        *left_out(one),
        ("speakers", "not known" if one["speakers"] is None else count(one["speakers"])),
        ("enrollment", one["enrollment"]),
        ("scores", f"cosines of embeddings less the {scoring['mean_embedding']}"),
        ("score normalization", one["score_norm"]),
        ("operating points", "; ".join(points)),
        ("calibration", one["calibration"] or "none"),
        (
            "intervals",
            "95%, bootstrap over speakers" if one["eer_interval"] is not None else "none: speakers not known, or few",
        ),
    ]


def sparsity_table(results: Results) -> Table:
    """Sparsity, a fraction of exact zeros, as it is counted."""
    rows = [
        ("target", percent(results["target_sparsity"], 2)),
        ("before landing", percent(results["sparsity_tracked"], 4)),
        ("delivered: weights that the target speaks of", percent(results["sparsity"], 4)),
        ("all convolution and linear weights", percent(results["sparsity_network"], 4)),
        ("all of the network's parameters", percent(results["sparsity_all"], 4)),
    ]
    return Table("Sparsity, the fraction of exact zeros", ("counted in", "sparsity"), rows)


def size_table(size: Mapping[str, Any]) -> Table:
    """What the network takes: dense, and what is kept."""
    seconds = f"multiply-accumulates for {size['seconds_of_speech']:g} s of speech"
    rows = []
    for name, whole, kept, unit in (
        ("parameters", "parameters", "nonzero_parameters", ""),
        (seconds, "macs", "nonzero_macs", ""),
        ("stored", "bytes", "compressed_bytes", "B"),
    ):
        rows.append((name, large(size[whole], unit), large(size[kept], unit), share(size[kept], size[whole])))
    head = size["head_parameters"]
    rows.append(("head, thrown away after training: parameters", large(head), "", ""))
    return Table("Size of the network", ("of", "dense", "kept", "share"), rows)


def latency(size: Mapping[str, Any]) -> str:
    """What was measured, and what not."""
    found = size["latency"]
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    return (
        f"Latency: {1000 * found['seconds']:.3g} ms for {size['seconds_of_speech']:g} s of speech, measured on "
        f"{found['device']} with {threads}. Zeros are computed as ordinary numbers in it: it is the time of the dense "
        "network. Kept multiply-accumulates and packed bytes are counted, not run."
    )


def layers_table(layers: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every layer with its zeros, its dead channels and what it costs, and their sum."""
    heads = (
        "layer",
        "parameters",
        "zeros",
        "sparsity",
        "dead outputs",
        "dead inputs",
        "MACs",
        "kept",
        "bytes",
        "packed",
    )
    total = {name: _sum([layer[name] for layer in layers.values()]) for name in _OF_LAYERS}
    rows: list[tuple[str, ...]] = []
    bars: list[float] = []
    for name, layer in {**layers, "all": total}.items():
        zeros = (layer["zeros"] or 0) / (layer["parameters"] or 1)
        bars.append(zeros)
        rows.append(
            (
                *(name, count(layer["parameters"]), count(layer["zeros"]), percent(zeros)),
                f"{count(layer['dead_channels'])} of {count(layer['channels'])}",
                f"{count(layer['dead_inputs'])} of {count(layer['inputs'])}",
                *(large(layer["macs"]), large(layer["nonzero_macs"])),
                *(large(layer["bytes"], "B"), large(layer["compressed_bytes"], "B")),
            )
        )
    return Table("Layers in the network's order", heads, rows, bars={3: bars})


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def corpus_facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained on and judged by; nothing for runs of earlier versions, whose results do not say."""
    corpus = results.get("corpus")
    if corpus is None:
        return []
    subsets = [("subsets", ", ".join(corpus["train"]))] if corpus["train"] else []
    return [
        ("corpus", corpus_name(results)),
        ("path", corpus["path"]),
        *subsets,
        ("trial lists", ", ".join(corpus["trials"])),
    ]


def corpus_name(results: Mapping[str, Any]) -> str:
    """Name of the corpus that a run trained on, a dash where it is not known; synthetic voices are called so."""
    corpus = results.get("corpus")
    if corpus is None:
        return ABSENT
    return f"{corpus['name']} (synthetic voices)" if corpus["synthetic"] else str(corpus["name"])


def training_facts(results: Results) -> list[tuple[str, str]]:
    """What was trained, on what, how long."""
    how = results["training"]
    facts = [
        ("network", how["model"]),
        *corpus_facts(results),
        ("training speakers", count(how["speakers"])),
        ("utterances", f"{count(how['utterances'])}, {how['hours']:.2f} hours"),
        ("epochs", f"{how['epochs']}, {count(how['steps'])} steps"),
        ("peak learning rate", f"{how['lr']:g}"),
        ("λ at the end", f"{results['lambda']:.4g}"),
        ("computed on", f"{how['device']} in {how['precision']}, processes: {how['processes']}"),
        ("time", f"{results['seconds'] / 60:.1f} minutes, evaluation included"),
        ("seed", str(results["seed"])),
    ]
    if results.get("validation_eer") is not None:
        before, after = results["validation_eer_tracked"], results["validation_eer"]
        facts.append(("EER on held-out training speakers", f"{percent(before)} before landing, {percent(after)} after"))
    return facts
