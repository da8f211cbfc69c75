"""What a spec names, as folders and texts on this machine. Runs in the engine's process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.bias.prompts.fetching import fetch_suite
from optipfair_engine.errors import CalibrationError, CheckpointError, EngineError
from optipfair_engine.options.suites import entry_of, missing_files
from optipfair_engine.progress import Announcer, Reporter, null_announcer
from worker.inputs.cache import FolderCache
from worker.inputs.files import OutsideRootError, resolve_named
from worker.inputs.hub import hub_model, hub_texts
from worker.inputs.state import hold

if TYPE_CHECKING:
    from optipfair_engine.calibration import CalibrationSet


class InputNotFoundError(EngineError, ValueError):
    """A named suite, calibration file or step result is not there."""

    code = "input_not_found"


def place_of(job_id: str, step: str | None) -> str:
    """The name under which the folder of a job, or of a pipeline's step, travels."""
    return job_id if step is None else f"{job_id}/{step}"


@dataclass(frozen=True)
class Places:
    """Where this worker keeps what specs name; plain values, because they travel as JSON."""

    models: str
    calibration: str
    suites: str
    hub_cache: str
    cache_bytes: int
    allow_hub: bool
    #: Folders of earlier jobs' checkpoints, fetched by the supervisor, by `place_of` job and step.
    jobs: Mapping[str, str] = field(default_factory=dict)
    #: Folders of uploads, fetched likewise, by their ids.
    uploads: Mapping[str, str] = field(default_factory=dict)
    #: The folder of this job's state, and what a state there must be bound to; see `worker.inputs.state`.
    state: str | None = None
    binding: str = ""
    #: What the job may take of this machine's memory; None: no limit is known.
    memory_bytes: int | None = None


@dataclass
class Inputs:
    """Resolves references; hub snapshots stay locked in the cache while the stack is open."""

    places: Places
    stack: ExitStack
    report: Reporter
    steps: dict[str, Path] = field(default_factory=dict)
    #: Metrics of a pipeline's steps so far.
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    announce: Announcer = null_announcer
    #: The metrics of a pipeline's steps that an earlier attempt has finished, by name.
    finished: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: The step of a pipeline that runs, if it is one.
    step: str | None = None
    _held: list[Path] = field(default_factory=list)

    def state(self) -> Path | None:
        """The folder in which this job (or step) keeps its state; None if it may keep none."""
        if self.places.state is None:
            return None
        if not self._held:
            self._held.append(hold(Path(self.places.state), self.places.binding, self.stack))
        folder = self._held[0] / (self.step or "job")
        folder.mkdir(exist_ok=True)
        return folder

    def tell(self, what: str, data: Mapping[str, Any]) -> None:
        """Announce something of this job; of a pipeline, with the step that it is of."""
        named = {**data, "reason": f"step {self.step}: {data['reason']}"} if "reason" in data else data
        self.announce(what, data if self.step is None else {**named, "step": self.step})

    def model(self, reference: Mapping[str, Any]) -> Path:
        """The folder of a model reference.

        Raises:
            CheckpointError: there is no such model, or it may not be used; the code says which.
        """
        match reference["source"]:
            case "local":
                return self._local_model(reference["name"])
            case "hub":
                return self._hub_model(reference["id"], reference["revision"])
            case "job":
                return self._job_model(reference["job_id"], reference.get("step"))
            case "upload":
                return self._upload(reference["id"])
            case "step":
                return self._step_model(reference["name"])
            case other:
                raise CheckpointError(f"models from {other!r} are not supported", "model_not_found")

    def _local_model(self, name: str) -> Path:
        try:
            return resolve_named(Path(self.places.models), name)
        except (FileNotFoundError, OutsideRootError) as error:
            raise CheckpointError(f"no local model is named {name!r}", "model_not_found") from error

    def _hub_model(self, model_id: str, revision: str) -> Path:
        if not self.places.allow_hub:
            raise CheckpointError("this worker may not use the hub (OPTIPFAIR_ALLOW_HUB)", "hub_not_allowed")
        cache = FolderCache(Path(self.places.hub_cache), self.places.cache_bytes)
        limit = self.places.cache_bytes
        return self.stack.enter_context(
            hub_model(cache, model_id, revision, limit_bytes=limit, report=self.report)
        )

    def _job_model(self, job_id: str, step: str | None) -> Path:
        folder = self.places.jobs.get(place_of(job_id, step))
        if folder is None:
            raise CheckpointError(f"job {job_id} has no checkpoint", "model_not_found")
        return Path(folder)

    def _upload(self, upload_id: str) -> Path:
        folder = self.places.uploads.get(upload_id)
        if folder is None:
            raise InputNotFoundError(f"upload {upload_id} was not fetched")
        return Path(folder)

    def _uploaded_file(self, upload_id: str) -> Path:
        """The one file of an uploaded text or suite."""
        return next(self._upload(upload_id).iterdir())

    def _step_model(self, name: str) -> Path:
        folder = self.steps.get(name)
        if folder is None or not (folder / "config.json").is_file():
            raise InputNotFoundError(f"step {name!r} wrote no checkpoint")
        return folder

    def least_important(self, spec: Mapping[str, Any]) -> list[int]:
        """The layers that a prune spec takes from an earlier importance step, in order.

        Raises:
            InputNotFoundError: that step has told fewer layers apart than shall go.
        """
        name, count = spec["layers_from"]["name"], spec["num_layers_to_remove"]
        layers = list(self.results.get(name, {}).get("least_important", ()))
        if len(layers) < count:
            raise InputNotFoundError(f"step {name!r} tells {len(layers)} layers apart, not {count}")
        return sorted(layers[:count])

    def calibration(
        self, reference: Mapping[str, Any] | None, model: Path
    ) -> CalibrationSet | list[str] | None:
        """What a calibration reference names, for the model in this folder; None if it names nothing.

        Nothing is named by None, and where the model is to write all of the text itself.
        A named file is read as the command reads it: a line of a ``.jsonl`` is one sample.
        """
        if reference is None or reference.get("source") == "model":
            return None
        if reference.get("source") not in ("local", "upload"):
            return self.texts(reference)
        from optipfair_engine.calibration import load_calibration_file
        from optipfair_engine.checkpoints import load_tokenizer

        sizes = {name: reference[name] for name in ("max_length", "num_samples", "batch_size")}
        return load_calibration_file(self._calibration_file(reference), load_tokenizer(model), **sizes)

    def texts(self, reference: Mapping[str, Any] | None) -> list[str] | None:
        """The texts of a reference; None stays None."""
        if reference is None:
            return None
        if reference.get("texts") is not None:
            return list(reference["texts"])
        if reference.get("source") == "hub":
            return self._hub_texts(reference)
        from optipfair_engine.calibration.text import read_texts

        return read_texts(self._calibration_file(reference))[0]

    def _calibration_file(self, reference: Mapping[str, Any]) -> Path:
        if reference["source"] == "upload":
            return self._uploaded_file(reference["id"])
        return self._named(self.places.calibration, "calibration file", reference["name"])

    def _hub_texts(self, reference: Mapping[str, Any]) -> list[str]:
        if not self.places.allow_hub:
            raise CalibrationError("this worker may not use the hub (OPTIPFAIR_ALLOW_HUB)")
        return hub_texts(reference["dataset"], Path(self.places.hub_cache), reference["num_samples"])

    def suite(self, reference: str | Mapping[str, Any]) -> Path:
        """The file of a suite of prompt pairs, named or uploaded."""
        if not isinstance(reference, str):
            return self._uploaded_file(reference["id"])
        return self._named(self.places.suites, "suite", reference)

    def suites(self, names: Iterable[str] | None) -> Path:
        """The suites folder, once the files of the catalogue's suites are there that may be fetched.

        Raises:
            SuiteDataError: a file could not be fetched.
        """
        folder = Path(self.places.suites)
        for entry in map(entry_of, names or ()):
            if self.places.allow_hub and entry.fetchable and missing_files(entry, folder):
                fetch_suite(entry, folder, report=self.report)
        return folder

    @staticmethod
    def _named(root: str, what: str, name: str) -> Path:
        try:
            return resolve_named(Path(root), name)
        except (FileNotFoundError, OutsideRootError) as error:
            raise InputNotFoundError(f"no {what} is named {name!r}") from error
