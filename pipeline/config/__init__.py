"""The configuration: schema, files, derived plan."""

from pipeline.config.describe import as_tree, describe, digest, flat, keys, to_yaml
from pipeline.config.load import all_keys, load, loads
from pipeline.config.plan import Plan, check_world, make_plan
from pipeline.config.schema import Config

__all__ = [
    "Config",
    "Plan",
    "all_keys",
    "as_tree",
    "check_world",
    "describe",
    "digest",
    "flat",
    "keys",
    "load",
    "loads",
    "make_plan",
    "to_yaml",
]
