"""Pushing while a run goes on, by a process of its own: a Hub that is slow, or down, neither slows the run nor ends
it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hfgen.hub.push import hide, published, upload
from hfgen.runtime.errors import UserError


class BackgroundPush:
    """Pushes pipelines, one at a time; of those that wait for their turn, only the newest.

    Args:
        folder (`Path`): The run's folder, where what waits is kept: as links, which cost nothing.
        model_id (`str`): The full name of a repository that exists.
        token (`str`, *optional*): By default what `HF_TOKEN` or `hf auth login` say.
        say (`Callable`): Told how each push ended.
    """

    def __init__(self, folder: Path, model_id: str, token: str | None, say: Callable[[str], None]):
        self.model_id, self.token, self.say = model_id, token, say
        self._waiting, self._running = folder / ".tmp-push-waiting", folder / ".tmp-push-running"
        self._output = folder / ".tmp-push-output"
        self._next: str | None = None  # title of what waits
        self._title = ""
        self._process: subprocess.Popen[str] | None = None
        self.close()  # what an earlier life of the run left behind

    def push(self, pipeline: Path, title: str) -> None:
        """Takes what a pipeline folder holds now, and pushes it as soon as no other push is under way."""
        try:
            shutil.rmtree(self._waiting, ignore_errors=True)
            for name, content in published(pipeline).items():
                target = self._waiting / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(pipeline / name, target)  # files of a pipeline are replaced, never changed
                except OSError:  # not every file system has links
                    target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            self._next = title
            self.poll()
        except (OSError, UserError) as error:
            self._failed(title, str(error))

    def poll(self) -> None:
        """Reports a push that has ended, and starts the one that waits. Costs almost nothing."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._report(self._process)
        if self._next is None:
            return
        self._title, self._next = self._next, None
        try:
            shutil.rmtree(self._running, ignore_errors=True)
            self._waiting.rename(self._running)
            with self._output.open("w") as output:  # a pipe, which nobody reads before the end, could fill
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "hfgen.hub.background"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                    start_new_session=True,  # Ctrl-C is for the run
                )
            assert self._process.stdin is not None
            job = {"folder": str(self._running), "model_id": self.model_id, "title": self._title}
            with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(json.dumps(job | {"token": self.token}))
        except OSError as error:
            self._failed(self._title, str(error))

    def _report(self, process: "subprocess.Popen[str]") -> None:
        self._process = None
        lines: list[str] = []
        with contextlib.suppress(OSError):  # someone may have tidied up: no reason to end a run
            lines = hide(self._output.read_text(errors="replace"), self.token).strip().splitlines()
        shutil.rmtree(self._running, ignore_errors=True)
        text = lines[-1] if lines else f"the process ended with code {process.returncode}"
        if process.returncode == 0:
            self.say(f"Pushed:   {text} ({self._title})")
        else:
            self._failed(self._title, text)

    def _failed(self, title: str, reason: str) -> None:
        self.say(f"Warning: the push '{title}' failed: {reason} The run goes on, and pushes what it saves next.")

    def finish(self) -> None:
        """Waits for the push that is under way, and forgets what waits: something newer will be pushed."""
        self._next = None
        if self._process is not None:
            self.say(f"Waiting for the push '{self._title}'")
            self._process.wait()
            self.poll()
        self.close()

    def close(self) -> None:
        """Ends the push that is under way. A push that is cut off changes nothing on the Hub."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        self._next = None
        for path in (self._waiting, self._running):
            shutil.rmtree(path, ignore_errors=True)
        self._output.unlink(missing_ok=True)


def main() -> None:
    """Pushes what the standard input says: there, unlike in a command or a file, nobody can read the token."""
    job = json.load(sys.stdin)
    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)
    try:
        sys.stdout.write(upload(Path(job["folder"]), job["model_id"], None, job["title"], job["token"]))
    except UserError as error:
        sys.stdout.write(str(error))
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
