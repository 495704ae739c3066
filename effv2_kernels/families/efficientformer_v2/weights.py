"""The keys of weight files: timm's, or the official ones (github.com/snap-research/EfficientFormer), of the
classifier and of the detection and segmentation backbones, whole detectors included (their ``backbone.`` keys
are taken).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from effv2_kernels import checkpoint
from effv2_kernels.checkpoint.choice import Keys
from effv2_kernels.errors import CheckpointError
from effv2_kernels.families.efficientformer_v2.architecture import VARIANTS
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2

KEYS = Keys(
    family="EfficientFormerV2",
    first=r"(?:stem[._]conv1|patch_embed\.\d+)\.",
    known="neither timm's keys (stem.conv1...) nor the official ones (patch_embed.0...)",
    buffers=("attention_bias_idxs", "attention_bias_idxs_seg"),
)

# timm's wrapper for feature maps flattens the names: "stages_0.blocks..." and "stem_conv1.conv...".
_FLATTENED = re.compile(r"^(stages|stem)_(\d|conv\d)\.")

# Official key -> timm's key, in order of trial; stages and steps are numbered by ``_official_to_timm``.
_CONV_NORM = r"(stride_conv|q|k|v|v_local|q\.proj)"
_OFFICIAL_PARTS: tuple[tuple[str, str], ...] = (
    (r"layer_scale_([12])", r"ls\1.gamma"),
    (r"mlp\.(fc1|mid|fc2)\.(.+)", r"mlp.\1.conv.\2"),
    (r"mlp\.norm1\.(.+)", r"mlp.fc1.bn.\1"),
    (r"mlp\.mid_norm\.(.+)", r"mlp.mid.bn.\1"),
    (r"mlp\.norm2\.(.+)", r"mlp.fc2.bn.\1"),
    (rf"(token_mixer|attn)\.{_CONV_NORM}\.0\.(.+)", r"\1.\2.conv.\3"),
    (rf"(token_mixer|attn)\.{_CONV_NORM}\.1\.(.+)", r"\1.\2.bn.\3"),
    (r"(token_mixer|attn)\.proj\.1\.(.+)", r"\1.proj.conv.\2"),
    (r"(token_mixer|attn)\.proj\.2\.(.+)", r"\1.proj.bn.\2"),
    (r"attn\.q\.local\.0\.(.+)", r"attn.q.local.\1"),
    (r"(proj|conv)\.(weight|bias)", r"conv.conv.\2"),
    (r"(norm|bn)\.(.+)", r"conv.bn.\2"),
)
_OFFICIAL_WHOLE: tuple[tuple[str, str], ...] = (
    (r"patch_embed\.0\.(.+)", r"stem.conv1.conv.\1"),
    (r"patch_embed\.1\.(.+)", r"stem.conv1.bn.\1"),
    (r"patch_embed\.3\.(.+)", r"stem.conv2.conv.\1"),
    (r"patch_embed\.4\.(.+)", r"stem.conv2.bn.\1"),
    (r"dist_head\.(.+)", r"head_dist.\1"),
    (r"norm0\.(.+)", r"feature_norms.0.\1"),
    (r"norm2\.(.+)", r"feature_norms.1.\1"),
    (r"norm4\.(.+)", r"feature_norms.2.\1"),
    (r"norm6\.(.+)", r"feature_norms.3.\1"),
)


@dataclass(frozen=True)
class Weights:
    """The contents of a file, by timm's key names.

    resize_bias: the file is of an official detection or segmentation backbone, which resizes its bias.
    """

    origin: str  # for messages
    tensors: dict[str, Tensor]
    resize_bias: bool = False

    def img_size(self) -> int:
        """The side of the largest square images that the attention bias fits, as 15 smaller ones do."""
        key = "stages.3.downsample.attn.attention_biases"
        if key not in self.tensors:
            raise CheckpointError(f"{self.origin} has no '{key}', so it is not a whole EfficientFormerV2.")
        side = math.isqrt(self.tensors[key].shape[-1])
        if side * side != self.tensors[key].shape[-1]:
            raise CheckpointError(
                f"{self.origin}: '{key}' has {self.tensors[key].shape[-1]} values a head, which is no "
                f"square; give img_size=(height, width)."
            )
        return 16 * side

    def feature_norms(self) -> tuple[bool, bool, bool, bool] | None:
        """Which of the four outputs have a BatchNorm of their own; None for none of them."""
        first, second, third, last = (f"feature_norms.{i}.weight" in self.tensors for i in range(4))
        return (first, second, third, last) if any((first, second, third, last)) else None


def read(path: str | os.PathLike[str], weights: str = "auto") -> Weights:
    """Read a file; weights: as in ``create_model``. See ``effv2_kernels.checkpoint.read``."""
    origin, tensors = checkpoint.read(path, weights, KEYS)
    return _renamed(tensors, origin)


def read_pretrained(name: str, weights: str = "auto") -> Weights:
    """timm's published weights of a variant, through huggingface_hub and its cache."""
    return read(checkpoint.fetch(f"timm/{name}.snap_dist_in1k"), weights)


def convert(content: Mapping[str, Any], origin: str, weights: str = "auto") -> Weights:
    """Bring a state dict, wrapped or not, with timm's or the official keys, to timm's keys.

    origin: what to call it in messages. weights: as in ``create_model``. Raises CheckpointError where it is
    no EfficientFormerV2, UnknownNameError for another word.
    """
    origin, tensors = checkpoint.choose(content, origin, weights, KEYS)
    return _renamed(tensors, origin)


def _renamed(given: dict[str, Tensor], origin: str) -> Weights:
    tensors, resize_bias = _number_biases(given, origin)
    tensors = {_FLATTENED.sub(r"\1.\2.", key): value for key, value in tensors.items()}
    if any(key.startswith("patch_embed.") for key in tensors):
        tensors = {_official_to_timm(key): value for key, value in tensors.items()}
        for key, value in tensors.items():
            if key.endswith(".gamma"):
                tensors[key] = value.flatten()  # (channels, 1, 1) in the official files
    return Weights(origin, tensors, resize_bias)


def _number_biases(tensors: dict[str, Tensor], origin: str) -> tuple[dict[str, Tensor], bool]:
    """Number the attention bias by distance, row-major, and drop the stored numbering.

    The official code numbers distances in the order in which its loop over queries and keys meets them
    and stores the number of each pair. The first query stands at (0, 0), so the first row of the stored
    table lists the distances in row-major order; without that table the two numberings agree. The
    dense-prediction backbones carry the classifier's unused bias as well, and their own as ``..._seg``.
    """
    resize_bias = any(key.endswith("attention_biases_seg") for key in tensors)
    suffix = "_seg" if resize_bias else ""
    result = {}
    for key, value in tensors.items():
        stem, _, name = key.rpartition(".")
        if name in ("attention_bias_idxs", "attention_bias_idxs_seg"):
            continue
        if name in ("attention_biases", "attention_biases_seg"):
            if name != f"attention_biases{suffix}":
                continue
            numbers = tensors.get(f"{stem}.attention_bias_idxs{suffix}")
            if numbers is not None:
                first = numbers[0].long() if numbers.ndim == 2 else numbers[:0]
                if first.numel() == 0 or int(first.min()) < 0 or int(first.max()) >= value.shape[-1]:
                    raise CheckpointError(
                        f"{origin}: '{stem}.attention_bias_idxs{suffix}' {tuple(numbers.shape)} does not "
                        f"number the {value.shape[-1]} values of '{key}': the file is damaged."
                    )
                value = value[:, first]
            key = f"{stem}.attention_biases"
        result[key] = value
    return result, resize_bias


def _official_to_timm(key: str) -> str:
    for pattern, replacement in _OFFICIAL_WHOLE:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    part = re.fullmatch(r"network\.(\d+)\.(.+)", key)
    if part is None:
        return key
    # network holds stage, step, stage, step, ...: even numbers are stages.
    index, rest = int(part[1]), part[2]
    prefix = f"stages.{index // 2}.blocks." if index % 2 == 0 else f"stages.{index // 2 + 1}.downsample."
    if index % 2 == 0:
        block, _, rest = rest.partition(".")
        prefix += f"{block}."
    for pattern, replacement in _OFFICIAL_PARTS:
        if re.fullmatch(pattern, rest):
            return prefix + re.sub(pattern, replacement, rest)
    return prefix + rest


def load_into(model: EfficientFormerV2, weights: Weights) -> None:
    """Copy the weights into the model. Raises CheckpointError for missing, extra or misshapen keys."""
    given = dict(weights.tensors)
    if model.features_only:
        for key in list(given):
            if key.split(".")[0] in ("norm", "head", "head_dist"):
                del given[key]
    checkpoint.load_into(
        model, given, weights.origin, lambda missing, misshapen: _advice(model, weights, missing, misshapen)
    )


def _advice(
    model: EfficientFormerV2, weights: Weights, missing: list[str], misshapen: list[str]
) -> checkpoint.Advice:
    given = weights.tensors
    widths, depths = [], []
    for stage in range(4):
        norm = given.get(f"stages.{stage}.blocks.0.mlp.fc2.bn.weight")
        widths.append(0 if norm is None else norm.numel())
        numbers = {k.split(".")[3] for k in given if k.startswith(f"stages.{stage}.blocks.")}
        depths.append(len(numbers))
    ours = model.architecture
    if (tuple(widths), tuple(depths)) != (tuple(ours.widths), tuple(ours.depths)):
        for name, variant in VARIANTS.items():
            if (variant.widths, variant.depths) == (tuple(widths), tuple(depths)):
                return checkpoint.Advice(f"The file is of {name}: create that model.", {"name": name})
        return checkpoint.Advice(
            f"The file has widths {tuple(widths)} and depths {tuple(depths)}, the model {ours.widths} and "
            f"{ours.depths}: create the model that the file is of, or fetch the file again."
        )
    if any(key.endswith("attention_biases") for key in misshapen):
        side = weights.img_size()
        return checkpoint.Advice(
            f"The attention bias belongs to another image size: pass img_size={side}, or that of "
            f"{side - 15} ... {side} which it was trained at; leave img_size out for a backbone that takes "
            f"any size.",
            {"img_size": side},
        )
    classifier = given.get("head.weight")
    if any(key.startswith("head.") for key in misshapen) and classifier is not None:
        return checkpoint.Advice.of_classes(classifier.shape[0])
    if missing and all(key.startswith(("head_dist.",)) for key in missing):
        text = "The file has no distillation head: pass distillation=False."
        return checkpoint.Advice(text, {"distillation": False})
    if missing and all(key.split(".")[0] in ("norm", "head", "head_dist") for key in missing):
        text = "The file is a backbone without a classifier: pass features_only=True."
        return checkpoint.Advice(text, {"features_only": True})
    if "stem.conv1.conv.weight" in misshapen:
        return checkpoint.Advice.of_channels(given["stem.conv1.conv.weight"].shape[1])
    return checkpoint.Advice("Check that the file is of this variant and complete.")
