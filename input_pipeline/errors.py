"""The two kinds of bad input: a mistake of the user, and a page that cannot be used."""


class UserError(ValueError):
    """Something the user can put right; printed as one line, without a traceback."""


class PageError(ValueError):
    """One page cannot be used; its message is the reason listed beside the page."""
