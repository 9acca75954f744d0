"""The toolkits' names for the modules of their networks, by ours.

``{i}`` and ``{j}`` count blocks and what is inside them, from 0; ``{i+1}`` and ``{i+2}`` are the same count where
theirs begins at 1 or 2. What follows a module's name (``weight``, ``bias``, ``running_mean``, ``running_var``,
``num_batches_tracked``) is the same on both sides.
"""

from collections.abc import Iterable, Mapping

Modules = Mapping[str, str]

SPEECHBRAIN_ECAPA: Modules = {
    "first.conv": "blocks.0.conv.conv",
    "first.norm": "blocks.0.norm.norm",
    "blocks.{i}.enter.conv": "blocks.{i+1}.tdnn1.conv.conv",
    "blocks.{i}.enter.norm": "blocks.{i+1}.tdnn1.norm.norm",
    "blocks.{i}.res2.units.{j}.conv": "blocks.{i+1}.res2net_block.blocks.{j}.conv.conv",
    "blocks.{i}.res2.units.{j}.norm": "blocks.{i+1}.res2net_block.blocks.{j}.norm.norm",
    "blocks.{i}.leave.conv": "blocks.{i+1}.tdnn2.conv.conv",
    "blocks.{i}.leave.norm": "blocks.{i+1}.tdnn2.norm.norm",
    "blocks.{i}.excitation.squeeze": "blocks.{i+1}.se_block.conv1.conv",
    "blocks.{i}.excitation.expand": "blocks.{i+1}.se_block.conv2.conv",
    "mfa": "mfa.conv.conv",
    "mfa_norm": "mfa.norm.norm",
    "pooling.hidden": "asp.tdnn.conv.conv",
    "pooling.norm": "asp.tdnn.norm.norm",
    "pooling.score": "asp.conv.conv",
    "norm": "asp_bn.norm",
    "embedding": "fc.conv",
}
WESPEAKER_ECAPA: Modules = {
    "first.conv": "layer1.conv",
    "first.norm": "layer1.bn",
    "blocks.{i}.enter.conv": "layer{i+2}.se_res2block.0.conv",
    "blocks.{i}.enter.norm": "layer{i+2}.se_res2block.0.bn",
    "blocks.{i}.res2.units.{j}.conv": "layer{i+2}.se_res2block.1.convs.{j}",
    "blocks.{i}.res2.units.{j}.norm": "layer{i+2}.se_res2block.1.bns.{j}",
    "blocks.{i}.leave.conv": "layer{i+2}.se_res2block.2.conv",
    "blocks.{i}.leave.norm": "layer{i+2}.se_res2block.2.bn",
    "blocks.{i}.excitation.squeeze": "layer{i+2}.se_res2block.3.linear1",
    "blocks.{i}.excitation.expand": "layer{i+2}.se_res2block.3.linear2",
    "mfa": "conv",
    "pooling.hidden": "pool.linear1",
    "pooling.score": "pool.linear2",
    "norm": "bn",
    "embedding": "linear",
}
WESPEAKER_RESNET: Modules = {
    "conv": "conv1",
    "norm": "bn1",
    "stages.{i}.{j}.conv1": "layer{i+1}.{j}.conv1",
    "stages.{i}.{j}.norm1": "layer{i+1}.{j}.bn1",
    "stages.{i}.{j}.conv2": "layer{i+1}.{j}.conv2",
    "stages.{i}.{j}.norm2": "layer{i+1}.{j}.bn2",
    "stages.{i}.{j}.shortcut.0": "layer{i+1}.{j}.shortcut.0",
    "stages.{i}.{j}.shortcut.1": "layer{i+1}.{j}.shortcut.1",
    "embedding": "seg_1",
}
SPEECHBRAIN_RESNET: Modules = {
    "conv": "conv1",
    "norm": "bn1",
    "stages.{i}.{j}.norm1": "layer{i+1}.{j}.bn1",
    "stages.{i}.{j}.conv1": "layer{i+1}.{j}.conv1",
    "stages.{i}.{j}.norm2": "layer{i+1}.{j}.bn2",
    "stages.{i}.{j}.conv2": "layer{i+1}.{j}.conv2",
    "stages.{i}.{j}.norm3": "layer{i+1}.{j}.bn3",
    "stages.{i}.{j}.conv3": "layer{i+1}.{j}.conv3",
    "stages.{i}.{j}.excitation.squeeze": "layer{i+1}.{j}.se.fc.0",
    "stages.{i}.{j}.excitation.expand": "layer{i+1}.{j}.se.fc.2",
    "stages.{i}.{j}.shortcut.0": "layer{i+1}.{j}.downsample.0",
    "stages.{i}.{j}.shortcut.1": "layer{i+1}.{j}.downsample.1",
    "pooling.hidden": "attention.0",
    "pooling.norm": "attention.2",
    "pooling.score": "attention.3",
    "statistics_norm": "norm_stats",
    "embedding": "fc_embed",
    "embedding_norm": "norm_embed",
}


def fill(name: str, i: int, j: int) -> str:
    """The name with its counts.

    >>> fill("layer{i+1}.{j}.conv1", i=2, j=5)
    'layer3.5.conv1'
    """
    for place, count in (("{i}", i), ("{i+1}", i + 1), ("{i+2}", i + 2), ("{j}", j)):
        name = name.replace(place, str(count))
    return name


def their_names(modules: Modules, names_here: Iterable[str]) -> dict[str, str]:
    """Their name for each of our tensors.

    >>> their_names(WESPEAKER_RESNET, ["stages.2.5.conv1.weight"])
    {'stages.2.5.conv1.weight': 'layer3.5.conv1.weight'}
    """
    names = list(names_here)
    counts = range(1 + max((int(part) for name in names for part in name.split(".") if part.isdigit()), default=0))
    toolkit_names = {
        fill(our, i, j): fill(their, i, j) for our, their in modules.items() for i in counts for j in counts
    }
    pairs = ((name, name.rpartition(".")) for name in names)
    return {name: f"{toolkit_names[module]}.{leaf}" for name, (module, _, leaf) in pairs}
