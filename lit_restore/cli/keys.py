"""Our own walk over a config's keys: an unknown one is named in full, with the nearest valid one.

The parser's own message for a typo runs to sixty lines and buries the cause.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping

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


class KeyChecker:
    """Knows the valid keys of one command.

    Args:
        keys: dotted keys of the parser's options.
        classes: dotted key of an option that takes a class → short name → class.
        where: named when an option on the command line is wrong.
    """

    def __init__(self, keys: Iterable[str], classes: Mapping[str, Mapping[str, type]]) -> None:
        self.keys = {key for key in keys if not key.endswith(".help")}
        self.classes = classes
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
            if key in self.classes:
                self._check_class(key, value, where)

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
            return
        names = self.classes[key]
        short = str(name).rpartition(".")[2]
        if short not in names:
            near = difflib.get_close_matches(short, names, 1)
            mean = f"; did you mean {near[0]}?" if near else ";"
            known = ", ".join(sorted(names))
            raise UserError(f"{key}: there is no {short}{mean} known: {known}", where=where)
        options = value.get("init_args") if isinstance(value, Mapping) else None
        if isinstance(options, Mapping):
            for option in options:
                self._check_option(key, str(option), names[short], where)

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
