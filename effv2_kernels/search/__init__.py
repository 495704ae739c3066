"""The joint search of size and speed: a space of networks, and a supernet that holds the weights of all.

``space`` is what a search chooses from, ``supernet`` has the weights, ``latency`` says what networks take
on a device, ``evaluation`` how accurate they are on ``images``. A ``search.Problem`` puts these together
with ``budgets``, ``cost`` and ``mes``; each of ``methods`` solves it, step by step.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", arXiv 2212.08059, section 3.3. The
search code of the paper was not published; this is written from its text.
"""
