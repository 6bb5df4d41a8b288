"""Reports that several tests read."""

import pytest
from planted import page, pages_of
from report_helpers import evidence_of, report

from saghog_jax.evidence import gather as evidence


@pytest.fixture
def small(tmp_path):
    pages = [*pages_of(5, 4), page("odd name #1%.png", "", "1"), page("lonely.png", "only", "1")]
    return report(tmp_path, pages)


@pytest.fixture
def proven(tmp_path, monkeypatch):
    """A report in which the first two matches of page 2 have evidence, the second without pairs."""

    def gather(compared, order, config, workdir):
        first, second, *_ = (other for other, _ in compared.ranking.hits(2))
        e = compared.queries
        return {(2, first): evidence_of(e, 2, first), (2, second): evidence_of(e, 2, second, ())}

    monkeypatch.setattr(evidence, "gather", gather)
    return report(tmp_path, pages_of(5, 4))
