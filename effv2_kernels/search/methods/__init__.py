"""Ways to search: the published greedy slimming, and two checks of it. Each takes a Problem."""
