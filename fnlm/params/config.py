"""What every family's `Config` shares: reading and writing the published config.json files."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

__all__ = ["BaseConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """A frozen description of an architecture; subclasses add the fields of their config.json.

    Keys of a file that are not fields are kept, as JSON text, in `extra`, and written back by
    `to_dict`; they describe no arithmetic, so configs that differ only there are equal.
    """

    extra: str = dataclasses.field(default="{}", compare=False)
    aliases: ClassVar[Mapping[str, str]] = {}  # older names of fields, read where a file lacks them

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a config from the content of a config.json."""
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        for old, name in cls.aliases.items():
            if old in values and name not in values:
                values = {**values, name: values[old]}
                if old not in names:
                    del values[old]
        known = {name: value for name, value in values.items() if name in names}
        extra = {name: value for name, value in values.items() if name not in names}
        return cls(**known, extra=json.dumps(extra, sort_keys=True))

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """Read a config.json.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a JSON object, or a field is invalid.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the unknown keys of the file the config was read from."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.loads(fields.pop("extra")) | fields

    def to_json_string(self) -> str:
        """Return `to_dict()` as indented JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | Path) -> None:
        """Write `to_json_string()` to a file."""
        Path(path).write_text(self.to_json_string(), encoding="utf-8")
