"""From a run's config to live objects: the model, the optimiser, the compressors."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from algorithms import Collectives, Compressor, DistributedOptimizer
from algorithms.registry import algorithms, compressors, settings
from harness import models
from harness.partition import shard_size
from harness.seeds import derive_seed
from harness.spec import ModelSpec, RunConfig, SpecError
from harness.tasks.task import Task, configured_task, split_sizes

_GLOBAL_GENERATOR = threading.Lock()
"""Whoever seeds the global generator holds it: workers that are threads have one between them."""


def build_model(spec: ModelSpec, task: Task, seed: int, device: torch.device) -> nn.Module:
    """A model whose initial parameters depend on the seed alone; the global generator is left as it was.

    Raises:
        SpecError: unknown model or options.
    """
    known = sorted(module.name for module in pkgutil.iter_modules([str(Path(models.__file__).parent)]))
    if spec.name not in known:
        raise SpecError(f"unknown model {spec.name!r}; the models are {', '.join(known)}")
    build = importlib.import_module(f"harness.models.{spec.name}").build
    _check_keys(f"model {spec.name}", spec.options, list(inspect.signature(build).parameters)[2:])
    # nn.Module draws initial values from the global generator and offers no other.
    place = torch.device("cpu" if device.type != "meta" else "meta")
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]), place:
        torch.manual_seed(derive_seed(seed, "init"))
        try:
            model: nn.Module = build(task.input_shape, task.num_classes, **spec.options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpecError(f"model {spec.name}: {error}") from None
    return model.to(device)


def build_optimizer(
    config: RunConfig, model: nn.Module, collectives: Collectives | None, num_steps: int
) -> DistributedOptimizer:
    """The run's optimiser; on a meta model this is how a plan checks settings and counts bits.

    Raises:
        SpecError: unknown algorithm, setting or compressor, or values that it cannot take.
    """
    known = algorithms()
    if config.algorithm not in known:
        raise SpecError(f"unknown algorithm {config.algorithm!r}; the algorithms are {', '.join(known)}")
    algorithm = known[config.algorithm]
    given = _settings(algorithm, config.settings, num_steps)
    try:
        return algorithm(
            model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            collectives=collectives,
            seed=derive_seed(config.seed, "compression"),
            wire=torch.float16 if config.wire == "fp16" else None,
            **given,
        )
    except ValueError as error:
        raise SpecError(str(error)) from None


def _settings(algorithm: type[DistributedOptimizer], table: dict[str, Any], num_steps: int) -> dict[str, Any]:
    declared = settings(algorithm)
    _check_keys(f"algorithm {algorithm.name}", table, list(declared))
    missing = [key for key, (_, required) in declared.items() if required and key not in table]
    if missing:
        raise SpecError(f"algorithm {algorithm.name} needs the setting {missing[0]!r}")
    return {key: _value(algorithm.name, key, declared[key][0], value, num_steps) for key, value in table.items()}


def _value(algorithm: str, key: str, declared: Any, value: Any, num_steps: int) -> Any:
    if isinstance(declared, type) and issubclass(declared, Compressor):
        compressor = build_compressor(f"{algorithm}: {key}", value)
        if not isinstance(compressor, declared):
            takes = ", ".join(name for name, each in compressors().items() if issubclass(each, declared))
            raise SpecError(f"{algorithm}: {key} cannot be {compressor.kind!r}; it takes {takes}")
        return compressor
    if value == "end" and key.endswith("_interval"):
        return num_steps
    if type(value) is not declared:
        raise SpecError(f"{algorithm}: {key} must be of type {declared.__name__}, not {value!r}")
    return value


def build_compressor(where: str, table: Any) -> Compressor:
    """A compressor from its table in a spec, for instance {kind = "block", ratio = 512}.

    Raises:
        SpecError: unknown kind or key, or a value out of range.
    """
    known = compressors()
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str) or table["kind"] not in known:
        raise SpecError(f"{where}: unknown compressor {table!r}; give a table whose kind is one of {', '.join(known)}")
    kind = known[table["kind"]]
    options = {key: value for key, value in table.items() if key != "kind"}
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _check_keys(f"{where}: compressor {kind.kind}", options, list(fields))
    for key, value in options.items():
        number = (int,) if str(fields[key].type).startswith("int") else (int, float)
        if isinstance(value, bool) or not isinstance(value, number):
            raise SpecError(
                f"{where}: {key} of compressor {kind.kind} must be of type {fields[key].type}, not {value!r}"
            )
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: {error}") from None


def _check_keys(where: str, given: dict[str, Any], known: list[str]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise SpecError(f"{where} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}")


def num_steps_of(config: RunConfig) -> tuple[int, int]:
    """Steps per epoch, and in all.

    Raises:
        SpecError: the workers' batches need more samples than there are.
    """
    num_train, _ = split_sizes(configured_task(config.task), config.task)
    per_epoch = shard_size(config.partition, num_train, config.num_workers) // config.batch_size
    if per_epoch == 0:
        more = " or shards_per_worker" if config.partition.kind == "class_shards" else ""
        raise SpecError(
            f"{config.num_workers} workers x {config.batch_size} samples are more than the {num_train} training "
            f"samples; lower num_workers or batch_size{more}"
        )
    return per_epoch, per_epoch * config.num_epochs
