"""A network on a GPU: what does not depend on who made the kernels.

``kernels`` says what a backend offers for blocks, and ``launch`` what each of its launches does: run, and be
compiled with one of its tiles. ``plan`` makes the launches of a network for one size of its input, ``memory``
lays out their buffers, and ``engine`` keeps plans and their CUDA graphs (``graph``). ``tuning`` chooses tiles
by measuring (``timing``).

Nothing here imports a backend but by its name, when a model asks for it.
"""
