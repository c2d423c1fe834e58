"""The options that every task shares, and the one that names what it works on."""

from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[str | None, typer.Option(help="Recipe by name or file, instead of METHOD and subject.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
]
Sweep = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=V,V,...", help="A run for each value, for each point of a grid; repeatable."),
]
RunSeeds = Annotated[str | None, typer.Option("--seeds", metavar="A-B", help="A run for each seed.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; else runs/ and a name made of the recipe.")]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--fresh", help="Insist on going on; or start again, the old folder kept aside.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, print the plan, run nothing.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Every random number derives from it.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
Count = Annotated[int | None, typer.Option("-n", min=1, help="How many samples.")]
Seeds = Annotated[
    str | None, typer.Option(metavar="A-B", help="Samples A to B: sample k is the same in every command.")
]
Runs = Annotated[list[str] | None, typer.Argument(metavar="[RUN RUN]", help="For `compare`: two finished evaluations.")]
Reference = Annotated[str | None, typer.Option(help="Data set, folder of pictures, or .npz of statistics.")]
Reward = Annotated[
    str | None,
    typer.Option(metavar="NAME[,NAME]...", help="Rewards instead of the recipe's: class, MODULE:FUNCTION, ..."),
]
Weights = Annotated[str | None, typer.Option(help="File of the metric's network.")]
Prompts = Annotated[str | None, typer.Option(help="File of prompts: .txt, .json or .jsonl.")]
Nfe = Annotated[str | None, typer.Option(metavar="N[,N]...", help="Network evaluations per sample; a list to compare.")]
Compare = Annotated[
    str | None, typer.Option(metavar="METHOD,METHOD...", help="Several solvers side by side: one table, one figure.")
]

_SUBJECTS = {
    "data": "Data set: digits, mnist, points:NAME, images:FOLDER, ...",
    "teacher": "Diffusion model: a name, a run folder or a safetensors file.",
    "generator": "One-step generator: a name, a run folder or a safetensors file.",
    "model": "Model: a name, a run folder or a safetensors file.",
    "target": "Density: NAME, logistic:NAME|FILE.csv, ebm:RUN or MODULE:FUNCTION (implicit-kl, implicit-fisher).",
    "samples": "Sample run, PNG folder, .npz file, or a model to draw from.",
}


def subject(name: str) -> Any:
    """The type of the subject option `--NAME`."""
    return Annotated[str | None, typer.Option(f"--{name}", help=_SUBJECTS[name])]
