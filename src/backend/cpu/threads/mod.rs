//! The threads of a product: [`split`] shares it out, [`workers`] gives each share memory of its own, [`pool`]
//! runs them by the protocol of [`rendezvous`].

pub(crate) mod pool;
mod rendezvous;
pub(crate) mod split;
mod sync;
pub(crate) mod workers;
