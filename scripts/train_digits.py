"""Train the small network that reads handwritten digits, and write effv2_kernels/data/digits.safetensors.

    python scripts/train_digits.py            # a few minutes on two cores
    python scripts/train_digits.py --epochs 2 --output /tmp/digits.safetensors

The split, the seed and the number of threads are fixed; the last digits of the weights depend on the
machine and on Torch.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save

from effv2_kernels.data import DIGITS_FILE, DIGITS_SIZE, digits_split
from effv2_kernels.reference import Architecture, EfficientFormerV2

SIZES = {
    "widths": [16, 24, 40, 48],
    "depths": [1, 1, 2, 2],
    "ratios": [4, 4, 4, 3],
    "attention_blocks": [1, 1],
}
BATCH = 64
SEED = 7


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 10 % and moved by up to a twelfth."""
    n = len(images)

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    affine = torch.stack([cos, -sin, uniform(1 / 6), sin, cos, uniform(1 / 6)], 1).view(n, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(model: EfficientFormerV2, images: torch.Tensor, classes: torch.Tensor, epochs: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for first in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[first : first + BATCH]
            logits = model(augmented(images[chosen], generator))
            loss = F.cross_entropy(logits, classes[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / (len(order) // BATCH):.3f}", flush=True)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--output", type=Path, default=DIGITS_FILE)
    args = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums in one order: the result does not depend on the number of cores
    (images, classes), (test_images, test_classes) = digits_split()
    architecture = Architecture(
        tuple(SIZES["widths"]),
        tuple(SIZES["depths"]),
        tuple(SIZES["ratios"]),
        tuple(SIZES["attention_blocks"]),
    )
    # Published models start at 1e-5 and train for hundreds of epochs; this one cannot wait.
    model = EfficientFormerV2(
        architecture, img_size=DIGITS_SIZE, in_channels=1, num_classes=10, layer_scale_init=0.1
    )
    train(model, images, classes, args.epochs)
    with torch.inference_mode():
        right = int((model(test_images).argmax(1) == test_classes).sum())
    print(f"accuracy on {len(test_classes)} test images: {right / len(test_classes):.2%} ({right} right)")
    metadata = {
        "architecture": SIZES,
        "img_size": DIGITS_SIZE,
        "right": right,
        "test_images": len(test_classes),
        "epochs": args.epochs,
        "seed": SEED,
    }
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    args.output.write_bytes(save(tensors, metadata={"digits": json.dumps(metadata)}))
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
