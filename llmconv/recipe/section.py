"""What every section of a recipe is: keys that are known, values that do not change."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
