"""Federated methods as recipes of interchangeable parts, a file or folder for each group of conf/.

Read recipe.py first, then base.py.
"""
