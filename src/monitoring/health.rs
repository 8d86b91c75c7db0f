//! Health: is the process alive, and can it serve?
//!
//! Whoever asks is answered from memory. A backend that hangs or is offline makes the service neither dead nor unready:
//! the other backends are served.

use crate::admin::ServiceStatus;
use crate::process::Drain;
use crate::volume::Service;

/// Returns why the service cannot serve requests now; nothing if it can.
pub(super) fn not_ready(service: &Service, status: &ServiceStatus, drain: &Drain) -> Vec<String> {
    let mut why = Vec::new();
    if status.read().since.is_none() {
        why.push("the service has not begun to serve yet".to_owned());
    }
    if drain.is_started() {
        why.push("the service is stopping".to_owned());
    }
    if let Some(fault) = service.catalog_fault() {
        why.push(format!("the catalog takes no changes: {fault}"));
    }
    why
}
