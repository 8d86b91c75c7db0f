//! Work that is done for each backend again and again, in a task of its own for each.
//!
//! A backend whose task has not ended, because its storage hangs, gets no second one; the others get theirs.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Service;
use crate::backend::Backend;
use crate::backend::name::BackendName;

/// The tasks of one kind of work that have not ended.
#[derive(Debug, Default)]
pub(super) struct Rounds(HashMap<BackendName, JoinHandle<()>>);

impl Rounds {
    /// Begins the work for each backend of the map that is `wanted` and has none under way.
    pub(super) fn begin<F>(
        &mut self,
        service: &Arc<Service>,
        wanted: impl Fn(&Arc<Backend>) -> bool,
        work: impl Fn(Arc<Service>, Arc<Backend>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.retain(|_, round| !round.is_finished());
        for backend in service.in_force.load().map.iter() {
            if !self.0.contains_key(backend.name()) && wanted(backend) {
                let round = tokio::spawn(work(Arc::clone(service), Arc::clone(backend)));
                self.0.insert(backend.name().clone(), round);
            }
        }
    }
}
