//! The Unix sockets that are served: their files are looked after, because whoever removes one shuts everybody out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::admin::Board;
use crate::transport::{Server, SocketLook};

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Looks after the sockets for as long as the service runs.
pub(super) async fn keep(server: Arc<Server>, board: Arc<Board>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        look_after(&server, &board).await;
    }
}

/// Makes those again that are gone, and tells what cannot be mended: in the log once, on the board as long as it lasts.
pub(super) async fn look_after(server: &Server, board: &Board) {
    for SocketLook { address, fault } in server.mend_sockets().await {
        if board.trouble(&address, fault.as_deref())
            && let Some(fault) = fault
        {
            log::warn!("{fault}");
        }
    }
}
