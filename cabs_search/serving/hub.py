"""An export uploaded to the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cabs_search.common.formats import first_line

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables of the environment, of which the first that is set holds the token."""


def local_files(folder: Path) -> list[str]:
    """Return the YAML files of an export that name folders of this machine."""
    paths = re.compile(r"(^|[\s'\"+])/\S", re.MULTILINE)
    return [file.name for file in folder.glob("*.yaml") if paths.search(file.read_text("utf-8"))]


class Push:
    """An upload that was checked before the export begins; nothing is sent before ``send``."""

    def __init__(self, repo_id: str, *, private: bool = True) -> None:
        """Check id and token.

        Args:
            repo_id: ``owner/name``.
            private: whether the repository is private, if it is made now.

        Raises:
            ValueError: the id is none, or the environment holds no token.

        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"--push {repo_id}: {first_line(error)}") from error
        if repo_id.count("/") != 1:
            raise ValueError(f"--push: OWNER/NAME is needed, but got {repo_id or 'nothing'}")
        token = next((os.environ[name] for name in TOKENS if os.environ.get(name)), None)
        if token is None:
            raise ValueError(f"--push: {TOKENS[0]} must hold a token of the hub that may write")
        self.repo_id, self._private = repo_id, private
        self._api: Any = HfApi(token=token)

    def send(self, folder: Path) -> str:
        """Upload a folder and return the repository's address.

        Raises:
            RuntimeError: the hub did not take it.

        """
        try:
            url = self._api.create_repo(self.repo_id, private=self._private, exist_ok=True)
            if self._private and not self._api.repo_info(self.repo_id).private:
                raise ValueError("the repository is public; say --public if it shall be")
            self._api.upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                commit_message="Upload by cabs-search",
                ignore_patterns=local_files(folder),
            )
        except Exception as error:
            raise RuntimeError(
                f"--push {self.repo_id}: the hub did not take {folder}: {first_line(error)}"
            ) from error
        return str(url)
