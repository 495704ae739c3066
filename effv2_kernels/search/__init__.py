"""The joint search of size and speed: a space of networks, and a supernet that holds the weights of all.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", arXiv 2212.08059, section 3.3. The
search code of the paper was not published; this is written from its text.
"""
