"""The toolkits' names for the modules of their networks, by ours.

``{i}`` and ``{j}`` count blocks and what is inside them, from 0; ``{i+1}``, ``{i+2}`` and ``{j+1}`` are the same
count where theirs begins at 1 or 2. What follows a module's name (``weight``, ``bias``, ``running_mean``,
``running_var``, ``num_batches_tracked``) is the same on both sides.
"""

import re
from collections.abc import Iterable, Mapping

NameMap = Mapping[str, str]

SPEECHBRAIN_ECAPA: NameMap = {
    "stem.conv": "blocks.0.conv.conv",
    "stem.norm": "blocks.0.norm.norm",
    "blocks.{i}.conv_in.conv": "blocks.{i+1}.tdnn1.conv.conv",
    "blocks.{i}.conv_in.norm": "blocks.{i+1}.tdnn1.norm.norm",
    "blocks.{i}.res2.convs.{j}.conv": "blocks.{i+1}.res2net_block.blocks.{j}.conv.conv",
    "blocks.{i}.res2.convs.{j}.norm": "blocks.{i+1}.res2net_block.blocks.{j}.norm.norm",
    "blocks.{i}.conv_out.conv": "blocks.{i+1}.tdnn2.conv.conv",
    "blocks.{i}.conv_out.norm": "blocks.{i+1}.tdnn2.norm.norm",
    "blocks.{i}.se.squeeze": "blocks.{i+1}.se_block.conv1.conv",
    "blocks.{i}.se.expand": "blocks.{i+1}.se_block.conv2.conv",
    "mfa": "mfa.conv.conv",
    "mfa_norm": "mfa.norm.norm",
    "pooling.linear1": "asp.tdnn.conv.conv",
    "pooling.norm": "asp.tdnn.norm.norm",
    "pooling.linear2": "asp.conv.conv",
    "norm": "asp_bn.norm",
    "embedding": "fc.conv",
}
WESPEAKER_ECAPA: NameMap = {
    "stem.conv": "layer1.conv",
    "stem.norm": "layer1.bn",
    "blocks.{i}.conv_in.conv": "layer{i+2}.se_res2block.0.conv",
    "blocks.{i}.conv_in.norm": "layer{i+2}.se_res2block.0.bn",
    "blocks.{i}.res2.convs.{j}.conv": "layer{i+2}.se_res2block.1.convs.{j}",
    "blocks.{i}.res2.convs.{j}.norm": "layer{i+2}.se_res2block.1.bns.{j}",
    "blocks.{i}.conv_out.conv": "layer{i+2}.se_res2block.2.conv",
    "blocks.{i}.conv_out.norm": "layer{i+2}.se_res2block.2.bn",
    "blocks.{i}.se.squeeze": "layer{i+2}.se_res2block.3.linear1",
    "blocks.{i}.se.expand": "layer{i+2}.se_res2block.3.linear2",
    "mfa": "conv",
    "pooling.linear1": "pool.linear1",
    "pooling.linear2": "pool.linear2",
    "norm": "bn",
    "embedding": "linear",
}
# The same for all depths; blocks of ResNet34 have no third convolution.
WESPEAKER_RESNET: NameMap = {
    "conv": "conv1",
    "norm": "bn1",
    "stages.{i}.{j}.conv1": "layer{i+1}.{j}.conv1",
    "stages.{i}.{j}.norm1": "layer{i+1}.{j}.bn1",
    "stages.{i}.{j}.conv2": "layer{i+1}.{j}.conv2",
    "stages.{i}.{j}.norm2": "layer{i+1}.{j}.bn2",
    "stages.{i}.{j}.conv3": "layer{i+1}.{j}.conv3",
    "stages.{i}.{j}.norm3": "layer{i+1}.{j}.bn3",
    "stages.{i}.{j}.shortcut.0": "layer{i+1}.{j}.shortcut.0",
    "stages.{i}.{j}.shortcut.1": "layer{i+1}.{j}.shortcut.1",
    "embedding": "seg_1",
}
WESPEAKER_XVECTOR: NameMap = {
    "layers.{i}.conv": "frame_{i+1}.conv_1d",
    "layers.{i}.norm": "frame_{i+1}.bn",
    "linear": "seg_1",
    "norm": "seg_bn_1",
    "embedding": "seg_2",
}
# WeSpeaker's CAM++ has the same names.
THREED_SPEAKER_CAMPPLUS: NameMap = {
    "front.conv": "head.conv1",
    "front.norm": "head.bn1",
    "front.stages.{i}.{j}.conv1": "head.layer{i+1}.{j}.conv1",
    "front.stages.{i}.{j}.norm1": "head.layer{i+1}.{j}.bn1",
    "front.stages.{i}.{j}.conv2": "head.layer{i+1}.{j}.conv2",
    "front.stages.{i}.{j}.norm2": "head.layer{i+1}.{j}.bn2",
    "front.stages.{i}.{j}.shortcut.0": "head.layer{i+1}.{j}.shortcut.0",
    "front.stages.{i}.{j}.shortcut.1": "head.layer{i+1}.{j}.shortcut.1",
    "front.conv_out": "head.conv2",
    "front.norm_out": "head.bn2",
    "conv": "xvector.tdnn.linear",
    "norm": "xvector.tdnn.nonlinear.batchnorm",
    "blocks.{i}.{j}.norm1": "xvector.block{i+1}.tdnnd{j+1}.nonlinear1.batchnorm",
    "blocks.{i}.{j}.conv1": "xvector.block{i+1}.tdnnd{j+1}.linear1",
    "blocks.{i}.{j}.norm2": "xvector.block{i+1}.tdnnd{j+1}.nonlinear2.batchnorm",
    "blocks.{i}.{j}.conv2": "xvector.block{i+1}.tdnnd{j+1}.cam_layer.linear_local",
    "blocks.{i}.{j}.mask.squeeze": "xvector.block{i+1}.tdnnd{j+1}.cam_layer.linear1",
    "blocks.{i}.{j}.mask.expand": "xvector.block{i+1}.tdnnd{j+1}.cam_layer.linear2",
    "transitions.{i}.norm": "xvector.transit{i+1}.nonlinear.batchnorm",
    "transitions.{i}.conv": "xvector.transit{i+1}.linear",
    "norm_out": "xvector.out_nonlinear.batchnorm",
    "embedding": "xvector.dense.linear",
    "embedding_norm": "xvector.dense.nonlinear.batchnorm",
}
SPEECHBRAIN_RESNET: NameMap = {
    "conv": "conv1",
    "norm": "bn1",
    "stages.{i}.{j}.norm1": "layer{i+1}.{j}.bn1",
    "stages.{i}.{j}.conv1": "layer{i+1}.{j}.conv1",
    "stages.{i}.{j}.norm2": "layer{i+1}.{j}.bn2",
    "stages.{i}.{j}.conv2": "layer{i+1}.{j}.conv2",
    "stages.{i}.{j}.norm3": "layer{i+1}.{j}.bn3",
    "stages.{i}.{j}.conv3": "layer{i+1}.{j}.conv3",
    "stages.{i}.{j}.se.squeeze": "layer{i+1}.{j}.se.fc.0",
    "stages.{i}.{j}.se.expand": "layer{i+1}.{j}.se.fc.2",
    "stages.{i}.{j}.shortcut.0": "layer{i+1}.{j}.downsample.0",
    "stages.{i}.{j}.shortcut.1": "layer{i+1}.{j}.downsample.1",
    "pooling.linear1": "attention.0",
    "pooling.norm": "attention.2",
    "pooling.linear2": "attention.3",
    "statistics_norm": "norm_stats",
    "embedding": "fc_embed",
    "embedding_norm": "norm_embed",
}


def fill(name: str, i: int, j: int) -> str:
    """Return a name with its counts filled in.

    >>> fill("layer{i+1}.{j}.conv1", i=2, j=5)
    'layer3.5.conv1'
    """
    for place, count in (("{i}", i), ("{i+1}", i + 1), ("{i+2}", i + 2), ("{j}", j), ("{j+1}", j + 1)):
        name = name.replace(place, str(count))
    return name


def names_in_toolkit(name_map: NameMap, names: Iterable[str]) -> dict[str, str]:
    """Return the toolkit's name of each of our tensors.

    >>> names_in_toolkit(WESPEAKER_RESNET, ["stages.2.5.conv1.weight"])
    {'stages.2.5.conv1.weight': 'layer3.5.conv1.weight'}
    """
    toolkit_names = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        # "stages.2.5.conv1" is the entry "stages.{i}.{j}.conv1" with i=2, j=5.
        counts = dict(zip(("{i}", "{j}"), re.findall(r"(?<=\.)\d+(?=\.)", module), strict=False))
        entry = module
        for place, count in counts.items():
            entry = entry.replace(f".{count}.", f".{place}.", 1)
        i, j = int(counts.get("{i}", 0)), int(counts.get("{j}", 0))
        toolkit_names[name] = f"{fill(name_map[entry], i, j)}.{leaf}"
    return toolkit_names
