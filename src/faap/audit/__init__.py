"""Is there a gap, how sure is it, and where does it come from."""

from faap.audit.audit import audit as audit
from faap.audit.audit import audit_data as audit_data
from faap.audit.results import read_results as read_results
