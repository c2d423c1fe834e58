"""What other libraries call the solvers here. Every row is proven by the test that it names, or says what differs."""

from __future__ import annotations

from typing import NamedTuple


class Alias(NamedTuple):
    """A name elsewhere, what gives the same samples here (to rounding, on equal grid and noises), and the proof."""

    library: str
    name: str
    method: str
    settings: dict[str, object]
    test: str
    remark: str = ""


ALIASES = (
    Alias("diffusers", "DDIMScheduler", "ddim", {}, "test_diffusers_ddim", "eta is eta"),
    Alias("diffusers", "DDPMScheduler", "ancestral", {}, "test_diffusers_ddpm", "fixed_small; fixed_large is `large`"),
    Alias("diffusers", "EulerDiscreteScheduler", "ddim", {}, "test_diffusers_euler"),
    Alias("diffusers", "EulerAncestralDiscreteScheduler", "ancestral", {}, "test_diffusers_euler_ancestral"),
    Alias("diffusers", "HeunDiscreteScheduler", "edm-stochastic", {"s_churn": 0.0}, "test_diffusers_heun"),
    Alias(
        "diffusers", "DPMSolverMultistepScheduler", "dpmpp-2m", {}, "test_diffusers_dpmpp_2m", "dpmsolver++, order 2"
    ),
    Alias(
        "diffusers",
        "DPMSolverMultistepScheduler, sde-dpmsolver++",
        "dpmpp-2m-sde",
        {},
        "test_diffusers_dpmpp_2m_sde",
        "solver_type is form",
    ),
    Alias(
        "diffusers",
        "DPMSolverMultistepScheduler, order 3",
        "dpmpp-3m",
        {"form": "published"},
        "test_diffusers_dpmpp_3m",
        "of second order",
    ),
    Alias("diffusers", "UniPCMultistepScheduler", "unipc", {"order": 2, "variant": "bh2"}, "test_diffusers_unipc"),
    Alias(
        "diffusers",
        "SASolverScheduler",
        "sa-solver",
        {"tau": 1.0, "tau_at": "start", "predictor": 2, "corrector": 2},
        "test_diffusers_sa_solver",
        "but for the noise of its last step, and float32 sigmas",
    ),
    Alias("k-diffusion", "sample_euler", "ddim", {}, "test_ddim_is_euler_in_the_noise_level"),
    Alias("k-diffusion", "sample_euler_ancestral", "ancestral", {}, "test_k_diffusion_euler_ancestral"),
    Alias("k-diffusion", "sample_heun", "edm-stochastic", {"s_churn": 0.0}, "test_diffusers_heun"),
    Alias("k-diffusion", "sample_dpmpp_2m", "dpmpp-2m", {}, "test_k_diffusion_dpmpp_2m_and_its_sde"),
    Alias(
        "k-diffusion",
        "sample_dpmpp_2m_sde",
        "dpmpp-2m-sde",
        {},
        "test_k_diffusion_dpmpp_2m_and_its_sde",
        "solver_type is form; heun is sa-solver with tau = sqrt(eta)",
    ),
    Alias(
        "k-diffusion",
        "sample_dpmpp_3m_sde",
        "dpmpp-3m",
        {"form": "published"},
        "test_k_diffusion_dpmpp_3m_is_published_but_for_its_second_step",
        "eta 0, but for its second step",
    ),
    Alias("DPM-Solver", "dpmsolver++, multistep, order 2", "dpmpp-2m", {}, "test_unip_2_bh2_is_2m_as_published"),
    Alias("UniPC", "bh1", "unipc", {"variant": "bh1"}, "test_unipc_is_its_paper_s_linear_system"),
    Alias("UniPC", "bh2", "unipc", {"variant": "bh2"}, "test_unipc_is_its_paper_s_linear_system"),
    Alias(
        "UniPC",
        "bh1, order 3",
        "sa-solver",
        {"predictor": 3, "corrector": 4},
        "test_unipc_bh1_is_sa_solver_s_few_steps",
    ),
    Alias("EDM", "edm_sampler", "edm-stochastic", {}, "test_churn_is_algorithm_2", "S_churn and the rest as they are"),
)


def elsewhere(name: str) -> Alias | None:
    """The alias that a name from another library means: exactly, or without `sample_`, `Scheduler` and the like."""
    wanted = _plain(name)
    return next((a for a in ALIASES if _plain(a.name) == wanted), None) if wanted else None


def command(alias: Alias) -> str:
    """The command that does the same."""
    sets = "".join(f" --set method.{k}={_yaml(v)}" for k, v in alias.settings.items())
    return f"gentk sample {alias.method}{sets}"


def table() -> str:
    """All of them as a markdown table, as docs/solvers.md has it."""
    lines = ["| library | name there | here | remark | proof |", "|---|---|---|---|---|"]
    for a in ALIASES:
        settings = ", ".join(f"{k}: {_yaml(v)}" for k, v in a.settings.items())
        here = f"`{a.method}`" + (f" `{settings}`" if settings else "")
        lines.append(f"| {a.library} | {a.name} | {here} | {a.remark} | `{a.test}` |")
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    short = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    return short.removeprefix("sample").removesuffix("scheduler").removesuffix("discrete")


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
