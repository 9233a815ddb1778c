"""Federated methods: each is a recipe of interchangeable parts, such as a rule, a plan and a selection.

Each kind of part has a file or folder here and a folder of the same name in conf/. Read recipe.py first, then base.py.
"""
