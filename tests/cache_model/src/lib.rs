//! A model of how threads share the cache of compiled products; all of it is in `tests`.
