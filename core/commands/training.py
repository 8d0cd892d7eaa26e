"""What `train` and `finetune` share: carry a run to its end, and show the result."""

from __future__ import annotations

import datetime
import itertools
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from twofold.core.commands.common import (
    FAILED,
    INTERRUPTED,
    REFUSED,
    WRONG,
    choose_side,
    console,
    escaped,
    interpreted_strictly,
    plain_errors,
    refused,
    tell,
    unprinted,
    write_json,
)
from twofold.core.data.baselines import baselines
from twofold.core.data.datasets import Dataset
from twofold.core.ops import Side
from twofold.core.training.codec import Codec
from twofold.core.training.loop import Event, Interrupted, held_out_accuracy, train
from twofold.core.training.plot import plot
from twofold.core.training.processes import Lost, Processes, joined
from twofold.core.training.recipe import Recipe
from twofold.core.training.run import Run, RunError, check_vacant, held
from twofold.core.training.settings import Settings, fingerprint, located
from twofold.core.training.trainer import Diverged
from twofold.reference import checks


def reopened(folder: Path) -> tuple[Run, Dataset]:
    """Return a run to resume, with its data, if they are still the same.

    Raises:
        RunError: the data have changed, or the folder is not a run's.
    """
    run = Run.open(folder)
    dataset = run.settings.dataset()
    run.check_data(dataset)
    return run, dataset


def begun(given: Mapping[str, Any], dataset: Dataset, codec: Codec, **own: Any) -> Run:
    """Make a new run's folder from the options that both commands share and settings of its own."""
    settings = Settings(
        data=located(given["data"]),
        text_column=given.get("text_column"),
        label_column=given.get("label_column"),
        data_sha256=fingerprint(dataset),
        labels=dataset.labels,
        side=choose_side(given["side"]).name,
        quick=given["quick"],
        **own,
    )
    return Run.create(given.get("out") or new_folder(given["data"]), settings, codec)


def new_folder(data: str) -> Path:
    """Make a folder with a name of its own for a new run without --out."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for n in itertools.count(1):
        folder = Path("runs") / f"{Path(data).stem}-{now}{f'-{n}' if n > 1 else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue  # another run began in the same second
        except OSError as fault:
            must = f"it must be one that can be made ({fault.strerror}); --out names another"
            raise RunError(f"the run's folder is {str(folder)!r}; {must}") from fault
        return folder
    raise AssertionError  # numbers have no end


def recipe_of(fields: Mapping[str, Any], processes: Processes, side: str) -> Recipe:
    """Return a recipe; without `parts`, one part a process, on a CPU at least two if they fit.

    Two are for the threads of a CPU; a GPU takes all of a process's examples at once.

    Raises:
        TypeError, ValueError: a field is impossible, or its parts cannot be shared evenly.
    """
    size = fields.get("batch_size", Recipe.batch_size)
    room = size if checks.whole(size) and size >= 1 else Recipe.parts
    least = 1 if choose_side(side).device == "cuda" else min(Recipe.parts, room)
    checked = Recipe(**{"parts": max(processes.size, least), **fields})
    processes.share(checked.parts)
    return checked


Begin = Callable[[Processes], tuple[Run, Dataset]]  # makes a new run's folder
SMALLER = "smaller --d-model, --d-ff, --layers or --batch-size take less"


def carry_out(begin: Begin, context: typer.Context) -> None:
    """Begin or resume a run, carry it to its end, and show the result.

    Args:
        begin: makes the folder of a new run.
        context: of the command; its options are `out`, the folder of a new run, `resume`, the run
            to resume instead, and `json`, where the result is to be written too.
    """
    out, resume, json = (context.params[name] for name in ("out", "resume", "json"))
    with plain_errors():
        if resume is not None:
            _refuse_beside_resume(context)
    # Inside `joined`, losses are printed before the others know; outside, those that never joined.
    with plain_errors(), _losses(), joined() as processes, _losses():
        processes.agreed("options", _choices(context))
        run, dataset = _opened(begin, out, resume, processes, context)
        try:
            result = run.result() if run.finished else finish(run, dataset, processes)
        except MemoryError as large:
            gone = processes.first and resume is None and run.discard()
            kept = "" if gone else f". Checkpoints are in {run.checkpoints}"
            raise MemoryError(f"{str(large) or 'out of memory'}; {SMALLER}{kept}") from large
        if processes.first:
            _draw(run, result)
            write_json(json, result)  # first, in case nothing can be printed
            show(run, result)
        processes.wait()


def _refuse_beside_resume(context: typer.Context) -> None:
    """Refuse options that would be ignored with --resume."""
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and name not in ("resume", "json"):
            was = f"{option.opts[0]} is {str(context.params[name])!r}"
            raise ValueError(f"{was}; with --resume it must be left out: a run goes on as it began")


def _choices(context: typer.Context) -> str:
    """Return the options that must be the same in all processes: all but files and folders."""
    places = ("out", "resume", "json")
    return repr(sorted((n, x) for n, x in context.params.items() if n not in places))


# The subject of a refusal; in what must be: something quoted, or a setting with an underscore.
SUBJECT = r"\w+(?: / \w+)*(?= (?:is|has) )"
SETTING = r"""'[^']*'|"[^"]*"|(?<![\w./-])\w+_\w+(?![\w./-])"""


def _by_option(error: Exception, context: typer.Context) -> Exception:
    """Return an error that names options instead of the settings that they are for.

    Settings are replaced only where messages name them, not in what a message quotes from users:
    before "is" or "has", and in what must be, outside quotation marks. There a setting of one word
    is left alone, since it may be an ordinary word.
    """
    words = str(error)
    if not isinstance(error, ValueError | TypeError):
        return error
    options = {option.name or "": option.opts[0] for option in context.command.params}

    def named(found: re.Match[str]) -> str:
        return options.get(found[0], found[0])

    subject, start = re.match(SUBJECT, words), words.rfind("; ")
    end = 0 if subject is None else subject.end()
    start = len(words) if start < end else start
    front, must = re.sub(r"\w+", named, words[:end]), re.sub(SETTING, named, words[start:])
    replaced = front + words[end:start] + must
    return error if replaced == words else ValueError(replaced)


@contextmanager
def _losses() -> Iterator[None]:
    """Print which process was lost, if one is, and exit."""
    try:
        yield
    except Lost as lost:
        tell(f"[red]error:[/red] {escaped(str(lost))}")
        raise typer.Exit(FAILED) from lost


def _opened(
    begin: Begin,
    out: Path | None,
    resume: Path | None,
    processes: Processes,
    context: typer.Context,
) -> tuple[Run, Dataset]:
    """Return the run, which the first process makes or finds, and the others then open."""
    if not processes.first:
        folder = processes.told("")
        if not folder:  # the first process printed why
            raise typer.Exit(REFUSED)
        return reopened(Path(folder))
    try:
        if out is not None and resume is None:
            check_vacant("--out", out)  # before anything is read
        run, dataset = begin(processes) if resume is None else reopened(resume)
    except WRONG as error:
        refusal = refused(_by_option(error, context))
        processes.told("")
        raise refusal from error
    processes.told(str(run.folder.resolve()))
    return run, dataset


def finish(run: Run, dataset: Dataset, processes: Processes) -> dict[str, Any]:
    """Train to the end and evaluate on the test part; the first process writes the result."""
    side = choose_side(run.settings.side)
    alone = held(run.folder) if processes.first else nullcontext()
    with alone, interpreted_strictly(side):
        return _train_on(side, run, dataset, processes)


def _train_on(side: Side, run: Run, dataset: Dataset, processes: Processes) -> dict[str, Any]:
    first = processes.first
    if first:
        with unprinted():
            _say_what(run, dataset, side, processes)
    again = f"go on with: twofold train --resume {shlex.quote(str(run.folder))}"
    try:
        with _Shown(first and console.is_terminal) as shown:
            observe = shown if first else _unseen
            model, state = train(run, dataset, side, observe, _passed_over, processes)
        inputs = run.codec.encode_set(dataset.test_x)
        with threadpool_limits(1, "blas"):
            test = held_out_accuracy(model, inputs, dataset.test_y, state, processes)
    except Interrupted as stopped:
        if first:
            tell(f"{stopped}; {escaped(again)}")
        processes.wait()
        raise typer.Exit(INTERRUPTED) from stopped
    except Diverged as diverged:
        if first:
            tell(
                f"[red]error:[/red] {diverged}. The last good checkpoint is in "
                f"{escaped(str(run.checkpoints))}; a smaller --lr is the usual remedy"
            )
        processes.wait()
        raise typer.Exit(FAILED) from diverged
    except OSError as fault:
        raise OSError(f"{fault}. Checkpoints are in {run.checkpoints}; {again}") from fault
    except Lost as lost:
        raise Lost(f"{lost}. The last good checkpoint is in {run.checkpoints}; {again}") from lost
    if not first:
        return {}
    result = {
        "data": run.settings.data,
        "side": side.name,
        "seed": run.settings.recipe.seed,
        "test_accuracy": test,
        "validation_accuracy": state.validation_accuracy,
        "baselines": baselines(dataset),
        "train_examples": len(dataset.train_y),
        "test_examples": len(dataset.test_y),
        "parameters": model.layout.parameters,
        "seconds": round(state.seconds, 2),
        "steps_per_second": round(state.done / state.seconds, 2),
        "waiting_share": state.waiting_share,
        "refit": run.settings.recipe.refit,
        "init": run.settings.init,
    }
    run.write_result(result)
    return result


def _draw(run: Run, result: Mapping[str, Any]) -> None:
    """Plot a finished run, unless that was done before."""
    if run.plot.exists():
        return
    try:
        plot(run.plot, run.metrics(), result)
    except Exception as fault:  # any, from a library: the run is finished all the same
        tell(f"[yellow]no picture:[/yellow] {escaped(str(fault))}")


def _unseen(_: Event) -> None:
    """Show nothing: only the first process's progress is shown."""


def _passed_over(why: str) -> None:
    tell(f"[yellow]passed over:[/yellow] {escaped(why)}")


def _say_what(run: Run, dataset: Dataset, side: Side, processes: Processes) -> None:
    model = run.settings.model
    among = f" in {processes.size} processes" if processes.size > 1 else ""
    name, provenance = escaped(dataset.name), escaped(dataset.provenance)
    console.print(f"[bold]{name}[/bold]  {provenance}", soft_wrap=True)
    console.print(
        f"{len(dataset.train_y)} examples to train, {len(dataset.test_y)} to test, "
        f"{len(dataset.labels)} classes; {model.num_layers} layer(s) of {model.d_model} with "
        f"{model.num_heads} heads, up to {model.max_length} positions; {side.name} side on "
        f"{side.device}{among}; run in {escaped(str(run.folder))}",
        soft_wrap=True,
        highlight=False,
    )


def show(run: Run, result: Mapping[str, Any]) -> None:
    """Print a run's result."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("test accuracy", justify="right")
    for name, value in result["baselines"].items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("[bold]Transformer[/bold]", f"[bold]{result['test_accuracy']:.4f}[/bold]")
    console.print(table)
    held = result["validation_accuracy"]
    console.print(
        f"validation {'—' if held is None else f'{held:.4f}'}, {result['seconds']:.0f} s, "
        f"{result['steps_per_second']:.1f} steps/s{_waited(result)}, "
        f"{result['parameters']:,} parameters"
        f"{f'; {escaped(str(run.plot))}' if run.plot.exists() else ''}",
        highlight=False,
        soft_wrap=True,
    )
    if run.huggingface.exists():
        where = escaped(str(run.huggingface))
        console.print(f"for transformers: {where}", highlight=False, soft_wrap=True)


def _waited(result: Mapping[str, Any]) -> str:
    """Return the share of the steps' time spent waiting for data, in words, if it was measured."""
    share = result.get("waiting_share")
    return "" if share is None else f", {share:.2%} of their time waiting for data"


class _Shown:
    """Progress on a terminal; a line per epoch elsewhere."""

    def __init__(self, live: bool) -> None:
        self.live = live
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.accuracy = "—"
        self.loss: float | None = None

    def __enter__(self) -> _Shown:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show a step."""
        if math.isfinite(event.loss):  # on a GPU the first step's is not known yet
            self.loss = event.loss if self.loss is None else 0.95 * self.loss + 0.05 * event.loss
        if event.validation_accuracy is not None:
            self.accuracy = f"{event.validation_accuracy:.4f}"
        minutes, seconds = divmod(round(event.seconds_left), 60)
        loss = "—" if self.loss is None else f"{self.loss:.4f}"
        said = f"loss {loss}  validation {self.accuracy}  {minutes}:{seconds:02d} left"
        with unprinted():
            self._print(event, said)

    def _print(self, event: Event, said: str) -> None:
        if self.live:
            if event.phase not in self.tasks:
                self.tasks[event.phase] = self.bar.add_task(event.phase, total=event.steps, said="")
            self.bar.update(self.tasks[event.phase], completed=event.step, said=said)
        elif event.validation_accuracy is not None or (
            event.phase == "refit" and event.step == event.steps
        ):
            console.print(
                f"{event.phase} epoch {event.epoch}, step {event.step}/{event.steps}: {said}",
                highlight=False,
                soft_wrap=True,
            )
