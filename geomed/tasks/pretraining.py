"""Pre-training: a backbone goes on learning from images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from geomed.adapters.adapter import Adapter, adapted_modules, base_state
from geomed.adapters.counts import trainable_table
from geomed.adapters.sharding import shard
from geomed.backbones.backbone import Backbone, weights_hash
from geomed.backbones.vit import ViT
from geomed.pixels import Pixels
from geomed.tasks.collapse import Collapse, Watch
from geomed.tasks.monitor import Monitor
from geomed.tasks.objective import LearningGroup, Objective, Views
from geomed.tasks.optimisation import Optimisation, steps_of
from geomed.tasks.task import BaseWeights, adapt, load_base
from geomed.tasks.teacher import Teacher, averages

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


class Pretraining(lightning.LightningModule):
    """A ViT, a self-supervised objective, and what of the ViT goes on training.

    With `ExPLoRA` as the adapter this is Khanna, Irgau, Lobell and Ermon, ICML 2025: weights that were pre-trained
    elsewhere go on with the same objective on images of a new domain, a few per cent of them training. Without an
    adapter all of them do.

    A batch is a dict: ``global_crops`` [B, G, C, S, S] with ``global_valid`` [B, G, S, S], likewise ``local_crops``; of
    the monitor ``values`` with ``labels`` or ``label``. Every random choice of a step follows from seed, epoch, batch
    and process, so an interrupted run goes on bit by bit as it would have.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        objective: Objective,
        adapter: Adapter | str | list[Adapter | str] | None = None,
        weights: str | None = None,
        head_warmup: float = 0.0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        collapse: Collapse | None = Collapse(),  # noqa: B008  (likewise)
        seed: int = 0,
    ) -> None:
        """Build the network, load its base, attach the adapter, make the objective's heads.

        Args:
            backbone: a ViT.
            objective: what is learned.
            adapter: what trains in the frozen backbone: one or several, in order; a path stands for an adapter file.
                None trains the whole backbone.
            weights: what to start from: a checkpoint, or ``backbone.safetensors`` of an earlier pre-training; None
                starts from the backbone's own weights.
            head_warmup: share of all steps in which the objective's heads or decoder learn alone: made anew, they
                would otherwise drag a good backbone away.
            optimisation: learning rate and its course. Vectors (norms, biases, tokens) have no weight decay.
            collapse: when to stop because all images become alike; None: never.
            seed: of masks and all else that is random in a step.

        Raises:
            ValueError: the backbone is no ViT, weights or adapters do not fit, or an adapter cannot be folded in.
        """
        super().__init__()
        if not isinstance(backbone, ViT):
            raise ValueError(  # noqa: TRY004  (the project raises ValueError for every broken rule)
                f"pre-training is of a ViT, which reads single images, not of a {type(backbone).__name__}; take ViT"
            )
        if not 0 <= head_warmup < 1:
            raise ValueError(f"head_warmup is a share of all steps from 0 to below 1, not {head_warmup}; correct it")
        self.backbone = backbone
        nothing = nn.Identity()
        if weights is not None:
            load_base(backbone, nothing, BaseWeights(path=weights, head=False))
        wanted = [] if adapter is None else adapter if isinstance(adapter, list) else [adapter]
        self.adapters = adapt(backbone, nothing, wanted)
        lasting = sorted({type(module).__name__ for module in adapted_modules(backbone) if not module.mergeable})
        if lasting:
            raise ValueError(
                "what a pre-training leaves becomes a part of the base of later tasks, into whose weights "
                f"{', '.join(lasting)} cannot be folded; take ExPLoRA, LoRA or another adapter that merges (geomed "
                "adapters lists them)"
            )
        self.objective = objective
        objective.bind(backbone)
        self._ddp_params_and_buffers_to_ignore = averages(self)  # DDP's own name; else it sends them at every step
        self.head_warmup, self.optimisation, self.seed = head_warmup, optimisation, seed
        self.watch = None if collapse is None else Watch(collapse)
        self.monitor = Monitor(backbone)
        self.before: dict[str, float] = {}  # what the monitor says before the first step
        self.steps = 1

    def configure_model(self) -> None:
        """Share the tensors out among processes where the strategy asks for it (FSDP2).

        Raises:
            ValueError: the objective cannot be shared out, or processes are to share single matrices.
        """
        if self.device_mesh is None:
            return
        if not self.objective.shardable:
            raise ValueError(
                f"{type(self.objective).__name__} keeps a teacher that runs on the student's own tensors, which FSDP "
                "takes apart; train it with the strategy ddp: what is frozen needs neither gradients nor moments"
            )
        if self.device_mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                "processes share the images here, not single matrices; give ModelParallelStrategy a data_parallel_size "
                "of all processes and a tensor_parallel_size of 1"
            )
        mesh = self.device_mesh["data_parallel"]
        shard(self.backbone, mesh)
        shard(self.objective, mesh)

    @property
    def strict_loading(self) -> bool:
        """Whether Lightning compares the names: not where what is frozen is left out, see `on_load_checkpoint`."""
        return self.device_mesh is not None

    def setup(self, stage: str) -> None:
        """Hold the sources and the trainer against the backbone.

        Raises:
            ValueError: bands are not the backbone's, crops are no whole patches, or weights are not to stay float32.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        precision = str(self.trainer.precision)
        if precision.endswith("true") and precision != "32-true":
            raise ValueError(
                f"precision {precision} converts the weights themselves: small steps are lost, and an adapter file of "
                "it would fit no base as it was published; take bf16-mixed or 32-true"
            )
        patch, local = self.backbone.spec.patch, data.crops.local
        for name, size in (("size", data.crops.size), *((("local.size", local.size),) if local.count else ())):
            if size % patch:
                raise ValueError(
                    f"crops are whole patches, {name} {size} of crops is no multiple of the backbone's {patch}; take "
                    f"{-(-size // patch) * patch}"
                )
        for what, source in (("source", data.source), ("monitor", data.monitor)):
            if source is not None and tuple(source.bands) != self.backbone.inputs.bands:
                raise ValueError(
                    f"the {what} gives the bands {', '.join(source.bands)}, the backbone reads "
                    f"{', '.join(self.backbone.inputs.bands)}; make them the same, in the same order"
                )
        self.monitor.of(data.monitor)
        if stage == "fit":
            rank_zero_info("\n%s", trainable_table(self))

    def on_fit_start(self) -> None:
        """Count the steps to come; let teachers start alike."""
        self.steps = steps_of(self.trainer)
        for module in self.modules():
            if isinstance(module, Teacher):
                module.start_alike()

    @property
    def done(self) -> float:
        """The share of all steps that is over."""
        return min(self.global_step / self.steps, 1.0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch's loss.

        Raises:
            CollapsedError: the features, or the loss, have lost all sense.
        """
        drawn = torch.Generator().manual_seed(self._seed_of(batch_idx))
        torch.manual_seed(int(torch.randint(2**31, (), generator=drawn)))  # of what draws by itself: drop path
        outcome = self.objective(self.backbone, views_of(batch), generator=drawn, done=self.done)
        told = {"loss": outcome.loss.detach(), **outcome.figures}
        if self.watch is not None:
            entropy = None if outcome.entropy is None else self._of_all(outcome.entropy[None]).mean()
            self.watch.add(self._of_all(outcome.features), entropy, loss=self._of_all(outcome.loss[None]))
        size = len(batch["global_crops"])
        self.log("train/loss", told.pop("loss"), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in told.items()}, batch_size=size)
        return outcome.loss

    def _seed_of(self, batch_idx: int) -> int:
        """A number of its own for each batch of each process."""
        words = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        number = 0
        for word in words:
            number = (number * 1_000_003 + word + 1) % 2**62
        return number

    def _of_all(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, so that all of them judge alike."""
        if self.trainer.world_size == 1:
            return tensor.detach()
        gathered = self.all_gather(tensor.detach())
        return gathered.flatten(0, 1) if isinstance(gathered, Tensor) else tensor.detach()

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Look now and then whether all images have become alike.

        Raises:
            CollapsedError: they have.
        """
        measured = None if self.watch is None else self.watch.check(self.global_step)
        if measured is not None:
            self.log_dict({f"train/{name}": value for name, value in measured.figures().items()})

    def on_train_epoch_end(self) -> None:
        """Let no checkpoint be written of what is no number any more.

        Raises:
            CollapsedError: it is none.
        """
        if self.watch is not None:
            self.watch.refuse_not_finite(self.global_step)

    def optimizer_step(self, *given: Any, **options: Any) -> None:  # noqa: ANN401  (Lightning's signature)
        """After each step a teacher follows."""
        super().optimizer_step(*given, **options)
        self.objective.after_step(self.backbone, self.done)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect features of what has labels."""
        pixels = Pixels(values=_floats(batch["values"]), valid=batch.get("valid"))
        self.monitor.add(self.objective.tokens(self.backbone, pixels), batch)

    def on_validation_epoch_end(self) -> None:
        """Say how well a k-NN and a linear probe tell them apart."""
        found = self.monitor.judged([self._of_all(tensor) for tensor in self.monitor.gathered(self.device)])
        self.before = found if self.trainer.sanity_checking else self.before
        for name, value in found.items():
            if self.trainer.sanity_checking:
                rank_zero_info("before pre-training: monitor/%s %.4f", name, value)
            else:
                self.log(f"monitor/{name}", value, prog_bar=name == "knn", rank_zero_only=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, in groups with a course of their own."""
        steps = steps_of(self.trainer)
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        own = LearningGroup(name="backbone", parameters=trained, frozen_until=self.head_warmup)
        groups, courses = [], []
        for group in (own, *self.objective.groups()):
            for name, vectors in ((group.name, False), (f"{group.name}/vectors", True)):
                chosen = [parameter for parameter in group.parameters if (parameter.ndim < 2) == vectors]
                if chosen:
                    decay = 0.0 if vectors else self.optimisation.weight_decay
                    groups.append({"params": chosen, "name": name, "weight_decay": decay})
                    courses.append(_course(self.optimisation, group, steps))
        optimizer = torch.optim.AdamW(groups, lr=self.optimisation.lr, betas=self.optimisation.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, courses)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is frozen, a hash says what it was; but not where processes write parts of it (FSDP)."""
        if self.device_mesh is None:
            for name in self._frozen():
                checkpoint["state_dict"].pop(name, None)
        checkpoint["base"] = self._base_hash()
        checkpoint["watch"] = None if self.watch is None else self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or another base, in one line.

        Raises:
            ValueError: it is.
        """
        if self.device_mesh is not None:
            return  # each process holds a part, and Lightning compares the names
        state = checkpoint["state_dict"]
        frozen = self._frozen()
        own = {name: value for name, value in self.state_dict().items() if name not in frozen}
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ValueError(
                f"the checkpoint is of another model: {len(wrong)} tensors differ ({wrong[0]}); "
                "use the config that it was trained with"
            )
        if checkpoint.get("base") != self._base_hash():
            raise ValueError("the checkpoint was trained on other base weights; load those of its config")
        if self.watch is not None and checkpoint.get("watch") is not None:
            self.watch.load_state_dict(checkpoint["watch"])

    def _frozen(self) -> set[str]:
        """The names of the backbone's tensors that do not change."""
        if not self.adapters:
            return set()
        return {f"backbone.{name}" for name, p in self.backbone.named_parameters() if not p.requires_grad}

    def _base_hash(self) -> str:
        """What is frozen, in a few letters; the same all along, so it is computed once."""
        if not self.adapters:
            return ""
        if not self._hash:
            self._hash = weights_hash(base_state(self.backbone))
        return self._hash

    _hash = ""

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return Path(self.trainer.default_root_dir)


def views_of(batch: dict[str, Tensor]) -> Views:
    """The crops of a batch, one after the other."""
    parts = {}
    for name in ("global", "local"):
        crops, valid = batch.get(f"{name}_crops"), batch.get(f"{name}_valid")
        parts[name] = (
            ()
            if crops is None
            else tuple(
                Pixels(values=crops[:, number], valid=None if valid is None else valid[:, number])
                for number in range(crops.shape[1])
            )
        )
    return Views(wide=parts["global"], small=parts["local"])


def _course(optimisation: Optimisation, group: LearningGroup, steps: int) -> Callable[[int], float]:
    """The rate of a group at a step, over the highest."""
    start = round(group.frozen_until * steps)
    return lambda step: 0.0 if step < start else group.rate * optimisation.factor(step - start, steps - start)


def _floats(values: Tensor) -> Tensor:
    """Brightness from 0 to 1; what has a unit as it is."""
    return values.float() / 255 if values.dtype == torch.uint8 else values
