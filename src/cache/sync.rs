//! What [`super::store`] synchronises with; its model brings a checker's versions.

pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
