"""Spec → engine call → metrics: the one place where the service's words meet the engine's.

Runs in the engine's process. Each runner writes its files into the output folder (flat names, as they will be
published) and returns flat metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.jsonable import strict
from optipfair_engine.progress import Announcer, Reporter, null_announcer
from optipfair_engine.workflow.metrics import write_metrics
from worker.engine.steps import flatten_steps, folder_of, merge_metrics
from worker.inputs.places import Inputs, Places

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions

Spec = Mapping[str, Any]
Metrics = dict[str, Any]
#: How a text that is measured on is cut.
_CUT = ("max_length", "num_windows")
Runner = Callable[[Spec, Path, Inputs, Reporter], Metrics]


def perform(task: Mapping[str, Any], report: Reporter, announce: Announcer = null_announcer) -> Metrics:
    """Carry out a task as `worker.attempt.task.build_task` makes it; returns metrics that are strict JSON."""
    output = Path(task["output"])
    if task["kind"] == "probe":
        return {"devices": devices()}
    with ExitStack() as stack:
        finished = task.get("finished", {})
        inputs = Inputs(Places(**task["places"]), stack, report, announce=announce, finished=finished)
        spec = with_device(task["spec"], task["device"])
        metrics: Metrics = strict(RUNNERS[task["kind"]](spec, output, inputs, report))
        return metrics


def devices() -> list[str]:
    """What torch can compute on here, the CPU first."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


def with_device(spec: Spec, device: str) -> dict[str, Any]:
    """The spec with `auto` devices (in its steps too) replaced by this worker's device."""
    result: dict[str, Any] = dict(spec)
    if spec.get("device") == "auto":
        result["device"] = device
    if "steps" in result:
        result["steps"] = [{**step, "spec": with_device(step["spec"], device)} for step in result["steps"]]
    return result


def run_analyze(spec: Spec, output: Path, inputs: Inputs, report: Reporter) -> Metrics:
    """Sizes and shapes of a model."""
    from optipfair_engine import workflow

    return dict(workflow.analyze_checkpoint(inputs.model(spec["model"]), output, report=report))


def run_importance(spec: Spec, output: Path, inputs: Inputs, report: Reporter) -> Metrics:
    """How much each layer changes what passes through it."""
    from optipfair_engine import workflow

    calibration, model = spec["calibration"], inputs.model(spec["model"])
    return dict(
        workflow.importance_checkpoint(
            model,
            output,
            texts=inputs.calibration(calibration, model) or [],
            max_length=calibration["max_length"],
            batch_size=calibration["batch_size"],
            num_samples=calibration["num_samples"],
            layers_path=spec.get("layers_path"),
            dtype=spec["dtype"],
            compute_dtype=spec.get("compute_dtype", "auto"),
            device=spec["device"],
            report=report,
        )
    )


def run_prune(spec: Spec, output: Path, inputs: Inputs, report: Reporter) -> Metrics:
    """A smaller checkpoint, with its plan, metrics, model card, manifest and plots."""
    from optipfair_engine import workflow
    from worker.engine.reload_check import forked_runner

    model = inputs.model(spec["model"])
    if spec.get("layers_from"):
        spec = {**spec, "layer_indices": inputs.least_important(spec), "num_layers_to_remove": None}
    return dict(
        workflow.prune_checkpoint(
            model,
            output,
            prune_options(spec),
            calibration_texts=inputs.calibration(spec["calibration"], model),
            evaluation_texts=inputs.texts(spec["evaluation"]),
            plan=inputs.model({"source": "job", **spec["plan"]}) if spec["plan"] else None,
            reload_runner=forked_runner,
            memory_limit=inputs.places.memory_bytes,
            state=inputs.state() if spec["calibration"] else None,
            report=report,
            announce=inputs.tell,
        )
    )


def prune_options(spec: Spec) -> PruneOptions:
    """The engine's options of a prune spec: the same names, and how its texts are cut."""
    from optipfair_engine.options.prune import PruneOptions

    text = spec["calibration"] or {}
    own = {"source": "model"} if text.get("source") == "model" else None
    given = {**spec, **text, "calibration": own}
    cut = {name: value for name, value in (spec["evaluation"] or {}).items() if name in _CUT}
    given |= {f"evaluation_{name}": value for name, value in cut.items()}
    return PruneOptions(**{name: given[name] for name in PruneOptions.model_fields if name in given})


def run_bias(spec: Spec, output: Path, inputs: Inputs, report: Reporter) -> Metrics:
    """How differently a model treats prompts that differ in one attribute."""
    from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint

    options = {name: spec[name] for name in BiasOptions.model_fields if name in spec}
    if spec["suite"] is not None:
        options["suite"] = inputs.suite(spec["suite"])
    baseline = inputs.model(spec["baseline"]) if spec["baseline"] else None
    return dict(
        bias_checkpoint(
            inputs.model(spec["model"]),
            output,
            BiasOptions(**options),
            baseline=baseline,
            model_name=called(spec["model"]),
            baseline_name=called(spec["baseline"]) if spec["baseline"] else None,
            suites_folder=inputs.suites(spec.get("suites")),
            report=report,
        )
    )


def called(reference: Mapping[str, Any]) -> str:
    """A model as its user named it."""
    if reference["source"] == "job":
        step = f", step {reference['step']}" if reference.get("step") else ""
        return f"job {reference['job_id']}{step}"
    if reference["source"] == "upload":
        return f"upload {reference['id']}"
    name: str = reference["id"] if reference["source"] == "hub" else reference["name"]
    return f"step {name}" if reference["source"] == "step" else name


def run_evaluate(spec: Spec, output: Path, inputs: Inputs, report: Reporter) -> Metrics:
    """Perplexity, speed, and the comparison with a baseline."""
    from optipfair_engine import workflow

    baseline = inputs.model(spec["baseline"]) if spec["baseline"] else None
    return dict(
        workflow.evaluate_checkpoint(
            inputs.model(spec["model"]),
            output,
            baseline=baseline,
            texts=inputs.texts(spec["text"]),
            prompts=spec["prompts"],
            timing=spec["timing"],
            dynamic=spec.get("dynamic"),
            **{name: value for name, value in (spec["text"] or {}).items() if name in _CUT},
            max_new_tokens=spec["max_new_tokens"],
            dtype=spec["dtype"],
            compute_dtype=spec.get("compute_dtype", "auto"),
            device=spec["device"],
            report=report,
        )
    )


def run_pipeline(spec: Spec, output: Path, inputs: Inputs, report: Reporter) -> Metrics:
    """Several steps; metrics are `step.metric`, and also plain where only one step has that name.

    The files of steps that an earlier attempt has finished are there already; these steps are not run again.
    """
    by_step: dict[str, Metrics] = {name: dict(metrics) for name, metrics in inputs.finished.items()}
    left = [step["name"] for step in spec["steps"] if step["name"] not in by_step]
    if by_step:
        inputs.announce("resumed", {"step": left[0] if left else None, "finished_steps": list(by_step)})
    for step in spec["steps"]:
        name = step["name"]
        folder = folder_of(output, name)
        if name in left:
            folder.mkdir(parents=True)
            inputs.step = name
            run, told = RUNNERS[step["kind"]], prefixed(report, name)
            by_step[name] = strict(run(step["spec"], folder, inputs, told))
            inputs.announce("step_finished", {"step": name, "metrics": by_step[name]})
        inputs.steps[name], inputs.results[name] = folder, by_step[name]
    flatten_steps(output)
    return write_metrics(output, merge_metrics(by_step))


def prefixed(report: Reporter, step: str) -> Reporter:
    """A reporter whose stages say which step they belong to."""
    return lambda stage, done, total, message: report(f"{step}:{stage}", done, total, message)


RUNNERS: dict[str, Runner] = {
    "analyze": run_analyze,
    "importance": run_importance,
    "prune": run_prune,
    "bias": run_bias,
    "evaluate": run_evaluate,
    "pipeline": run_pipeline,
}
