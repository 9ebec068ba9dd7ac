"""The search: Optuna proposes, Ray workers score, the record keeps. The only importer of ray and optuna.

``space`` turns a study's dimensions into recipes, ``study`` decides what is done next and survives a crash,
``worker`` scores candidates, ``driver`` runs them on Ray Tune.
"""
