"""`gentk slurm script`: a batch file that runs a gentk command on a Slurm cluster and goes on after every stop.

The file is complete and plain bash, to be read and changed. It makes one job of a command, or an array with one task
per run of a sweep. USR1 comes before the time is up, SIGTERM before a preemption: both mean checkpoint and stop, and
what stopped that way is queued again.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gentk import __version__
from gentk.cli import console, sweeping
from gentk.cli.commands import Asked
from gentk.errors import RecipeError

app = typer.Typer(help="Batch files for Slurm.", no_args_is_help=True)
tasks = typer.Typer(help="Print a batch file for a command.", no_args_is_help=True)
app.add_typer(tasks, name="script")


def _option(kind: Any, default: Any, *words: str, **more: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(*words, rich_help_panel="Slurm", **more)], default


_Text, _Lines = str | None, list[str] | None
OPTIONS: dict[str, tuple[Any, Any]] = {
    "nodes": _option(int, 1, min=1, help="Nodes of one run."),
    "gpus": _option(int, 1, min=0, help="GPUs of each node; 0: none."),
    "processes": _option(int | None, None, min=1, help="Processes on each node; else one per GPU, or one."),
    "time": _option(str, "24:00:00", metavar="[D-]H:M:S", help="Time limit of one stay in the queue's hands."),
    "grace": _option(int, 300, min=30, help="Seconds before the limit at which the run is told to stop."),
    "partition": _option(_Text, None, help="Partition."),
    "account": _option(_Text, None, help="Account that is charged."),
    "qos": _option(_Text, None, help="Quality of service."),
    "cpus": _option(int, 2, min=1, help="Processor cores of each process."),
    "mem": _option(_Text, None, metavar="SIZE", help="Memory of each node, such as 64G."),
    "at_once": _option(int | None, None, min=1, help="Most runs of a sweep at the same time."),
    "name": _option(_Text, None, "--job-name", help="Name of the job; else method and subject."),
    "more": _option(_Lines, None, "--sbatch", metavar="OPTION", help="One more #SBATCH line, say --constraint=a100."),
    "setup": _option(_Lines, None, "--setup", metavar="COMMAND", help="Bash to run first, say `module load cuda`."),
    "python": _option(_Text, None, metavar="PATH", help="Python on the nodes; else the one that prints this."),
}
_TIME = re.compile(r"(?:\d+-)?\d+(?::\d+){0,2}")


def script(
    asked: Asked,
    *,
    nodes: int,
    gpus: int,
    processes: int | None,
    time: str,
    grace: int,
    partition: str | None,
    account: str | None,
    qos: str | None,
    cpus: int,
    mem: str | None,
    at_once: int | None,
    name: str | None,
    more: list[str] | None,
    setup: list[str] | None,
    python: str | None,
) -> None:
    """Prints the batch file. Raises RecipeError where the command or the request cannot be right."""
    each = processes or max(gpus, 1)
    _check(asked, time, nodes * each, grace)
    logs = asked.out / ("slurm-%A_%a.out" if asked.swept else "slurm-%j.out")
    recipe = asked.points[0][1].recipe
    asks = {
        "job-name": name or f"{asked.task}-{recipe.method.name}",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus or None,
        "cpus-per-task": cpus * each,
        "mem": mem,
        "time": time,
        "partition": partition,
        "account": account,
        "qos": qos,
        "array": f"0-{len(asked.points) - 1}" + (f"%{at_once}" if at_once else "") if asked.swept else None,
        "chdir": Path.cwd(),
        "output": logs,
        "open-mode": "append",
        "signal": f"USR1@{grace}",
    }
    lines = [f"#SBATCH --{key}={_bare(value)}" for key, value in asks.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {line}" for line in more or ())]
    parts = [
        _HEAD.format(version=__version__, command=_shown(sys.argv), lines="\n".join(lines), logs=_quoted(asked.out)),
        "\n".join(setup or ()),
        _points(asked),
        _START.format(
            python=_quoted(python or sys.executable),
            task=asked.task,
            words="".join(f" {shlex.quote(word)}" for word in asked.words),
            cpus=cpus,
        ),
        _MANY.format(processes=each) if nodes * each > 1 else "",
        _RUN.format(grace=grace),
    ]
    asked.out.mkdir(parents=True, exist_ok=True)  # Slurm opens the log before the job begins
    console.note(f"# {len(asked.points)} run(s) in {asked.out}; submit: gentk slurm script ... | sbatch")
    console.out("\n".join(part for part in parts if part))


def _check(asked: Asked, time: str, world: int, grace: int) -> None:
    if asked.how["dry_run"] or asked.how["json"]:
        raise RecipeError("gentk slurm script prints a batch file; --dry-run and --json are for the command in it")
    if asked.mode == "fresh":
        raise RecipeError(
            "--fresh: a job that is queued again would start again each time",
            hint="move the old folder away, or choose another --out",
        )
    if not _TIME.fullmatch(time):
        raise RecipeError(f"--time {time}: not a time that Slurm knows", hint="24:00:00, or 2-00:00:00 for two days")
    if _seconds(time) <= 2 * grace:
        raise RecipeError(
            f"--time {time}: of it the last {grace} s are for stopping", hint="a longer --time or a shorter --grace"
        )
    for point, loaded in asked.points:
        train = getattr(loaded.recipe, "train", None)
        if train is not None and train.batch % (train.accumulate * world):
            raise RecipeError(
                f"{point.name or 'train.batch'}: a batch of {train.batch} cannot be split over {world} processes times "
                f"{train.accumulate} micro-batches"
            )


def _seconds(time: str) -> int:
    """Slurm's times: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(word) for word in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _points(asked: Asked) -> str:
    """What differs from run to run: the folder, and the settings of a sweep's point."""
    if not asked.swept:
        return f"run={_quoted(asked.out)}\npoint=()"
    cases = [_case(k, point, asked) for k, (point, _) in enumerate(asked.points)]
    return "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"])


def _case(k: int, point: sweeping.Point, asked: Asked) -> str:
    sets = " ".join(f"--set {shlex.quote(each)}" for each in point.sets)
    return f"  {k}) run={_quoted(asked.folder(point))}; point=({sets}) ;;"


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _bare(value: Any) -> str:
    """A value of an #SBATCH line, which Slurm splits at blanks unless they are quoted."""
    text = str(value)
    if "\n" in text or '"' in text:
        raise RecipeError(f"{text!r}: cannot stand in an #SBATCH line")
    return f'"{text}"' if " " in text else text


def _shown(words: list[str]) -> str:
    return shlex.join(["gentk", *words[1:]]).replace("\n", " ")


_HEAD = """\
#!/usr/bin/env bash
# Made by gentk {version}: {command}
# Submit: sbatch FILE, or bash FILE, which makes the folder of the log first.
{lines}
set -uo pipefail
if [ -z "${{SLURM_JOB_ID:-}}" ]; then
  mkdir -p {logs} && exec sbatch "$0"
fi
"""
_START = """\
command=({python} -m gentk {task}{words} "${{point[@]}}" --out "$run")
export OMP_NUM_THREADS={cpus}
"""
_MANY = """\
# Every node starts its processes by torchrun; they find each other on the first node, at a port of this job's own.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
command=("${{command[0]}}" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={processes}
  --rdzv-backend=c10d --rdzv-endpoint="${{hosts%%$'\\n'*}}:$((20000 + SLURM_JOB_ID % 40000))"
  --rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" "${{command[@]:1}}")
"""
_RUN = """\
state() {{ cksum "$run/run.json" 2>/dev/null; }}
before=$(state)
trap : TERM USR1  # this shell outlives the signals that tell the run to stop
# The run hears USR1 when {grace} s are left; torchrun, which would die of it, must not.
srun --wait={grace} bash -c 'trap "" USR1; exec "$@"' bash "${{command[@]}}" &
srun=$!
wait "$srun"; code=$?
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; code=$?; done  # a signal ends the waiting, not the run
# torchrun makes 1 of every exit code: what this session has written tells whether the run was stopped.
if [ "$code" -ne 0 ] && [ "$(state)" != "$before" ] && grep -q '"status": "stopped"' "$run/run.json"; then
  code=75
fi
# A job that was cancelled stops in the same way, and one that was preempted is queued by Slurm: they run no more.
if [ "$code" -eq 75 ] && scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  echo "stopped with a checkpoint: job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
