"""What this worker can offer: its local models with their revisions, and its named files.

A revision is a hash over all of a model's bytes, so it is kept by the files' sizes and times, on disk too: a
restart does not read hundreds of gigabytes again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.rows import JobError, JsonObject, LocalModel
from optipfair_engine import headers
from optipfair_engine.options.suites import CATALOGUE, missing_files
from worker.inputs.files import OutsideRootError, files_under, names_in, resolve_named
from worker.inputs.suites import suite_facts
from worker.log import logger

Signature = tuple[tuple[str, int, int], ...]


def signature_of(folder: Path) -> Signature:
    """Name, size and modification time of each file: changes whenever the revision could."""
    entries = []
    for path in files_under(folder):
        status = path.stat()
        entries.append((path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return tuple(entries)


@dataclass
class Inventory:
    """Scans the folders of models, suites and calibration files; `scan` is cheap when nothing changed."""

    models_dir: Path
    calibration_dir: Path
    suites_dir: Path
    cache_file: Path
    _known: dict[str, tuple[Signature, LocalModel]] = field(default_factory=dict)
    _suites: dict[str, tuple[tuple[int, int], JsonObject | None]] = field(default_factory=dict)

    def load(self) -> None:
        """Take over what an earlier worker process found; an unreadable cache is ignored."""
        try:
            stored = json.loads(self.cache_file.read_text())
            self._known = {name: _entry_from_json(item) for name, item in stored.items()}
        except (OSError, ValueError, TypeError, KeyError):
            self._known = {}

    def scan(self) -> list[LocalModel]:
        """The models as they are now, sorted by name; hashes only what is new or changed."""
        found: dict[str, tuple[Signature, LocalModel]] = {}
        for name in names_in(self.models_dir, folders=True):
            entry = self._look_at(name)
            if entry is not None:
                found[name] = entry
        if found != self._known:
            self._known = found
            self._save()
        return [model for _signature, model in found.values()]

    def revision_of(self, name: str, signature: Signature | None) -> str | None:
        """The revision of a model whose files look like that; None if the last scan saw others."""
        known = self._known.get(name)
        return known[1].revision if known is not None and known[0] == signature else None

    def files(self) -> dict[str, list[str]]:
        """The names of calibration files and suites, and the catalogue's suites that are here whole."""
        return {
            "catalogue": [e.name for e in CATALOGUE if not missing_files(e, self.suites_dir)],
            "calibration": names_in(self.calibration_dir, folders=False),
            "suites": names_in(self.suites_dir, folders=False),
        }

    def suites(self) -> dict[str, JsonObject]:
        """What each suite file holds; a file is read again only when its size or time has changed."""
        known: dict[str, tuple[tuple[int, int], JsonObject | None]] = {}
        for name in names_in(self.suites_dir, folders=False):
            path = self.suites_dir / name
            try:
                status = path.stat()
            except OSError:
                continue
            looks = status.st_size, status.st_mtime_ns
            before = self._suites.get(name)
            known[name] = before if before is not None and before[0] == looks else (looks, suite_facts(path))
        self._suites = known
        return {name: facts for name, (_, facts) in known.items() if facts is not None}

    def _look_at(self, name: str) -> tuple[Signature, LocalModel] | None:
        try:
            folder = resolve_named(self.models_dir, name)
            signature = signature_of(folder)
        except OutsideRootError:
            return None  # as good as absent
        except OSError:
            # Without a signature it is looked at again each time; one that vanished meanwhile is just absent.
            return ((), unreadable(name)) if (self.models_dir / name).is_dir() else None
        known = self._known.get(name)
        if known is not None and known[0] == signature:
            return known
        return signature, describe_model(name, folder)

    def _save(self) -> None:
        stored = {
            name: {"signature": entry[0], "model": asdict(entry[1])} for name, entry in self._known.items()
        }
        self.cache_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.cache_file.with_suffix(f".{os.getpid()}.tmp")  # workers may share a folder
        temporary.write_text(json.dumps(stored))
        temporary.replace(self.cache_file)


def describe_model(
    name: str, folder: Path, revision: Callable[[Path], str] = headers.model_revision
) -> LocalModel:
    """Header facts and revision of one model folder, or the problem that makes it unusable."""
    try:
        facts = headers.inspect_model_folder(folder)
        return LocalModel(name=name, revision=revision(folder), facts=_plain(asdict(facts)))
    except headers.HeaderError as error:
        return LocalModel(name=name, revision=None, problem=JobError(code=error.code, message=str(error)))
    except OSError:
        return unreadable(name)
    except Exception:  # others supplied the files: whatever they do to a parser, the other models go on
        logger.warning("inventory.model_unreadable", model=name, exc_info=True)
        return unreadable(name)


def unreadable(name: str) -> LocalModel:
    """A model whose files can't be read, for a reason that its header does not tell."""
    problem = JobError(code="model_unreadable", message=f"the files of model {name!r} can't be read")
    return LocalModel(name=name, revision=None, problem=problem)


def _plain(facts: Mapping[str, object]) -> JsonObject:
    plain: JsonObject = json.loads(json.dumps(facts))
    return plain


def _entry_from_json(item: JsonObject) -> tuple[Signature, LocalModel]:
    model = dict(item["model"])
    problem = JobError(**model.pop("problem")) if model.get("problem") else model.pop("problem", None)
    signature = tuple((str(name), int(size), int(time)) for name, size, time in item["signature"])
    return signature, LocalModel(**model, problem=problem)
