"""Puts the recipes and the data of the checkout into the wheel, as `rlhf/share`; pyproject.toml holds all else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("recipes", "data")
"""Folders of the checkout that `rlhf.shipped` looks for. An editable install reads them where they are."""


class BuildWithShared(build_py):
    """Builds the package with these folders in it."""

    def run(self) -> None:
        """Copy them after the modules."""
        super().run()
        for name in () if self.editable_mode else SHARED:
            target = Path(self.build_lib, "rlhf/share", name)
            shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithShared})
