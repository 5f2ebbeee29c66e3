//! Where a thread runs. A thread that is woken may be put on its caller's core and stay there for milliseconds while
//! other cores are idle, above all in virtual machines.

#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    #[allow(clippy::unnecessary_wraps, reason = "other systems do not say")]
    pub(crate) fn core() -> Option<usize> {
        Some(sched_getcpu())
    }

    /// Another of the cores that this thread may use, if there is one: those that it may use stay the same.
    pub(crate) fn move_from(core: usize) {
        let Some(allowed) = sched_getaffinity(None).ok().filter(|_| core < CpuSet::MAX_CPU) else { return };
        let mut others = allowed;
        others.unset(core);
        if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
            // What fails here was changed from outside meanwhile.
            let _ = sched_setaffinity(None, &allowed);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    pub(crate) fn core() -> Option<usize> {
        None
    }

    pub(crate) fn move_from(_: usize) {}
}

/// The core that this thread runs on, where the system says.
pub(super) fn core() -> Option<usize> {
    system::core()
}

/// Moves this thread to another core if it is on `core`; whether it is on another then, as far as the system says. It
/// may use the same cores as before.
pub(super) fn leave(core: Option<usize>) -> bool {
    match core {
        Some(of_caller) if system::core() == core => {
            system::move_from(of_caller);
            system::core() != core
        }
        _ => true,
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use rustix::thread::sched_getaffinity;

    #[test]
    fn a_thread_that_moves_may_use_the_same_cores_as_before() {
        let allowed = sched_getaffinity(None).unwrap();
        let core = super::core();
        let moved = super::leave(core);
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
        // On a single core there is nowhere to go; on several the scheduler may have moved it back.
        assert!(allowed.count() > 1 || !moved);
        assert!(super::leave(None) && super::leave(Some(usize::MAX)));
    }
}
