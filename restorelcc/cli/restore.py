"""`restorelcc restore`: from a dense and a pruned model to a restored checkpoint, in one command."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorelcc.base.errors import BadInput
from restorelcc.base.package_data import SOURCE as PACKAGE
from restorelcc.base.prunings import UNSTRUCTURED_PRUNERS, parse_pruning
from restorelcc.base.recoveries import COMPENSATIONS, HEADS, MERGES, WHAT_TO_PICK, Recovery, no_adapter
from restorelcc.base.recoveries import method as recovery_method
from restorelcc.cli.export import (
    BaseOption,
    LicenceOption,
    MergeOption,
    OutOption,
    OverwriteOption,
    ShardOption,
    SliceOption,
    say_what_was_written,
    size_in_bytes,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from restorelcc.pipeline.oneshot import Restored
    from restorelcc.pipeline.params import Params


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("restore", help="Restore a pruned model, or prune and restore one, in one command.")(restore)


def restore(
    dense: Annotated[str, typer.Option("--dense", help="the dense model: a folder, a GGUF file, or a hub id")],
    out: OutOption,
    pruned: Annotated[str | None, typer.Option("--pruned", help="the pruned checkpoint: a folder, or a hub id")] = None,
    pruning: Annotated[str | None, typer.Option("--pruning", "-p", help="prune first, e.g. wanda-0.5")] = None,
    method: Annotated[str, typer.Option("--method", help=f"how to recover. {WHAT_TO_PICK}")] = HEADS,
    merge: MergeOption = None,
    head_ratio: Annotated[
        str | None, typer.Option("--head-ratio", "-r", help="share of the heads, for methods that choose heads  [0.10]")
    ] = None,
    instructions: Annotated[
        str,
        typer.Option(
            "--instructions",
            help=f"instruction pairs: a file, alpaca, hub:<dataset>, {PACKAGE}, or self:<one of these>",
        ),
    ] = "alpaca",
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help=f"texts for pruning: a file, c4, hub:<dataset>, {PACKAGE}, or self  [c4; --pruned: none needed]",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", help="folder for intermediate artifacts; a rerun continues there [<out>.work]"),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="of the dense hub id")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:<number>")] = "auto",
    threads: Annotated[int, typer.Option("--threads", help="of the CPU; 0 is torch's own choice")] = 0,
    heldout: Annotated[
        str | None,
        typer.Option(
            "--heldout",
            help=f"measure dense, pruned and restored on these texts: a file, wikitext, hub:<dataset>, {PACKAGE}",
        ),
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option("--evaluate", help="with --heldout: lm-eval tasks too, e.g. arc_easy,boolq")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; repeatable")] = None,
    max_shard_size: ShardOption = "5GB",
    cut: SliceOption = False,
    compensation_only: Annotated[
        bool, typer.Option("--compensation-only", help="write no checkpoint, only the file for restorelcc.attach")
    ] = False,
    overwrite: OverwriteOption = False,
    base_model: BaseOption = None,
    licence: LicenceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: measured, trained and written")] = False,
) -> None:
    """Capture ... compensate in a work folder; then what `export` writes, or the compensation alone."""
    if (pruned is None) == (pruning is None):
        raise BadInput("restore needs either --pruned (a pruned checkpoint) or --pruning (how to prune the dense one)")
    if evaluate and not heldout:
        raise BadInput("restore --evaluate needs --heldout too: texts for perplexity that no training has seen")
    shard_bytes = size_in_bytes("--max-shard-size", max_shard_size)
    chosen = _checked_method(method, merge, compensation_only=compensation_only)
    if compensation_only and cut:
        raise BadInput("--slice cuts heads out of a checkpoint, and --compensation-only writes none: leave one out")
    from restorelcc.models.checkpoints import local_folder
    from restorelcc.pipeline.oneshot import Request, model_source, params_of, run_chain
    from restorelcc.pipeline.reproduce import StageEnded
    from restorelcc.release.folders import check_apart, check_output

    check_output(out, overwrite=overwrite)
    work = work or out.absolute().with_name(f"{out.absolute().name}.work")
    sources = [model_source("--dense", dense), *([model_source("--pruned", pruned, gguf=False)] if pruned else [])]
    check_apart(out, work, *_here(dense, *filter(None, [pruned])))
    request = Request(
        dense=dense,
        pruned=pruned,
        pruning=pruning,
        head_ratio=head_ratio,
        method=method,
        instructions=instructions,
        # A pruned model is not pruned again: what its pruning cost is measured on the texts of the instructions.
        calibration=calibration or (None if pruned else "c4"),
        work=work,
        revision=revision,
        dtype=dtype,
        device=device,
        threads=threads,
        heldout=heldout,
        tasks=tuple(filter(None, (evaluate or "").split(","))),
        overrides=tuple(set_ or ()),
    )
    params = params_of(request)
    _check_cut(pruning, cut=cut)
    _check_models(sources, params, pruning, None if compensation_only else _sites(method, chosen, params))
    check_apart(out, *_here(*request.tasks))
    _check_named(out, params, work)
    from restorelcc.release.export.cell import cell_options, cell_parts, export_cell

    record, found = None, dict[str, Any]()
    try:
        with run_chain(request) as done:
            if as_json:
                found = _found(done, measured=heldout is not None)
            else:
                _say_what_was_won(done, measured=heldout is not None)
            parts = cell_parts(done.cell, done.layout, merge)
            if parts.compensation is not None and compensation_only:
                _write_compensation(parts.compensation, out, overwrite=overwrite)
            else:
                known = {"base_model": base_model, "licence": licence}
                options = cell_options(done.cell, done.params.section, done.layout, **known, merge=merge)
                options = replace(options, max_shard_bytes=shard_bytes, cut=cut, overwrite=overwrite)
                record = export_cell(parts, out, options, merge)
    except StageEnded as ended:
        raise typer.Exit(ended.code) from None
    if as_json:
        written = {"folder": str(out), "work": str(work), **found, "record": record}
        typer.echo(json.dumps(written, indent=2, ensure_ascii=False))
        return
    if record is None:
        pruned_in, file = local_folder(done.layout.pruned(done.cell)), out / done.layout.compensation(done.cell).name
        typer.echo(f"for the model in {pruned_in}: restorelcc.attach(model, '{file}')")
    else:
        say_what_was_written(out, record)
    typer.echo(f"intermediate artifacts are in {work}; a rerun with other settings starts from them")


def _checked_method(name: str, merge: str | None, *, compensation_only: bool) -> Recovery:
    """What `--method` names. Raises BadInput for one whose result could not be written as asked, before it is made."""
    found = recovery_method("--method", name)
    if found.ships == "adapter" and merge is None:
        raise BadInput(f"--method {no_adapter(name)}")
    if merge is not None and (found.ships != "adapter" or merge not in MERGES):
        raise BadInput(f"--merge {merge[:80]!r}: it is {' or '.join(MERGES)}, and for lora, dora and eora alone")
    if compensation_only and found.ships != "biases":
        raise BadInput(f"--compensation-only: {name} changes weights, and a compensation does not: leave it out")
    return found


def _found(done: Restored, *, measured: bool) -> dict[str, Any]:
    """What was measured, as report/results.json holds it, and what the training recorded; None where there is none."""
    from restorelcc.base.documents import read_document
    from restorelcc.compensation.file import DOCUMENT

    of_heads = done.cell.recovery is None
    training = read_document(
        done.layout.training(done.cell) if of_heads else done.layout.recovered(done.cell) / DOCUMENT
    )
    return {
        "results": read_document(done.layout.report / "results.json") if measured else None,
        "training": training if of_heads else training.get("training"),
    }


def _say_what_was_won(done: Restored, *, measured: bool) -> None:
    """The table of what was measured, and the validation loss before and after."""
    from restorelcc.base.documents import read_document
    from restorelcc.pipeline.outcome import outcome, training

    if measured:
        from restorelcc.stages.report.terminal import print_results

        print_results(done.layout.report)
    if done.cell.recovery is not None:
        typer.echo(f"{done.cell.recovery}: {outcome('recover', done.layout, done.cell)}")
        return
    typer.echo(f"{training(read_document(done.layout.training(done.cell)))} (pairs that were not trained on)")


def _write_compensation(source: Path, out: Path, *, overwrite: bool) -> None:
    from restorelcc.release.folders import published_folder

    with published_folder(out, overwrite=overwrite) as folder:
        shutil.copyfile(source, folder / source.name)


def _check_cut(pruning: str | None, *, cut: bool) -> None:
    """Raises BadInput where there will be nothing to cut out."""
    if cut and pruning is not None and parse_pruning(pruning).pruner in UNSTRUCTURED_PRUNERS:
        raise BadInput(
            f"--slice cuts out whole heads and channels, and {pruning} removes single weights: leave it out, or prune "
            "by slimgpt"
        )


def _here(*named: str) -> list[Path]:
    """What options name that is a folder or file here, as it is named; hub ids and tasks of lm-eval are none."""
    return [path for path in (Path(each).expanduser() for each in named) if path.exists()]


def _check_named(out: Path, params: Params, work: Path) -> None:
    """Raises BadInput where writing `out` would replace data, tasks, or anything else that the settings name."""
    from restorelcc.pipeline.oneshot import MODEL
    from restorelcc.release.folders import check_apart
    from restorelcc.stages.inputs.stage import lay_out

    named = lay_out(MODEL, params.named(MODEL), work.resolve())
    check_apart(out, *(path for path in named.values() if isinstance(path, Path)))


def _sites(method: str, chosen: Recovery, params: Params) -> tuple[str, ...]:
    """Where the result will need biases; of the paper's method the settings say it."""
    from restorelcc.pipeline.oneshot import MODEL

    if method not in COMPENSATIONS:
        return chosen.sites
    return tuple("heads" if site == "o" else site for site in params.section(MODEL, "compensate").sites)


def _check_models(sources: list[str], params: Params, pruning: str | None, sites: tuple[str, ...] | None) -> None:
    """Raises BadInput for a checkpoint that cannot be read, or whose class could not be written with biases on these
    sites (None: nothing is exported): hours before the chain would come to it. sources: the dense model, and the pruned
    one where it is given; of what is on the hub the config alone is fetched."""
    from restorelcc.models.architectures import check_scores, family_of_config
    from restorelcc.pipeline.oneshot import GIVEN, MODEL
    from restorelcc.release.routes import check_route
    from restorelcc.stages.prune.external import check_sizes
    from restorelcc.training.attached import site_paths
    from restorelcc.training.config import SITES

    external = params.section(MODEL, "prune").external.get(MODEL, {}).get(GIVEN)
    revisions = [params.models[MODEL].revision, *([external.revision] if external else [])]
    named = zip(("--dense", "--pruned"), sources, revisions, strict=False)
    configs = [_config(option, source, revision) for option, source, revision in named]
    if pruning is not None:
        check_scores(configs[0], pruning)
    if sites is not None:
        written = configs[-1]
        paths = site_paths(family_of_config(written), [site for site in SITES if site in sites])
        try:
            check_route(written, paths, heads="heads" in sites)
        except BadInput as error:
            raise BadInput(f"{error}: --compensation-only writes this file alone") from error
    if len(configs) == 2:
        check_sizes(f"--pruned {sources[1]}", configs[1], configs[0])


def _config(option: str, source: str, revision: str | None) -> PretrainedConfig:
    """The config of a folder, whose weights are looked at too, of a GGUF file, or of a hub id."""
    from restorelcc.base.packages import gguf_file
    from restorelcc.models.checkpoint_check import check_checkpoint, loaded_config
    from restorelcc.models.gguf import beside_weights
    from restorelcc.models.hub import Repository, fetch_config, resolved_commit

    folder = Path(source)
    if folder.is_dir():
        check_checkpoint(folder)
        return loaded_config(folder)
    if (file := gguf_file(option, source, Path.cwd())) is not None:
        with tempfile.TemporaryDirectory() as scratch:
            return loaded_config(beside_weights(file, Path(scratch)))
    repository = Repository(option, source)
    return loaded_config(fetch_config(repository, resolved_commit(repository, revision)))
