/// Faults in the protocol, each of which the models must find: a name, what it replaces in
/// `store.rs`, and by what.
const FAULTS: &[(&str, &str, &str)] = &[
    ("nobody_joins", "state.flights.get(&key).cloned()", "None::<Arc<Flight<V, E>>>"),
    (
        "the_flight_is_announced_late",
        "            let key = KeyRef::new(key);\n",
        "            drop(state);\n            let key = KeyRef::new(key);\n            let mut state = lock(&self.state);\n",
    ),
    (
        "the_value_is_made_under_the_lock",
        "            state.counts.misses += 1;\n            drop(state);\n",
        "            state.counts.misses += 1;\n",
    ),
    (
        "the_flight_ends_before_the_value_is_held",
        "        state.flights.remove(&key);\n        let mut evicted",
        "        state.flights.remove(&key);\n        drop(state);\n        let mut state = lock(&self.store.state);\n        let mut evicted",
    ),
    (
        "a_flight_never_ends",
        "        state.flights.remove(&key);\n        let mut evicted",
        "        let mut evicted",
    ),
    (
        "a_panic_tells_nobody",
        "        self.flight.settle(Outcome::Abandoned);\n",
        "",
    ),
    (
        "a_panic_leaves_the_flight",
        "        state.flights.remove(&key);\n        state.counts.failures += 1;\n",
        "        state.counts.failures += 1;\n",
    ),
    ("settle_wakes_nobody", "        self.settled.notify_all();\n", ""),
    ("settle_wakes_one", "self.settled.notify_all()", "self.settled.notify_one()"),
    (
        "settle_wakes_first",
        "        *lock(&self.outcome) = result;\n        self.settled.notify_all();\n",
        "        self.settled.notify_all();\n        *lock(&self.outcome) = result;\n",
    ),
    (
        "wait_does_not_look_first",
        "        let mut outcome = lock(&self.outcome);\n        loop {\n",
        "        let mut outcome = lock(&self.outcome);\n        outcome = self.settled.wait(outcome).unwrap_or_else(PoisonError::into_inner);\n        loop {\n",
    ),
    (
        "an_error_tells_nobody_why",
        "            Err(error) => Outcome::Failed(error.clone()),",
        "            Err(_) => Outcome::Abandoned,",
    ),
    (
        "evicted_values_go_under_the_lock",
        "        drop(state);\n        self.flight.settle(match result {",
        "        evicted.clear();\n        drop(state);\n        self.flight.settle(match result {",
    ),
    (
        "trimmed_values_go_under_the_lock",
        "        let evicted = state.evict(Limits { bytes, ..self.limits });\n        drop(state);\n        drop(evicted);\n",
        "        let evicted = state.evict(Limits { bytes, ..self.limits });\n        drop(evicted);\n        drop(state);\n",
    ),
    (
        "retain_drops_under_the_lock",
        "        drop(state);\n        drop(removed);\n",
        "        drop(removed);\n        drop(state);\n",
    ),
    ("nothing_is_evicted", "        self.evict(limits)\n    }\n", "        Vec::new()\n    }\n"),
    ("the_count_has_no_limit", " || self.entries.len() > limits.count {", " {"),
    ("bytes_have_no_limit", "self.counts.bytes > limits.bytes || self.entries", "self.entries"),
    ("a_hit_does_not_count_as_use", "        entry.used = now;\n", ""),
    ("what_was_used_goes_too", "Some(entry) if entry.used != queued => {", "Some(entry) if false => {"),
    ("bytes_are_not_given_back", "self.counts.bytes.saturating_sub(weight.own)", "self.counts.bytes"),
    ("shared_bytes_count_each_time", "            if *users == 1 {", "            if *users >= 1 {"),
    ("shared_bytes_are_not_given_back", "self.counts.bytes.saturating_sub(*bytes)", "self.counts.bytes"),
    ("shared_bytes_go_with_the_first", "            if *users == 0 {", "            if *users <= 1 {"),
    ("a_value_beyond_the_limit_is_held", "if alone > limits.bytes || limits.count == 0 {", "if limits.count == 0 {"),
    ("what_changed_is_not_weighed_again", "            self.add(&weight);\n            if", "            self.add(&before);\n            if"),
];
