"""The report on step times: a cost model fitted to a network, set beside timed steps.

It never imports torch.
"""
