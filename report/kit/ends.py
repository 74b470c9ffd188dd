"""Where the old rooms look for how a command ends."""

from report.ends import end_of as end_of
