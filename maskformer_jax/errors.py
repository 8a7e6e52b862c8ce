"""The one kind of error that is the user's to mend; anything else is a defect and keeps its traceback."""


class UserError(ValueError):
    """Settings or files that cannot work. The message names them, what was found, and the cure."""
