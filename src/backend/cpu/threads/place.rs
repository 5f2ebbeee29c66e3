//! Where a thread runs. A thread that is woken may be put on its caller's core and stay there for milliseconds while
//! other cores are idle, above all in virtual machines.

#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};

    pub(crate) fn core() -> Option<usize> {
        Some(sched_getcpu())
    }

    /// Another of the cores that this thread may use, if there is one: those that it may use stay the same.
    pub(crate) fn move_from(core: usize) {
        let Ok(allowed) = sched_getaffinity(None) else { return };
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
