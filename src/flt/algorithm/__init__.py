"""Federated methods. A method is a recipe of interchangeable parts: a rule, a plan, a selection and others.

Each kind of part has a file or folder here and a folder of the same name in conf/. Read recipe.py first, then base.py.
"""
