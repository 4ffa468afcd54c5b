"""The check that the public names of a stage are fields or hooks that some contract declares."""

from typing import Any, ClassVar, get_origin

from storage.names import near


def check_names(cls: type) -> None:
    """Refuses a stage with a public name that no contract knows, or without a version.

    Raises:
        TypeError: it has such a name, or lacks `version`.
    """
    known = {name for base in cls.__mro__[1:-1] for name in _names_of(base)}
    fields = {name for name, kind in cls.__annotations__.items() if not _is_class_var(kind)}
    for name in _names_of(cls) - fields - known:
        raise TypeError(
            f"{cls.__module__}.{cls.__name__}: found {name}, which no contract knows"
            f"{near(name, known)}, expected "
            "a field, a hook of stages.stage.Stage, or a name that begins with an underscore. "
            "Rename it."
        )
    if not hasattr(cls, "version"):
        raise TypeError(
            f"{cls.__module__}.{cls.__name__}: found no version, expected one. Add "
            "`version: ClassVar[int] = 1`."
        )


def _is_class_var(kind: Any) -> bool:
    """Whether an annotation is a `ClassVar`."""
    origin: Any = get_origin(kind)
    return origin is ClassVar


def _names_of(cls: type) -> set[str]:
    """Public names that a class declares itself."""
    return {name for name in {*vars(cls), *vars(cls).get("__annotations__", {})} if name[0] != "_"}
