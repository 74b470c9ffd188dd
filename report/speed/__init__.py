"""The report on step times: a cost model fitted to a network, compared with timed steps.

It never imports torch.
"""
