"""Answers to readers' questions: Markdown that people write, with numbers from the records.

pages/ has the texts. A placeholder in them, as {{ gap("resnet_regime", "powersgd") }}, calls a query:
a method of `scores.Scores`, `times.Times` or `search.Search`. `build` puts the numbers in.
"""
