from setuptools import find_packages, setup

# setup.cfg can search one folder for packages, and conf/ is outside src/. The wheel contains it as flt/conf.
setup(packages=[*find_packages("src"), "flt.conf"])
