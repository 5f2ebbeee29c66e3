/// Faults in the protocol, each of which the models must find: a name, what it replaces in
/// `rendezvous.rs`, and by what.
const FAULTS: &[(&str, &str, &str)] = &[
    (
        "post_has_no_fence",
        "        // Either this sees the sleeper, or the sleeper sees the job.\n        fence(Ordering::SeqCst);\n",
        "",
    ),
    (
        "post_wakes_without_the_lock",
        "            drop(self.lock());\n            self.posted.notify_all();\n",
        "            self.posted.notify_all();\n",
    ),
    ("post_wakes_nobody", "            self.posted.notify_all();\n        }\n", "        }\n"),
    (
        "post_wakes_one",
        "            self.posted.notify_all();\n        }\n",
        "            self.posted.notify_one();\n        }\n",
    ),
    ("post_publishes_relaxed", "| OPEN, Ordering::Release", "| OPEN, Ordering::Relaxed"),
    ("post_leaves_the_old_parts", "self.next_part.store(0, Ordering::Relaxed);", ""),
    ("parts_are_not_taken_atomically", "self.next_part.fetch_add(1, Ordering::Relaxed)", {
        "{ let part = self.next_part.load(Ordering::Relaxed); self.next_part.store(part + 1, Ordering::Relaxed); part }"
    }),
    ("withdraw_does_not_wait", "|| self.word.load(Ordering::Acquire) & JOINED != 0", "|| false"),
    (
        "withdraw_reads_relaxed",
        "|| self.word.load(Ordering::Acquire) & JOINED != 0",
        "|| self.word.load(Ordering::Relaxed) & JOINED != 0",
    ),
    ("withdraw_leaves_the_job_open", "self.word.fetch_and(!OPEN, Ordering::AcqRel);", ""),
    (
        "withdraw_has_no_fence",
        "            // Either this sees the last worker leave, or that one sees the sleeper.\n            fence(Ordering::SeqCst);\n",
        "",
    ),
    (
        "join_has_no_fence",
        "            self.sleepers.fetch_add(1, Ordering::Relaxed);\n            fence(Ordering::SeqCst);\n",
        "            self.sleepers.fetch_add(1, Ordering::Relaxed);\n",
    ),
    (
        "join_does_not_look_again",
        "if !self.stop.load(Ordering::Acquire) && !is_new(self.word.load(Ordering::Acquire), *seen) {",
        "{",
    ),
    (
        "join_does_not_check_that_the_job_is_open",
        "self.word.compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()",
        "{ self.word.fetch_add(1, Ordering::AcqRel); true }",
    ),
    ("leave_is_relaxed", "fetch_sub(1, Ordering::AcqRel)", "fetch_sub(1, Ordering::Relaxed)"),
    ("leave_wakes_nobody", "                self.left.notify_one();\n", ""),
    (
        "leave_wakes_without_the_lock",
        "                drop(self.lock());\n                self.left.notify_one();\n",
        "                self.left.notify_one();\n",
    ),
    (
        "leave_has_no_fence",
        "            fence(Ordering::SeqCst);\n            if self.caller_sleeps",
        "            if self.caller_sleeps",
    ),
    (
        "stop_wakes_without_the_lock",
        "        drop(self.lock());\n        self.posted.notify_all();\n    }\n}",
        "        self.posted.notify_all();\n    }\n}",
    ),
    ("stop_wakes_nobody", "        self.posted.notify_all();\n    }\n}", "    }\n}"),
];
