//! Mending the Unix sockets that are served: whoever removes the file of one shuts everybody out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::admin::Board;
use crate::transport::{Server, SocketStatus};

/// How often sockets are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Mends sockets for as long as the service runs.
pub(super) async fn keep(server: Arc<Server>, board: Arc<Board>) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        mend(&server, &board).await;
    }
}

/// Makes sockets again that are gone. What cannot be mended is logged once, and stays on the board as long as it lasts.
pub(super) async fn mend(server: &Server, board: &Board) {
    for SocketStatus { address, fault } in server.repair_sockets().await {
        if board.trouble(&address, fault.as_deref())
            && let Some(fault) = fault
        {
            log::warn!("{fault}");
        }
    }
}
