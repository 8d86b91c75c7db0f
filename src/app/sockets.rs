//! Repairs the Unix sockets of the service: whoever removes the file of one shuts everybody out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::admin::Board;
use crate::transport::{Server, SocketLook};

/// How often sockets are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Repairs sockets for as long as the service runs.
pub(super) async fn keep(server: Arc<Server>, board: Arc<Board>) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        mend(&server, &board).await;
    }
}

/// Makes missing sockets again. A failure is logged once, and stays on the board as long as it lasts.
pub(super) async fn mend(server: &Server, board: &Board) {
    for SocketLook { address, fault } in server.mend_sockets().await {
        if board.trouble(&address, fault.as_deref())
            && let Some(fault) = fault
        {
            log::warn!("{fault}");
        }
    }
}
