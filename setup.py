from setuptools import find_packages, setup

# setup.cfg can name one root to search, and conf/ stands outside src/: the wheel carries it as flt.conf.
setup(packages=[*find_packages("src"), "flt.conf"])
