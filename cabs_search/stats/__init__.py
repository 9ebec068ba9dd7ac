"""Statistics: tests of two candidates, and simultaneous inference on many.

Two kinds of numbers must not be mixed. Values of *items* are paired: two candidates are scored on
the same ones. Values of *runs*, such as the best 20 scores of a search, are what papers report;
neighbours in λ are no independent draws, so an interval of theirs says how alike the top of a
search is, not how well it would do on other items.
"""
