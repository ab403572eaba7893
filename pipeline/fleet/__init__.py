"""Many rows on many workers: the only rooms that know Ray.

``driver`` hands out groups of rows and survives dying workers, ``worker`` is the Ray actor, ``group`` builds
one group inside a process (what ``--serial`` uses, too), ``cluster`` starts and joins Ray, ``ledger`` keeps
the run's record, ``progress`` shows it, ``locks`` keeps two runs off one asset. Importing this package
imports none of them.
"""
