"""One small shape of every block, and of its variants, for tests that go through all of them."""

from effv2_kernels import shapes

# The sizes of heads matter to the CPU engine (see test_attention), and to nothing else; small ones are quick.
HEADS = {"heads": 4, "key_dim": 8, "value_dim": 16}

SHAPES = {
    "stem": shapes.stem(16, 9, 14),
    "ffn": shapes.ffn(16, 40, 5, 7),
    "attention": shapes.attention(16, 5, 4, **HEADS),
    "strided attention": shapes.attention(16, 5, 6, stride=2, **HEADS),
    "attention with a resized bias": shapes.attention(16, 5, 6, table=(3, 4), **HEADS),
    "conv_downsample": shapes.conv_downsample(16, 24, 5, 6),
    "attention_downsample": shapes.attention_downsample(16, 24, 5, 6, **HEADS),
    "head": shapes.head(16, 9, 3, 4),
}
