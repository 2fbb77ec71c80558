"""Stand-ins for packages that other packages import and do not use."""

import contextlib
import importlib.abc
import importlib.machinery
import sys
import types


@contextlib.contextmanager
def stand_ins(*packages: str):
    """Empty modules for packages that are imported but not used, while they are not installed."""

    class Anything:
        """Classes to derive from, functions to decorate with, and modules that have them."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {}) if name[0].isupper() else Anything()

        def __call__(self, *args, **kwargs):
            return lambda target: target

    class Nothing(Anything, types.ModuleType):
        pass

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in packages:
                return importlib.machinery.ModuleSpec(name, self, is_package=True)
            return None

        def create_module(self, spec):
            return Nothing(spec.name)

        def exec_module(self, module):
            pass

    finder = Finder()
    sys.meta_path.append(finder)  # after the real ones
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, Nothing)]:
            del sys.modules[name]
