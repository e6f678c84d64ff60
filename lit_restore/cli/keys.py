"""Our own walk over a config's keys: an unknown one is named in full, with the nearest valid one.

The parser's own message for a typo runs to sixty lines and buries the cause.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

import yaml

from lit_restore.cli.gate import is_allowed
from lit_restore.errors import UserError

REFUSED = {
    "trainer.max_steps": "set total_samples, in images",
    "trainer.min_steps": "set total_samples, in images",
    "trainer.max_epochs": "set total_samples, in images",
    "trainer.min_epochs": "set total_samples, in images",
    "trainer.max_time": "set total_samples, in images; a signal stops and saves a run",
    "trainer.accumulate_grad_batches": "it follows from data.global_batch and data.micro_batch",
    "trainer.val_check_interval": "set validation.every, in images",
    "trainer.check_val_every_n_epoch": "set validation.every, in images",
    "trainer.num_sanity_val_steps": "set validation.every, in images",
    "trainer.enable_checkpointing": "checkpoints are always on; see checkpoint.*",
    "trainer.use_distributed_sampler": "positions are dealt to the ranks by data.*",
    "trainer.reload_dataloaders_every_n_epochs": "the whole run is one epoch",
    "trainer.overfit_batches": "use a small data set",
    "trainer.limit_train_batches": "set total_samples, in images",
    "trainer.fast_dev_run": "use -c configs/trainer/debug.yaml",
    "trainer.gradient_clip_val": "set model.clip_norm",
    "trainer.gradient_clip_algorithm": "set model.clip_norm",
    "trainer.log_every_n_steps": "set metrics.every, in images",
    "trainer.logger": "metrics.jsonl is always written; see wandb.*",
    "trainer.default_root_dir": "set run_dir",
    "trainer.enable_progress_bar": "it is always on; lines where there is no terminal",
    "trainer.enable_model_summary": "the summary is always printed",
    "trainer.enable_autolog_hparams": "the configuration is always saved",
    "trainer.barebones": "leave it out",
    "trainer.model_registry": "leave it out",
    "trainer.inference_mode": "leave it out",
    "data.total_samples": "set total_samples at the top level",
    "data.seed": "set seed at the top level",
    "model.seed": "set seed at the top level",
    "seed_everything": "set seed",
    "trust_config": "give --trust_config on the command line, where you have read the config",
    "ckpt_path": "set resume",
    "config": "stack files on the command line, each with -c",
}
"""Options of Lightning's that would fight with ours → what to do instead."""

CALLBACKS = ("ModelSummary", "RichModelSummary")
"""What of Lightning's works beside ours."""

_NO_LOGGER = "metrics.jsonl is always written; see wandb.*"
REFUSED_CALLBACKS = {
    "CSVLogger": _NO_LOGGER,
    "DeviceStatsMonitor": "W&B records the device; see wandb.mode",
    "EarlyStopping": "set total_samples, in images; see checkpoint.keep_best",
    "LearningRateMonitor": "the learning rate is in metrics.jsonl, as lr",
    "ModelCheckpoint": REFUSED["trainer.enable_checkpointing"],
    "RichProgressBar": REFUSED["trainer.enable_progress_bar"],
    "SpikeDetection": "see guard.on_nonfinite and model.clip_norm",
    "TensorBoardLogger": _NO_LOGGER,
    "ThroughputMonitor": "the throughput is in metrics.jsonl, as images_per_second",
    "Timer": REFUSED["trainer.max_time"],
    "TQDMProgressBar": REFUSED["trainer.enable_progress_bar"],
}
"""Callbacks of Lightning's that cannot work: no logger, progress bar or epoch of its own."""

_NOT_KEYS = ("--help", "--config", "--print_config")
_AN_ENTRY = "an entry is {class_path: NAME, init_args: {OPTION: VALUE}}"


class KeyChecker:
    """Knows the valid keys of one command.

    Args:
        keys: dotted keys of the parser's options.
        classes: dotted key of an option that takes a class → short name → class.
        named: dotted key of an option that takes any names → what each name describes.
    """

    def __init__(
        self,
        keys: Iterable[str],
        classes: Mapping[str, Mapping[str, type]],
        named: Mapping[str, type] | None = None,
    ) -> None:
        self.keys = {key for key in keys if not key.endswith(".help")}
        self.classes = classes
        self.named = named or {}
        self.groups = {key[:i] for key in self.keys for i, c in enumerate(key) if c == "."}

    def check(self, tree: Mapping[str, object], where: str | None) -> None:
        """Refuse unknown keys, options of Lightning's that we set, and unknown short names.

        Args:
            tree: a parsed config.
            where: the file it came from.

        Raises:
            UserError: names the key in full and the nearest valid one, or the mend.
        """
        for key, value in self._leaves(tree, "", where):
            self.check_key(key, where)
            owner = next((name for name in self.classes if key.startswith(f"{name}.")), None)
            if owner and where:  # the command line has no such rule
                self._check_form(owner, {key.removeprefix(f"{owner}."): value}, where)
            self.check_value(key, value, where)

    def check_value(self, key: str, value: object, where: str | None = None) -> None:
        """Refuse what is known to be no value of an option; the rest is the parser's affair."""
        if key in self.classes:
            self._check_class(key, value, where)
        if key in self.named and isinstance(value, Mapping):
            for name, options in value.items():
                self._check_named(f"{key}.{name}", options, self.named[key], where)
        if key == "trainer.callbacks" and value is not None:
            for entry in value if isinstance(value, list) else [value]:
                _check_callback(entry, where)

    def check_key(self, key: str, where: str | None = None) -> None:
        """Refuse one dotted key unless it is valid."""
        if key in REFUSED:
            raise UserError(f"{key} is not set by hand: {REFUSED[key]}", where=where)
        if key in self.keys or key in self.groups:
            return
        owner = next((name for name in self.classes if key.startswith(f"{name}.")), None)
        if owner is not None:
            option = key.removeprefix(f"{owner}.").removeprefix("init_args.")
            self._check_option(owner, option, None, where)
            return
        if key.startswith("trainer.callbacks."):
            raise UserError(f"{key} is not an option; {_AN_ENTRY}", where=where)
        group = next((name for name in self.named if key.startswith(f"{name}.")), None)
        if group is not None:
            name, dot, option = key.removeprefix(f"{group}.").partition(".")
            if dot:
                self._check_named(f"{group}.{name}", {option: None}, self.named[group], where)
            return
        if any(key.startswith(f"{known}.") for known in self.keys - self.groups):
            return  # inside a value (a dict): the parser's affair
        raise UserError(f"{key} is not an option{self._nearest(key)}", where=where)

    def _leaves(
        self, tree: Mapping[str, object], prefix: str, where: str | None
    ) -> Iterator[tuple[str, object]]:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            group = key in self.groups and key not in self.classes
            if group and not isinstance(value, Mapping):
                raise UserError(f"{key} expects options (name: value)", where=where)
            if group and isinstance(value, Mapping):
                yield from self._leaves(value, f"{key}.", where)
            else:
                yield key, value

    def _check_class(self, key: str, value: object, where: str | None) -> None:
        name = value.get("class_path") if isinstance(value, Mapping) else value
        if name is None:
            self._check_form(key, value if isinstance(value, Mapping) else {}, where)
            return
        names = self.classes[key]
        short = str(name).rpartition(".")[2]
        if short not in names:
            near = difflib.get_close_matches(short, names, 1)
            mean = f"; did you mean {near[0]}?" if near else ";"
            known = ", ".join(sorted(names))
            raise UserError(f"{key}: there is no {short}{mean} known: {known}", where=where)
        if isinstance(value, Mapping):
            self._check_form(key, value, where)
            options = value.get("init_args") or {}
            for option in options:
                self._check_option(key, str(option), names[short], where)

    def _check_form(self, key: str, value: Mapping[str, object], where: str | None) -> None:
        """A class with its options is class_path and init_args, nothing beside them."""
        for name, options in value.items():
            if name.partition(".")[0] not in ("class_path", "init_args", "dict_kwargs"):
                raise UserError(f"{key}.{name} belongs into {key}.init_args", where=where)
            if name == "init_args" and not isinstance(options, Mapping | None):
                raise UserError(f"{key}.init_args expects options (name: value)", where=where)

    def _check_named(self, key: str, options: object, kind: type, where: str | None) -> None:
        if not isinstance(options, Mapping):
            raise UserError(f"{key} expects options (name: value), got {options}", where=where)
        known = list(inspect.signature(kind).parameters)
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(str(option), known, 1, 0.4)
                mean = f"did you mean {key}.{near[0]}?" if near else f"known: {', '.join(known)}"
                raise UserError(f"{key}.{option} is not an option; {mean}", where=where)

    def _check_option(
        self, owner: str, option: str, chosen: type | None, where: str | None
    ) -> None:
        """An option of a class: of the chosen one, or of any where it is not known here."""
        classes = [chosen] if chosen else list(self.classes[owner].values())
        known = {name for cls in classes for name in inspect.signature(cls).parameters}
        known |= {"class_path", "init_args"}
        first = option.split(".")[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, 1, 0.4)
            mean = f"; did you mean {owner}.{near[0]}?" if near else ""
            raise UserError(f"{owner}.{first} is not an option{mean}", where=where)

    def _nearest(self, key: str) -> str:
        candidates = self.keys - self.groups
        near = difflib.get_close_matches(key, candidates, 1, 0.5)
        if not near:
            last = key.rpartition(".")[2]
            near = [c for c in sorted(candidates) if c.rpartition(".")[2] == last][:1]
        return f"; did you mean {near[0]}?" if near else "; --help lists all"


def _check_callback(entry: object, where: str | None) -> None:
    """Refuse an entry of trainer.callbacks that names no callback, or one that cannot work."""
    name = entry.get("class_path") if isinstance(entry, Mapping) else entry
    if not isinstance(name, str) or (name is entry and not is_allowed(name)):
        raise UserError(f"trainer.callbacks: {entry} is no callback; {_AN_ENTRY}", where=where)
    package, _, short = name.rpartition(".")
    if package and not package.startswith("lightning."):
        return
    if short in REFUSED_CALLBACKS:
        mend = REFUSED_CALLBACKS[short]
        raise UserError(f"trainer.callbacks: {short} does not work here: {mend}", where=where)
    if not package and short not in CALLBACKS:
        near = difflib.get_close_matches(short, CALLBACKS, 1)
        mean = f"; did you mean {near[0]}?" if near else f"; {_AN_ENTRY}"
        raise UserError(f"trainer.callbacks: there is no {short}{mean}", where=where)


def options_given(argv: Sequence[str]) -> Iterator[tuple[str, object]]:
    """The options of a command line, as dotted key and value as YAML reads it."""
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        if not word.startswith("--") or word.partition("=")[0] in _NOT_KEYS:
            continue
        key, equals, value = word[2:].partition("=")
        try:
            yield key.rstrip("+"), yaml.safe_load(value if equals else following)
        except yaml.YAMLError:
            yield key.rstrip("+"), value if equals else following


def refuse_environment(names: Iterable[str]) -> None:
    """Refuse variables from which Lightning would fill options that we leave out."""
    for name in names:
        if name.startswith("PL_TRAINER_"):
            key = f"trainer.{name.removeprefix('PL_TRAINER_').lower()}"
            raise UserError(f"unset it; options are given in a config, as {key}", where=name)
