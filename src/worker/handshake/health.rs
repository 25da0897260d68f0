//! Health checks of load balancers. Answered before hosts, users and handlers are looked at, and not in the access log.

use std::time::SystemTime;

use crate::http;
use crate::proto::http1::head::Head;
use crate::proto::ws::handshake::is_upgrade;
use crate::worker::handshake::Handshakes;

impl Handshakes {
    /// Answers a request that is a health check; whether it was one.
    pub fn answer_health_check(&self, id: u64, head: &Head) -> bool {
        let is_check = self.conns.config.health.as_deref() == Some(head.path()) && !is_upgrade(head);
        if is_check {
            self.conns.access_log.keep_out(id);
            self.conns.reply(id, http::health(head, self.scoreboard.is_ready(), SystemTime::now()));
        }
        is_check
    }
}
