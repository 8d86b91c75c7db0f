//! Repairs the Unix sockets of the service: whoever removes the file of one shuts everybody out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::admin::ServiceStatus;
use crate::transport::{Server, SocketStatus};

/// How often sockets are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Repairs sockets for as long as the service runs.
pub(super) async fn keep(server: Arc<Server>, status: Arc<ServiceStatus>) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        mend(&server, &status).await;
    }
}

/// Makes missing sockets again. A failure is logged once, and stays in the status as long as it lasts.
pub(super) async fn mend(server: &Server, status: &ServiceStatus) {
    for SocketStatus { address, fault } in server.repair_sockets().await {
        if status.trouble(&address, fault.as_deref())
            && let Some(fault) = fault
        {
            log::warn!("{fault}");
        }
    }
}
