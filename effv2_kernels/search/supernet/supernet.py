"""A network that holds the weights of every subnet of a search space, and runs one of them at a time.

The space and how it is trained: Li et al., arXiv 2212.08059, section 3.3; the paper's code was not published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.families.efficientformer_v2.architecture import Architecture
from effv2_kernels.families.efficientformer_v2.layers import dropped
from effv2_kernels.families.efficientformer_v2.model import (
    BlockLayer,
    EfficientFormerV2,
    StageLayer,
    classify,
)
from effv2_kernels.search.space.space import SearchSpace
from effv2_kernels.search.supernet import stretch
from effv2_kernels.search.supernet.elastic import ElasticLinear, ElasticNorm

_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)")


class Supernet(nn.Module):
    """The largest network of a space, of which ``forward`` runs the selected subnet: at first the whole.

    A subnet has the first channels of every layer, and BatchNorms that are those of its widths alone (see
    ``elastic`` and ``stretch``). Of a stage it keeps the first blocks without attention and the last ones
    with it (see ``kept_blocks``).

    num_classes, distillation, layer_scale_init: as of ``EfficientFormerV2``. drop_path_rate: in training, of
    the last block; that of the others rises to it from 0, linearly over all blocks. It makes the network bear
    that blocks are missing.

    Input (N, space.in_channels, *space.img_size) in the dtype of the weights; output (N, num_classes). Raises
    InputError for another rank or channel count, ResolutionError for images of another size.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        num_classes: int = 1000,
        distillation: bool = True,
        layer_scale_init: float | None = 1e-5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= drop_path_rate < 1:
            raise ModelError(
                f"a supernet needs num_classes of at least 1 and a drop_path_rate of at least 0 and below 1; "
                f"got num_classes={num_classes}, drop_path_rate={drop_path_rate}."
            )
        self.space = space
        self.num_classes = num_classes
        self.distillation = distillation
        self.layer_scale_init = layer_scale_init
        self.drop_path_rate = drop_path_rate
        self.distilled_training = False
        whole = self._ordinary(space.largest())
        self.stem, self.stages = whole.stem, whole.stages
        stretch.stem(self.stem, space.stages[0])
        for i, choices in enumerate(space.stages):
            stretch.stage(cast(StageLayer, self.stages[i]), i, space.stages[max(0, i - 1)], choices)
        self.norm = stretch.norm(space.stages[3], 3)
        self.head = ElasticLinear(cast(nn.Linear, whole.head))
        if distillation:
            self.head_dist = ElasticLinear(cast(nn.Linear, whole.head_dist))
        self.select(space.largest())

    def _ordinary(self, architecture: Architecture) -> EfficientFormerV2:
        return EfficientFormerV2(
            architecture,
            img_size=self.space.img_size,
            in_channels=self.space.in_channels,
            num_classes=self.num_classes,
            distillation=self.distillation,
            layer_scale_init=self.layer_scale_init,
        )

    def select(self, architecture: Architecture) -> None:
        """Run this subnet from now on. Raises ModelError where the space has none such."""
        chosen = self.space.check(architecture)
        for module in self.modules():
            if isinstance(module, ElasticNorm) and module.stage is not None:
                module.select(stretch.width_key(chosen.widths[module.stage]))
        for stage, (width, ratios) in enumerate(zip(chosen.widths, chosen.block_ratios(), strict=True)):
            for index, ratio in zip(kept_blocks(self.space, chosen, stage), ratios, strict=True):
                mlp = self._block(stage, index).mlp
                for layer in (mlp.fc1, mlp.mid):
                    cast(ElasticNorm, layer.bn).select(stretch.hidden_key(width, ratio))
        self.selected = chosen

    @contextmanager
    def selecting(self, architecture: Architecture) -> Iterator[None]:
        """Run this subnet within it, and afterwards the one before. Raises ModelError as ``select`` does."""
        before = self.selected
        self.select(architecture)
        try:
            yield
        finally:
            self.select(before)

    def set_distilled_training(self, enable: bool = True) -> None:
        """As of timm's models: in training ``forward`` then returns both classifiers' logits, unaveraged.

        Raises ModelError for a supernet without the second one.
        """
        if enable and not self.distillation:
            raise ModelError("distillation trains the second classifier: make the supernet with it.")
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        """The parameters without weight decay, for timm's optimisers: the attention biases, as published."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if x.ndim != 4 or x.shape[1] != self.space.in_channels:
            raise InputError(
                f"the supernet takes images (N, {self.space.in_channels}, H, W), but got {tuple(x.shape)}."
            )
        x = self.stem(x)
        attention = self.selected.late_attention()
        step = self.drop_path_rate / max(1, sum(self.space.largest().depths) - 1)
        before = 0  # blocks of the stages before
        for stage, choices in enumerate(self.space.stages):
            kept = kept_blocks(self.space, self.selected, stage)
            attending = kept[len(kept) - attention[stage - 2] :] if stage >= 2 else ()
            x = cast(StageLayer, self.stages[stage]).downsample(x)
            for index in kept:
                block, rate = self._block(stage, index), step * (before + index)
                if index in attending:
                    assert block.token_mixer is not None
                    assert block.ls1 is not None
                    x = x + self._dropped(block.ls1(block.token_mixer(x)), rate)
                x = x + self._dropped(block.ls2(block.mlp(x)), rate)
            before += choices.depths[-1]
        if self.training and self.distilled_training:
            pooled = self.norm(x).mean(dim=(2, 3))
            return self.head(pooled), self.head_dist(pooled)
        return classify(x, self.norm, [self.head, self.head_dist] if self.distillation else [self.head])

    def _dropped(self, branch: Tensor, rate: float) -> Tensor:
        return dropped(branch, rate) if self.training and rate else branch

    def _block(self, stage: int, index: int) -> BlockLayer:
        return cast(BlockLayer, cast(StageLayer, self.stages[stage]).blocks[index])

    def shared_names(self, architecture: Architecture) -> dict[str, str]:
        """What the supernet calls a subnet's parameters and buffers, by their names in the ordinary model.

        Raises ModelError where the space has no such subnet.
        """
        return self._shared_names(architecture, self._shapes(architecture))

    def _shapes(self, architecture: Architecture) -> dict[str, torch.Size]:
        """Of the ordinary model's parameters and buffers."""
        with torch.device("meta"):
            return {name: t.shape for name, t in self._ordinary(architecture).state_dict().items()}

    def _shared_names(self, architecture: Architecture, names: Iterable[str]) -> dict[str, str]:
        with self.selecting(architecture):
            return {name: self._shared_name(name) for name in names}

    def _shared_name(self, name: str) -> str:
        """Of the selected subnet."""
        module, _, tensor = name.rpartition(".")
        block = _BLOCK.match(module)
        if block is not None:
            stage, index = int(block[1]), int(block[2])
            kept = kept_blocks(self.space, self.selected, stage)
            module = f"stages.{stage}.blocks.{kept[index]}{module[block.end() :]}"
        norm = self.get_submodule(module)
        return f"{module}.{norm.key}.{tensor}" if isinstance(norm, ElasticNorm) else f"{module}.{tensor}"

    def shared(self, architecture: Architecture) -> dict[str, Tensor]:
        """Views of the supernet that are a subnet's parameters and buffers, by the ordinary model's names.

        Raises ModelError where the space has no such subnet.
        """
        mine = self.state_dict(keep_vars=True)
        shapes = self._shapes(architecture)
        names = self._shared_names(architecture, shapes)
        return {name: mine[names[name]][tuple(map(slice, shape))] for name, shape in shapes.items()}

    def subnet(self, architecture: Architecture | None = None) -> EfficientFormerV2:
        """A subnet, by default the selected one, as an ordinary model with weights of its own, in eval mode.

        Its output is the supernet's in that configuration. Raises ModelError where the space has none such.
        """
        chosen = self.selected if architecture is None else self.space.check(architecture)
        weights = self.shared(chosen)
        with torch.device("meta"):
            model = self._ordinary(chosen)
        model.load_state_dict({name: t.detach().clone() for name, t in weights.items()}, assign=True)
        return model.eval()


def kept_blocks(space: SearchSpace, architecture: Architecture, stage: int) -> tuple[int, ...]:
    """Which blocks of the supernet's stage (0 to 3) a subnet has, in order.

    Of D blocks, a subnet of d blocks, a of them with attention, keeps the first d - a, without the attention
    that the supernet may have there, and the last a, with it.
    """
    whole, depth = space.stages[stage].depths[-1], architecture.depths[stage]
    attending = architecture.late_attention()[stage - 2] if stage >= 2 else 0
    return (*range(depth - attending), *range(whole - attending, whole))
