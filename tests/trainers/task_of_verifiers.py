"""A task of verifiers with a tool server, which verifiers starts as this module."""

import verifiers.v1 as vf
from texts_of_tools import RESULT


class Library(vf.Toolset[vf.ToolsetConfig]):
    """A tool server with one tool."""

    TOOL_PREFIX = "library"

    @vf.tool
    def find_author(self, title: str) -> str:
        """Finds the author of a novel."""
        return RESULT


class Config(vf.TaskConfig):
    """Where the tool server runs."""

    tools: vf.ToolsetConfig = vf.ToolsetConfig()


class Data(vf.TaskData):
    """A row with what is right, as datasets have it."""

    answer: str


class Novel(vf.Task[Data, vf.State, Config]):
    """A task with a tool, scored by the configured reward."""

    @classmethod
    def toolsets(cls, config: Config) -> list[vf.Toolset]:
        """The servers of a rollout."""
        return [Library(config.tools)]


if __name__ == "__main__":
    Library.run()
