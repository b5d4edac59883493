"""Reading a config: `configs/dit.py:tiny` and what the command line sets in it, as ml_collections' flags do.

A value takes the type of the one it replaces. Every mistake is an InputError of one sentence that names the key, and
the nearest one that exists.
"""

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from sora_jax.errors import InputError

KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple, such as 1,2,2"}


def read(spec: str, settings: Sequence[str] = ()) -> ConfigDict:
    """The config of "FILE.py[:VARIANT]" with "key.sub=value" settings, locked.

    Raises InputError: no such file or variant, no such key, a value of another type.
    """
    path, _, variant = spec.partition(":")
    if not Path(path).is_file():
        raise InputError(f"there is no config {path}; give --config FILE.py or FILE.py:VARIANT")
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("config_file", path))
    try:
        module.__spec__.loader.exec_module(module)
        get_config = module.get_config
    except (AttributeError, SyntaxError) as error:
        raise InputError(f"{path} is not a config: it must be Python with a get_config() ({error})") from None
    try:
        config = get_config(variant) if variant else get_config()
    except ValueError as error:
        raise InputError(str(error)) from None
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
        assign(config, key, text)
    return config.lock()


def assign(config: ConfigDict, key: str, text: str) -> None:
    """Sets one value by its dotted key. Raises InputError as `read` does."""
    *groups, name = key.split(".")
    at = config
    for group in groups:
        at = at[group] if isinstance(at, ConfigDict) and group in at else None
    if not isinstance(at, ConfigDict) or name not in at:
        near = difflib.get_close_matches(key, leaves(config), 1, 0.0)[0]
        raise InputError(f"the config has no key {key}; did you mean {near}?")
    old = at[name]
    if isinstance(old, ConfigDict):
        raise InputError(f"{key} is a group of keys: set one of {', '.join(f'{key}.{inner}' for inner in old)}")
    with at.unlocked():
        at[name] = value(key, text, old)


def value(key: str, text: str, old):
    """The text as a value of the type of `old`. Raises InputError when it is not one."""
    if isinstance(old, str):
        return text
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, int | float):
            return type(old)(text)
        new = ast.literal_eval(text)
        if isinstance(old, tuple | list):
            return tuple(new)
    except (ValueError, KeyError, TypeError, SyntaxError):
        kind = KINDS.get(type(old), f"like {old!r}")
        raise InputError(f"{key} must be {kind}, not {text!r} (it is {old!r} in the config)") from None
    return new


def leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    """All dotted keys that hold values."""
    keys = []
    for name, inner in config.items():
        keys += leaves(inner, f"{prefix}{name}.") if isinstance(inner, ConfigDict) else [prefix + name]
    return keys
