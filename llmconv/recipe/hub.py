"""Checkpoints on Hugging Face's hub: found by name, pinned to a commit, downloaded into the hub library's cache."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llmconv.errors import CheckpointError, RecipeError, ResourceError
from llmconv.files import write_text
from llmconv.quantities import size

PREFIX = "hub:"  # then ORG/NAME, /FILE where it is one file of several, and @REVISION
_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([^@]+))?(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
logger = logging.getLogger(__name__)

Wanted = Callable[[Sequence[str]], Sequence[str]]  # names of a repository's files -> those that are needed


@dataclass(frozen=True)
class HubId:
    """A model on the hub.

    Attributes:
        file: the one of its files that is meant, such as one quantization of several; "" for the repository.
        revision: a branch, a tag or a commit.
    """

    repo: str
    file: str = ""
    revision: str = "main"

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{'/' if self.file else ''}{self.file}{revision}"

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """An id with the prefix or without; None of what is none."""
        found = _ID.fullmatch(text.removeprefix(PREFIX))
        return cls(found[1], found[2] or "", found[3] or "main") if found else None

    def within(self, folder: Path) -> Path:
        """The checkpoint in the folder of a commit's files."""
        return folder / self.file if self.file else folder


@dataclass(frozen=True)
class _Listing:
    """A commit's files with their sizes in bytes, 0 where the hub does not say."""

    commit: str
    sizes: dict[str, int]


def identify(text: str) -> HubId:
    """The id that a recipe names.

    Raises:
        RecipeError: it is none.
    """
    found = HubId.parse(text)
    if found is None:
        raise RecipeError(f"model.checkpoint: write '{text}' as {PREFIX}ORG/NAME, with @REVISION for one of several")
    return found


def brought(wanted_id: HubId, wanted: Wanted | None) -> Path:
    """The checkpoint in the cache, in the folder of its commit, after what lacks of it was downloaded.

    Args:
        wanted: which files are needed; None takes what is in the cache and asks nobody.

    Raises:
        CheckpointError: the hub has no such model, does not let it be read, or fails; what was downloaded stays.
        ResourceError: the disk has no room for it.
    """
    listing = None if wanted is None else _listing_or_cache(wanted_id)
    if listing is None:
        return wanted_id.within(_cached(wanted_id))
    assert wanted is not None
    pinned = replace(wanted_id, revision=listing.commit)
    names = wanted([name for name in listing.sizes if not pinned.file or _goes_with(name, pinned.file)])
    chosen = [name for name in listing.sizes if name in names]
    if not chosen:
        raise CheckpointError(f"{wanted_id}: none of its {len(listing.sizes)} files is a checkpoint that is read here")
    folder = _downloaded(pinned, {name: listing.sizes[name] for name in chosen})
    _remember(wanted_id, listing.commit)
    return pinned.within(folder)


def _goes_with(name: str, file: str) -> bool:
    """Whether it is that file, another of the set that it is the first of, or no weights and no configuration."""
    parts = re.fullmatch(r"(.*-)00001(-of-\d{5}\..*)", file)
    same_set = parts is not None and re.fullmatch(rf"{re.escape(parts[1])}\d{{5}}{re.escape(parts[2])}", name)
    return name == file or bool(same_set) or Path(name).suffix in ("", ".md", ".txt")


def commit_of(wanted_id: HubId, found: Path) -> HubId:
    """An id, pinned to the commit whose files were found."""
    depth = len(Path(wanted_id.file).parts)
    return replace(wanted_id, revision=(found.parents[depth - 1] if depth else found).name)


def _listing_or_cache(wanted_id: HubId) -> _Listing | None:
    """What the hub has; None where it cannot be asked and the cache has the commit."""
    try:
        return _listing(wanted_id)
    except ConnectionError as error:
        folder = _cached(wanted_id, error)
        logger.warning("%s: the hub cannot be asked (%s); what %s holds is read", wanted_id, error, folder)
        return None


@cache
def _listing(wanted_id: HubId) -> _Listing:
    """Of a revision.

    Raises:
        ConnectionError: nobody answers, or the hub library is told to be offline.
    """
    hub = _library()
    with _told(wanted_id):
        info = hub.HfApi().model_info(wanted_id.repo, revision=wanted_id.revision, files_metadata=True)
    return _Listing(info.sha, {entry.rfilename: entry.size or 0 for entry in info.siblings or ()})


def _downloaded(pinned: HubId, sizes: dict[str, int]) -> Path:
    """Download what the cache lacks, a file after the other; each is there whole or not at all."""
    hub, folder = _library(), _folder(pinned)
    lacking = {name: count for name, count in sizes.items() if not (folder / name).is_file()}
    if lacking:
        root = next(p for p in folder.parents if p.is_dir())
        if (need := sum(lacking.values())) > (free := shutil.disk_usage(root).free):
            raise ResourceError(
                f"{pinned}: {size(need)} are to be downloaded, {size(free)} are free in {root}; "
                "free some, or set HF_HOME to a larger disk"
            )
        logger.warning("%s: downloading %d files, %s, into %s", pinned, len(lacking), size(need), folder)
    for name in lacking:
        try:
            with _told(pinned, name):
                hub.hf_hub_download(pinned.repo, name, revision=pinned.revision)
        except ConnectionError as error:
            raise CheckpointError(f"{pinned}: {error}; the same command goes on from here") from error
    return folder


@contextmanager
def _told(wanted_id: HubId, file: str = "") -> Iterator[None]:
    """What the library raises, as one line that says what to do."""
    errors = _library().errors
    where = f"{wanted_id}{', ' if file else ''}{file}"
    page = f"https://huggingface.co/{wanted_id.repo}"
    try:
        yield
    except CheckpointError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: its licence has to be accepted at {page}; then run 'hf auth login', or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: it has no revision '{wanted_id.revision}'; {page} lists them") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: no model of that name on the hub, or a private one; look for it at {page}, or log in"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "try again later"
        raise CheckpointError(f"{where}: the hub answers {status}; {advice}; what was downloaded stays") from error
    except errors.LocalEntryNotFoundError as error:  # what it makes of a hub that does not answer
        raise ConnectionError(f"{file or 'its files'}: not in the cache, and the hub cannot be asked") from error
    except ConnectionError:
        raise
    except Exception as error:  # of whichever library for HTTP it uses; or of the disk
        said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, OSError) and not file:
            raise ConnectionError(said) from error
        raise CheckpointError(f"{where}: download failed ({said}); the same command goes on from here") from error


def _folder(wanted_id: HubId) -> Path:
    """Where the cache has the files of a commit; of a branch or tag, as it was when it was last asked for."""
    hub = _library()
    name = hub.file_download.repo_folder_name(repo_id=wanted_id.repo, repo_type="model")
    root: Path = Path(hub.constants.HF_HUB_CACHE) / name
    commit = wanted_id.revision
    if not _COMMIT.fullmatch(commit) and (ref := root / "refs" / commit).is_file():
        commit = ref.read_text(encoding="utf-8").strip()
    return root / "snapshots" / commit


def _remember(wanted_id: HubId, commit: str) -> None:
    """Note what a branch or tag stands for, where the library does; it is looked up when the hub cannot be asked."""
    if not _COMMIT.fullmatch(wanted_id.revision):
        ref = _folder(replace(wanted_id, revision=commit)).parents[1] / "refs" / wanted_id.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_text(ref, commit)


def _cached(wanted_id: HubId, why: object = None) -> Path:
    folder = _folder(wanted_id)
    if not folder.is_dir():
        reason = f"the hub cannot be asked ({why})" if why else "the hub is not asked"
        raise CheckpointError(f"{wanted_id}: not in the cache {folder.parents[1]}, and {reason}")
    return folder


def _library() -> Any:
    """The hub library, which is an extra.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import huggingface_hub  # noqa: PLC0415  an extra, and half a second to import
        from huggingface_hub import constants, errors, file_download  # noqa: F401, PLC0415  likewise
    except ImportError as error:
        raise RecipeError(f"checkpoints of the form {PREFIX}ORG/NAME need: pip install llmconv[hub]") from error
    return huggingface_hub
