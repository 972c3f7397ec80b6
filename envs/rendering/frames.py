"""Frames of a batch of pools in a render mode: `ansi` texts, or `rgb_array` pictures."""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.rendering.picture import SHOWN_S, picture_of
from envs.rendering.scene import Scene
from envs.rendering.text import text_of
from runtime.errors import UserError, nearest

MODES = ("ansi", "rgb_array")
FPS = 20  # of recorded videos; a frame is a decision
Frame = str | npt.NDArray[np.uint8]


def check_mode(mode: str | None) -> str | None:
    """Raises UserError for one that there is not."""
    if mode is not None and mode not in MODES:
        raise UserError(f"render_mode={mode!r}: {nearest(str(mode), MODES)}")
    return mode


class Frames:
    """Looks at each pool through a scene of its present episode. Scenes are no state: a copy looks
    anew."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._scenes: dict[int, Scene] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"mode": self.mode, "_scenes": {}}

    def of(self, pools: Any, p: int) -> Frame:
        """Pool p of recorded `Pools`, as it is now."""
        scene = self._scenes.get(p)
        if scene is None or scene.sim is not pools.sims[p]:
            scene = Scene(pools.scenario, pools.episodes[p], pools.sims[p])
            self._scenes[p] = scene
        if self.mode == "ansi":
            return text_of(scene.view())
        return picture_of(scene.view(), *scene.bars(SHOWN_S))
