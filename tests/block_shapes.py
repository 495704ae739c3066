"""One small shape of every block, and of its variants, for tests that go through all of them.

SHAPES has every block, whatever backends have kernels for it; OPTIONS one shape for each option and each part
that may be absent. A backend runs a shape or refuses it by name (``backends.require_kernels``).
"""

from effv2_kernels import shapes

# The sizes of heads matter to the CPU engine (see test_attention), and to nothing else; small ones are quick.
HEADS = {"heads": 4, "key_dim": 8, "value_dim": 16}

SHAPES = {
    "stem": shapes.stem(16, 9, 14),
    "ffn": shapes.ffn(16, 40, 5, 7),
    "attention": shapes.attention(16, 5, 4, **HEADS),
    "strided attention": shapes.attention(16, 5, 6, stride=2, **HEADS),
    "attention with a resized bias": shapes.attention(16, 5, 6, table=(3, 4), **HEADS),
    "conv": shapes.conv(16, 24, 5, 6, stride=2),
    "attention_downsample": shapes.attention_downsample(16, 24, 5, 6, **HEADS),
    "head": shapes.head(16, 9, 3, 4),
}

NO_HEADS_TALK = ("mix1_weight", "mix2")

OPTIONS = {
    "stem with relu": shapes.stem(16, 9, 14, activation="relu"),
    "ffn with relu6": shapes.ffn(16, 40, 5, 7, activation="relu6"),
    "ffn with silu, 5x5": shapes.ffn(8, 24, 6, 5, kernel=5, activation="silu"),
    "ffn with hardswish, 7x7": shapes.ffn(8, 16, 3, 9, kernel=7, activation="hardswish"),
    "ffn without activation": shapes.ffn(8, 16, 3, 4, activation="none"),
    "ffn without expansion": shapes.ffn(16, 16, 5, 7, without=("fc1",)),
    "ffn without residual": shapes.ffn(16, 40, 5, 7, residual=0),
    "strided ffn": shapes.ffn(16, 40, 5, 8, out=24, stride=2, residual=0, activation="relu6"),
    "strided ffn without expansion, 5x5": shapes.ffn(
        8, 8, 7, 6, out=16, kernel=5, stride=2, residual=0, activation="relu6", without=("fc1",)
    ),
    "conv 1x1": shapes.conv(16, 24, 5, 6, kernel=1),
    "conv 1x1 with relu6": shapes.conv(8, 40, 3, 5, kernel=1, activation="relu6"),
    "conv 3x3": shapes.conv(8, 16, 5, 6),
    "strided conv with relu6": shapes.conv(3, 16, 9, 6, stride=2, activation="relu6"),
    "strided conv 7x7": shapes.conv(3, 8, 9, 10, kernel=7, stride=2),
    "attention with silu": shapes.attention(16, 5, 4, **HEADS, activation="silu"),
    "attention without talking heads": shapes.attention(16, 5, 4, **HEADS, without=NO_HEADS_TALK),
    "attention without bias": shapes.attention(16, 5, 4, **HEADS, without=("bias",)),
    "attention without local": shapes.attention(16, 5, 4, **HEADS, without=("local",)),
    "strided attention of products alone": shapes.attention(
        16, 5, 6, stride=2, **HEADS, activation="none", without=(*NO_HEADS_TALK, "bias", "local")
    ),
    "attention_downsample with relu": shapes.attention_downsample(16, 24, 5, 6, **HEADS, activation="relu"),
    "attention_downsample with a resized bias": shapes.attention_downsample(
        16, 24, 5, 6, table=(3, 4), **HEADS
    ),
}


def of_kind(kind):
    """The shapes of one block in SHAPES."""
    return [shape for shape in SHAPES.values() if shape.kind == kind]
