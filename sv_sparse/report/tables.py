"""Tables and facts about a run, with cells as text, for Markdown and for HTML pages."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sv_sparse.config.schema import Config
from sv_sparse.report import format as fmt
from sv_sparse.report.results import NO_EVALUATION, NO_TRIAL_LIST, Results

# What to do with a finished run, as a report says it.
NEXT_COMMANDS = (
    "sv-sparse export RUN --output model.safetensors",
    "sv-sparse autotune --model model.safetensors",
)
# What to do with one that had no trial list.
EVALUATE_COMMAND = "sv-sparse evaluate RUN --audio-root PATH --trials FILE"
# Of one trial list, as in ``evaluations`` of results.json.
Evaluation = Mapping[str, Any]
# Names and values.
Facts = list[tuple[str, str]]

# A cell that pages align at the right.
_NUMBER = re.compile(rf"[+-]?\d|{fmt.DASH}?$")
_GROUP_LABELS = {("sex", "f"): "female", ("sex", "m"): "male"}


@dataclass(frozen=True)
class Table:
    """Table with cells as text.

    Args:
        title: line above the table.
        headers: names of the columns.
        rows: cells of each row, one for each header.
        bars: for some columns, by index, a fraction for each row, which pages draw as a bar in the cell.

    >>> print(Table("Targets", ("run", "sparsity"), [("a", "90.00%"), ("b", "99.00%")]).markdown())
    | run | sparsity |
    | --- | -------- |
    | a   | 90.00%   |
    | b   | 99.00%   |
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Mapping[int, Sequence[float]] = field(default_factory=dict)

    @property
    def numeric_columns(self) -> set[int]:
        """Indices of columns with nothing but numbers and dashes; never the first column."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {index for index, cells in columns if index > 0 and all(map(_NUMBER.match, cells))}

    def fit(self, max_width: int, alternatives: Sequence[Sequence[str]]) -> tuple["Table", list[str]]:
        """Return the table with fewer columns, so that no line in Markdown is wider, and the headers of those left out.

        Args:
            max_width: letters of a line.
            alternatives: beginnings of the headers of columns to leave out; the first that fits is taken, or the last.
        """
        table, hidden = self, []
        for prefixes in ((), *alternatives):
            hidden = [header for header in self.headers if header.startswith(tuple(prefixes))]
            indices = [index for index, header in enumerate(self.headers) if header not in hidden]
            rows = [[row[index] for index in indices] for row in self.rows]
            table = Table(self.title, [self.headers[index] for index in indices], rows)
            if max(map(len, table.markdown().splitlines())) <= max_width:
                break
        return table, hidden

    def markdown(self) -> str:
        """Return the table in Markdown, with aligned columns."""
        lines = [[*map(_markdown_cell, row)] for row in (self.headers, *self.rows)]
        # Markdown wants three dashes or more below a header.
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        aligned = [" | ".join(map(str.ljust, line, widths)) for line in lines]
        return "\n".join(f"| {line} |" for line in aligned)


def _markdown_cell(text: str) -> str:
    # A pipe or a line break in a name would end the cell.
    return " ".join(text.replace("|", "\\|").split())


def results_table(results: Results) -> Table:
    """Return the table with a row for each trial list, or one without any, which a run prints at its end."""
    evaluations = results["evaluations"] or {NO_TRIAL_LIST: NO_EVALUATION}
    point = next(iter(evaluations.values()))["dcf"][0]
    nnz = results["nonzero_parameters"]
    # Values of the run, which each list repeats.
    sparsities = {
        "target": fmt.percent(results["target_sparsity"]),
        "tracked sparsity": fmt.percent(results["sparsity_tracked"], 3),
        "final sparsity": fmt.percent(results["sparsity"], 4),
        "nonzero parameters": f"{fmt.count(nnz)} ({fmt.percent(nnz / results['parameters'], 1)})",
    }
    # Most runs do not evaluate their untrained network.
    has_untrained = any("untrained_eer" in evaluation for evaluation in evaluations.values())
    rows = []
    for result_id, evaluation in evaluations.items():
        row = {"list": result_id, **sparsities, "EER": fmt.percent(evaluation["eer"])}
        row[f"minDCF({fmt.point_name(point)})"] = fmt.number(evaluation["dcf"][0]["min_dcf"])
        if has_untrained:
            row["untrained EER"] = fmt.percent(evaluation.get("untrained_eer"))
        row["minutes"] = fmt.number(results["wall_time_s"] / 60, ".1f")
        rows.append(row)
    return Table("Trial lists", list(rows[0]), [list(row.values()) for row in rows])


def metrics_table(evaluation: Evaluation) -> Table:
    """Return the table of one trial list's error rates, with intervals and thresholds."""
    interval = fmt.interval(evaluation["eer_interval"])
    rows = [("EER", fmt.percent(evaluation["eer"]), interval, f"{evaluation['eer_threshold']:.4f}")]
    for cost in evaluation["dcf"]:
        name = fmt.point_name(cost)
        interval = fmt.interval(cost["min_dcf_interval"], ".3f")
        rows.append((f"minDCF({name})", fmt.number(cost["min_dcf"]), interval, f"{cost['min_dcf_threshold']:.4f}"))
        if cost["act_dcf"] is not None:
            rows.append((f"actDCF({name})", fmt.number(cost["act_dcf"]), "", ""))
    if evaluation["cllr"] is not None:
        rows.append(("Cllr", fmt.number(evaluation["cllr"]), "", ""))
    rows.append(("min Cllr", fmt.number(evaluation["min_cllr"]), "", ""))
    if evaluation.get("untrained_eer") is not None:
        rows.append(("untrained EER", fmt.percent(evaluation["untrained_eer"]), "", ""))
    return Table(evaluation["name"], ("metric", "value", "95% interval", "score threshold"), rows)


def thresholds_table(evaluation: Evaluation) -> Table | None:
    """Return the table of error rates at the calibration's thresholds, None without calibration."""
    rows = []
    for threshold in evaluation["thresholds"]:
        rates = [fmt.percent(threshold[key]) for key in ("target_far", "p_fa", "p_miss")]
        rows.append((rates[0], f"{threshold['threshold']:.2f}", *rates[1:]))
    headers = ("target false-alarm rate", "LLR threshold", "false alarms", "misses")
    return Table("Thresholds from held-out speakers", headers, rows) if rows else None


def breakdown_table(evaluation: Evaluation) -> Table | None:
    """Return the table of the EER by genre, duration and sex; None if they are not known."""
    rows = []
    for kind, groups in evaluation["breakdown"].items():
        kind_name = "duration" if kind == "seconds" else kind
        for label, group in groups.items():
            counts = (fmt.count(group["trials"]), fmt.count(group["targets"]))
            rows.append((kind_name, group_label(kind, label), *counts, fmt.percent(group["eer"])))
    headers = ("kind", "group", "trials", "targets", "EER")
    return Table(f"Groups of {evaluation['name']}", headers, rows) if rows else None


def group_label(kind: str, label: str) -> str:
    """Return the name of a group of trials, such as "female" or "2 to 4 s"."""
    if kind == "seconds":
        return f"{label} s"
    return _GROUP_LABELS.get((kind, label), label)


def conditions(evaluation: Evaluation, scoring: Mapping[str, str]) -> Facts:
    """Return the conditions under which a trial list was evaluated, with ``scoring`` of results.json."""
    if evaluation["trials"] is None:
        return [("trials", "none")]
    facts = [("trials", f"{evaluation['trials']:,} ({evaluation['targets']:,} targets)")]
    # Error rates without some trials are those of another list (DECISIONS 71).
    if evaluation.get("trials_left_out"):
        recordings = f"unusable recordings: {evaluation['recordings_left_out']:,}"
        facts.append(("left out", f"{evaluation['trials_left_out']:,} trials, {recordings}"))
    point_text = "p_target {p_target:g}, c_miss {c_miss:g}, c_fa {c_fa:g}"
    points = [point_text.format_map(cost) for cost in evaluation["dcf"]]
    has_intervals = evaluation["eer_interval"] is not None
    speakers = evaluation["speakers"]
    return [
        *facts,
        ("speakers", "not known" if speakers is None else fmt.count(speakers)),
        ("enrollment", evaluation["enrollment"]),
        ("scores", f"cosine similarity of embeddings, after subtracting the {scoring['mean_embedding']}"),
        ("score norm", evaluation["score_norm"]),
        ("operating points", "; ".join(points)),
        ("calibration", evaluation["calibration"] or "none"),
        ("intervals", "95%, bootstrap over speakers" if has_intervals else "none: speakers unknown or too few"),
    ]


def teacher_table(results: Results) -> Table | None:
    """Return the table of cosines between the embeddings of the network and of its teacher, None without a teacher."""
    rows = []
    if "teacher_cosine" in results:
        cosines = (fmt.number(results[name], ".4f") for name in ("teacher_cosine", "min_teacher_cosine"))
        rows.append((f"{results['teacher_recordings']:,} trial recordings", *cosines))
    for name, when in (("validation_teacher_cosine_tracked", "tracked"), ("validation_teacher_cosine", "final")):
        if name in results:
            rows.append((f"held-out crops, {when} sparsity", fmt.number(results[name], ".4f"), ""))
    headers = ("embeddings of", "mean cosine", "lowest cosine")
    return Table("Agreement with the teacher", headers, rows) if rows else None


def sparsity_table(results: Results) -> Table:
    """Return the table of the sparsity, counted in several ways."""
    rows = [
        ("target", fmt.percent(results["target_sparsity"])),
        ("tracked in training: regularized weights", fmt.percent(results["sparsity_tracked"], 4)),
        ("final: regularized weights", fmt.percent(results["sparsity"], 4)),
        ("final: all convolution and linear weights", fmt.percent(results["sparsity_network"], 4)),
        ("final: all parameters of the network", fmt.percent(results["sparsity_all"], 4)),
    ]
    return Table("Sparsity (fraction of exact zeros)", ("weights", "sparsity"), rows)


def size_table(size: Mapping[str, Any]) -> Table:
    """Return the table of the network's size and cost, dense and without its zeros."""
    rows = []
    macs = f"multiply-accumulates for {size['seconds_of_speech']:g} s of speech"
    for name, dense_key, nonzero_key, unit in (
        ("parameters", "parameters", "nonzero_parameters", ""),
        (macs, "macs", "nonzero_macs", ""),
        ("stored", "bytes", "compressed_bytes", "B"),
    ):
        dense, nonzero = size[dense_key], size[nonzero_key]
        rows.append((name, fmt.large(dense, unit), fmt.large(nonzero, unit), fmt.percent(nonzero / dense, 1)))
    rows.append(("parameters of the training head, not exported", fmt.large(size["head_parameters"]), "", ""))
    return Table("Size of the network", ("quantity", "dense", "nonzero", "ratio"), rows)


def latency_note(size: Mapping[str, Any]) -> str:
    """Return sentences on the measured latency, to stand before NEXT_COMMANDS."""
    latency = size["latency"]
    return (
        f"Latency in PyTorch: {1000 * latency['seconds']:.3g} ms for {size['seconds_of_speech']:g} s of speech on "
        f"{latency['device']}, threads: {latency['threads']}. PyTorch does not skip zeros: a dense network takes as "
        "long. The sparse engine skips them in an exported ECAPA-TDNN or ResNet34; another network becomes smaller, "
        "not faster. To export the network and measure it:"
    )


def layers_table(layers: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the table of all layers with zeros, dead channels and cost, and their sum."""
    total: Counter[str] = Counter()
    for layer in layers.values():
        total.update(layer)
    rows = []
    sparsities = []
    for name, layer in {**layers, "all": total}.items():
        sparsities.append(layer["zeros"] / layer["parameters"])
        counts = (fmt.count(layer["parameters"]), fmt.count(layer["zeros"]), fmt.percent(sparsities[-1]))
        dead_outputs = f"{layer['dead_channels']:,} of {layer['channels']:,}"
        dead_inputs = f"{layer['dead_inputs']:,} of {layer['inputs']:,}"
        macs = (fmt.large(layer["macs"]), fmt.large(layer["nonzero_macs"]))
        sizes = (fmt.large(layer["bytes"], "B"), fmt.large(layer["compressed_bytes"], "B"))
        rows.append((name, *counts, dead_outputs, dead_inputs, *macs, *sizes))
    headers = (
        "layer", "parameters", "zeros", "sparsity", "dead outputs", "dead inputs",
        "MACs", "nonzero MACs", "stored", "compressed",
    )  # fmt: skip
    return Table("Layers", headers, rows, bars={3: sparsities})


def corpus_name(results: Results) -> str:
    """Return the name of the training corpus, which says so if its voices are synthetic."""
    corpus = results["corpus"]
    return f"{corpus['name']} (synthetic voices)" if corpus["synthetic"] else str(corpus["name"])


def corpus_size(results: Results) -> str:
    """Return the size of the training corpus as text; of recordings without labels the speakers are unknown."""
    training = results["training"]
    if training["speakers"] is None:
        return f"{training['utterances']:,} recordings, {training['hours']:.2f} hours"
    return f"{training['speakers']:,} speakers, {training['utterances']:,} utterances, {training['hours']:.2f} hours"


def duration(results: Results, config: Config) -> str:
    """Return the length of a training as text: the steps, and the epochs where the settings count in them."""
    steps = f"{results['training']['steps']:,} steps"
    # trainer.max_steps replaces trainer.epochs.
    return steps if config.trainer.max_steps is not None else f"{results['training']['epochs']} epochs ({steps})"


def training_facts(results: Results, config: Config) -> Facts:
    """Return the facts on a run's corpus and training."""
    corpus = results["corpus"]
    training = results["training"]
    facts = [("model", config.model_text), ("corpus", corpus_name(results)), ("path", corpus["path"])]
    if corpus["train"]:
        facts.append(("subsets", ", ".join(corpus["train"])))
    facts += [
        ("trial lists", ", ".join(corpus["trials"]) or "none"),
        ("training data", corpus_size(results)),
        ("duration", duration(results, config)),
        ("peak learning rate", f"{training['lr']:g}"),
        ("λ at the end", f"{results['lambda']:.4g}"),
        ("device", f"{training['device']}, {training['precision']}, processes: {training['processes']}"),
        ("time", f"{results['wall_time_s'] / 60:.1f} minutes, including evaluation"),
        ("seed", str(results["seed"])),
    ]
    # Both are there where speakers were held out.
    if results.get("validation_eer") is not None:
        tracked = fmt.percent(results.get("validation_eer_tracked"))
        final = fmt.percent(results["validation_eer"])
        facts.append(
            ("EER on held-out training speakers", f"{tracked} at the tracked sparsity, {final} at the final sparsity")
        )
    if config.teacher is not None:
        facts.append(("teacher", f"{config.teacher}, weight {config.distill.weight:g}, {config.distill.input} crops"))
    return facts
