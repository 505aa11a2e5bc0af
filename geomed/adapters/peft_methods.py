"""Which methods of Hugging Face's peft are known to be right here, and with which options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class PeftMethod:
    """What is known of one of peft's methods."""

    options: str = ""
    """The fields of peft's config that may be given, apart by spaces."""

    convolutions: bool = False
    """Defined on a Conv2d as well as on a Linear."""

    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Options whose defaults are others here than in peft."""

    drawn: tuple[str, ...] = ()
    """Parts that a seed gives: places of one shape share them, and no file holds them."""

    kept: tuple[str, ...] = ()
    """Parts that a decomposition of W gives, which another machine may not repeat: files hold them, peft's do not."""

    mergeable: bool = True
    """Whether peft computes outputs and merge in the precision of W."""


METHODS = {
    "LORA": PeftMethod(
        options="r lora_alpha lora_dropout use_rslora use_dora init_lora_weights",
        convolutions=True,
    ),
    "LOHA": PeftMethod(options="r alpha rank_dropout use_effective_conv2d", convolutions=True),
    "LOKR": PeftMethod(
        options="r alpha rank_dropout use_effective_conv2d decompose_both decompose_factor", convolutions=True
    ),
    "OFT": PeftMethod(options="r oft_block_size coft eps block_share use_cayley_neumann num_cayley_neumann_terms"),
    "IA3": PeftMethod(convolutions=True),
    "VERA": PeftMethod(options="r projection_prng_key vera_dropout d_initial", drawn=("vera_A", "vera_B")),
    "FOURIERFT": PeftMethod(options="n_frequency scaling random_loc_seed", chosen={"init_weights": True}),
    "HRA": PeftMethod(options="r", convolutions=True),
    "MISS": PeftMethod(options="r mini_r miss_dropout init_weights"),
    "RANDLORA": PeftMethod(
        options="r projection_prng_key randlora_alpha randlora_dropout sparse very_sparse",
        drawn=("randlora_A", "randlora_B"),
    ),
    "SHIRA": PeftMethod(options="r random_seed", chosen={"random_seed": 0}),
    "WAVEFT": PeftMethod(options="n_frequency scaling wavelet_family use_idwt random_loc_seed proportional_parameters"),
    "C3A": PeftMethod(options="block_size init_weights", mergeable=False),
    "DELORA": PeftMethod(options="r delora_lambda"),
    "GRALORA": PeftMethod(options="r hybrid_r alpha gralora_dropout gralora_k"),
    "HIRA": PeftMethod(options="r hira_dropout", convolutions=True),
    "ROAD": PeftMethod(options="variant group_size"),
    "PSOFT": PeftMethod(
        options="r psoft_alpha psoft_dropout ab_svd_init psoft_svd psoft_svd_lowrank_niter random_seed psoft_orth "
        "psoft_mag_b psoft_mag_a use_cayley_neumann num_cayley_neumann_terms cayley_neumann_eps",
        kept=("_psoft_A_cache", "_psoft_B_cache"),
    ),
    "PEANUT": PeftMethod(options="r depth act_fn scaling"),
    "GLORA": PeftMethod(options="r config_A_B config_C config_D_E"),
}
"""By peft's names; each is held against every law of adapters in the tests."""

_ELSEWHERE = {
    "PROMPT_TUNING P_TUNING PREFIX_TUNING MULTITASK_PROMPT_TUNING ADAPTION_PROMPT CPT CARTRIDGE": (
        "its prompts are made for language models; use VPT or Prompts"
    ),
    "LN_TUNING": "it leaves wrappers behind when merged; use LayerNormTuning",
    "BEFT": "it trains biases; use BitFit",
    "TRAINABLE_TOKENS": "it trains rows of an embedding; use Tune",
    "ADALORA": "it prunes ranks between steps and needs a loss of its own, which no task gives; use LORA",
    "BOFT": "peft compiles CUDA code for it, and computes something else where that fails; use OFT",
    "VBLORA UNILORA TINYLORA FROD LILY": "what it trains is shared by all layers, which peft sets up at once; use VERA",
    "PVERA": "its outputs are drawn anew at each call; use VERA",
    "OSF": "it trains as much as the weights that it stands for; use PSOFT",
    "DEFT": "it starts as the identity in single precision only; use OFT or HRA",
}

_DONE_HERE = {
    "target_modules exclude_modules layers_to_transform layers_pattern target_parameters": "targets name the modules",
    "modules_to_save trainable_token_indices": "add a Tune, which trains whole modules",
    "bias lora_bias": "add a BitFit, which trains biases",
    "feedforward_modules": "modules called fc2 are scaled at their input and others at their output",
    "apply_GS": "with it, HRA changes the network before training and gives NaN in a deep one; leave it out",
    "module_dropout": "what it leaves out gets no gradient, and other processes wait for one; leave it out",
    "save_projection": "what a seed gives is drawn again and never saved; leave it out",
}


def known_method(name: str) -> PeftMethod:
    """The method of this name.

    Raises:
        ValueError: it is none of peft's, or not known to be right here.
    """
    if name in METHODS:
        return METHODS[name]
    why = _told(_ELSEWHERE, name)
    if why:
        raise ValueError(f"method must not be {name}: {why}")
    raise ValueError(f"method must be one of {', '.join(METHODS)}, not {name!r}; take peft itself for another")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that are done elsewhere here, that break a law of adapters, or that peft does not know.

    Raises:
        ValueError: there is such an option.
    """
    allowed = known_method(name).options.split()
    for option, value in options.items():
        why = _told(_DONE_HERE, option)
        if why:
            raise ValueError(f"options must not hold {option} ({value}): {why}")
        if option in {"init_weights", "init_lora_weights"} and value is False:
            raise ValueError(f"{option} must not be false, which is a random start for peft's own tests; leave it out")
        if option not in allowed:
            raise ValueError(f"{name} has the options {', '.join(allowed) or 'none'} here, not {option}; leave it out")
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"options must be numbers, texts, true or false, not {option}: {value}")  # noqa: TRY004
    rank = options.get("r", 8)
    if name == "HRA" and isinstance(rank, int) and rank % 2:
        raise ValueError(f"r must be even for HRA, which starts with pairs that cancel, not {rank}")
    start = options.get("init_lora_weights", True)
    if start is not True and start != "gaussian":
        if not from_weights(name, options):
            raise ValueError(
                "init_lora_weights must be true, gaussian, pissa, pissa_niter_N, olora, orthogonal or mica, "
                f"not {start!r}, which needs data or quantised weights"
            )
        if options.get("use_dora"):
            raise ValueError(f"use_dora goes with init_lora_weights true or gaussian, not {start!r}; leave one out")


def from_weights(name: str, options: Mapping[str, Any]) -> bool:
    """Whether it starts from a decomposition of W, which peft computes in single precision, and may take off W."""
    start = str(options.get("init_lora_weights", ""))
    return name == "PSOFT" or start in {"pissa", "olora", "orthogonal", "mica"} or start.startswith("pissa_niter_")


def _told(reasons: Mapping[str, str], name: str) -> str:
    return next((why for names, why in reasons.items() if name in names.split()), "")
