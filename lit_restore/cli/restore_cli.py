"""LightningCLI with our options: what `train.py fit|validate|test|predict` parses and runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_restore.callbacks.assemble import Run
from lit_restore.callbacks.checkpoints import Checkpoints
from lit_restore.callbacks.ema import EMA, EMAProfile
from lit_restore.callbacks.guards import Guards
from lit_restore.callbacks.metrics import Metrics
from lit_restore.callbacks.profile import Profile
from lit_restore.callbacks.samples import SampleGrid
from lit_restore.callbacks.trace import Trace
from lit_restore.callbacks.validation import Validation
from lit_restore.cli.keys import REFUSED, KeyChecker, options_given, refuse_environment
from lit_restore.cli.parser import OneLineParser, one_line, option_keys, refuse_nulls
from lit_restore.cli.refusals import in_full, maker_of
from lit_restore.cli.run_options import WandbOptions
from lit_restore.data import ShardDataModule
from lit_restore.errors import UserError
from lit_restore.io.redact import redact_tree
from lit_restore.ops.selective_scan.dispatch import AUTO, BACKENDS, set_backend
from lit_restore.parallel.apply import Layout
from lit_restore.parallel.precision import check_precision
from lit_restore.parallel.strategy import check_strategy
from lit_restore.training import TrainingModule

_log = logging.getLogger(__name__)

SUBCOMMANDS = ("fit", "validate", "test", "predict")
_SKIPPED = {key.removeprefix("trainer.") for key in REFUSED if key.startswith("trainer.")}
_NEVER = 10**9


class RestoreCLI(LightningCLI):
    """Parse one subcommand's options, build the run, run it.

    Args:
        module: the LightningModule that the config's `task:` names.
        argv: the command line after the program's name.
        trees: (file, parsed config) for each config file, already checked as text.

    Raises:
        UserError: an option is wrong; one line.
    """

    def __init__(
        self,
        module: type[TrainingModule],
        argv: Sequence[str],
        trees: Sequence[tuple[str, dict[str, object]]],
    ) -> None:
        self._wanted = next((word for word in argv if word in SUBCOMMANDS), None)
        self._argv, self._trees, self._networks = list(argv), trees, module.networks
        super().__init__(
            module,
            ShardDataModule,
            save_config_callback=None,
            parser_class=OneLineParser,
            parser_kwargs={"prog": "train.py", "description": "Train, or use what was trained."},
            args=self._argv,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the wanted subcommand's parser is built; each takes half a second."""
        names = (self._wanted,) if self._wanted else SUBCOMMANDS
        loaders = {"train_dataloaders", "val_dataloaders", "dataloaders"}
        handled = {
            "model",
            "datamodule",
            "ckpt_path",
            "weights_only",
            "verbose",
            "return_predictions",
        }
        return dict.fromkeys(names, loaders | handled)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's own options, in place of `seed_everything`."""
        parser.add_argument("--task", type=str, help="What is trained; set in the recipe.")
        parser.add_argument("--run_dir", type=str, default="runs/default", help="The run folder.")
        parser.add_argument("--seed", type=int, default=0, help="Of everything that is drawn.")
        parser.add_argument(
            "--total_samples", type=int, default=100_000, help="Length of the run in images."
        )
        parser.add_argument(
            "--resume",
            type=bool | str,
            default="auto",
            help="auto: go on where there is something to go on from; true: there must be; "
            "false: start afresh; or the path of a checkpoint.",
        )
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="Start a fine-tune from here."
        )
        parser.add_argument(
            "--compile", type=bool, default=False, help="torch.compile the network's blocks."
        )
        parser.add_argument(
            "--activation_checkpointing",
            type=bool,
            default=False,
            help="Compute the blocks' activations again in the backward pass: less memory.",
        )
        parser.add_argument(
            "--scan_backend",
            type=str,
            default=AUTO,
            help="What computes selective scans: auto, or one of " + ", ".join(BACKENDS) + ".",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer (without what we set), module and data."""
        # No sub-configs: a file named inside a config would miss the checks of io.yaml.
        parser.add_class_arguments(
            Trainer, "trainer", fail_untyped=False, instantiate=False, skip=set(_SKIPPED)
        )
        parser.add_class_arguments(self._model_class, "model")
        parser.add_class_arguments(ShardDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks' options, and the values that parts share."""
        parser.add_class_arguments(EMA, "ema")
        parser.add_class_arguments(
            Checkpoints, "checkpoint", skip={"resume", "init_from"}, instantiate=False
        )
        parser.add_class_arguments(Validation, "validation")
        parser.add_class_arguments(Metrics, "metrics")
        parser.add_class_arguments(SampleGrid, "samples")
        parser.add_class_arguments(Guards, "guard")
        parser.add_class_arguments(Trace, "trace")
        parser.add_class_arguments(Profile, "profile")
        parser.add_class_arguments(WandbOptions, "wandb")
        for key in ("model.seed", "data.seed"):
            parser.link_arguments("seed", key)
        parser.link_arguments("total_samples", "data.total_samples")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check all keys by our own walk first, then parse."""
        if self._wanted is not None:
            self._check_keys(self._subcommand_parsers[self._wanted])
        self.config = parser.parse_args(args)
        if self._wanted is not None:
            refuse_nulls(self._subcommand_parsers[self._wanted], self.config[self._wanted])

    def _check_keys(self, parser: LightningArgumentParser) -> None:
        refuse_environment(os.environ)
        checker = KeyChecker(
            option_keys(parser), {"model.net": self._networks}, {"ema.profiles": EMAProfile}
        )
        for where, tree in self._trees:
            checker.check(tree, where)
        for key, value in options_given(self._argv):
            checker.check({key: value}, None)

    def _parse_ckpt_path(self) -> None:
        """Checkpoints are ours to load, not Lightning's."""

    def _set_seed(self) -> None:
        from lightning.fabric.utilities.seed import seed_everything

        seed = self._get(self.config, "seed")
        if not 0 <= seed < 2**32:
            raise UserError(f"{seed} does not lie in [0, 2^32)", where="seed")
        seed_everything(seed, workers=False, verbose=False)

    def instantiate_classes(self) -> None:
        """Build the parts; what Lightning's constructors refuse is one line, our bugs are not."""
        self._choose_scan()
        try:
            super().instantiate_classes()
        except UserError as error:
            raise in_full(error) from error.__cause__
        except (
            ValueError,
            TypeError,
            RuntimeError,
            ImportError,
            MisconfigurationException,
        ) as error:
            maker = maker_of(error)
            if maker is None:
                raise
            raise in_full(UserError(one_line(str(error)), where=maker or None)) from error
        self.model.check_network()

    def _choose_scan(self) -> None:
        try:
            set_backend(self._get(self.config, "scan_backend"))
        except UserError as error:
            raise UserError(error.message, where="scan_backend") from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with what its options mean here, and our callbacks in their order."""
        options = self._get(self.config_init, "trainer")
        check_precision(options)
        check_strategy(options)
        self.run_parts = self._run()
        own = {
            "callbacks": [*(options.get("callbacks") or []), *self.run_parts.callbacks],
            "logger": False,
            "max_epochs": 1,
            "check_val_every_n_epoch": _NEVER,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
            "inference_mode": False,  # tensors made under it cannot be sharded or averaged later
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(self.run_parts.run_dir),
        }
        return Trainer(**{**options, **own})

    def _run(self) -> Run:
        init, subcommand = self.config_init, str(self.subcommand)
        resume = self._get(self.config, "resume")
        run_dir = self._get(self.config, "run_dir")
        if not (run_dir or "").strip():
            raise UserError("is empty; name a folder", where="run_dir")
        checkpoint = Checkpoints(
            **self._get(init, "checkpoint").as_dict(),
            resume=str(resume).lower() if isinstance(resume, bool) else resume,
            init_from=self._get(self.config, "init_from"),
        )
        return Run(
            run_dir=Path(run_dir),
            config=self.resolved(),
            subcommand=subcommand,
            ema=self._get(init, "ema"),
            checkpoints=checkpoint,
            validation=self._get(init, "validation"),
            metrics=self._get(init, "metrics"),
            samples=self._get(init, "samples"),
            guards=self._get(init, "guard"),
            trace=self._get(init, "trace"),
            wandb=self._get(init, "wandb"),
            layout=Layout(
                compile=bool(self._get(self.config, "compile")),
                activation_checkpointing=bool(self._get(self.config, "activation_checkpointing")),
            ),
            profile=self._get(init, "profile"),
        )

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain values, secrets blanked."""
        chosen = self.config[str(self.subcommand)]
        assert isinstance(chosen, Namespace)
        parser = self._parser(self.subcommand)
        text = parser.dump(chosen, skip_none=False, format="json_compact")
        tree = redact_tree(json.loads(text))
        assert isinstance(tree, dict)
        return tree

    def _run_subcommand(self, subcommand: str) -> None:
        """Run on our own data module; a used network is loaded first."""
        module: LightningModule = self.model
        if not isinstance(module, TrainingModule):
            raise UserError("names no training of ours", where="task")
        self.run_parts.start(module)
        try:
            with self.run_parts.watch.over(self.trainer):
                if subcommand == "fit":
                    self._fit(module)
                else:
                    self.run_parts.load_for_use(module)
                    options = {"return_predictions": False} if subcommand == "predict" else {}
                    getattr(self.trainer, subcommand)(module, datamodule=self.datamodule, **options)
                    self.run_parts.tell_scores(module)
        except UserError:
            self.run_parts.was_refused = True
            raise
        finally:
            self.run_parts.close(self.datamodule)

    def _fit(self, module: TrainingModule) -> None:
        try:
            self.trainer.fit(module, datamodule=self.datamodule)
        except BaseException:
            # Before it is told how the run ended: a save that is behind would say "running" again.
            self.run_parts.checkpoints.close()
            raise
