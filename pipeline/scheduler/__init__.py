"""Many rows on many workers: the only rooms that know Ray.

``runner`` hands out groups of rows and survives dying workers, ``worker`` is the Ray actor, ``batch`` builds
one group inside a process (what ``--serial`` uses, too), ``cluster`` starts and joins Ray, ``run_log`` keeps
the run's record, ``progress`` shows it, ``file_lock`` keeps two runs off one asset. Importing this package
imports none of them.
"""
