"""Replacement of an export in a run's folder. The new export appears at once, and files of others stay."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from flt.core.errors import InputError
from flt.core.files import check_no_link, is_regular, remove_file
from flt.export.card_seal import CARD_FILE, is_own_card
from flt.export.places import EXPORTS, SUBFOLDER

_UNFINISHED = re.compile(rf"\.export(-(?P<target>{'|'.join(EXPORTS)}))?(-[0-9a-f]{{16}})?")
_PREPROCESSOR = (
    r"(preprocessor_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|(vocab|merges)\.txt|(tokenizer|spiece|spm|sentencepiece(\.bpe)?)\.model|chat_template\.jinja"
)
"""Pattern of the names of the files of tokenizers and image processors."""
_WEIGHTS = re.compile(r"(adapter_model|flt_adapter|model(-\d+-of-\d+)?)\.safetensors")
"""Pattern of the names of the files that contain an exported model's weights."""
_OWN = re.compile(
    r"(adapter_config|classes|config|generation_config|flt_(adapter|base|inputs)|label_names|model\.safetensors\.index)\.json"
    rf"|label_names\.safetensors|{_WEIGHTS.pattern}|{_PREPROCESSOR}"
)
"""Pattern of the names of the files that flt, peft and transformers write to an export, apart from the model card."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def unfinished(run: Path) -> Iterator[Path]:
    """Creates a folder with a random name in a run's folder, to which an export is first written.

    If an error is raised in the with block, the folder is removed.

    Raises:
        OSError: The folder can't be created.
    """
    folder = run / f".export-{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        _discard(folder)
        raise


def finish(built: Path, target: Path) -> Path:
    """Replaces the export in ``target`` by the one in ``built``. Files and folders of others in ``target`` are kept.

    Returns:
        The folder ``target``.

    Raises:
        InputError: ``target`` is a link, or others have put something in the place of a file or folder of the export.
    """
    check_no_link(target)
    others = [path.relative_to(target) for path in _of_others(target)]
    for path in others:
        if path.name == CARD_FILE and is_regular(built / path):
            _log.warning("%s is yours and stays; no new card is written there", f"{target.name}/{path.as_posix()}")
            remove_file(built / path)
        elif os.path.lexists(built / path):
            where = f"{target.name}/{path.as_posix()}"
            raise InputError.of("export", where, "a file or folder that flt wrote, or nothing")
    # The new name says where the files of others belong, should this process be killed before they are there again.
    built = built.rename(built.with_name(f".export-{target.name}-{secrets.token_hex(8)}"))
    try:
        remove_export(target)
        for path in others:
            (built / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).rename(built / path)
        remove_export(target)  # the folders that are now empty
        return built.rename(target)  # atomic: the folder is complete or absent
    except BaseException:
        with contextlib.suppress(OSError):  # the next start of the run tries it again
            _give_up(built, target)
        raise


def remove_export(folder: Path) -> None:
    """Removes the files of an export, and those of its folders that are empty then. All else stays, and so do links.

    Raises:
        InputError: The folder is a link.
    """
    check_no_link(folder)
    for place in reversed(_folders(folder)):
        for path in place.iterdir():
            if _is_own(path):
                path.unlink()
        with contextlib.suppress(OSError):  # raised if it holds files of others
            place.rmdir()


def remove_unfinished(run: Path) -> None:
    """Removes the unfinished exports that killed processes have left in a run's folder.

    Files of others that :func:`finish` had already moved into such an export are moved back.

    Raises:
        InputError: A link is in the place of the folder to which files are moved back.
    """
    for path in run.glob(".export*"):
        found = _UNFINISHED.fullmatch(path.name)
        if found and path.is_dir() and not path.is_symlink():
            if found["target"]:
                _give_up(path, run / found["target"])
            else:
                _discard(path)


def is_export(folder: Path) -> bool:
    """Returns whether a folder holds the weights of a model that flt has exported.

    A folder that has only what lies beside the weights, such as a tokenizer or the names of classes, is no export.
    """
    files = (path for place in _folders(folder) for path in place.iterdir())
    return any(is_regular(path) and _WEIGHTS.fullmatch(path.name) for path in files)


def is_preprocessor(name: str) -> bool:
    """Returns whether a file of an export belongs to its tokenizer or image processor, by the file's name."""
    return re.fullmatch(_PREPROCESSOR, name) is not None


def _discard(folder: Path) -> None:
    """Removes an export that wasn't written completely. safetensors may have left temporary files in it."""
    for place in _folders(folder):
        for path in (*place.glob(".tmp" + 6 * "[0-9A-Za-z]"), place / CARD_FILE):
            remove_file(path)
    remove_export(folder)


def _give_up(built: Path, target: Path) -> None:
    """Removes an export that :func:`finish` was to put in place, and moves the files of others in it to ``target``.

    What has been replaced in ``target`` meanwhile stays in ``built``.
    """
    for path in _of_others(built):
        place = target / path.relative_to(built)
        for folder in (target, *(target / parent for parent in path.relative_to(built).parents)):
            check_no_link(folder)
        if not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    remove_export(built)


def _folders(folder: Path) -> list[Path]:
    """Returns the folder of an export, and its subfolders to which models are exported. Links are left out."""
    found = [folder] if folder.is_dir() and not folder.is_symlink() else []
    for place in found:  # the list grows in the loop, because subfolders have subfolders
        found += [
            path
            for path in sorted(place.iterdir())
            if SUBFOLDER.fullmatch(path.relative_to(folder).as_posix()) and path.is_dir() and not path.is_symlink()
        ]
    return found


def _is_own(path: Path) -> bool:
    return is_regular(path) and (bool(_OWN.fullmatch(path.name)) or (path.name == CARD_FILE and is_own_card(path)))


def _of_others(folder: Path) -> list[Path]:
    """Returns the files, links and whole folders in an export that flt hasn't written."""
    places = _folders(folder)
    return [path for place in places for path in sorted(place.iterdir()) if path not in places and not _is_own(path)]
