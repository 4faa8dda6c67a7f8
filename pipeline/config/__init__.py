"""The configuration: schema, files, derived plan."""

from pipeline.config.describe import as_tree, describe, digest, flat, keys, to_yaml
from pipeline.config.fields import Kind
from pipeline.config.load import all_keys, load, loads
from pipeline.config.meaning import kind
from pipeline.config.plan import Plan, check_world, make_plan
from pipeline.config.schema import Config

__all__ = [
    "Config",
    "Kind",
    "Plan",
    "all_keys",
    "as_tree",
    "check_world",
    "describe",
    "digest",
    "flat",
    "keys",
    "kind",
    "load",
    "loads",
    "make_plan",
    "to_yaml",
]
