"""Data: clean samples, and the views and masks made of them on the device.

Every module of this package is imported, so that a new file's classes are known to the command line and to the tests
without an edit here, and every public class is a name of the package: ``from datamodules import MNIST``.
"""

import importlib
import inspect
import pkgutil

__all__: list[str] = []

for _info in pkgutil.walk_packages(__path__, f"{__name__}."):
    if _info.name.endswith(".pack"):  # a command, which Python wants to import itself
        continue
    _module = importlib.import_module(_info.name)
    for _name, _class in inspect.getmembers(_module, inspect.isclass):
        if _class.__module__ == _module.__name__ and not _name.startswith("_"):
            globals()[_name] = _class
            __all__.append(_name)

__all__.sort()
