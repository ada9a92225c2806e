"""Training recipes, one file per model or method, on one shared loop; nodes and `python -m longreel.training` run the
same code.
"""
